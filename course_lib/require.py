"""Refusals of bad input: a `ValueError` that names the argument, says what is wanted, and what came."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def require_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is not an integer of at least `least`."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def require_weight(name: str, value: float) -> None:
    """Refuse what is not a finite number of at least 0."""
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number, at least 0 and finite; got {value!r}")


def require_sizes(name: str, x: Tensor, *sizes: int | str) -> None:
    """Refuse what is not a floating-point tensor with these sizes; a letter stands for any but 0."""
    known: dict[str, int] = {}  # a letter is the same size wherever it is
    fits = isinstance(x, Tensor) and x.is_floating_point() and x.ndim == len(sizes)
    if not fits or any(
        n != (known.setdefault(s, n or -1) if isinstance(s, str) else s)
        for n, s in zip(x.shape, sizes, strict=True)
    ):
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be floating-point ({', '.join(map(str, sizes))}), none 0; got {got}")


def require_values(name: str, x: Tensor, *sizes: int | str) -> None:
    """Refuse what is not a finite floating-point tensor with these sizes; a letter stands for any but 0."""
    require_sizes(name, x, *sizes)
    if not (finite := torch.isfinite(x)).all():
        raise ValueError(
            f"{name} must be finite; the first that is not is at {finite.logical_not().nonzero()[0].tolist()}"
        )


def require_points(name: str, x: Tensor) -> None:
    """Refuse what is not a set of points (N, D), float32 or float64 and finite."""
    require_values(name, x, "N", "D")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64; got {x.dtype}")


def require_images(name: str, x: Tensor, shape: Sequence[int | str] = ("C", "H", "W")) -> None:
    """Refuse what is not a batch of images (B, C, H, W) in [-1, 1].

    `shape` is the (C, H, W) wanted, or the (B, C, H, W); a letter stands for any but 0.
    """
    require_sizes(name, x, *("B", *shape)[-4:])
    low, high = x.aminmax()
    if not (low >= -1 and high <= 1):  # a NaN fails both
        raise ValueError(f"{name} must lie in [-1, 1]; got values from {low:g} to {high:g}")


def require_covariance(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (D,), rising and at least 0, and eigenvectors (D, D) of a covariance (D, D).

    Refuse what is not a finite symmetric matrix without negative eigenvalues, beyond rounding.
    """
    require_values(name, matrix, "D", "D")
    slack = 1e-5 * matrix.abs().max()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if (matrix - matrix.T).abs().max() > slack or values[0] < -slack:
        raise ValueError(f"{name} must be symmetric without negative eigenvalues; the least is {values[0]:g}")
    return values.clamp(min=0), vectors
