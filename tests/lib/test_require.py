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
    assert [require_weight("beta", good) for good in (0, 0.5, 3)] == [0, 0.5, 3]
    for bad in (-1e-9, math.inf, math.nan, "1", None, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="beta must be a number, at least 0 and finite; got"):
            require_weight("beta", bad)


@pytest.mark.parametrize("x, said", [
    (np.zeros((2, 3, 4, 4)), "floating-point tensor; got float64"),
    ([0.0], "floating-point tensor; got list"),
    (None, "floating-point tensor; got NoneType"),
    (torch.zeros(2, 3, 4, 4).int(), "floating-point tensor; got torch.int32"),
    (torch.zeros(2, 3, 4, 4) * 1j, "floating-point tensor; got torch.complex64"),
    (torch.zeros(3, 4, 4), "shape (N, 3, H, H), none of them 0; got (3, 4, 4)"),
    (torch.zeros(2, 1, 4, 4), "shape (N, 3, H, H), none of them 0; got (2, 1, 4, 4)"),
    (torch.zeros(0, 3, 4, 4), "shape (N, 3, H, H), none of them 0; got (0, 3, 4, 4)"),
    (torch.zeros(2, 3, 4, 5), "shape (N, 3, H, H), none of them 0; got (2, 3, 4, 5)"),  # one letter, one size
])  # fmt: skip
def test_values_and_sizes(x, said):
    for refuse in (require_sizes, require_values):
        refuse("f", torch.zeros(2, 3, 4, 4, dtype=torch.float16), "N", 3, "H", "H")
        with pytest.raises(ValueError, match="f must") as refused:
            refuse("f", x, "N", 3, "H", "H")
        assert said in str(refused.value)


def test_only_values_are_looked_at_for_nan():
    for bad in (math.nan, math.inf):
        require_sizes("f", torch.tensor([1.0, bad]), "N")
        with pytest.raises(ValueError, match="f must be finite; got NaN or infinity"):
            require_values("f", torch.tensor([1.0, bad]), "N")
    with pytest.raises(ValueError, match=r"f must have shape \(N,\)"):
        require_values("f", torch.zeros(2, 2), "N")


@pytest.mark.parametrize("x, said", [
    (np.zeros((3, 2)), "float32 or float64 tensor; got float64"),
    (torch.zeros(3, 2).half(), "float32 or float64 tensor; got torch.float16"),
    (torch.zeros(3), "two dimensions, neither empty; got shape (3,)"),
    (torch.zeros(3, 0), "two dimensions, neither empty; got shape (3, 0)"),
    (torch.tensor([[0.0], [math.inf], [math.nan]]), "finite; 2 rows are not, the first is row 1"),
])  # fmt: skip
def test_points(x, said):
    require_points("x", torch.zeros(3, 2))
    with pytest.raises(ValueError, match="x must") as refused:
        require_points("x", x)
    assert said in str(refused.value)


@pytest.mark.parametrize("x, said", [
    (torch.zeros(2, 8, 8), "(B, 1, 8, 8) with B at least 1; got (2, 8, 8)"),
    (torch.zeros(2, 3, 8, 8), "(B, 1, 8, 8) with B at least 1; got (2, 3, 8, 8)"),
    (torch.zeros(0, 1, 8, 8), "(B, 1, 8, 8) with B at least 1; got (0, 1, 8, 8)"),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating-point tensor; got torch.uint8"),
    (np.zeros((2, 1, 8, 8)), "floating-point tensor; got float64"),
    (None, "floating-point tensor; got"),
    (torch.full((2, 1, 8, 8), 255.0), "[-1, 1]; got values from 255 to 255"),
    (torch.full((2, 1, 8, 8), -1.01), "[-1, 1]; got values from -1.01"),
    (torch.full((2, 1, 8, 8), float("nan")), "[-1, 1]; got values from nan"),
])  # fmt: skip
def test_images(x, said):
    with pytest.raises(ValueError, match="pixels must") as refused:
        require_images("pixels", x, (1, 8, 8))
    assert said in str(refused.value)


def test_images_may_have_any_shape_unless_told():
    x = torch.rand(1, 3, 5, 7) * 2 - 1
    require_images("x", x)
    require_images("x", x, (3, "H", "W"))
    require_images("x", x, (1, 3, "H", "W"))
    require_images("x", x, x.shape)
    for empty in (torch.zeros(4), torch.zeros(1, 0, 8, 8), torch.zeros(1, 3, 0, 4)):
        with pytest.raises(ValueError, match=r"x must have shape \(B, C, H, W\) with B at least 1; got"):
            require_images("x", empty)
    with pytest.raises(ValueError, match=r"x must have shape \(2, 3, H, W\); got \(1, 3, 5, 7\)"):
        require_images("x", x, (2, 3, "H", "W"))


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
    ([[1.0]], "floating-point tensor; got list"),
    (torch.eye(2)[:1], r"have shape \(D, D\).*got \(1, 2\)"),
    (torch.zeros(0, 0), r"have shape \(D, D\)"),
    (torch.eye(2) * math.nan, "be finite"),
    (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "be symmetric"),
    (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "have no negative eigenvalue; got -1"),
])  # fmt: skip
def test_no_covariance(matrix, said):
    with pytest.raises(ValueError, match=f"cov must .*{said}"):
        require_covariance("cov", matrix)
