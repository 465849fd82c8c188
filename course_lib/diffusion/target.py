r"""What a network may predict: linear combinations :math:`c_0\, x_0 + c_1\, \varepsilon`.

Together with :math:`x_t = a\, x_0 + b\, \varepsilon` a prediction is two equations for two unknowns, so
one prediction tells :math:`x_0`, :math:`\varepsilon` and every other target. The row of the score is
Tweedie's formula.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.diffusion.path import Path, per_sample


class Pair(NamedTuple):
    """Data and noise, each in the shape of :math:`x_t`."""

    x0: Tensor
    eps: Tensor


def _v(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    a, b = path.a(t), path.b(t)
    if ((a**2 + b**2 - 1).abs() > 1e-4).any():
        raise ValueError("target 'v' needs a variance-preserving path, with a² + b² = 1")
    return -b, a


TARGETS: dict[str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "x0": lambda path, t: (torch.ones_like(t), torch.zeros_like(t)),
    "eps": lambda path, t: (torch.zeros_like(t), torch.ones_like(t)),
    "score": lambda path, t: (torch.zeros_like(t), -1 / path.b(t)),
    "v": _v,  # Salimans and Ho, 2022, appendix D
    "velocity": lambda path, t: (path.da(t), path.db(t)),
}


def coefficients(target: str, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`c_0` and :math:`c_1` of a target, in the shape of t; refused where they are infinite."""
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {target!r}")
    c0, c1 = TARGETS[target](path, t)
    if not torch.isfinite(c0 + c1).all():
        raise ValueError(f"target {target!r} is infinite on this path at t = {_first(t, c0 + c1)}")
    return c0, c1


def combine(path: Path, target: str, pair: Pair, t: Tensor) -> Tensor:
    """The value of a target for data and noise (B, …) at times (B,) or (1,)."""
    c0, c1 = coefficients(target, path, per_sample(t, pair.x0))
    return c0 * pair.x0 + c1 * pair.eps


def split(path: Path, target: str, prediction: Tensor, xt: Tensor, t: Tensor) -> Pair:
    """Data and noise that a prediction (B, …) of a target implies, given :math:`x_t` (B, …).

    The times t are (B,), or one for all, (1,).

    Raises:
        ValueError: shapes differ, the target is unknown, or it does not tell data and noise apart at
            one of the times: ``"eps"`` where a = 0, ``"x0"`` where b = 0.
    """
    if prediction.shape != xt.shape:
        raise ValueError(
            f"prediction must have the shape of xt, {tuple(xt.shape)}; got {tuple(prediction.shape)}"
        )
    t = per_sample(t, xt)
    a, b = path.a(t), path.b(t)
    c0, c1 = coefficients(target, path, t)
    determinant = a * c1 - b * c0
    if (determinant == 0).any():
        at = _first(t, 1 / determinant)
        raise ValueError(f"target {target!r} does not tell x0 and eps apart on this path at t = {at}")
    return Pair((c1 * xt - b * prediction) / determinant, (a * prediction - c0 * xt) / determinant)


def convert(path: Path, source: str, target: str, prediction: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """A prediction of one target as a prediction of another."""
    return combine(path, target, split(path, source, prediction, xt, t), t)


def _first(t: Tensor, value: Tensor) -> float:
    """The first time at which a value is not finite."""
    return t[~torch.isfinite(value)].flatten()[0].item()
