"""Colour maps, against NumPy, SciPy's matrix root, random rivals, and bad input."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.color import rgb2yiq

from course_lib.style.colour import colour_map, luminance, match_colours, moments, root, with_luminance

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


def test_matched_colours_are_cut_and_by_monge_unless_told():
    x, like = image(1, 0.1), image(2).sign()
    A = colour_map(moments(x)[1], moments(like)[1]).numpy()
    flat, means = x[0].flatten(1).double().numpy(), [moments(i)[0].numpy()[:, None] for i in (x, like)]
    moved = A @ (flat - means[0]) + means[1]
    assert np.abs(moved).max() > 1.1
    np.testing.assert_allclose(match_colours(x, like)[0].flatten(1), np.clip(moved, -1, 1), atol=1e-6)
    assert not torch.allclose(match_colours(x, like), match_colours(x, like, "cholesky"), atol=0.01)


def test_a_grey_image_can_be_matched_by_monge_alone():
    grey = image(3)[:, :1].repeat(1, 3, 1, 1)
    found = match_colours(image(1), grey)
    torch.testing.assert_close(found[:, :1].expand_as(found), found, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="target must vary in every direction"):
        match_colours(image(1), grey, "cholesky")
    nearly = (grey + 1e-6 * image(4).sign()).clamp(-1, 1)
    assert torch.linalg.eigvalsh(moments(nearly)[1])[0] > 0
    with pytest.raises(ValueError, match="source must vary in every direction"):
        match_colours(nearly, image(1))


def test_an_eigenvalue_negative_by_rounding_counts_as_0():
    torch.testing.assert_close(
        root(torch.diag(torch.tensor([4.0, -1e-7]))), torch.diag(torch.tensor([2.0, 0.0]))
    )


def test_with_luminance_changes_luminance_alone():
    x, of = image(1, 0.1), image(2, 0.1)
    yiq = lambda i: rgb2yiq(i[0].permute(1, 2, 0).double().numpy())
    found = yiq(with_luminance(x, of))
    np.testing.assert_allclose(found[..., 0], yiq(of)[..., 0], atol=1e-6)
    np.testing.assert_allclose(found[..., 1:], yiq(x)[..., 1:], atol=1e-4)
    np.testing.assert_allclose(luminance(x)[0, 0], yiq(x)[..., 0], atol=1e-6)


def test_with_luminance_is_cut():
    x, of = image(1), torch.ones(1, 3, 12, 9)
    weights = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    moved = x[0].double().numpy() + (1 - (weights * x[0].double().numpy()).sum(0))
    assert moved.max() > 1.1
    np.testing.assert_allclose(with_luminance(x, of)[0], np.clip(moved, -1, 1), atol=1e-6)


@pytest.mark.parametrize("call, said", [
    (lambda: colour_map(covariance(0), covariance(1), "pca"), "method must be.*got 'pca'"),
    (lambda: match_colours(torch.zeros(1, 3, 4, 4), image(0)), "source must vary in every direction"),
    (lambda: match_colours(image(0).repeat(2, 1, 1, 1), image(0)), r"x must be .* \(1, 3, H, W\)"),
    (lambda: match_colours(image(0) + 2, image(0)), r"x must lie in \[-1, 1\]"),
    (lambda: colour_map(covariance(0), -covariance(1)), "target must be symmetric without negative"),
    (lambda: colour_map(covariance(0).triu(), covariance(1)), "source must be symmetric"),
    (lambda: root(-covariance(0)), "matrix must be symmetric without negative"),
    (lambda: luminance(255 * image(0)), r"x must lie in \[-1, 1\]"),
    (lambda: with_luminance(image(0), image(0)[..., :1, :1]), r"of must be floating-point \(1, 3, 12, 9\)"),
])  # fmt: skip
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
