"""Exercises of the chapter on the arena."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal


def _bound(*, sign: int = 1, correction: int = 1, root: bool = True, pairs: bool = True) -> Callable:
    def answer(a: Tensor, b: Tensor, t: float) -> Tensor:
        d, n = sign * (b - a), len(a)
        spread = d.std(correction=correction) if pairs else (a.var() + b.var()).sqrt()
        return d.mean() - t * spread / (n**0.5 if root else 1)

    return answer


def _front(cost: Tensor, distance: Tensor) -> Tensor:
    """Entry by entry, from the definition."""
    kept = []
    for c, d in zip(cost.tolist(), distance.tolist(), strict=True):
        others = zip(cost.tolist(), distance.tolist(), strict=True)
        kept.append(not any(x <= c and y <= d and (x, y) != (c, d) for x, y in others))
    return torch.tensor(kept)


def _steps(cost: Tensor, distance: Tensor) -> Tensor:
    """Better in both: keeps an entry that is as costly as another, and worse."""
    worse = (cost < cost[:, None]) & (distance < distance[:, None])
    return ~worse.any(1)


def _itself(cost: Tensor, distance: Tensor) -> Tensor:
    worse = (cost <= cost[:, None]) & (distance <= distance[:, None])
    return ~worse.any(1)


def _nearest(*, middle: Callable = torch.median, inside: bool = False) -> Callable:
    def answer(x: Tensor, test: Tensor, train: Tensor) -> Tensor:
        to = lambda a, b: (a[:, None] - b).norm(dim=2).amin(1)
        own = to(test, train) if not inside else to(test, torch.cat([train, x]))
        return middle(to(x, train)) / middle(own)

    return answer


EXERCISES = {
    "arena-bound": Exercise(
        reference=_bound(),
        cases=lambda: [
            (normal(3), normal(3, seed=1) + 2, 2.92),
            (normal(10, seed=2), normal(10, seed=3) + normal(10, seed=2), 1.833),
        ],
        mistakes={
            "taken the difference the other way": _bound(sign=-1),
            "divided the variance by n instead of n - 1": _bound(correction=0),
            "forgotten the square root of n": _bound(root=False),
            "added the variances of both, as if they were not pairs": _bound(pairs=False),
        },
    ),
    "arena-front": Exercise(
        reference=_front,
        cases=lambda: [
            (torch.tensor([1.0, 2.0, 2.0, 5.0, 9.0, 9.0]), torch.tensor([4.0, 3.0, 3.5, 1.0, 1.0, 0.5])),
            (torch.tensor([3.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])),
        ],
        mistakes={
            "asked that another be better in both": _steps,
            "compared each entry with itself": _itself,
            "kept only the cheapest and the nearest": lambda cost, distance: (
                (cost == cost.min()) | (distance == distance.min())
            ),
        },
    ),
    "arena-nearest": Exercise(
        reference=_nearest(),
        cases=lambda: [
            (normal(7, 2), normal(9, 2, seed=1), normal(20, 2, seed=2)),
            (normal(5, 3, seed=3), normal(5, 3, seed=4), normal(8, 3, seed=5)),
        ],
        mistakes={
            "taken means: one sample far away moves them": _nearest(middle=torch.mean),
            "counted the samples among the training data": _nearest(inside=True),
        },
    ),
}
