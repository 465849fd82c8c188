r"""A path that is a table of T steps, as in DDPM: there are no times between them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.diffusion.path import GaussianPath


class Tabulated(GaussianPath):
    r"""A chain with T steps: :math:`a = \sqrt{\bar\alpha_n}`, :math:`b = \sqrt{1 - \bar\alpha_n}` at t = n/T.

    n runs from 0 to T, with :math:`\bar\alpha_0 = 1`. Between these times the path is not defined, and
    it has no derivatives.

    Args:
        betas: :math:`\beta_1, \dots, \beta_T`, each in (0, 1).

    >>> Tabulated([0.5, 0.25]).alpha_bar.tolist()  # of the steps 0, 1, 2
    [1.0, 0.5, 0.375]
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas must be numbers (T,) in (0, 1), at least one; got {betas}")
        one = torch.ones(1, dtype=torch.float64)
        self.betas = torch.cat([0 * one, betas])  # (T + 1,): index n is step n, as in the text
        self.alpha_bar = torch.cat([one, (1 - betas).cumprod(0)])  # (T + 1,)
        self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()  # (T + 1,)
        self.T = len(betas)
        self._there: dict[tuple, Tensor] = {}  # the tables, by device: copied once

    @classmethod
    def schedule(cls, name: str = "linear", T: int = 1000) -> "Tabulated":
        r"""The two classic tables.

        ``"linear"``: :math:`\beta` from 1e-4 to 0.02 (Ho et al., 2020, section 4), scaled by 1000/T so
        that the noise at the end is that of their T = 1000. ``"cosine"``: :math:`\bar\alpha` follows a
        squared cosine, :math:`\beta` cut at 0.999 (Nichol and Dhariwal, 2021, eq. 17).

        >>> round(Tabulated.schedule("linear", 1000).alpha_bar[-1].item(), 7)
        4.04e-05
        """
        if name == "linear":
            if T < 21:
                raise ValueError(f"T must be at least 21 for the linear table, or beta reaches 1; got {T}")
            scale = 1000 / T
            return cls(torch.linspace(scale * 1e-4, scale * 0.02, T, dtype=torch.float64))
        if name == "cosine":
            n = torch.arange(T + 1, dtype=torch.float64) / T
            alpha_bar = torch.cos((n + 0.008) / 1.008 * math.pi / 2) ** 2
            return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))
        raise ValueError(f"name must be 'linear' or 'cosine'; got {name!r}")

    def require(self, t: Tensor | float) -> None:
        super().require(t)
        n = np.asarray(t).astype(np.float64) * self.T
        slack = max(1e-3, 2e-7 * self.T)  # a time in float32 is off by 6e-8 of itself
        if not np.all(np.abs(n - n.round()) < slack):
            raise ValueError(f"t must be one of 0, 1/{self.T}, …, 1: this path is a table of {self.T} steps")

    def times(self, u: Tensor) -> Tensor:
        """The times 1/T, …, 1, each as likely."""
        return torch.floor(u * self.T).add(1) / self.T

    def inside(self, t: Tensor) -> Tensor:
        return (t * self.T).round().clamp(1, self.T) / self.T

    def index(self, t: Tensor) -> Tensor:
        """The step n of times n/T."""
        return (t * self.T).round().long()

    def look_up(self, name: str, t: Tensor) -> Tensor:
        """A table of the path, such as ``"betas"`` or ``"alpha_bar"``, at times."""
        key = name, t.device
        if key not in self._there:  # Apple's GPUs have no float64
            kind = torch.float32 if t.device.type == "mps" else torch.float64
            self._there[key] = getattr(self, name).to(t.device, kind)
        return self._there[key][self.index(t)]

    def a(self, t: Tensor) -> Tensor:
        return self.look_up("signal", t).to(t.dtype)

    def b(self, t: Tensor) -> Tensor:
        return self.look_up("noise", t).to(t.dtype)

    def beta(self, t: Tensor) -> Tensor:
        r""":math:`\beta_n`, the variance that step n adds; 0 at n = 0."""
        return self.look_up("betas", t).to(t.dtype)

    def da(self, t: Tensor) -> Tensor:
        raise ValueError("path is a table, which has no derivatives; use VP or another continuous path")

    db = da

    def time(self, sigma: Tensor) -> Tensor:
        known = (self.noise / self.signal).to(sigma)  # (T + 1,), rising
        above = torch.searchsorted(known, sigma).clamp(1, self.T)
        nearer = above - ((sigma - known[above - 1]) < (known[above] - sigma)).long()
        return nearer.to(sigma) / self.T

    def config(self) -> dict[str, Any]:
        return {"path": "Tabulated", "betas": self.betas[1:].tolist()}
