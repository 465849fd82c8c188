"""EM for Gaussian mixtures, against autograd, scipy and scikit-learn."""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from course_lib.mixture import gaussian
from course_lib.mixture.em import COVARIANCES, e_step, fit, m_step
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.mixture.kmeans import INITS

SEEDS = range(3)
F64 = torch.float64
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=F64).to(dtype)


def clouds(seed=0, n=300, D=2, K=3, apart=3.0):
    """Points about K means, with a covariance that no fit shares and no column is alone in."""
    noise = normal(n, D, seed=seed) @ (torch.eye(D, dtype=F64) + 0.4 * normal(D, D, seed=seed + 50))
    return apart * normal(K, D, seed=seed + 100)[torch.arange(n) % K] + noise


def responsibilities(x, K, seed=0):
    return torch.softmax(2 * normal(len(x), K, seed=seed + 7), 1)


def start(x, K, covariance, seed=0):
    """A start in the family, unequal in all that may be."""
    D, sizes = x.shape[1], 1 + torch.arange(K, dtype=F64) / K
    factor = normal(D, D, seed=seed)
    full = (factor @ factor.mT / D + torch.eye(D, dtype=F64)) * x.var()
    covariances = {
        "full": sizes[:, None, None] * full,
        "tied": full.repeat(K, 1, 1),
        "diag": sizes[:, None] * full.diagonal(),
        "spherical": sizes * full[0, 0],
    }[covariance]
    weights = torch.softmax(normal(K, seed=seed), 0)
    return GaussianMixture(weights, x[:K].double(), covariances).to(x.dtype)


def dense(m):
    return m.covariances if m.covariances.ndim == 3 else torch.diag_embed(m.covariances)


def scipy_joint(m, x):
    """log p(x, z), shape (N, K)."""
    parameters = zip(m.weights.numpy(), m.means.numpy(), dense(m).numpy(), strict=True)
    return np.stack([np.log(w) + multivariate_normal(*of).logpdf(x.numpy()) for w, *of in parameters], 1)


def free_parameters(m, covariance):
    """Weight logits, means and a factor of the covariances, without constraints, ready for autograd."""
    if covariance in ("full", "tied"):
        factor = torch.linalg.cholesky(dense(m))
    else:
        factor = m.covariances.log()
    factor = {"full": factor, "tied": factor[0], "diag": factor, "spherical": factor[:, :1]}[covariance]
    return [v.detach().clone().requires_grad_() for v in (m.weights.log(), m.means, factor)]


def distributions(parameters, covariance):
    """What `free_parameters` describes, as distributions of PyTorch."""
    logits, means, factor = parameters
    if covariance in ("diag", "spherical"):
        factor = torch.diag_embed((factor / 2).exp().expand_as(means))
    return Categorical(logits=logits), MultivariateNormal(
        means, scale_tril=factor.tril().expand(len(means), -1, -1)
    )


def expected_complete(parameters, covariance, x, r):
    """Mean over the points of E[log p(x, z)] under the responsibilities r."""
    z, components = distributions(parameters, covariance)
    return (r * (z.logits + components.log_prob(x[:, None]))).sum(1).mean()


def reference(x, m, covariance, **options):
    """scikit-learn's estimator with our start."""
    precisions = torch.linalg.inv(dense(m))
    if covariance == "tied":
        precisions = precisions[0]
    elif covariance != "full":
        precisions = precisions.diagonal(dim1=1, dim2=2)
        precisions = precisions[:, 0] if covariance == "spherical" else precisions
    model = Reference(
        len(m.weights),
        covariance_type=covariance,
        weights_init=m.weights.numpy() / m.weights.numpy().sum(),
        means_init=m.means.numpy(),
        precisions_init=precisions.numpy(),
        **{"tol": 0, **options},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.numpy())


# The two steps


@every_covariance
def test_e_step_against_scipy(covariance):
    x = clouds()
    m = start(x, 4, covariance)
    joint = scipy_joint(m, x)
    evidence = logsumexp(joint, 1)
    found = e_step(m, x)
    assert found.log_likelihood == pytest.approx(evidence.mean(), rel=1e-12)
    np.testing.assert_allclose(found.log_responsibilities, joint - evidence[:, None], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.log_responsibilities.exp().sum(1), 1, rtol=1e-12)


