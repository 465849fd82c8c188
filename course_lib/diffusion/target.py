r"""What a network may predict: linear combinations :math:`c_0\, x_0 + c_1\, \varepsilon`.

Together with :math:`x_t = a\, x_0 + b\, \varepsilon` a prediction is two equations for two unknowns, so
one prediction tells :math:`x_0`, :math:`\varepsilon` and every other target. The row of the score is
Tweedie's formula.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.diffusion.path import GaussianPath


class Pair(NamedTuple):
    """Data and noise, each in the shape of :math:`x_t`."""

    x0: Tensor
    eps: Tensor


TARGETS: dict[str, Callable[[GaussianPath, Tensor], tuple[Tensor, Tensor]]] = {
    "x0": lambda path, t: (torch.ones_like(t), torch.zeros_like(t)),
    "eps": lambda path, t: (torch.zeros_like(t), torch.ones_like(t)),
    "score": lambda path, t: (torch.zeros_like(t), -1 / path.b(t)),
    "v": lambda path, t: (-path.b(t), path.a(t)),  # Salimans and Ho, 2022, appendix D; a² + b² = 1
    "velocity": lambda path, t: (path.da(t), path.db(t)),
}


def coefficients(target: str, path: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`c_0` and :math:`c_1` of a target, in the shape of t.

    Raises:
        ValueError: there is no such target, or it is ``"v"`` and the path does not preserve variance.

    >>> from course_lib.diffusion.path import Linear
    >>> coefficients("velocity", Linear(), torch.tensor(0.3))  # ε − x0
    (tensor(-1.), tensor(1.))
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {target!r}")
    if target == "v":
        middle = path.time(torch.ones((), dtype=torch.float64))  # where σ = 1: there a² = b²
        if abs(path.a(middle) ** 2 + path.b(middle) ** 2 - 1) > 1e-6:
            raise ValueError("target 'v' needs a variance-preserving path, with a² + b² = 1")
    return TARGETS[target](path, t)


def combine(path: GaussianPath, target: str, pair: Pair, t: Tensor | float) -> Tensor:
    """The value of a target for data and noise (B, …) at a time, or at times (B,).

    >>> from course_lib.diffusion.path import Linear
    >>> combine(Linear(), "velocity", Pair(torch.ones(1, 2), torch.zeros(1, 2)), 0.5)
    tensor([[-1., -1.]])
    """
    c0, c1 = coefficients(target, path, path.expand(t, pair.x0))
    return c0 * pair.x0 + c1 * pair.eps


def split(path: GaussianPath, target: str, prediction: Tensor, xt: Tensor, t: Tensor | float) -> Pair:
    """Data and noise that a prediction (B, …) of a target implies, given :math:`x_t` (B, …).

    Raises:
        ValueError: shapes differ, the target is unknown, or it does not tell data and noise apart at
            one of the times: ``"eps"`` where a = 0, ``"x0"`` where b = 0.

    >>> from course_lib.diffusion.path import Linear
    >>> split(Linear(), "velocity", torch.tensor([[-1.0]]), torch.tensor([[0.5]]), 0.5)
    Pair(x0=tensor([[1.]]), eps=tensor([[0.]]))
    """
    if prediction.shape != xt.shape:
        raise ValueError(
            f"prediction must have the shape of xt, {tuple(xt.shape)}; got {tuple(prediction.shape)}"
        )
    at = path.expand(t, xt)
    a, b, c = path.a(at), path.b(at), coefficients(target, path, at)
    require_apart(target, a, b, c, at)
    return solve(a, b, c, prediction, xt)


def solve(a: Tensor, b: Tensor, c: tuple[Tensor, Tensor], prediction: Tensor, xt: Tensor) -> Pair:
    """The two unknowns of a x0 + b ε = xt and c0 x0 + c1 ε = prediction."""
    c0, c1 = c
    determinant = a * c1 - b * c0
    a, b, c0, c1 = (v / determinant for v in (a, b, c0, c1))  # small ones first: it saves passes over images
    return Pair(c1 * xt - b * prediction, a * prediction - c0 * xt)


def require_apart(target: str, a: Tensor, b: Tensor, c: tuple[Tensor, Tensor], t: Tensor) -> None:
    """Refuse times at which a prediction is infinite, or does not tell data and noise apart."""
    determinant = a * c[1] - b * c[0]
    bad = ~torch.isfinite(determinant) | (determinant == 0)
    if bad.any():
        raise ValueError(
            f"target {target!r} is infinite, or does not tell x0 and eps apart, at t = {t[bad][0].item():g}"
        )


def convert(
    path: GaussianPath, source: str, target: str, prediction: Tensor, xt: Tensor, t: Tensor | float
) -> Tensor:
    """A prediction of one target as a prediction of another.

    >>> from course_lib.diffusion.path import Linear
    >>> xt, velocity = torch.tensor([[0.5]]), torch.tensor([[-1.0]])
    >>> convert(Linear(), "velocity", "x0", velocity, xt, 0.5)  # x0 = xt − t u
    tensor([[1.]])
    """
    return combine(path, target, split(path, source, prediction, xt, t), t)
