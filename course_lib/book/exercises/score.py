"""Exercises of the chapter on Tweedie's formula and the score."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal

MEANS = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]], dtype=torch.float64)


def _at(scale: float) -> tuple[Callable[[Tensor], Tensor], Tensor, float, float]:
    """A case: the score of data at three points with noise, a place, signal and noise."""
    a, b = scale, 0.6

    def score(x: Tensor) -> Tensor:
        share = torch.softmax(-(x - a * MEANS).square().sum(1) / (2 * b**2), 0)
        return (share @ (a * MEANS) - x) / b**2

    return score, torch.tensor([0.2, -0.1], dtype=torch.float64), a, b


def _covariance(score: Callable[[Tensor], Tensor], x: Tensor, a: float, b: float) -> Tensor:
    """From the weights of the three points, not from the score."""
    share = torch.softmax(-(x - a * MEANS).square().sum(1) / (2 * b**2), 0)
    apart = MEANS - share @ MEANS
    return torch.einsum("k,ki,kj->ij", share, apart, apart)


def _bend(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(score, x)


def _step(x: Tensor, s: Tensor, f: Tensor, g: float, h: float, lam: float) -> Tensor:
    """The ODE's step, and Langevin's step with size λ² g² h / 2 added to it."""
    size = lam**2 * g**2 * h / 2
    ode = x - h * f + h * g**2 / 2 * s
    return torch.stack([ode + size * s, torch.full_like(x, (2 * size) ** 0.5)])


def _without(change: Callable[..., tuple[Tensor, float]]) -> Callable[..., Tensor]:
    def answer(x: Tensor, s: Tensor, f: Tensor, g: float, h: float, lam: float) -> Tensor:
        mean, deviation = change(x, s, f, g, h, lam)
        return torch.stack([mean, torch.full_like(x, deviation)])

    return answer


EYE = torch.eye(2, dtype=torch.float64)

EXERCISES = {
    "score-covariance": Exercise(
        reference=_covariance,
        cases=lambda: [_at(0.8), _at(0.3)],
        mistakes={
            "left out the identity": lambda score, x, a, b: b**4 / a**2 * _bend(score, x),
            "forgotten to divide by a²": lambda score, x, a, b: b**2 * (EYE + b**2 * _bend(score, x)),
            "taken a where a² belongs": lambda score, x, a, b: b**2 / a * (EYE + b**2 * _bend(score, x)),
            "forgotten the factor b² before the Jacobian": lambda score, x, a, b: (
                b**2 / a**2 * (EYE + _bend(score, x))
            ),
            "taken the product of the score with itself for the Jacobian": lambda score, x, a, b: (
                b**2 / a**2 * (EYE + b**2 * torch.outer(score(x), score(x)))
            ),
        },
    ),
    "score-step": Exercise(
        reference=_step,
        cases=lambda: [
            (normal(4, seed=0), normal(4, seed=1), normal(4, seed=2), 1.3, 0.05, 1.0),
            (normal(4, seed=3), normal(4, seed=4), normal(4, seed=5), 0.7, 0.2, 0.0),
            (normal(4, seed=6), normal(4, seed=7), normal(4, seed=8), 2.0, 0.01, 1.7),
        ],
        mistakes={
            "stepped forwards in time": _without(
                lambda x, s, f, g, h, lam: (x + h * (f - (1 + lam**2) / 2 * g**2 * s), lam * g * h**0.5)
            ),
            "scaled the noise with h and not with its root": _without(
                lambda x, s, f, g, h, lam: (x - h * (f - (1 + lam**2) / 2 * g**2 * s), lam * g * h)
            ),
            "taken the drift of Anderson's equation for every λ": _without(
                lambda x, s, f, g, h, lam: (x - h * (f - g**2 * s), lam * g * h**0.5)
            ),
            "taken the drift of the ODE for every λ": _without(
                lambda x, s, f, g, h, lam: (x - h * (f - g**2 * s / 2), lam * g * h**0.5)
            ),
            "taken λ where λ² belongs": _without(
                lambda x, s, f, g, h, lam: (x - h * (f - (1 + lam) / 2 * g**2 * s), lam * g * h**0.5)
            ),
        },
    ),
}
