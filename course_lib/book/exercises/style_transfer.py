"""Exercises of the chapter on style transfer."""

import torch
from torch import Tensor

from course_lib.book.exercises import Exercise, normal


def _mask(places: int, seed: int = 0) -> Tensor:
    return torch.rand(places, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _region(f: Tensor, mask: Tensor) -> Tensor:
    """Place by place."""
    total = sum(m * torch.outer(column, column) for column, m in zip(f.T, mask, strict=True))
    return total / (len(f) * mask.sum())


def _layer(f: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """Place by place: w · (f/|f| - g/|g|)²."""
    pairs = zip(f.flatten(1).T, g.flatten(1).T, strict=True)
    each = [w @ (u / torch.linalg.vector_norm(u) - v / torch.linalg.vector_norm(v)) ** 2 for u, v in pairs]
    return torch.stack(each).mean()


EXERCISES = {
    "style_transfer-region": Exercise(
        reference=_region,
        cases=lambda: [
            (normal(4, 30), (_mask(30) > 0.5).double()),
            (normal(3, 20, seed=1), _mask(20, seed=2)),
        ],
        mistakes={
            "divided by all places, not by those of the region": lambda f, m: (f * m) @ f.T / f.numel(),
            "forgotten to divide by C": lambda f, m: (f * m) @ f.T / m.sum(),
            "not divided at all": lambda f, m: (f * m) @ f.T,
            "ignored the mask": lambda f, m: f @ f.T / f.numel(),
            "weighed both factors, which squares the weights": lambda f, m: (
                (f * m) @ (f * m).T / (len(f) * m.sum())
            ),
        },
    ),
    "style_transfer-lpips": Exercise(
        reference=_layer,
        cases=lambda: [
            (normal(5, 4, 6, seed=seed), normal(5, 4, 6, seed=seed + 1), _mask(5, seed=seed))
            for seed in (3, 5)
        ],
        mistakes={
            "not divided the features by their lengths": lambda f, g, w: (
                (w[:, None, None] * (f - g) ** 2).sum(0).mean()
            ),
            "squared the weights": lambda f, g, w: _layer(f, g, w**2),
            "taken the mean over the features too, where they are summed": lambda f, g, w: (
                _layer(f, g, w) / len(f)
            ),
            "summed over places, where the mean is taken": lambda f, g, w: _layer(f, g, w) * f[0].numel(),
            "divided by the length over places, not over features": lambda f, g, w: (
                (
                    w[:, None, None]
                    * (f / f.norm(dim=(1, 2), keepdim=True) - g / g.norm(dim=(1, 2), keepdim=True)) ** 2
                )
                .sum(0)
                .mean()
            ),
        },
    ),
}
