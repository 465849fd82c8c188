r"""Losses of adversarial networks, and what keeps a discriminator tame.

All losses take **logits**: the discriminator's raw output l, which gives the probability
sigmoid(l) that its input is real. A Wasserstein critic's output is no logit, but has its place. Each
loss is a mean over the batch, in nats where it is a log-probability.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    r"""Minus the game's value: :math:`-\mathbb E[\log D(x)] - \mathbb E[\log(1 - D(G(z)))]`.

    Goodfellow et al. (2014), eq. 1. Softplus is :math:`\log(1 + e^l)`, and
    :math:`-\log \operatorname{sigmoid}(l)` is the softplus of :math:`-l`.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def saturating(fake: Tensor) -> Tensor:
    r"""The generator's part of the value: :math:`\mathbb E[\log(1 - D(G(z)))]` (Goodfellow et al., eq. 1)."""
    return -F.softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    r""":math:`-\mathbb E[\log D(G(z))]` (Goodfellow et al., section 3)."""
    return F.softplus(-fake).mean()


def critic(real: Tensor, fake: Tensor) -> Tensor:
    r"""Minus the Wasserstein dual's gap: :math:`\mathbb E[l(G(z))] - \mathbb E[l(x)]`.

    Arjovsky et al. (2017), eq. 3. It estimates a distance only where the critic's slope is kept at most 1.
    """
    return fake.mean() - real.mean()


def raise_output(fake: Tensor) -> Tensor:
    r""":math:`-\mathbb E[l(G(z))]`, the generator's loss of the Wasserstein and of the hinge GAN."""
    return -fake.mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    r""":math:`\mathbb E[\max(0, 1 - l(x))] + \mathbb E[\max(0, 1 + l(G(z)))]` (Miyato et al., 2018, eq. 16).

    Past 1, on the right side, a point has no influence.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def squares(real: Tensor, fake: Tensor) -> Tensor:
    r"""Half the squared distances to 1 for real, to 0 for fake (Mao et al., 2017, eq. 9)."""
    return (real - 1).square().mean() / 2 + fake.square().mean() / 2


def squares_generator(fake: Tensor) -> Tensor:
    r""":math:`\frac12 \mathbb E[(l(G(z)) - 1)^2]` (Mao et al., 2017, eq. 9)."""
    return (fake - 1).square().mean() / 2


class GANLoss(NamedTuple):
    """A game: ``discriminator(real, fake)`` and ``generator(fake)``, both to be made small.

    >>> real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0])
    >>> HINGE.discriminator(real, fake).item(), HINGE.generator(fake).item()
    (0.25, 3.0)
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


SATURATING = GANLoss(cross_entropy, saturating)
NON_SATURATING = GANLoss(cross_entropy, non_saturating)
WASSERSTEIN = GANLoss(critic, raise_output)
HINGE = GANLoss(hinge, raise_output)
LEAST_SQUARES = GANLoss(squares, squares_generator)


def slopes(discriminator: nn.Module, x: Tensor, *conditions: Tensor) -> Tensor:
    r"""Squared norms of :math:`\nabla_x l(x)` at each x, (B,), differentiable with respect to the weights.

    >>> slopes(lambda x: 3 * x[:, 0] + 4 * x[:, 1], torch.zeros(1, 2))
    tensor([25.])
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, *conditions).sum(), x, create_graph=True)
    return gradient.reshape(len(x), -1).square().sum(1)  # (B,)


def gradient_penalty(
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    *conditions: Tensor,
    weight: float = 10.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Weight times :math:`\mathbb E[(\lVert \nabla l(\hat x) \rVert - 1)^2]`.

    Gulrajani et al. (2017), eq. 3 and, for the weight, section 4. :math:`\hat x` lies uniformly on the
    segment between a real and a generated point; `generator`, on the processor, draws where.

    >>> x = torch.zeros(1, 2)
    >>> penalty = gradient_penalty(lambda x: 3 * x[:, 0] + 4 * x[:, 1], x, x)  # of a slope of 5
    >>> round(penalty.item(), 3)
    160.0
    """
    if fake.shape != real.shape:  # which would broadcast
        raise ValueError(f"fake must have the shape of real, {tuple(real.shape)}; got {tuple(fake.shape)}")
    share = torch.rand(len(real), *[1] * (real.ndim - 1), generator=generator).to(real)
    between = real + share * (fake - real)
    norms = (slopes(discriminator, between, *conditions) + 1e-12).sqrt()  # the root of zero has no slope
    return weight * (norms - 1).square().mean()


def r1(discriminator: nn.Module, real: Tensor, fake: Tensor, *conditions: Tensor, weight: float) -> Tensor:
    r"""Half the weight times :math:`\mathbb E[\lVert \nabla l(x) \rVert^2]` on real x.

    Mescheder et al. (2018), eq. 9, where the weight is :math:`\gamma`. `fake` is not used.

    >>> x = torch.zeros(1, 2)
    >>> r1(lambda x: 3 * x[:, 0] + 4 * x[:, 1], x, x, weight=0.1).item()
    1.25
    """
    return weight / 2 * slopes(discriminator, real, *conditions).mean()


def spectral(network: nn.Module) -> nn.Module:
    """Divide every linear, convolution and embedding weight by its spectral norm, in place.

    The norm is that of the weight as a matrix of one row for each output channel, estimated by one step of
    the power iteration in each forward pass in training (Miyato et al., 2018, algorithm 1).

    >>> layer = spectral(nn.Linear(3, 3))
    >>> for _ in range(100):
    ...     _ = layer(torch.zeros(1, 3))
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 3)
    1.0
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            spectral_norm(module)
    return network
