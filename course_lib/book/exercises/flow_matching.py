"""Exercises of the chapter on flow matching."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal


def _ours(u: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    """Euler's method in our own time, from 1 to 0."""
    for t in torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].tolist():
        x = x - u(x, t) / steps
    return x


def _paper(sign: float, flip: bool, shift: int = 0) -> Callable[..., Tensor]:
    def answer(u: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
        for k in range(steps):
            tau = (k + shift) / steps
            x = x + sign * u(x, 1 - tau if flip else tau) / steps
        return x

    return answer


def _bends(states: Tensor, times: Tensor) -> Tensor:
    """The mean square of the speed less the square of the mean speed."""
    total, span = 0.0, (times[0] - times[-1]).item()
    for i in range(len(times) - 1):
        gap = (times[i] - times[i + 1]).item()
        total = total + (states[i] - states[i + 1]).square().sum(1) / gap
    return total - (states[0] - states[-1]).square().sum(1) / span


def _speeds(states: Tensor, times: Tensor) -> Tensor:
    return states.diff(dim=0) / times.diff().view(-1, 1, 1)


def _mean(states: Tensor, times: Tensor) -> Tensor:
    return (states[-1] - states[0]) / (times[-1] - times[0])


def _integral(away: Tensor, times: Tensor) -> Tensor:
    return (away.square() * times.diff().abs().view(-1, 1, 1)).sum((0, 2))


EXERCISES = {
    "flow_matching-paper": Exercise(
        reference=_ours,
        cases=lambda: [
            (lambda x, t: (1 + t) * torch.sin(x) - t**2, normal(5, 2), 4),
            (lambda x, t: t * x + math.cos(3 * t), normal(3, 1, seed=3), 7),
        ],
        mistakes={
            "forgotten to change the sign": _paper(1.0, True),
            "forgotten to turn the time": _paper(-1.0, False),
            "forgotten both the sign and the time": _paper(1.0, False),
            "taken the velocity at the end of a step": _paper(-1.0, True, shift=1),
        },
    ),
    "flow_matching-straight": Exercise(
        reference=_bends,
        cases=lambda: [
            (normal(4, 3, 2).cumsum(0), torch.tensor([1.0, 0.8, 0.3, 0.0], dtype=torch.float64)),
            (normal(5, 2, 1, seed=4), torch.tensor([0.9, 0.7, 0.4, 0.2, 0.1], dtype=torch.float64)),
        ],
        mistakes={
            "counted all steps alike, however long": lambda states, times: (
                (_speeds(states, times) - _mean(states, times)).square().sum(2).mean(0)
            ),
            "forgotten to divide by the time between the first and the last state": lambda states, times: (
                _integral(_speeds(states, times) - (states[-1] - states[0]), times)
            ),
            "averaged over the coordinates, not summed": lambda states, times: (
                _bends(states, times) / states.shape[2]
            ),
            "used the differences of the states as velocities": lambda states, times: (
                (states.diff(dim=0) - (states[-1] - states[0])).square().sum((0, 2))
            ),
        },
    ),
}
