r"""What a decoder's output means: densities of images given parameters for each pixel.

Images lie in :math:`[-1, 1]`, and log-densities are those of x itself, in nats. The sums are taken in
float32 at least, whatever a network under autocast or in half precision returns. An image that a density
does not allow has the log-density :math:`-\infty`; nothing is read back from a GPU to find out.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.require import require_count
from course_lib.vae.normal import at_least_float32, inverse_deviation


def dequantize(x: Tensor, levels: int, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread each grey level over its cell: a uniform draw from a width of :math:`\Delta = 2/levels`.

    A density of these bounds the mass of the levels from below (Theis et al., 2016, eq. 1).

    Args:
        x: images (B, C, H, W), whose values are the `levels` equally spaced from -1 to 1. Any other value
            becomes NaN, so that no number computed from it passes for a right one.
        levels: at least 2.
        generator: randomness, on x's device.

    Returns:
        Values in [-1, 1], in float32 at least, as half precision has too few between two levels.

    Examples:
        >>> x = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)  # three levels, cells of width 2/3
        >>> y = dequantize(x, 3, generator=torch.Generator().manual_seed(0))
        >>> ((y + 1) / (2 / 3)).floor().flatten()  # the cell each came from
        tensor([0., 1., 2.])
    """
    require_count("levels", levels, 2)
    stored, x = torch.finfo(x.dtype).eps, at_least_float32(x)
    place = (x + 1) / 2 * (levels - 1)
    level = place.round()
    rounding = levels * (stored / 8 + torch.finfo(x.dtype).eps)  # of a level as it came, and of its place
    known = ((place - level).abs() <= max(1e-3, rounding)) & (level >= 0) & (level < levels)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    spread = (2 * (level + noise) / levels - 1).clamp(max=1)
    return torch.where(known, spread, math.nan)


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    r"""Turn log-densities of dequantized images, in nats, into bits per value of the image.

    :math:`-\log p / (D \log 2) - \log_2 \Delta`, with the width :math:`\Delta = 2/levels` of a cell.
    Given a bound on the log-density it returns a bound, from above.

    Examples:
        >>> uniform = torch.tensor(-64 * math.log(2.0))  # the density 1/2 for each of 64 pixels in [-1, 1]
        >>> bits_per_dim(uniform, 64, 256)
        tensor(8.)
    """
    return -log_prob / (dims * math.log(2)) + math.log2(levels / 2)


def _alike(params: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type of x, float32 at least. Refuses what would be broadcast and summed silently."""
    if params.shape != x.shape:
        raise ValueError(f"params must have the shape of x, {tuple(x.shape)}; got {tuple(params.shape)}")
    x = at_least_float32(x)
    return params.to(x.dtype), x


class Bernoulli(nn.Module):
    r"""Pixels that are -1 or 1, with :math:`p(x = 1) = \operatorname{sigmoid}(\ell)`; params: the logits.

    Examples:
        >>> x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
        >>> Bernoulli().log_prob(torch.zeros(2, 1, 1, 1), x).exp()
        tensor([0.5000, 0.5000])
        >>> Bernoulli().log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.3))  # grey has no mass
        tensor([-inf])
    """

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-mass of black-and-white images, summed over the pixels. Returns (B,)."""
        logits, x = _alike(params, x)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="none")
        return torch.where(x.abs() == 1, -cross_entropy, -math.inf).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """In [-1, 1]."""
        return 2 * torch.sigmoid(params) - 1

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Black and white: -1 and 1."""
        return 2 * torch.bernoulli(torch.sigmoid(params), generator=generator) - 1


class ContinuousBernoulli(nn.Module):
    r"""Grey pixels with density :math:`p(x) \propto e^{\ell x / 2}` on :math:`[-1, 1]`; params: the logits.

    With :math:`y = (x + 1)/2` and :math:`\lambda = \operatorname{sigmoid}(\ell)` it is the density
    proportional to :math:`\lambda^y (1 - \lambda)^{1 - y}` (Loaiza-Ganem and Cunningham, 2019, eq. 6).

    Examples:
        >>> logits, white = torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1, 1), torch.ones(3, 1, 1, 1)
        >>> ContinuousBernoulli().log_prob(logits, white).exp()  # at 0 the density is uniform
        tensor([0.1565, 0.5000, 1.1565])
        >>> ContinuousBernoulli().mean(logits).flatten()
        tensor([-0.3130,  0.0000,  0.3130])
    """

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        r"""Log-density, summed over the pixels: :math:`ax - \log(\sinh(a)/a) - \log 2`, :math:`a = \ell/2`.

        Returns (B,).
        """
        logits, x = _alike(params, x)
        a = logits / 2
        near = a.abs() < 0.1
        # Each branch sees only its own arguments, so that the other's gradient is never NaN.
        h, s = torch.where(near, 1.0, a.abs()), torch.where(near, a, 0.0)
        series = s**2 / 6 - s**4 / 180 + s**6 / 2835 - s**8 / 37800 + s**10 / 467775  # of log(sinh(s)/s)
        # e^h in both terms is left out of both: beside it the rest would be rounded away
        far = h * (a.sign() * x - 1) - torch.log1p(-torch.exp(-2 * h)) + torch.log(2 * h)
        density = torch.where(near, s * x - series, far) - math.log(2)
        return torch.where(x.abs() <= 1, density, -math.inf).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        r""":math:`\coth(\ell/2) - 2/\ell`, the Langevin function of half the logit."""
        half = at_least_float32(params) / 2
        near = half.abs() < 0.05
        h = torch.where(near, 1.0, half)
        return torch.where(near, half / 3 - half**3 / 45 + 2 * half**5 / 945, 1 / torch.tanh(h) - 1 / h)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of the distribution function."""
        params = at_least_float32(params)
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

    Examples:
        >>> x = torch.zeros(1, 1, 1, 2)
        >>> density = Gaussian(0.5).log_prob(x, x)
        >>> torch.allclose(density, -2 * torch.log(torch.tensor(0.5 * math.sqrt(2 * math.pi))))
        True
    """

    def __init__(self, sigma: float | Tensor = 1.0, *, learn: bool = True) -> None:
        super().__init__()
        sigma = torch.as_tensor(sigma, dtype=torch.get_default_dtype())
        if not ((sigma > 0) & (sigma < math.inf)).all():
            raise ValueError(f"sigma must be positive and finite; got {sigma}")
        self.log_sigma = nn.Parameter(sigma.log(), requires_grad=learn)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density, summed over the pixels. Returns (B,)."""
        means, x = _alike(params, x)
        log_sigma = self.log_sigma.to(x.dtype).expand(x.shape[1:])  # an error if it has another shape
        scaled = (x - means) * inverse_deviation(log_sigma)
        return (-(scaled**2) / 2 - log_sigma - math.log(2 * math.pi) / 2).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The params themselves."""
        return params

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """With its noise, so that values may leave [-1, 1]."""
        params = at_least_float32(params)
        noise = torch.randn(params.shape, generator=generator, dtype=params.dtype, device=params.device)
        return params + torch.exp(self.log_sigma.to(params.dtype)) * noise
