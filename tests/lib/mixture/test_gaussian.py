"""Density, responsibilities, score and samples, against scipy, quadrature, autograd and sampling."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from torch.testing import assert_close

from course_lib.mixture import gaussian
from course_lib.mixture.gaussian import GaussianMixture

SEEDS = range(3)
SHAPES = ("full", "diag", "spherical")
F64 = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def mixture(seed=0, K=3, D=2, shape="full", dtype=F64):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = 2 * torch.randn(K, D, generator=g, dtype=F64)
    factor = torch.randn(K, D, D, generator=g, dtype=F64)
    full = factor @ factor.mT + 0.3 * torch.eye(D, dtype=F64)
    covariances = {"full": full, "diag": full.diagonal(dim1=1, dim2=2), "spherical": full[:, 0, 0]}[shape]
    return GaussianMixture(weights, means, covariances).to(dtype)


def points(n=50, D=2, seed=9, dtype=F64):
    return 3 * torch.randn(n, D, generator=generator(seed), dtype=F64).to(dtype)


def dense(m):
    """Covariances as matrices (K, D, D)."""
    return m.covariances if m.covariances.ndim == 3 else torch.diag_embed(m.covariances)


def scipy_joint(m, x):
    """log p(x, z), shape (N, K), in float64."""
    weights, means, covariances, x = (v.double().numpy() for v in (m.weights, m.means, dense(m), x))
    terms = [
        np.log(w) + multivariate_normal(*of).logpdf(x)
        for w, *of in zip(weights, means, covariances, strict=True)
    ]
    return np.stack([np.atleast_1d(t) for t in terms], 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("K, D", [(3, 2), (1, 1), (1, 4), (5, 1), (4, 7)])
def test_log_prob_and_responsibilities_against_scipy(shape, K, D):
    m, x = mixture(0, K, D, shape), points(D=D)
    joint = scipy_joint(m, x)
    evidence = logsumexp(joint, 1)
    np.testing.assert_allclose(m.log_prob(x), evidence, rtol=1e-10)
    r = m.responsibilities(x)
    assert r.shape == (50, K)
    np.testing.assert_allclose(r, np.exp(joint - evidence[:, None]), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32(shape):
    m, x = mixture(shape=shape, dtype=torch.float32), points(dtype=torch.float32)
    assert m.log_prob(x).dtype == m.score(x).dtype == m.sample(3)[0].dtype == torch.float32
    np.testing.assert_allclose(m.log_prob(x), logsumexp(scipy_joint(m, x), 1), rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_density_integrates_to_one(seed, shape):
    m = mixture(seed, D=1, shape=shape)
    density = lambda v: m.log_prob(torch.tensor([[v]], dtype=F64)).exp().item()
    total, _ = quad(density, -40, 40, points=m.means.flatten().tolist(), epsabs=1e-10, limit=200)
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("D", [1, 2, 5])
def test_score_against_autograd(shape, D):
    m, x = mixture(D=D, shape=shape), points(D=D).requires_grad_()
    (want,) = torch.autograd.grad(m.log_prob(x).sum(), x)
    assert_close(m.score(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_can_be_differentiated_in_its_parameters(shape):
    """Against finite differences, through unconstrained parameters."""
    m, x = mixture(shape=shape), points(4)
    factor = torch.linalg.cholesky(dense(m)) if shape == "full" else m.covariances[:, 0].log()

    def log_prob(logits, means, factor):
        covariances = factor.tril() @ factor.tril().mT if shape == "full" else factor.exp()
        if shape == "diag":
            covariances = torch.stack([covariances, 2 * covariances], 1)
        return GaussianMixture(torch.softmax(logits, 0), means, covariances).log_prob(x)

    inputs = [v.clone().requires_grad_() for v in (m.weights.log(), m.means, factor)]
    assert torch.autograd.gradcheck(log_prob, inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_moments_of_samples(seed, shape):
    r"""Within 5 standard errors, of n = 20 000 points.

    They are :math:`\sqrt{\pi(1-\pi)/n}` of a frequency, and within a component of n_k points
    :math:`\sqrt{\Sigma_{ii}/n_k}` of a mean and
    :math:`\sqrt{(\Sigma_{ii}\Sigma_{jj} + \Sigma_{ij}^2)/n_k}` of a covariance.
    """
    n, m = 20_000, mixture(seed, D=3, shape=shape)
    x, z = m.sample(n, generator=generator(seed))
    assert x.shape == (n, 3) and z.shape == (n,)
    counts = torch.bincount(z, minlength=3)
    assert ((counts / n - m.weights).abs() < 5 * (m.weights * (1 - m.weights) / n).sqrt()).all()
    for k, cov in enumerate(dense(m)):
        own, variance = x[z == k], cov.diagonal()
        assert ((own.mean(0) - m.means[k]).abs() < 5 * (variance / counts[k]).sqrt()).all()
        error = ((torch.outer(variance, variance) + cov**2) / counts[k]).sqrt()
        assert ((torch.cov(own.T) - cov).abs() < 5 * error).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_follow_the_generator(shape):
    m = mixture(shape=shape)
    (x, z), (again, _), (other, _) = (m.sample(40, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert z.dtype == torch.int64
    assert m.sample(1)[0].shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thousand_sigmas_away(shape, dtype):
    m = mixture(shape=shape, dtype=dtype)
    x = torch.tensor([[1e3, 0], [-1e3, 1e3], [0, -3e3]], dtype=dtype) * m.scale.max()
    rtol = 1e-11 if dtype == F64 else 1e-5
    np.testing.assert_allclose(m.log_prob(x), logsumexp(scipy_joint(m, x), 1), rtol=rtol)
    r, score = m.responsibilities(x), m.score(x)
    assert torch.isfinite(r).all() and torch.isfinite(score).all()
    assert_close(r.sum(1), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_narrow_component_far_away_keeps_its_digits(shape):
    """Its own points, against the normal density of x − μ, a difference that is exact."""
    near, sigma = mixture(K=1, shape=shape), 1e-3
    means = torch.cat([near.means, near.means.new_tensor([[1e3, -1e3]])])
    m = GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=F64), means, torch.cat([near.covariances, sigma**2 * near.covariances])
    )
    x = means[1] + sigma * points()
    want = np.log(0.5) + multivariate_normal(np.zeros(2), dense(m)[1]).logpdf(x - means[1])
    np.testing.assert_allclose(m.log_prob(x), want, atol=1e-7)
    assert (m.responsibilities(x)[:, 1] == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_keeps_its_digits_far_from_the_origin(shape):
    m = mixture(shape=shape, dtype=torch.float32)
    m = GaussianMixture(m.weights, m.means + 1e4, m.covariances)
    x = points(dtype=torch.float32) + 1e4
    np.testing.assert_allclose(m.log_prob(x), logsumexp(scipy_joint(m, x), 1), rtol=1e-4)


def test_equal_covariances_in_every_shape():
    m, x = mixture(shape="spherical"), points()
    variances = m.covariances[:, 0]
    shapes = (variances, variances[:, None].repeat(1, 2), torch.diag_embed(variances[:, None].repeat(1, 2)))
    spherical, diag, full = (GaussianMixture(m.weights, m.means, c) for c in shapes)
    for other in (diag, full):
        assert_close(other.log_prob(x), spherical.log_prob(x), rtol=1e-12, atol=0)
        assert_close(other.responsibilities(x), spherical.responsibilities(x), rtol=1e-10, atol=0)
        assert_close(other.score(x), spherical.score(x), rtol=1e-12, atol=1e-12)
        draws = (v.sample(30, generator=generator(0))[0] for v in (other, spherical))
        assert_close(*draws, rtol=1e-12, atol=1e-12)


def test_as_many_components_as_columns():
    """(K, D) = (2, 2) are variances, and (2, 2, 2) are matrices."""
    variances = torch.tensor([[1.0, 4.0], [9.0, 16.0]], dtype=F64)
    weights, means = torch.tensor([0.5, 0.5], dtype=F64), torch.zeros(2, 2, dtype=F64)
    x, m = points(), GaussianMixture(weights, means, variances)
    want = logsumexp([np.log(0.5) + norm(0, v.sqrt()).logpdf(x).sum(1) for v in variances], 0)
    np.testing.assert_allclose(m.log_prob(x), want, rtol=1e-12)
    assert_close(GaussianMixture(weights, means, torch.diag_embed(variances)).log_prob(x), m.log_prob(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_to(shape):
    m = mixture(shape=shape, dtype=torch.float32)
    wide = m.to(F64)
    assert wide.weights.dtype == wide.means.dtype == wide.covariances.dtype == F64
    assert m.means.dtype == torch.float32
    assert_close(wide.log_prob(points()), m.log_prob(points().float()).double(), rtol=1e-4, atol=1e-4)
    assert wide.to("cpu", torch.float32).means.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_do_not_matter(monkeypatch, shape):
    m, x = mixture(shape=shape), points(200)
    whole = m.log_prob(x), m.responsibilities(x), m.score(x)
    assert len(m.chunks(x)) == 1
    monkeypatch.setattr(gaussian, "CHUNK_BYTES", 1)
    assert len(m.chunks(x)) > 1
    for got, want in zip((m.log_prob(x), m.responsibilities(x), m.score(x)), whole, strict=True):
        assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_points_are_left_as_they_were():
    m, x = mixture(), points()
    before = x.clone()
    m.log_prob(x), m.responsibilities(x), m.score(x)
    assert torch.equal(x, before)


W, M, C = torch.tensor([0.25, 0.75]), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), torch.ones(2, 3)
EYES = torch.eye(3).repeat(2, 1, 1)


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize("weights, means, covariances, match", [
    (W * 1.01, M, C, "weights must be .* sum to one"),
    (W.new_tensor([1.0, 0.0]), M, C, "weights must be .*positive"),
    (changed(W, 0, torch.nan), M, C, "weights must be .*positive"),
    (W[:, None], M, C, r"weights must be \(2,\)"),
    (torch.ones(0), torch.ones(0, 3), torch.ones(0), "means must be floating-point"),
    (W, changed(M, (1, 2), torch.nan), C, r"means must be finite.*at \[1, 2\]"),
    (W, M, C[0], "covariances must have one for each mean"),
    (W, M, changed(C, (0, 1), torch.nan), r"positive definite; those of \[0\] are not"),
    (W, M, changed(EYES, (0, 1, 1), torch.inf), "covariances must be"),
    (W, M, torch.tensor([1.0, 0.0]), r"positive definite; those of \[1\] are not"),
    (W, M, torch.ones(2, 3, 3), r"positive definite; those of \[0, 1\] are not"),
    (W, M, changed(EYES, (0, 0, 1), 0.5), "covariances must be symmetric"),
])  # fmt: skip
def test_bad_parameters(weights, means, covariances, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize("method", ["log_prob", "responsibilities", "score"])
def test_bad_points(method):
    call = getattr(GaussianMixture(W, M, C), method)
    with pytest.raises(ValueError, match="x must have as many columns as the means, 3"):
        call(torch.zeros(4, 1))  # one column would be taken for all three
    with pytest.raises(ValueError, match=r"x must be finite; the first that is not is at \[2, 1\]"):
        call(changed(torch.zeros(4, 3), (2, 1), torch.nan))


def test_points_whose_squares_overflow():
    """The density there is 0 in float32; who is responsible cannot be told, and is refused."""
    m, x = GaussianMixture(W, M, C), torch.tensor([[1e20, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert m.log_prob(x)[0] == -torch.inf and torch.isfinite(m.log_prob(x)[1])
    for method in (m.responsibilities, m.score):
        with pytest.raises(ValueError, match="x must not lie so far from all means"):
            method(x)
        assert torch.isfinite(method(x / 1e3)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_float32_components_far_apart_and_narrow(seed):
    """Means 1e5 apart, deviations 0.01: full matrices see what diagonals see, and scipy."""
    means = (1e5 * torch.randn(4, 3, generator=generator(seed))).round()
    variances = 1e-4 * (1 + torch.rand(4, 3, generator=generator(seed + 9)))
    weights = torch.full((4,), 0.25)
    diagonal = GaussianMixture(weights, means, variances)
    full = GaussianMixture(weights, means, torch.diag_embed(variances))
    x, _ = diagonal.sample(500, generator=generator(seed))
    assert (full.log_prob(x) - diagonal.log_prob(x)).abs().max() < 1e-4
    np.testing.assert_allclose(full.log_prob(x), logsumexp(scipy_joint(diagonal, x), 1), atol=1e-3)
