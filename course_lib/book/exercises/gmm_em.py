"""Exercises of the chapter on Gaussian mixtures and EM."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal
from course_lib.mixture.em import fit, m_step


def _log_f_cases() -> list[tuple]:
    """Rows near 0, rows near -1000, and both together."""
    near, far = normal(5, 3), normal(5, 3) * 10 - 1000
    return [(near,), (far,), (torch.cat([near, far]),)]


def _points_and_responsibilities() -> list[tuple]:
    shapes = ((2, 3), (4, 2))
    return [(normal(30, d, seed=d) + 2, torch.softmax(normal(30, k, seed=k + 10), 1)) for d, k in shapes]


def _tied(x: Tensor, gamma: Tensor, *, means: Tensor | None = None) -> Tensor:
    means = gamma.T @ x / gamma.sum(0)[:, None] if means is None else means
    centred = x[:, None] - means
    return torch.einsum("nk,nki,nkj->ij", gamma, centred, centred)


def _plain_average(x: Tensor, gamma: Tensor) -> Tensor:
    return m_step(x, gamma, reg=0.0).covariances.mean(0)


def _bic(parameters: Callable[[int, int], int], sign: int = -2) -> Callable:
    return lambda log_likelihood, n, k, d: parameters(k, d) * math.log(n) + sign * log_likelihood


def _bic_of_fit(log_likelihood: Tensor, n: int, k: int, d: int) -> Tensor:
    """With the count of parameters that `fit` makes, on points that only serve to run it."""
    counted = fit(normal(20, d), k, covariance="diag", max_iter=1).n_parameters
    return counted * math.log(n) - 2 * log_likelihood


EXERCISES = {
    "gmm_em-responsibilities": Exercise(
        reference=lambda a: torch.softmax(a, 1),
        cases=_log_f_cases,
        mistakes={
            "exponentiated before taking the largest out: 0/0 is not a number": lambda a: (
                a.exp() / a.exp().sum(1, keepdim=True)
            ),
            "taken one largest entry for the whole array; take each row's own": lambda a: (
                (a - a.max()).exp() / (a - a.max()).exp().sum(1, keepdim=True)
            ),
            "summed over the points instead of the components": lambda a: torch.softmax(a, 0),
            "forgotten to exponentiate the result": lambda a: torch.log_softmax(a, 1),
            "forgotten to divide by the sum": lambda a: (a - a.amax(1, keepdim=True)).exp(),
        },
    ),
    "gmm_em-shared": Exercise(
        reference=lambda x, gamma: m_step(x, gamma, covariance="tied", reg=0.0).covariances[0],
        cases=_points_and_responsibilities,
        mistakes={
            "centred on the mean of all points, not on each component's": lambda x, gamma: (
                _tied(x, gamma, means=x.mean(0).expand(gamma.shape[1], -1)) / len(x)
            ),
            "averaged the components' covariances without their weights": _plain_average,
            "forgotten to divide by the number of points": _tied,
            "forgotten to subtract the means": lambda x, gamma: x.T @ x / len(x),
        },
    ),
    "gmm_em-bic": Exercise(
        reference=_bic_of_fit,
        cases=lambda: [(torch.tensor(-310.5), 100, 3, 2), (torch.tensor(-50.0), 40, 1, 5)],
        tolerance=1e-5,
        mistakes={
            "counted all K weights, but they sum to one": _bic(lambda k, d: k + 2 * k * d),
            "counted no weights": _bic(lambda k, d: 2 * k * d),
            "counted a full covariance's entries": _bic(lambda k, d: k - 1 + k * d + k * d * (d + 1) // 2),
            "counted one variance per component": _bic(lambda k, d: k - 1 + k * d + k),
            "forgotten the means": _bic(lambda k, d: k - 1 + k * d),
            "added twice the log-likelihood instead of subtracting it": _bic(
                lambda k, d: k - 1 + 2 * k * d, sign=2
            ),
        },
    ),
}
