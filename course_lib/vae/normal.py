r"""Gaussians with a diagonal covariance: what a VAE's encoder says about a latent.

Given by means and log-variances, (B, D_z) each. Numbers are in nats, and in float32 at least.
"""

import math

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if its type has fewer digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_deviation(log_sigma: Tensor) -> Tensor:
    r""":math:`1/\sigma`, but never infinite: times a distance of 0 it must be 0, and infinity gives NaN."""
    return torch.exp(-log_sigma.clamp(min=1 - math.log(torch.finfo(log_sigma.dtype).max)))


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    r""":math:`\operatorname{KL}(\mathcal N(\mu, \operatorname{diag} \sigma^2) \Vert \mathcal N(0, I))`.

    mean, log_var: (B, D_z). Returns (B,), in nats (Kingma and Welling, 2014, appendix B), float32 at least.

    Examples:
        >>> kl_to_standard_normal(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.zeros(2, 2))
        tensor([ 0.0000, 12.5000])
    """
    mean, log_var = at_least_float32(mean), at_least_float32(log_var)
    # expm1(v) - v, where exp(v) - 1 - v would leave no digits for a latent that hardly says anything
    return 0.5 * (torch.expm1(log_var) - log_var + mean**2).sum(1)


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Log-density of :math:`\mathcal N(z \mid \mu, \operatorname{diag} \sigma^2)`, (B, D_z) to (B,).

    In float32 at least.

    Examples:
        >>> z = torch.zeros(1, 2)
        >>> log_normal(z, mean=z, log_var=z).exp()  # 1/(2 π)
        tensor([0.1592])
    """
    z, mean, log_var = at_least_float32(z), at_least_float32(mean), at_least_float32(log_var)
    scaled = (z - mean) * inverse_deviation(0.5 * log_var)
    return -0.5 * (scaled**2 + log_var + math.log(2 * math.pi)).sum(1)


def log_standard_normal(z: Tensor) -> Tensor:
    r"""Log-density of the prior :math:`\mathcal N(0, I)`, (B, D_z) to (B,), in float32 at least.

    Examples:
        >>> log_standard_normal(torch.zeros(1, 2)).exp()  # 1/(2 π)
        tensor([0.1592])
    """
    return -0.5 * (at_least_float32(z) ** 2 + math.log(2 * math.pi)).sum(1)


def reparameterize(mean: Tensor, log_var: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw :math:`z = \mu + \sigma \odot \varepsilon`, differentiable in :math:`\mu` and :math:`\sigma`.

    Examples:
        >>> mean, log_var = torch.full((1000, 1), 5.0), torch.full((1000, 1), -40.0)
        >>> reparameterize(mean, log_var).sub(5).abs().max() < 1e-6
        tensor(True)
    """
    eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + torch.exp(0.5 * log_var) * eps
