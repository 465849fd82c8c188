r"""Gaussian paths :math:`x_t = a(t)\, x_0 + b(t)\, \varepsilon`, from data at t = 0 to noise at t = 1.

A path knows the signal a, the noise b and their derivatives, as functions of a tensor of times. All
else follows from these. Times are real numbers in [0, 1]; a table with T steps has the times n/T.
"""

import math

import torch
from torch import Tensor

from course_lib.require import require_count


class Path:
    """What all paths share. A path implements `a`, `b`, `da` and `db` for times of any shape."""

    def a(self, t: Tensor) -> Tensor:
        """Signal."""
        raise NotImplementedError

    def b(self, t: Tensor) -> Tensor:
        """Noise, a standard deviation."""
        raise NotImplementedError

    def da(self, t: Tensor) -> Tensor:
        """Derivative of the signal by t."""
        raise NotImplementedError

    def db(self, t: Tensor) -> Tensor:
        """Derivative of the noise by t."""
        raise NotImplementedError

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """:math:`x_t` of data and noise of one shape (B, …) at times (B,) or (1,)."""
        if x0.shape != eps.shape:
            raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}")
        t = per_sample(t, x0)
        return self.a(t) * x0 + self.b(t) * eps

    def log_snr(self, t: Tensor) -> Tensor:
        r""":math:`\log (a^2 / b^2)`: infinite where there is no noise, minus infinity where no signal."""
        return 2 * (self.a(t).log() - self.b(t).log())

    def drift(self, t: Tensor) -> Tensor:
        r"""The factor :math:`a'/a` of the SDE :math:`dx = \frac{a'}{a} x\, dt + g\, dw` along the path."""
        return self.da(t) / self.a(t)

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Its coefficient g, with :math:`g^2 = 2 b b' - 2 b^2 a'/a` (Kingma et al., 2021, app. A)."""
        a, b = self.a(t), self.b(t)
        return (2 * b * (self.db(t) - self.da(t) / a * b)).clamp(min=0).sqrt()


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Times in the shape that multiplies samples (B, …), and in their type; refused outside [0, 1].

    Times (B,) become (B, 1, …), and one time for all samples, (1,), becomes (1, 1, …). A time that has that
    shape already, as in the walk of a sampler, is returned as it is.
    """
    if t.shape == (1,) * x.ndim and x.ndim > 1:
        return t
    if t.shape not in ((len(x),), (1,)):
        raise ValueError(
            f"t must have shape ({len(x)},), a time each, or (1,), one for all; got {tuple(t.shape)}"
        )
    low, high = t.aminmax()
    if not (low >= 0 and high <= 1):  # a NaN fails both
        raise ValueError(f"t must lie in [0, 1]; got {low} to {high}")
    return t.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class VP(Path):
    r"""Variance preserving, :math:`a = \exp(-\frac12 \int_0^t \beta)`, :math:`a^2 + b^2 = 1`.

    :math:`\beta(t)` rises linearly from `beta_min` to `beta_max` (Song et al., 2021, eq. 33).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"beta_min must be positive and at most beta_max; got {beta_min}, {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """The rate at which the variance is replaced."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _log_a(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def a(self, t: Tensor) -> Tensor:
        return self._log_a(t).exp()

    def b(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_a(t))).sqrt()  # no digits are lost near t = 0

    def diffusion(self, t: Tensor) -> Tensor:
        r""":math:`g = \sqrt{\beta}`, also at t = 0, where the general formula is 0·∞."""
        return self.beta(t).sqrt()

    def da(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t) * self.a(t)

    def db(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t) * self.a(t) ** 2 / self.b(t)


