r"""Variational autoencoders: plain, conditional and hierarchical.

A model is put together from networks and a likelihood. Called with images it returns the ELBO and its
two terms, image by image, from one draw of the latent; `loss`, to train on, is minus its mean. An encoder
returns means and log-variances side by side, (B, 2 D_z).

Networks get their input in the type of their weights, and latents, divergences and densities are computed
in float32 at least: so models in bfloat16, or under autocast, are trained on right numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.require import require_images
from course_lib.vae.normal import (
    at_least_float32,
    kl_to_standard_normal,
    log_normal,
    log_standard_normal,
    reparameterize,
)
from course_lib.vae.pixels import Bernoulli, ContinuousBernoulli, Gaussian

Likelihood = Bernoulli | ContinuousBernoulli | Gaussian


class Elbo(NamedTuple):
    """The evidence lower bound of each image and its two terms, (B,) each, in nats.

    ``elbo = reconstruction - kl``: the log-likelihood at the drawn latent, and the divergence of the
    encoder from the prior.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor


def _apply(net: nn.Module, x: Tensor) -> Tensor:
    """The network's output, in float32 at least, of an input in the type of its weights."""
    weight = next(net.parameters(), x)
    return at_least_float32(net(x.to(weight.dtype)))


def _statistics(net: nn.Module, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A network's output (B, 2 D) as means and log-variances, (B, D) each."""
    mean, log_var = _apply(net, x).unflatten(1, (2, dim)).unbind(1)  # (B, 2 D) to (B, 2, D)
    return mean, log_var


def _noise(model: nn.Module, n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    weight = next(model.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.randn(n, dim, generator=generator, dtype=dtype, device=weight.device)


class VAE(nn.Module):
    r"""A variational autoencoder (Kingma and Welling, 2014) with the prior :math:`\mathcal N(0, I)`.

    Args:
        encoder: maps images (B, C, H, W) to the means and log-variances of
            :math:`q_\phi(z \mid x)`, (B, 2 D_z).
        decoder: maps latents (B, D_z) to the parameters of :math:`p_\theta(x \mid z)`, (B, C, H, W).
        likelihood: what these parameters mean.
        latent_dim: :math:`D_z`.

    The methods take `given`, what the model is conditioned on: nothing here, labels in `ConditionalVAE`.

    Examples:
        >>> from course_lib.nets.mlp import mlp
        >>> encoder = nn.Sequential(nn.Flatten(), mlp(64, 32, 2 * 3))
        >>> decoder = nn.Sequential(mlp(3, 32, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> model = VAE(encoder, decoder, Gaussian(0.5), latent_dim=3)
        >>> x = 2 * torch.rand(10, 1, 8, 8) - 1
        >>> model(x).elbo.shape, model.loss(x).shape, model.encode(x)[0].shape, model.sample(5).shape
        (torch.Size([10]), torch.Size([]), torch.Size([10, 3]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, *, latent_dim: int
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim = latent_dim

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the approximate posterior, (B, D_z) each."""
        return _statistics(self.encoder, x, self.latent_dim)

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of the likelihood at latents (B, D_z)."""
        return _apply(self.decoder, z)

    def forward(self, x: Tensor, *given: Tensor, generator: torch.Generator | None = None) -> Elbo:
        """The ELBO of each image, from one draw of the latent; the KL term is exact."""
        mean, log_var = self.encode(x, *given)
        z = reparameterize(mean, log_var, generator=generator)
        reconstruction = self.likelihood.log_prob(self.decode(z, *given), x)
        kl = kl_to_standard_normal(mean, log_var)
        return Elbo(reconstruction - kl, reconstruction, kl)

    def loss(self, x: Tensor, *given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Minus the mean ELBO of a batch, in nats per image."""
        return -self(x, *given, generator=generator).elbo.mean()

    def log_weight(self, x: Tensor, *given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""One draw of :math:`\log p_\theta(x, z) - \log q_\phi(z \mid x)`, (B,): its mean is the ELBO."""
        mean, log_var = self.encode(x, *given)
        z = reparameterize(mean, log_var, generator=generator)
        joint = self.likelihood.log_prob(self.decode(z, *given), x) + log_standard_normal(z)
        return joint - log_normal(z, mean, log_var)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *given: Tensor) -> Tensor:
        """The decoder's mean at the encoder's mean, (B, C, H, W)."""
        return self.likelihood.mean(self.decode(self.encode(x, *given)[0], *given))

    @torch.no_grad()
    def sample(self, n: int, *given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The decoder's means at `n` latents from the prior, (n, C, H, W): images without pixel noise."""
        return self.likelihood.mean(self.decode(_noise(self, n, self.latent_dim, generator), *given))


class ConditionalVAE(VAE):
    r"""A VAE of images given their class (Sohn et al., 2015); the prior does not depend on the class.

    The encoder sees the class as `classes` more channels, one of which holds ones and the others zeros:
    (B, C + classes, H, W). The decoder sees it one-hot behind the latent: (B, D_z + classes).

    Examples:
        >>> from course_lib.nets.mlp import mlp
        >>> encoder = nn.Sequential(nn.Flatten(), mlp(64 * (1 + 10), 32, 2 * 3))
        >>> decoder = nn.Sequential(mlp(3 + 10, 32, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> model = ConditionalVAE(encoder, decoder, Gaussian(0.5), latent_dim=3, classes=10)
        >>> x, y = 2 * torch.rand(10, 1, 8, 8) - 1, torch.arange(10)
        >>> model.loss(x, y).shape, model.sample(10, y).shape
        (torch.Size([]), torch.Size([10, 1, 8, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        latent_dim: int,
        classes: int,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, latent_dim=latent_dim)
        self.classes = classes

    def _one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        """Labels (B,) as zeros and ones, (B, classes)."""
        return F.embedding(y, torch.eye(self.classes, dtype=like.dtype, device=like.device))

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the approximate posterior given labels (B,), (B, D_z) each."""
        planes = self._one_hot(y, x)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, classes, H, W)
        return super().encode(torch.cat([x, planes], 1))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The parameters of the likelihood at latents (B, D_z), for labels (B,)."""
        return super().decode(torch.cat([z, self._one_hot(y, z)], 1))


class HierarchicalVAE(nn.Module):
    r"""A Markovian hierarchical VAE, whose latents :math:`z_L \to \dots \to z_1 \to x` form a chain.

    The model is :math:`p(z_L)\, p(z_{L-1} \mid z_L) \cdots p(z_1 \mid z_2)\, p(x \mid z_1)`, and the
    approximate posterior runs the other way, :math:`q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots`. All but
    :math:`p(z_L) = \mathcal N(0, I)` and :math:`p(x \mid z_1)` are diagonal Gaussians, learned.

    Args:
        encoders: ``encoders[0]`` maps images to means and log-variances of :math:`z_1`, (B, 2 D_1), and
            ``encoders[l]`` maps :math:`z_l` to those of :math:`z_{l+1}`.
        decoders: ``decoders[0]`` maps :math:`z_1` to the parameters of the likelihood, and
            ``decoders[l]`` maps :math:`z_{l+1}` to means and log-variances of :math:`z_l`.
        likelihood: what the parameters of the images mean.
        latent_dims: :math:`D_1, \dots, D_L`.

    Examples:
        >>> from course_lib.nets.mlp import mlp
        >>> encoders = [nn.Sequential(nn.Flatten(), mlp(64, 32, 2 * 4)), mlp(4, 16, 2 * 2)]
        >>> decoders = [nn.Sequential(mlp(4, 32, 64), nn.Unflatten(1, (1, 8, 8))), mlp(2, 16, 2 * 4)]
        >>> model = HierarchicalVAE(encoders, decoders, Gaussian(0.5), latent_dims=(4, 2))
        >>> model(2 * torch.rand(10, 1, 8, 8) - 1).elbo.shape, model.sample(5).shape
        (torch.Size([10]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        likelihood: Likelihood,
        *,
        latent_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if not len(encoders) == len(decoders) == len(latent_dims) > 0:
            raise ValueError(
                "encoders, decoders and latent_dims must have one entry for each level; "
                f"got {len(encoders)}, {len(decoders)}, {len(latent_dims)}"
            )
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.likelihood, self.latent_dims = likelihood, tuple(latent_dims)

    def _below(self, level: int, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and log-variance of :math:`p(z_l \mid z_{l+1})`, for ``level`` l counted from 1."""
        return _statistics(self.decoders[level], z, self.latent_dims[level - 1])

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Elbo:
        """The ELBO of each image from one draw of all latents; its ``kl`` is a one-draw estimate too."""
        below, latents, log_q = x, [], 0.0
        for encoder, dim in zip(self.encoders, self.latent_dims, strict=True):
            mean, log_var = _statistics(encoder, below, dim)
            below = reparameterize(mean, log_var, generator=generator)
            log_q = log_q + log_normal(below, mean, log_var)
            latents.append(below)
        log_p = log_standard_normal(latents[-1])
        for level in range(1, len(latents)):
            log_p = log_p + log_normal(latents[level - 1], *self._below(level, latents[level]))
        reconstruction = self.likelihood.log_prob(_apply(self.decoders[0], latents[0]), x)
        return Elbo(reconstruction - (log_q - log_p), reconstruction, log_q - log_p)

    def loss(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Minus the mean ELBO of a batch, in nats per image."""
        return -self(x, generator=generator).elbo.mean()

    def log_weight(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        r"""One draw of :math:`\log p(x, z_{1:L}) - \log q(z_{1:L} \mid x)`, (B,)."""
        return self(x, generator=generator).elbo

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` times from the top down, and return the likelihood's means, (n, C, H, W)."""
        z = _noise(self, n, self.latent_dims[-1], generator)
        for level in range(len(self.latent_dims) - 1, 0, -1):
            z = reparameterize(*self._below(level, z), generator=generator)
        return self.likelihood.mean(_apply(self.decoders[0], z))


@torch.no_grad()
def importance_bound(
    model: VAE | HierarchicalVAE,
    x: Tensor,
    *given: Tensor,
    draws: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac1K \sum_k w_k` on the log-evidence, (B,), in nats.

    With K = `draws` weights for each image (Burda et al., 2016, eq. 8). Its mean rises with K towards
    :math:`\log p_\theta(x)`. The weights are added as they come, so memory does not grow with K.

    Raises:
        ValueError: x is no batch (B, C, H, W) in [-1, 1].

    Examples:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> decoder = nn.Sequential(nn.Linear(1, 4), nn.Unflatten(1, (1, 2, 2)))
        >>> model = VAE(encoder, decoder, Gaussian(), latent_dim=1)
        >>> importance_bound(model, torch.zeros(3, 1, 2, 2), draws=10).shape
        torch.Size([3])
    """
    require_images("x", x)
    largest = model.log_weight(x, *given, generator=generator)
    total = torch.ones_like(largest)  # of the weights, in units of the largest
    for _ in range(draws - 1):
        # A running logsumexp would round each time to the digits of a log-weight of a thousand nats, and
        # would stand still after some ten thousand draws.
        weight = model.log_weight(x, *given, generator=generator)
        before, largest = largest, torch.maximum(largest, weight).clamp(min=torch.finfo(weight.dtype).min)
        total = total * torch.exp(before - largest) + torch.exp(weight - largest)
    return largest + torch.log(total / draws)
