"""Refusals of bad input: a `ValueError` that names the argument, says what is wanted, and what came."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def require_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is not an integer of at least `least`."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def require_weight(name: str, value: float) -> float:
    """Refuse what is not a finite number of at least 0."""
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number, at least 0 and finite; got {value!r}")
    return value


def require_sizes(name: str, x: Tensor, *sizes: int | str) -> None:
    """Refuse what is not a floating-point tensor with these sizes; a letter stands for any but 0."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor; got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if not _fits(x, sizes):
        wanted = ", ".join(map(str, sizes)) + ("," if len(sizes) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), none of them 0; got {tuple(x.shape)}")


def require_values(name: str, x: Tensor, *sizes: int | str) -> None:
    """Refuse what is not a finite floating-point tensor with these sizes; a letter stands for any but 0."""
    require_sizes(name, x, *sizes)
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")


def require_points(name: str, x: Tensor) -> None:
    """Refuse what is not a set of points (N, D), float32 or float64 and finite; says which rows are not."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be a float32 or float64 tensor; got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have two dimensions, neither empty; got shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        rows = (~torch.isfinite(x)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite; {len(rows)} rows are not, the first is row {rows[0]}")


def require_images(name: str, x: Tensor, shape: Sequence[int | str] = ("C", "H", "W")) -> None:
    """Refuse what is not a batch of images (B, C, H, W) in [-1, 1].

    `shape` is the (C, H, W) wanted, or the (B, C, H, W); a letter stands for any but 0.
    """
    sizes = ("B", *shape)[-4:]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor; got {getattr(x, 'dtype', type(x))}")
    if not _fits(x, sizes):
        wanted = f"({', '.join(map(str, sizes))})" + (" with B at least 1" if sizes[0] == "B" else "")
        raise ValueError(f"{name} must have shape {wanted}; got {tuple(x.shape)}")
    low, high = x.aminmax()
    if not (low >= -1 and high <= 1):  # a NaN fails both
        raise ValueError(f"{name} must lie in [-1, 1]; got values from {low:g} to {high:g}")


def require_covariance(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (D,), rising and at least 0, and eigenvectors (D, D) of a covariance (D, D).

    Refuse what is not a finite symmetric matrix without negative eigenvalues, beyond rounding.
    """
    require_values(name, matrix, "D", "D")
    scale = matrix.abs().max()
    if (matrix - matrix.T).abs().max() > 1e-5 * scale:
        raise ValueError(f"{name} must be symmetric")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -1e-5 * scale:
        raise ValueError(f"{name} must have no negative eigenvalue; got {values[0]:g}")
    return values.clamp(min=0), vectors


def _fits(x: Tensor, sizes: Sequence[int | str]) -> bool:
    """Whether x has these sizes; a letter stands for any but 0, for the same one wherever it is."""
    letters = {}
    return len(x.shape) == len(sizes) and all(
        got == letters.setdefault(size, got) > 0 if isinstance(size, str) else got == size
        for got, size in zip(x.shape, sizes, strict=True)
    )
