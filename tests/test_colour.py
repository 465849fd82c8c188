"""Colour maps, against NumPy, SciPy's matrix root, random rivals, and bad input."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.color import rgb2yiq

from course_lib.colour import colour_map, luminance, match_colours, moments, root, with_luminance

F64 = torch.float64


def covariance(seed):
    factor = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T + 0.05 * torch.eye(3, dtype=F64)


def image(seed, scale=0.2):
    g = torch.Generator().manual_seed(seed)
    mixed = torch.einsum(
        "ij,njhw->nihw", torch.randn(3, 3, generator=g), torch.rand(1, 3, 12, 9, generator=g) - 0.5
    )
    return (scale * mixed).clamp(-1, 1)


@pytest.mark.parametrize("method", ["monge", "cholesky"])
@pytest.mark.parametrize("seed", range(5))
def test_a_colour_map_gives_the_covariance(method, seed):
    source, target = covariance(seed), covariance(seed + 10)
    A = colour_map(source, target, method)
    torch.testing.assert_close(A @ source @ A.T, target)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_map_moves_colours_less(seed):
    source, target = covariance(seed), covariance(seed + 10)
    cost = lambda A: np.trace(A @ source.numpy() @ A.T + source.numpy() - 2 * A @ source.numpy())
    best = cost(colour_map(source, target).numpy())
    left, right = sqrtm(target.numpy()).real, np.linalg.inv(sqrtm(source.numpy()).real)
    for trial in range(50):
        Q = np.linalg.qr(np.random.default_rng(trial).normal(size=(3, 3)))[0]
        assert best <= cost(left @ Q @ right) + 1e-9


def test_root_is_scipy_s():
    matrix = covariance(3)
    np.testing.assert_allclose(root(matrix), sqrtm(matrix.numpy()).real, atol=1e-9)


def test_moments_are_numpy_s():
    x = image(0)
    flat = x[0].flatten(1).double().numpy()
    np.testing.assert_allclose(moments(x)[0], flat.mean(1))
    np.testing.assert_allclose(moments(x)[1], np.cov(flat, bias=True))


@pytest.mark.parametrize("method", ["monge", "cholesky"])
def test_match_colours_gives_the_moments(method):
    x, like = image(1), image(2, 0.1)
    found = moments(match_colours(x, like, method))
    for got, want in zip(found, moments(like), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_with_luminance_changes_luminance_alone():
    x, of = image(1, 0.1), image(2, 0.1)
    yiq = lambda i: rgb2yiq(i[0].permute(1, 2, 0).double().numpy())
    found = yiq(with_luminance(x, of))
    np.testing.assert_allclose(found[..., 0], yiq(of)[..., 0], atol=1e-6)
    np.testing.assert_allclose(found[..., 1:], yiq(x)[..., 1:], atol=1e-4)
    np.testing.assert_allclose(luminance(x)[0, 0], yiq(x)[..., 0], atol=1e-6)


@pytest.mark.parametrize("call, said", [
    (lambda: colour_map(covariance(0), covariance(1), "pca"), "method must be.*got 'pca'"),
    (lambda: match_colours(torch.zeros(1, 3, 4, 4), image(0)), "source must vary in every direction"),
    (lambda: match_colours(image(0).repeat(2, 1, 1, 1), image(0)), r"x must have shape \(1, 3, H, W\)"),
    (lambda: match_colours(image(0), image(0)[:, :1]), r"like must have shape \(1, 3, H, W\)"),
    (lambda: match_colours(image(0) + 2, image(0)), r"x must lie in \[-1, 1\]"),
])  # fmt: skip
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