@every_covariance
@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_m_step_is_stationary_and_a_maximum(seed, D, covariance):
    x = clouds(seed, D=D)
    r = responsibilities(x, 4, seed)
    parameters = free_parameters(m_step(x, r, covariance=covariance, reg=0), covariance)
    best = expected_complete(parameters, covariance, x, r)
    for gradient in torch.autograd.grad(best, parameters):
        assert gradient.abs().max() < 1e-10
    for other in range(5):
        moved = [v + 1e-2 * normal(*v.shape, seed=other) for v in parameters]
        assert expected_complete(moved, covariance, x, r) < best


@every_covariance
def test_m_step_has_the_family_s_shape(covariance):
    x = clouds()
    cov = m_step(x, responsibilities(x, 4), covariance=covariance).covariances
    assert cov.shape == ((4, 2, 2) if covariance in ("full", "tied") else (4, 2))
    assert torch.equal(cov, cov[:1].expand_as(cov)) == (covariance == "tied")
    if covariance == "spherical":
        assert torch.equal(cov[:, 0], cov[:, 1])


@every_covariance
def test_reg_is_added_to_every_variance(covariance):
    x = clouds()
    plain, floored = (m_step(x, responsibilities(x, 3), covariance=covariance, reg=g) for g in (0, 0.25))
    assert_close(dense(floored), dense(plain) + 0.25 * torch.eye(2, dtype=F64), rtol=1e-12, atol=1e-12)


@every_covariance
def test_both_steps_make_an_iteration_of_fit(covariance):
    x = clouds()
    m = start(x, 3, covariance)
    want = m_step(x, e_step(m, x).log_responsibilities.exp(), covariance=covariance)
    found = fit(x, 3, covariance=covariance, init=m, max_iter=1).mixture
    assert_close(found.weights, want.weights, rtol=1e-10, atol=0)
    assert_close(found.means, want.means, rtol=1e-10, atol=1e-12)
    assert_close(found.covariances, want.covariances, rtol=1e-9, atol=1e-12)


# The whole fit


@every_covariance
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_vanishes_at_a_converged_fit(seed, covariance):
    """The gradient of the log-likelihood itself, by PyTorch's own mixture."""
    x = clouds(seed, apart=6.0)
    options = {"covariance": covariance, "reg": 0, "tol": 0, "generator": generator(seed)}
    parameters = free_parameters(fit(x, 2, max_iter=600, **options).mixture, covariance)
    mean = MixtureSameFamily(*distributions(parameters, covariance)).log_prob(x).mean()
    for gradient in torch.autograd.grad(mean, parameters):
        assert gradient.abs().max() < 1e-6


@every_covariance
@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("D, K", [(2, 3), (1, 2), (5, 4)])
def test_the_same_iterations_as_sklearn(covariance, dtype, rtol, D, K):
    """Log-likelihoods before each of 8 M-steps, and the parameters after; scikit-learn in float64."""
    x = clouds(D=D).to(dtype)
    m = start(x, K, covariance)
    found = fit(x, K, covariance=covariance, init=m, reg=1e-6, tol=0, max_iter=8)
    assert len(found.log_likelihood) == 9 and not found.converged
    for i in range(1, 9):
        theirs = reference(x.double(), m.to(F64), covariance, max_iter=i, reg_covar=1e-6)
        assert found.log_likelihood[i - 1] == pytest.approx(theirs.lower_bound_, rel=rtol)
    assert found.log_likelihood[8] == pytest.approx(theirs.score(x.double()), rel=rtol)
    assert found.bic(len(x)) == pytest.approx(theirs.bic(x.double().numpy()), rel=rtol)
    assert found.n_parameters == theirs._n_parameters()
    parameter_rtol = 1e-7 if dtype == F64 else 1e-2
    np.testing.assert_allclose(found.mixture.weights, theirs.weights_, rtol=parameter_rtol)
    np.testing.assert_allclose(found.mixture.means, theirs.means_, rtol=parameter_rtol, atol=parameter_rtol)
    variances = dense(found.mixture).diagonal(dim1=1, dim2=2)
    want = theirs.covariances_
    if covariance in ("full", "tied"):
        want = np.diagonal(want, axis1=-2, axis2=-1)
    elif covariance == "spherical":
        want = want[:, None]
    np.testing.assert_allclose(variances, np.broadcast_to(want, variances.shape), rtol=parameter_rtol)


