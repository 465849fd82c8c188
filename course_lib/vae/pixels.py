r"""What a decoder's output means: densities of images given parameters for each pixel.

Images lie in :math:`[-1, 1]`, and log-densities are those of x itself, in nats. The sums are taken
in the type of x, whatever a network under autocast returns.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.require import require_count, require_images


def dequantize(x: Tensor, levels: int, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread each grey level over its cell: a uniform draw from a width of :math:`\Delta = 2/levels`.

    x: (B, C, H, W), whose values are the `levels` equally spaced from -1 to 1. Returns values in [-1, 1].
    A density of these bounds the mass of the levels from below (Theis et al., 2016, eq. 1).
    """
    require_images("x", x)
    require_count("levels", levels, 2)
    k = (x + 1) / 2 * (levels - 1)
    if ((k - k.round()).abs() > 1e-3).any():
        raise ValueError(f"x must hold {levels} equally spaced levels from -1 to 1; it holds others")
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (2 * (k.round() + noise) / levels - 1).clamp(max=1)


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    r"""Turn log-densities of dequantized images, in nats, into bits per value of the image.

    :math:`-\log p / (D \log 2) - \log_2 \Delta`, with the width :math:`\Delta = 2/levels` of a cell.
    Given a bound on the log-density it returns a bound, from above.
    """
    require_count("dims", dims)
    require_count("levels", levels, 2)
    return -log_prob / (dims * math.log(2)) + math.log2(levels / 2)


def _same_shape(params: Tensor, x: Tensor) -> Tensor:
    require_images("x", x)
    if params.shape != x.shape:
        raise ValueError(f"params must have the shape of x, {tuple(x.shape)}; got {tuple(params.shape)}")
    return params.to(x.dtype)


def _at_least_float32(params: Tensor) -> Tensor:
    return params.to(torch.promote_types(params.dtype, torch.float32))


class Bernoulli(nn.Module):
    r"""Pixels that are -1 or 1, with :math:`p(x = 1) = \operatorname{sigmoid}(\ell)`; params: the logits."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-mass of black-and-white images, summed over the pixels. Returns (B,)."""
        logits = _same_shape(params, x)
        if (x.abs() != 1).any():
            raise ValueError("x must be black and white, -1 and 1; grey values have no Bernoulli mass")
        cross_entropy = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="none")
        return -cross_entropy.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return 2 * torch.sigmoid(params) - 1

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return 2 * torch.bernoulli(torch.sigmoid(params), generator=generator) - 1


def _log_sinhc(a: Tensor) -> Tensor:
    r""":math:`\log(\sinh(a)/a)`, to full precision for any a."""
    near = a.abs() < 0.1
    # Each branch sees only its own arguments, so that the other's gradient is never NaN.
    h, s = torch.where(near, 1.0, a.abs()), torch.where(near, a, 0.0)
    series = s**2 / 6 - s**4 / 180 + s**6 / 2835 - s**8 / 37800 + s**10 / 467775
    return torch.where(near, series, h + torch.log1p(-torch.exp(-2 * h)) - torch.log(2 * h))


class ContinuousBernoulli(nn.Module):
    r"""Grey pixels with density :math:`p(x) \propto e^{\ell x / 2}` on :math:`[-1, 1]`; params: the logits.

    With :math:`y = (x + 1)/2` and :math:`\lambda = \operatorname{sigmoid}(\ell)` it is the density
    proportional to :math:`\lambda^y (1 - \lambda)^{1 - y}` (Loaiza-Ganem and Cunningham, 2019, eq. 6).
    """

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density, summed over the pixels. Returns (B,)."""
        half = _same_shape(params, x) / 2
        return (half * x - _log_sinhc(half) - math.log(2)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        r""":math:`\coth(\ell/2) - 2/\ell`, the Langevin function of half the logit."""
        half = _at_least_float32(params) / 2
        near = half.abs() < 0.05
        h = torch.where(near, 1.0, half)
        return torch.where(near, half / 3 - half**3 / 45 + 2 * half**5 / 945, 1 / torch.tanh(h) - 1 / h)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of the distribution function."""
        params = _at_least_float32(params)
        u = torch.rand(params.shape, generator=generator, dtype=params.dtype, device=params.device)
        near = params.abs() < 1e-3
        logit = torch.where(near, 1.0, params)
        # solve (e^{ly} - 1)/(e^l - 1) = u for y, from the end where the density is high
        size = logit.abs()
        y = 1 + torch.log(u + (1 - u) * torch.exp(-size)) / size
        x = 2 * torch.where(near, u, torch.where(logit > 0, y, 1 - y)) - 1
        return x.clamp(-1, 1)  # rounding, and the logarithm of a u that is 0


class Gaussian(nn.Module):
    r"""Pixels :math:`\mathcal N(x \mid \hat x, \sigma^2)`; params: the means.

    Args:
        sigma: the standard deviation, positive: one number, or a tensor that broadcasts to the images'
            (C, H, W).
        learn: whether training changes it; then `sigma` is where it starts.
    """

    def __init__(self, sigma: float | Tensor = 1.0, *, learn: bool = True) -> None:
        super().__init__()
        sigma = torch.as_tensor(sigma, dtype=torch.get_default_dtype())
        if not ((sigma > 0) & (sigma < math.inf)).all():
            raise ValueError(f"sigma must be positive and finite; got {sigma}")
        self.log_sigma = nn.Parameter(sigma.log(), requires_grad=learn)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density, summed over the pixels. Returns (B,)."""
        params = _same_shape(params, x)
        try:
            self.log_sigma.expand(x.shape[1:])
        except RuntimeError:
            shape = tuple(self.log_sigma.shape)
            raise ValueError(f"sigma of shape {shape} does not broadcast to {tuple(x.shape[1:])}") from None
        scaled = (x - params) * torch.exp(-self.log_sigma)
        return (-(scaled**2) / 2 - self.log_sigma - math.log(2 * math.pi) / 2).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """With its noise, so that values may leave [-1, 1]."""
        noise = torch.randn(params.shape, generator=generator, dtype=params.dtype, device=params.device)
        return params + torch.exp(self.log_sigma) * noise