class Cosine(Path):
    r""":math:`a = \cos(\pi t/2)`, :math:`b = \sin(\pi t/2)`: also variance preserving."""

    def a(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1

    def b(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def da(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.b(t)

    def db(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.a(t)


class Linear(Path):
    """a = 1 − t, b = t: the path of rectified flow and of flow matching with optimal transport."""

    def a(self, t: Tensor) -> Tensor:
        return 1 - t

    def b(self, t: Tensor) -> Tensor:
        return t

    def da(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def db(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class VE(Path):
    r"""Variance exploding, a = 1 and :math:`b^2 = \sigma(t)^2 - \sigma(0)^2` (Song et al., 2021, eq. 30).

    :math:`\sigma(t) = \sigma_{\min} (\sigma_{\max} / \sigma_{\min})^t`. The end is not a standard normal,
    but nearly :math:`\mathcal N(0, b(1)^2 I)`.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min must be positive and below sigma_max; got {sigma_min}, {sigma_max}")
        self.sigma_min, self.rate = sigma_min, math.log(sigma_max / sigma_min)

    def a(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def b(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.expm1(2 * self.rate * t).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        r""":math:`g^2 = (b^2)'`, also at t = 0, where the general formula is 0·∞."""
        return self.sigma_min * math.sqrt(2 * self.rate) * torch.exp(self.rate * t)

    def da(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def db(self, t: Tensor) -> Tensor:
        return self.rate * self.sigma_min**2 * torch.exp(2 * self.rate * t) / self.b(t)


class Tabulated(Path):
    r"""A chain with T steps: :math:`a = \sqrt{\bar\alpha_n}`, :math:`b = \sqrt{1 - \bar\alpha_n}` at t = n/T.

    n runs from 0 to T, with :math:`\bar\alpha_0 = 1`. Between these times the path is not defined, and
    it has no derivatives.

    Args:
        betas: :math:`\beta_1, \dots, \beta_T`, each in (0, 1).
    """

    def __init__(self, betas: Tensor) -> None:
        if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) < 1:
            raise ValueError(f"betas must be a tensor (T,) with T at least 1; got {betas!r}")
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas must lie in (0, 1); got {betas.min()} to {betas.max()}")
        one = torch.ones(1, dtype=torch.float64)
        self.betas = torch.cat([0 * one, betas.double()])  # (T + 1,): index n is step n, as in the text
        self.alpha_bar = torch.cat([one, (1 - betas.double()).cumprod(0)])  # (T + 1,)
        self.T = len(betas)

    @classmethod
    def from_betas(cls, schedule: str = "linear", T: int = 1000) -> "Tabulated":
        r"""The two classic tables.

        ``"linear"``: :math:`\beta` from 1e-4 to 0.02 (Ho et al., 2020, section 4), scaled by 1000/T so
        that the noise at the end is that of their T = 1000. ``"cosine"``: :math:`\bar\alpha` follows a
        squared cosine, :math:`\beta` cut at 0.999 (Nichol and Dhariwal, 2021, eq. 17).
        """
        require_count("T", T)
        if schedule == "linear":
            if T < 21:
                raise ValueError(f"T must be at least 21 for the linear table, or beta reaches 1; got {T}")
            scale = 1000 / T
            return cls(torch.linspace(scale * 1e-4, scale * 0.02, T, dtype=torch.float64))
        if schedule == "cosine":
            n = torch.arange(T + 1, dtype=torch.float64) / T
            alpha_bar = torch.cos((n + 0.008) / 1.008 * math.pi / 2) ** 2
            return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))
        raise ValueError(f"schedule must be 'linear' or 'cosine'; got {schedule!r}")

    def index(self, t: Tensor) -> Tensor:
        """The step n of times n/T; refused between the steps."""
        n = t.double() * self.T
        if not ((n - n.round()).abs() < 1e-3).all() or n.min() < -0.5 or n.max() > self.T + 0.5:
            raise ValueError(f"t must be one of 0, 1/{self.T}, …, 1: this path is a table of {self.T} steps")
        return n.round().long()

    def _look_up(self, table: Tensor, t: Tensor) -> Tensor:
        return table.to(t.device)[self.index(t)].to(t.dtype)

    def a(self, t: Tensor) -> Tensor:
        return self._look_up(self.alpha_bar.sqrt(), t)

    def b(self, t: Tensor) -> Tensor:
        return self._look_up((1 - self.alpha_bar).sqrt(), t)

    def beta(self, t: Tensor) -> Tensor:
        r""":math:`\beta_n`, the variance that step n adds; 0 at n = 0."""
        return self._look_up(self.betas, t)

    def da(self, t: Tensor) -> Tensor:
        raise ValueError("path is a table, which has no derivatives; use VP or another continuous path")

    db = da
