"""Exercises of the chapter on DDPM and DDIM."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal


def _conditioned(x0: Tensor, xt: Tensor, bar_t: float, bar_s: float) -> Tensor:
    """By conditioning the Gaussian pair (x_s, x_t), given x_0, on x_t."""
    ratio = (bar_t / bar_s) ** 0.5
    covariance, variance = ratio * (1 - bar_s), 1 - bar_t
    mean = bar_s**0.5 * x0 + covariance / variance * (xt - bar_t**0.5 * x0)
    return torch.cat([mean, torch.tensor([1 - bar_s - covariance**2 / variance], dtype=x0.dtype)])


def _with_variance(variance: Callable[[float, float], float]) -> Callable[..., Tensor]:
    def answer(x0: Tensor, xt: Tensor, bar_t: float, bar_s: float) -> Tensor:
        right = _conditioned(x0, xt, bar_t, bar_s)
        return torch.cat([right[:-1], torch.tensor([variance(bar_t, bar_s)], dtype=x0.dtype)])

    return answer


def _ddim(xt: Tensor, eps: Tensor, bar_t: float, bar_s: float) -> Tensor:
    """By Euler's step of x / sqrt(alpha_bar)."""
    level = lambda bar: ((1 - bar) / bar) ** 0.5
    return bar_s**0.5 * (xt / bar_t**0.5 + (level(bar_s) - level(bar_t)) * eps)


EXERCISES = {
    "ddpm-posterior": Exercise(
        reference=_conditioned,
        cases=lambda: [
            (normal(5), normal(5, seed=1), 0.3, 0.5),
            (normal(3, seed=2), normal(3), 0.01, 0.9),
        ],
        mistakes={
            "forgotten the factor β in the variance": _with_variance(lambda t, s: (1 - s) / (1 - t)),
            "returned the variance of the forward step": _with_variance(lambda t, s: 1 - t / s),
            "returned the standard deviation": _with_variance(
                lambda t, s: ((1 - s) / (1 - t) * (1 - t / s)) ** 0.5
            ),
            "taken β as 1 minus ᾱ at t, and not between s and t": lambda x0, xt, t, s: torch.cat(
                [
                    (s**0.5 * (1 - t) * x0 + t**0.5 * (1 - s) * xt) / (1 - t),
                    torch.tensor([1 - s], dtype=x0.dtype),
                ]
            ),
            "forgotten the square root of ᾱ at s": lambda x0, xt, t, s: _conditioned(x0 * s**0.5, xt, t, s),
        },
    ),
    "ddpm-ddim": Exercise(
        reference=_ddim,
        cases=lambda: [(normal(4, 2), normal(4, 2, seed=3), t, s) for t, s in ((0.2, 0.6), (0.7, 0.05))],
        mistakes={
            "left out the noise of the new time": lambda x, e, t, s: (
                s**0.5 * (x - (1 - t) ** 0.5 * e) / t**0.5
            ),
            "taken ᾱ where its square root belongs": lambda x, e, t, s: (
                s * (x - (1 - t) * e) / t + (1 - s) * e
            ),
            "used the noise level of the old time twice": lambda x, e, t, s: (
                s**0.5 * (x - (1 - t) ** 0.5 * e) / t**0.5 + (1 - t) ** 0.5 * e
            ),
            "exchanged the two times": lambda x, e, t, s: _ddim(x, e, s, t),
        },
    ),
}
