"""The refusals that all modules share: what is wanted passes, anything else is named."""

import math

import numpy as np
import pytest
import torch

from course_lib.require import (
    require_count,
    require_covariance,
    require_images,
    require_points,
    require_sizes,
    require_values,
    require_weight,
)


def test_counts():
    require_count("steps", 1)
    require_count("seed", 0, 0)
    for bad in (0, -1, 1.0, True, "1", None, math.nan):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1; got"):
            require_count("steps", bad)
    with pytest.raises(ValueError, match="levels must be an integer of at least 2; got 1"):
        require_count("levels", 1, 2)


def test_weights():
    for good in (0, 0.5, 3):
        require_weight("beta", good)
    for bad in (-1e-9, math.inf, math.nan, "1", None, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="beta must be a number, at least 0 and finite; got"):
            require_weight("beta", bad)


@pytest.mark.parametrize("x, got", [
    (np.zeros((2, 3, 4, 4)), "ndarray"),
    (None, "NoneType"),
    (torch.zeros(2, 3, 4, 4).int(), "torch.int32 (2, 3, 4, 4)"),
    (torch.zeros(2, 3, 4, 4) * 1j, "torch.complex64 (2, 3, 4, 4)"),
    (torch.zeros(3, 4, 4), "torch.float32 (3, 4, 4)"),
    (torch.zeros(2, 1, 4, 4), "torch.float32 (2, 1, 4, 4)"),
    (torch.zeros(0, 3, 4, 4), "torch.float32 (0, 3, 4, 4)"),
    (torch.zeros(2, 3, 4, 5), "torch.float32 (2, 3, 4, 5)"),  # one letter, one size
])  # fmt: skip
def test_values_and_sizes(x, got):
    for refuse in (require_sizes, require_values):
        refuse("f", torch.zeros(2, 3, 4, 4, dtype=torch.float16), "N", 3, "H", "H")
        with pytest.raises(ValueError) as refused:
            refuse("f", x, "N", 3, "H", "H")
        assert str(refused.value) == f"f must be floating-point (N, 3, H, H), none 0; got {got}"


def test_only_values_are_looked_at_for_nan():
    for bad in (math.nan, math.inf):
        require_sizes("f", torch.tensor([1.0, bad]), "N")
        with pytest.raises(ValueError, match=r"f must be finite; the first that is not is at \[1\]"):
            require_values("f", torch.tensor([1.0, bad]), "N")


def test_points():
    require_points("x", torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"x must be float32 or float64; got torch\.float16"):
        require_points("x", torch.zeros(3, 2).half())
    for bad in (torch.zeros(3), torch.zeros(3, 0), torch.tensor([[0.0], [math.nan]])):
        with pytest.raises(ValueError, match="x must be f"):
            require_points("x", bad)


def test_images():
    x = torch.rand(1, 3, 5, 7) * 2 - 1
    for shape in ((3, "H", "W"), (1, 3, "H", "W"), x.shape):
        require_images("x", x, shape)
    require_images("x", x)
    for bad in (torch.zeros(4), torch.zeros(1, 0, 8, 8), torch.zeros(1, 3, 8, 8).byte()):
        with pytest.raises(ValueError, match=r"x must be floating-point \(B, C, H, W\)"):
            require_images("x", bad)
    for value in (255.0, -1.01, math.nan):
        with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]; got values from"):
            require_images("x", torch.full((2, 1, 8, 8), value))


@pytest.mark.parametrize("seed", range(5))
def test_a_covariance_s_eigenvalues(seed):
    factor = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = factor @ factor.T  # of rank 3
    values, vectors = require_covariance("cov", matrix)
    want = np.append(0, np.linalg.svd(factor.numpy(), compute_uv=False)[::-1] ** 2)
    np.testing.assert_allclose(values, want, atol=1e-12)
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-12)
    assert (values >= 0).all()


@pytest.mark.parametrize("matrix, said", [
    (torch.eye(2)[:1], r"be floating-point \(D, D\)"),
    (torch.eye(2) * math.nan, "be finite"),
    (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "be symmetric"),
    (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "without negative eigenvalues; the least is -1"),
])  # fmt: skip
def test_no_covariance(matrix, said):
    with pytest.raises(ValueError, match=f"cov must .*{said}"):
        require_covariance("cov", matrix)
