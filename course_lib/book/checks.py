"""A labelled equation, verified: the notebooks' `check`."""

import sys
from typing import Any

import numpy as np
import torch


class CheckFailed(AssertionError):
    """Two computations of the same quantity disagree."""


def _array(label: str, name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{label}: {name} must be real numbers; got dtype {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{label}: {name} is empty, so the check could not fail")
    return array.astype(np.float64)


def say(line: str) -> None:
    """Print a line; where the console's encoding lacks a character, with something in its place."""
    try:
        print(line)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(line.replace("✓", "ok").encode(encoding, "replace").decode(encoding))


def check(
    label: str,
    got: Any,
    want: Any,
    *,
    by: str,
    rtol: float = 0.0,
    atol: float = 0.0,
    se: Any = None,
) -> None:
    r"""Verify that two computations of one quantity agree, and say so in one stable line.

    The line names the equation, the means and the tolerance, and no measured number, so
    that it is the same on every machine. `got` and `want` must come from different means:
    comparing a formula with itself proves nothing.

    Args:
        label: the equation's label in the text, such as ``eq-gmm-mean``.
        got: the claim, computed; any shape.
        want: the reference; the same shape as `got`, or one number.
        by: the means of the reference, such as ``"autograd"`` or ``"quadrature"``.
        rtol: relative tolerance: :math:`|got - want| \le atol + rtol\,|want|` everywhere.
        atol: absolute tolerance. With no tolerance at all the two must be equal.
        se: for a stochastic check, the standard error of ``got - want``; then they must
            agree within five of it, and `rtol` and `atol` stay zero.

    Raises:
        CheckFailed: they differ; the message says by how much and where.
        ValueError: shapes differ, something is empty, or the tolerance makes no sense.

    Examples:
        >>> check("eq-sum", sum(range(101)), 100 * 101 / 2, by="the formula")
        ✓ eq-sum | the formula | equal
    """
    a, b = _array(label, "got", got), _array(label, "want", want)
    if b.ndim and a.shape != b.shape:
        raise ValueError(f"{label}: got has shape {a.shape}, want has shape {b.shape}")
    if se is not None:
        if rtol or atol:
            raise ValueError(f"{label}: give either se or rtol and atol, not both")
        allowed = 5 * _array(label, "se", se)
        if not (np.isfinite(allowed).all() and (allowed > 0).all()):
            raise ValueError(f"{label}: se must be positive and finite; got {se}")
        said = "within 5 standard errors"
    else:
        if not (0 <= rtol < 1 and 0 <= atol < np.inf):
            raise ValueError(f"{label}: rtol must be in [0, 1) and atol in [0, inf)")
        allowed = atol + rtol * np.abs(b)
        parts = [f"{atol:g} absolute"] * (atol > 0) + [f"{rtol:g} relative"] * (rtol > 0)
        said = "within " + " + ".join(parts) if parts else "equal"
    error = np.abs(a - b)
    allowed = np.broadcast_to(allowed, error.shape)
    bad = ~((error <= allowed) & (error < np.inf))  # a NaN counts as bad, and so does an infinite want
    if bad.any():
        b = np.broadcast_to(b, a.shape)
        worst = np.unravel_index(np.where(bad, np.nan_to_num(error, nan=np.inf), -1).argmax(), a.shape)
        raise CheckFailed(
            f"{label} fails against {by}: {bad.sum()} of {bad.size} values differ; "
            f"the worst, at index {tuple(map(int, worst))}, is {a[worst]:.9g} where {b[worst]:.9g} "
            f"was wanted: off by {error[worst]:.3g}, allowed {allowed[worst]:.3g} ({said})"
        )
    say(f"✓ {label} | {by} | {said}")