@every_covariance
@pytest.mark.parametrize("init", [*INITS, "mixture"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_log_likelihood_never_falls(seed, init, covariance):
    """From the first entry on, with columns of unlike scale, and whatever the mixture to start from."""
    x = clouds(seed) * torch.tensor([1.0, 30.0], dtype=F64)
    if init == "mixture":
        init = start(x, 3, "full", seed)
    found = fit(x, 3, covariance=covariance, init=init, reg=0, tol=0, max_iter=60, generator=generator(seed))
    assert np.diff(found.log_likelihood).min() > -1e-11
    assert len(found.log_likelihood) == 61


@every_covariance
@pytest.mark.parametrize("tol, converged", [(1e9, True), (1e-4, True), (0, False)])
def test_the_last_entry_is_of_the_mixture_returned(covariance, tol, converged):
    x = clouds()
    found = fit(x, 3, covariance=covariance, tol=tol, max_iter=300, generator=generator(0))
    assert found.converged == converged
    assert found.log_likelihood[-1] == pytest.approx(
        logsumexp(scipy_joint(found.mixture, x), 1).mean(), rel=1e-10
    )
    if converged:
        assert abs(found.log_likelihood[-1] - found.log_likelihood[-2]) < tol
        assert np.abs(np.diff(found.log_likelihood[:-1])).min(initial=np.inf) >= tol


@every_covariance
def test_one_component_is_the_sample_s_mean_and_covariance(covariance):
    x = clouds(D=3)
    found = fit(x, 1, covariance=covariance, reg=0, generator=generator(0))
    cov = np.cov(x.numpy(), rowvar=False, bias=True)
    if covariance == "diag":
        cov = np.diag(np.diag(cov))
    elif covariance == "spherical":
        cov = np.eye(3) * np.diag(cov).mean()
    assert found.converged and found.mixture.weights.item() == 1
    np.testing.assert_allclose(found.mixture.means[0], x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(dense(found.mixture)[0], cov, rtol=1e-12, atol=1e-12)


@every_covariance
def test_points_given_twice_change_nothing(covariance):
    x = clouds()
    options = {"covariance": covariance, "init": start(x, 3, covariance), "max_iter": 30}
    once, twice = fit(x, 3, **options), fit(x.repeat(2, 1), 3, **options)
    np.testing.assert_allclose(once.log_likelihood, twice.log_likelihood, rtol=1e-10)
    assert_close(once.mixture.means, twice.mixture.means, rtol=1e-8, atol=1e-8)


def test_many_equal_points():
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=F64).repeat(20, 1)
    found = fit(x, 2, reg=1e-4, generator=generator(0))
    assert_close(found.mixture.means.sort(0).values, x[:2], atol=1e-6, rtol=0)
    assert_close(found.mixture.covariances, 1e-4 * torch.eye(2, dtype=F64).expand(2, 2, 2), atol=1e-8, rtol=0)


def test_a_narrow_component_far_away_keeps_its_digits():
    cluster = torch.tensor([1e3, -1e3], dtype=F64) + 1e-3 * clouds(n=100, K=1, apart=0)
    x = torch.cat([clouds(n=100, K=1, apart=0), cluster])
    found = fit(x, 2, reg=0, generator=generator(0)).mixture
    k = found.means[:, 0].argmax()
    np.testing.assert_allclose(found.covariances[k], np.cov(cluster.numpy().T, bias=True), rtol=1e-7)
    np.testing.assert_allclose(found.means[k], cluster.numpy().mean(0), rtol=1e-14)


@every_covariance
@pytest.mark.parametrize("init", INITS)
def test_float32_far_from_the_origin(init, covariance):
    """The same points, near zero in float64: a grid of 1/128 makes the move exact."""
    near = (clouds() * 128).round() / 128
    options = {"covariance": covariance, "init": init, "max_iter": 10, "tol": 0}
    want = fit(near, 2, generator=generator(0), **options | {"init": start(near, 2, covariance)})
    moved = start(near, 2, covariance).to(torch.float32)
    moved = GaussianMixture(moved.weights, moved.means + 2**12, moved.covariances)
    far = (near + 2**12).float()
    found = fit(far, 2, generator=generator(0), **options | {"init": moved})
    np.testing.assert_allclose(found.log_likelihood, want.log_likelihood, atol=1e-3)
    assert fit(far, 2, generator=generator(0), **options).mixture.means.dtype == torch.float32


@every_covariance
def test_chunks_do_not_matter(monkeypatch, covariance):
    x = clouds(n=500)
    m = start(x, 3, covariance)
    r = responsibilities(x, 3)

    def results():
        found = fit(x, 3, covariance=covariance, init=m, max_iter=20, tol=0)
        yield torch.tensor(found.log_likelihood, dtype=F64)
        for mixture in (found.mixture, m_step(x, r, covariance=covariance)):
            yield from (mixture.weights, mixture.means, mixture.covariances)
        yield e_step(m, x).log_responsibilities

    whole = list(results())
    monkeypatch.setattr(gaussian, "CHUNK_BYTES", 1)
    assert len(m.chunks(x)) > 1
    for got, want in zip(results(), whole, strict=True):
        assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_many_points_fit_in_little_memory():
    """One array (N, K) would take 256 MB: EM takes less than half of that, and all stays under 2 GiB."""
    code = """
import resource, torch
from course_lib.mixture.em import fit
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.mixture.kmeans import seeds
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.randn(500_000, 2, generator=torch.Generator().manual_seed(0)).double()
start = GaussianMixture(torch.full((64,), 1 / 64).double(), x[:64], torch.eye(2).double().repeat(64, 1, 1))
fit(x[:10_000], 64, init=start, max_iter=1)
before = peak()
fit(x, 64, init=start, max_iter=1)
print(peak() - before)
seeds(x, 64)
print(peak())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    growth, peak = (int(line) * unit for line in run.stdout.split())
    assert growth < 128e6
    assert peak < 2**31


# Starts


@pytest.mark.parametrize("init", INITS)
@every_covariance
def test_starts_find_clouds_that_are_far_apart(init, covariance):
    x = torch.cat([clouds(K=1, apart=0), clouds(1, K=1, apart=0) + 50])
    found = fit(x, 2, covariance=covariance, init=init, n_init=5, generator=generator(0))
    assert_close(found.mixture.means.sort(0).values, torch.stack([x[:300].mean(0), x[300:].mean(0)]))


def test_the_best_of_several_starts_is_returned():
    x = clouds(K=6, apart=8.0)
    g = generator(0)
    single = [fit(x, 6, init="random", max_iter=30, generator=g).log_likelihood[-1] for _ in range(6)]
    found = fit(x, 6, init="random", max_iter=30, n_init=6, generator=generator(0))
    assert found.log_likelihood[-1] == max(single) > min(single) + 1e-3


@pytest.mark.parametrize("init", INITS)
def test_fits_follow_the_generator(init):
    x = clouds()
    first, again, other = (fit(x, 5, init=init, max_iter=5, generator=generator(s)) for s in (1, 1, 2))
    assert first.log_likelihood == again.log_likelihood != other.log_likelihood


@every_covariance
@pytest.mark.parametrize("given", COVARIANCES)
def test_any_mixture_can_start_any_fit(covariance, given):
    """Diagonals become matrices, matrices lose what lies off them; tied are averaged."""
    x = clouds()
    m = start(x, 3, given)
    before = [v.clone() for v in (x, m.weights, m.means, m.covariances)]
    found = fit(x, 3, covariance=covariance, init=m, max_iter=1)
    cov = dense(m)
    if covariance == "tied":
        cov = sum(w * c for w, c in zip(m.weights, cov, strict=True)).expand(3, 2, 2)
    elif covariance == "diag":
        cov = cov.diagonal(dim1=1, dim2=2)
    elif covariance == "spherical":
        cov = torch.stack([c.trace() / 2 for c in cov])
    first = scipy_joint(GaussianMixture(m.weights, m.means, cov), x)
    assert found.log_likelihood[0] == pytest.approx(logsumexp(first, 1).mean(), rel=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, m.weights, m.means, m.covariances), strict=True))


@every_covariance
def test_columns_that_depend_on_each_other(covariance):
    """A diagonal model has no trouble with them; a full one needs reg, and says so."""
    x = clouds()
    x = torch.cat([x, x[:, :1]], 1)
    options = {"covariance": covariance, "generator": generator(0)}
    if covariance in ("diag", "spherical"):
        assert math.isfinite(fit(x, 2, reg=0, **options).log_likelihood[-1])
    else:
        with pytest.raises(ValueError, match=r"positive definite|raise reg above 0"):
            fit(x, 2, reg=0, **options)
        assert math.isfinite(fit(x, 2, reg=1e-6, **options).log_likelihood[-1])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_result_keeps_dtype_and_no_graph(dtype):
    x = clouds().to(dtype).requires_grad_()
    m = fit(x, 2, max_iter=2, generator=generator(0)).mixture
    for value in (m.weights, m.means, m.covariances):
        assert value.dtype == dtype and not value.requires_grad


# What goes wrong


@every_covariance
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("lost", [[2], [0, 1]])
def test_a_component_that_lost_all_points_comes_back(covariance, dtype, lost):
    x = clouds(apart=8.0).to(dtype)
    m = start(x, 3, covariance)
    means = m.means.clone()
    means[lost] = 1e6
    found = fit(x, 3, covariance=covariance, init=GaussianMixture(m.weights, means, m.covariances))
    assert found.revived[: len(lost)] == [(0, k) for k in lost]
    assert np.isfinite(found.log_likelihood).all()
    assert torch.isfinite(found.mixture.means).all()
    assert found.mixture.weights.min() > 1e-3 and found.mixture.means.abs().max() < 1e3


@every_covariance
@pytest.mark.parametrize("seed", SEEDS)
def test_a_component_on_one_place_collapses(seed, covariance):
    x = torch.cat([clouds(seed), torch.full((2, 2), 40.0, dtype=F64)])
    m = GaussianMixture(
        torch.tensor([0.9, 0.1], dtype=F64), torch.stack([x[0], x[-1]]), torch.ones(2, 2, dtype=F64)
    )
    if covariance == "tied":  # shares the spread of the other
        assert math.isfinite(fit(x, 2, covariance=covariance, init=m, reg=0).log_likelihood[-1])
    else:
        with pytest.raises(ValueError, match=r"collapsed at iteration \d+; raise reg above 0"):
            fit(x, 2, covariance=covariance, init=m, reg=0)
    assert math.isfinite(fit(x, 2, covariance=covariance, init=m).log_likelihood[-1])


@every_covariance
def test_as_many_components_as_points(covariance):
    x = clouds(n=6)
    with pytest.raises(ValueError, match="covariances must be finite and positive definite"):
        fit(x, 6, covariance=covariance, reg=0, generator=generator(0))
    m = GaussianMixture(torch.full((6,), 1 / 6, dtype=F64), x, torch.full((6,), 1e-4, dtype=F64))
    with pytest.raises(ValueError, match=r"collapsed at iteration \d+; raise reg above 0"):
        fit(x, 6, covariance=covariance, init=m, reg=0)
    found = fit(x, 6, covariance=covariance, reg=1e-4, generator=generator(0)).mixture
    assert_close(found.means.sort(0).values, x.sort(0).values, atol=1e-6, rtol=0)


X = normal(6, 2)
HALVES = torch.tensor([0.5, 0.5], dtype=F64)
R = torch.full((6, 2), 0.5, dtype=F64)


@pytest.mark.parametrize("scale, dtype", [(1e200, F64), (1e25, torch.float32)])
def test_a_range_whose_squares_overflow_is_refused(scale, dtype):
    with pytest.raises(ValueError, match="x must not span so wide a range"):
        fit((X * scale).to(dtype), 1)


@pytest.mark.parametrize("options, match", [
    ({"n_components": 0}, "n_components must be an integer of at least 1; got 0"),
    ({"n_components": 7}, "k must be at most the number of points, 6; got 7"),
    ({"covariance": "Full"}, "covariance must be one of full, tied, diag, spherical; got 'Full'"),
    ({"init": "kmeans"}, "init must be one of"),
    ({"init": GaussianMixture(HALVES[:1] * 2, X[:1], HALVES[:1])}, r"init must have means .*; got"),
    ({"init": GaussianMixture(HALVES, X[:2, :1], HALVES)}, r"init must have means .*; got"),
    ({"reg": -1e-6}, "reg must be a number, at least 0"),
    ({"n_init": 0}, "n_init must be an integer of at least 1; got 0"),
])  # fmt: skip
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        fit(X, **{"n_components": 2, **options})


@pytest.mark.parametrize("r, match", [
    (R * 1.01, "each row must sum to one"),
    (torch.tensor([[1.5, -0.5]], dtype=F64).repeat(6, 1), "responsibilities must be at least 0"),
    (R * torch.nan, "responsibilities must be at least 0"),
    (torch.tensor([[1.0, 0.0]], dtype=F64).repeat(6, 1), "responsibilities must give each component"),
])  # fmt: skip
def test_bad_responsibilities(r, match):
    with pytest.raises(ValueError, match=match):
        m_step(X, r)


def test_an_e_step_far_beyond_the_range_of_squares_is_refused():
    x = torch.tensor([[0.0, 0.0], [1e20, 0.0]])
    with pytest.raises(ValueError, match="x must not lie so far"):
        e_step(GaussianMixture(HALVES, X[:2], HALVES).to(torch.float32), x)


def test_import_allocates_nothing_large():
    """What the allocator is asked for on the way; the parts that it imports included."""
    code = """
import tracemalloc, torch, resource, course_lib.require, course_lib.points
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import course_lib.mixture.gaussian
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) * (1 if sys.platform == "darwin" else 1024) < 8e6
