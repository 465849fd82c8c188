r"""Gaussian paths :math:`x_t = a(t)\, x_0 + b(t)\, \varepsilon`, from data at t = 0 to noise at t = 1.

A path knows the signal a, the noise b and their derivatives, as functions of a tensor of times in [0, 1]. All
else follows from these. A table with T steps has the times n/T.
"""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARGIN = 1e-5  # training stays so far from t = 0 and t = 1, where a target or a weight may be infinite


class GaussianPath:
    """What all paths share. A path implements `a`, `b`, `da`, `db` and `time` for tensors of any shape.

    Its attributes of the names in `settings`, numbers or lists of them, say which one it is.

    >>> path, t = Linear(), torch.tensor(0.2)
    >>> path.a(t), path.b(t), path.sigma(t), path.time(path.sigma(t))
    (tensor(0.8000), tensor(0.2000), tensor(0.2500), tensor(0.2000))
    """

    settings: tuple[str, ...] = ()

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

    def time(self, sigma: Tensor) -> Tensor:
        r"""The time at which the noise is :math:`\sigma` times the signal: the inverse of `sigma`."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        r""":math:`\sigma = b / a`, the noise of :math:`x_t / a`: the time of Karras et al. (2022)."""
        return self.b(t) / self.a(t)

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

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """:math:`x_t` of data and noise of one shape (B, …) at a time, or at times (B,) or (1,).

        >>> Linear().mix(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.0, 0.5]))
        tensor([[1.0000, 1.0000, 1.0000],
                [0.5000, 0.5000, 0.5000]])
        """
        if x0.shape != eps.shape:
            raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}")
        t = self.expand(t, x0)
        return self.a(t) * x0 + self.b(t) * eps

    def times(self, u: Tensor) -> Tensor:
        """Times of training, evenly spread, from uniform numbers u in [0, 1)."""
        return u

    def inside(self, t: Tensor) -> Tensor:
        """The nearest times at which a network may be trained: not quite 0 and 1."""
        return t.clamp(MARGIN, 1 - MARGIN)

    def require(self, t: Tensor | float) -> None:
        """Refuse times, on the processor, at which the path is not defined."""
        t = np.asarray(t)
        if not np.all((t >= 0) & (t <= 1)):  # a NaN fails both
            raise ValueError(f"t must lie in [0, 1]; got {np.min(t)} to {np.max(t)}")

    def expand(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Times in the shape that multiplies samples x (B, …), in float32 at least.

        A number becomes (1, 1, …), times (B,) become (B, 1, …). What is no time of the path is refused, but
        not on a GPU, which would have to be waited for.
        """
        kind = torch.promote_types(x.dtype, torch.float32)
        if not isinstance(t, Tensor):
            if not torch.compiler.is_compiling():
                self.require(t)
            return torch.full((1,) * x.ndim, t, dtype=kind, device=x.device)
        if not t.is_floating_point() or t.shape not in ((len(x),), (1,), ()):
            raise ValueError(
                f"t must be floating-point times ({len(x)},), or one for all; got {t.dtype} {tuple(t.shape)}"
            )
        if t.device.type == "cpu" and not torch.compiler.is_compiling():
            with contextlib.suppress(RuntimeError):  # under torch.func there are no numbers to look at
                self.require(t.detach().to(kind).numpy())
        return t.to(x.device, kind).view(-1, *[1] * (x.ndim - 1))  # (B, 1, …) or (1, 1, …)

    def config(self) -> dict[str, Any]:
        """The path in plain values, for checkpoints."""
        return {"path": type(self).__name__} | {name: getattr(self, name) for name in self.settings}


class VP(GaussianPath):
    r"""Variance preserving, :math:`a = \exp(-\frac12 \int_0^t \beta)`, :math:`a^2 + b^2 = 1`.

    :math:`\beta(t)` rises linearly from `beta_min` to `beta_max` (Song et al., 2021, eq. 33).

    >>> path, t = VP(), torch.tensor([0.0, 0.5, 1.0])
    >>> bool(torch.allclose(path.a(t) ** 2 + path.b(t) ** 2, torch.ones(3)))
    True
    """

    settings = ("beta_min", "beta_max")

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"beta_min must be positive and at most beta_max; got {beta_min}, {beta_max}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

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

    def time(self, sigma: Tensor) -> Tensor:
        whole = torch.log1p(sigma**2)  # the integral of β from 0 to t, a quadratic in t
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * whole).sqrt()
        return 2 * whole / (self.beta_min + root)


class Cosine(GaussianPath):
    r""":math:`a = \cos(\pi t/2)`, :math:`b = \sin(\pi t/2)`: also variance preserving.

    >>> Cosine().a(torch.tensor([0.0, 1.0])).tolist()
    [1.0, 0.0]
    """

    def a(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1

    def b(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def da(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.b(t)

    def db(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.a(t)

    def time(self, sigma: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(sigma)


class Linear(GaussianPath):
    """a = 1 − t, b = t: the path of rectified flow and of flow matching with optimal transport.

    >>> Linear().a(torch.tensor([0.0, 0.25, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """

    def a(self, t: Tensor) -> Tensor:
        return 1 - t

    def b(self, t: Tensor) -> Tensor:
        return t

    def da(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def db(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + 1 / sigma)  # σ / (1 + σ), also where σ is infinite


class VE(GaussianPath):
    r"""Variance exploding, a = 1 and :math:`b^2 = \sigma(t)^2 - \sigma(0)^2` (Song et al., 2021, eq. 30).

    :math:`\sigma(t) = \sigma_{\min} (\sigma_{\max} / \sigma_{\min})^t`. The end is not a standard normal,
    but nearly :math:`\mathcal N(0, b(1)^2 I)`.

    >>> round(VE(0.01, 50.0).b(torch.tensor(1.0)).item(), 2)
    50.0
    """

    settings = ("sigma_min", "sigma_max")

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min must be positive and below sigma_max; got {sigma_min}, {sigma_max}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.rate = math.log(sigma_max / sigma_min)

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

    def time(self, sigma: Tensor) -> Tensor:
        return torch.log1p((sigma / self.sigma_min) ** 2) / (2 * self.rate)
