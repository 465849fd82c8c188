"""Exact denoisers, against quadrature, conditioning of Gaussians, autograd of a density, and loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

from course_lib.diffusion.oracles import DatasetOracle, MixtureOracle, Oracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear, Tabulated
from course_lib.mixture.gaussian import GaussianMixture

SEEDS = range(5)
SHAPES = ("full", "diag", "spherical")
F64 = torch.float64
PATHS = {
    "vp": VP(),
    "cosine": Cosine(),
    "linear": Linear(),
    "ve": VE(0.1, 3.0),
    "table": Tabulated.from_betas("linear", 100),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def mixture(seed=0, K=3, D=2, shape="full"):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = 1.5 * torch.randn(K, D, generator=g, dtype=F64)
    factor = torch.randn(K, D, D, generator=g, dtype=F64)
    full = 0.3 * factor @ factor.mT + 0.1 * torch.eye(D, dtype=F64)
    covariances = {"full": full, "diag": full.diagonal(dim1=1, dim2=2), "spherical": full[:, 0, 0]}[shape]
    return GaussianMixture(weights, means, covariances)


def points(n=20, D=2, seed=9):
    return 2 * torch.randn(n, D, generator=generator(seed), dtype=F64)


def constant(t, n):
    return torch.full((n,), t, dtype=F64)


def numbers(path, t):
    return tuple(f(torch.tensor([t], dtype=F64)).item() for f in (path.a, path.b))


def density(x, mean, deviation):
    return math.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


def moment(m, path, t, x, f):
    """E[f(x_0) | x_t = x] in one dimension, by quadrature, component by component."""
    a, b = numbers(path, t)
    top = bottom = 0.0
    parts = (v.flatten().tolist() for v in (m.weights, m.means, m.covariances))
    for weight, mean, variance in zip(*parts, strict=True):
        # the product of two normal densities is one: integrate where it is
        precision = 1 / variance + a**2 / b**2
        center = (mean / variance + a * x / b**2) / precision
        width = 9 / math.sqrt(precision)
        joint = lambda v, w=weight, m=mean, s=variance**0.5: w * density(v, m, s) * density(x, a * v, b)
        top += quad(lambda v, j=joint: f(v) * j(v), center - width, center + width, epsabs=0, epsrel=1e-9)[0]
        bottom += quad(joint, center - width, center + width, epsabs=0, epsrel=1e-9)[0]
    return top / bottom, bottom


# Mixtures


@every_path
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("D", [1, 2, 4])
def test_tweedie(path, shape, D):
    """The mean from the score, by autograd of the noisy data's log-density, put together here."""
    m, x = mixture(D=D, shape=shape), points(D=D).requires_grad_()
    dense = m.covariances if shape == "full" else torch.diag_embed(m.covariances)
    oracle = MixtureOracle(m, path)
    for t in (0.05, 0.3, 0.7, 0.97):
        a, b = numbers(path, t)
        noisy = GaussianMixture(m.weights, a * m.means, a**2 * dense + b**2 * torch.eye(D, dtype=F64))
        (score,) = torch.autograd.grad(noisy.log_prob(x).sum(), x)
        time = constant(t, len(x))
        assert_close(oracle(x, time).detach(), ((x + b**2 * score) / a).detach(), rtol=1e-8, atol=1e-8)
        assert_close(oracle.score(x, time).detach(), score, rtol=1e-8, atol=1e-8)
        assert_close(oracle.predict("score", x, time).detach(), score, rtol=1e-7, atol=1e-7)


@every_path
@pytest.mark.parametrize("seed", SEEDS)
def test_posterior_mean_and_density_by_quadrature(path, seed):
    m = mixture(seed, D=1)
    oracle = MixtureOracle(m, path)
    for t, v in ((0.1, 0.4), (0.5, -1.3), (0.9, 2.0)):
        mean, evidence = moment(m, path, t, v, lambda x0: x0)
        x = torch.tensor([[v]], dtype=F64)
        assert oracle(x, constant(t, 1)).item() == pytest.approx(mean, rel=1e-7, abs=1e-8)
        assert oracle.at(t).log_prob(x).exp().item() == pytest.approx(evidence, rel=1e-7)


@pytest.mark.parametrize("name, target", [
    *itertools.product(["vp", "cosine", "linear", "ve"], ["x0", "eps", "score", "velocity"]),
    ("vp", "v"), ("cosine", "v"),
])  # fmt: skip
def test_the_mean_of_every_target_by_quadrature(name, target):
    path, m, t, v = PATHS[name], mixture(1, D=1), 0.4, 0.7
    a, b = numbers(path, t)
    (a1, b1), (a2, b2) = numbers(path, t - 1e-5), numbers(path, t + 1e-5)
    da, db = (a2 - a1) / 2e-5, (b2 - b1) / 2e-5
    of = {
        "x0": lambda x0, eps: x0,
        "eps": lambda x0, eps: eps,
        "score": lambda x0, eps: -eps / b,
        "v": lambda x0, eps: a * eps - b * x0,
        "velocity": lambda x0, eps: da * x0 + db * eps,
    }[target]
    want, _ = moment(m, path, t, v, lambda x0: of(x0, (v - a * x0) / b))
    got = MixtureOracle(m, path).predict(target, torch.tensor([[v]], dtype=F64), constant(t, 1))
    assert got.item() == pytest.approx(want, rel=1e-6, abs=1e-8)


@every_path
def test_its_derivative_is_the_posterior_variance(path):
    """Tweedie's second formula: Var[x_0 | x_t] = b²/a · dE/dx."""
    m, t, v = mixture(2, D=1), 0.4, 0.3
    a, b = numbers(path, t)
    x = torch.tensor([[v]], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(MixtureOracle(m, path)(x, constant(t, 1)).sum(), x)
    mean, _ = moment(m, path, t, v, lambda x0: x0)
    variance, _ = moment(m, path, t, v, lambda x0: (x0 - mean) ** 2)
    assert b**2 / a * slope.item() == pytest.approx(variance, rel=1e-6)


@every_path
@pytest.mark.parametrize("D", [1, 3])
def test_one_gaussian_by_conditioning(path, D):
    """In the joint normal of x_0 and x_t, with NumPy."""
    m, x = mixture(3, K=1, D=D), points(6, D)
    mean, cov = m.means[0].numpy(), m.covariances[0].numpy()
    for t in (0.1, 0.8):
        a, b = numbers(path, t)
        gain = a * cov @ np.linalg.inv(a**2 * cov + b**2 * np.eye(D))
        want = mean + (x.numpy() - a * mean) @ gain.T
        np.testing.assert_allclose(MixtureOracle(m, path)(x, constant(t, 6)), want, rtol=1e-9, atol=1e-10)


@every_path
@pytest.mark.parametrize("seed", SEEDS)
def test_the_noisy_mixture_has_the_moments_of_noisy_samples(path, seed):
    """Within 5 standard errors, of 4000 samples at t = 0.3."""
    m, n, t = mixture(seed), 4000, 0.3
    x0, _ = m.sample(n, generator=generator(seed))
    eps = torch.randn(n, 2, generator=generator(seed + 70), dtype=F64)
    x = path.mix(x0, eps, constant(t, n))
    now = MixtureOracle(m, path).at(t)
    mean = now.weights @ now.means
    second = torch.einsum(
        "k,kij->ij", now.weights, now.covariances + now.means[:, :, None] * now.means[:, None]
    )
    products = (x[:, :, None] * x[:, None]).flatten(1)
    for values, want in ((x, mean), (products, second.flatten())):
        assert ((values.mean(0) - want).abs() < 5 * values.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_times_may_differ_within_a_batch(shape):
    oracle, x = MixtureOracle(mixture(shape=shape), Cosine()), points(9)
    t = torch.tensor([0.5, 0.1, 1.0, 0.5, 0.9, 0.0, 0.1, 0.5, 0.3], dtype=F64)
    for method in (oracle, oracle.score):
        alone = torch.cat([method(x[n : n + 1], t[n : n + 1]) for n in range(9)])
        assert_close(method(x, t), alone, rtol=1e-12, atol=1e-12)


@every_path
@pytest.mark.parametrize("shape", SHAPES)
def test_without_noise_the_sample_is_the_data(path, shape):
    oracle, x = MixtureOracle(mixture(shape=shape), path), points()
    assert_close(oracle(x, constant(0.0, 20)), x, rtol=1e-10, atol=1e-10)
    assert_close(oracle.predict("x0", x, constant(0.0, 20)), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [Cosine(), Linear()])
def test_without_signal_the_mean_is_the_prior_mean(path):
    m, x = mixture(), points()
    want = (m.weights @ m.means).expand(20, 2)
    assert_close(MixtureOracle(m, path)(x, constant(1.0, 20)), want, rtol=1e-12, atol=1e-12)


@every_path
def test_float32(path):
    m, x = mixture(), points()
    wide = MixtureOracle(m, path)(x, constant(0.5, 20))
    got = MixtureOracle(m.to(torch.float32), path)(x.float(), constant(0.5, 20).float())
    assert got.dtype == torch.float32
    assert_close(got, wide.float(), rtol=1e-4, atol=1e-4)


# Finite data


def brute_force(data, path, xt, t):
    """The mean of the points under their posterior, in NumPy loops."""
    a, b = numbers(path, t)
    out = np.zeros(xt.shape)
    for n, x in enumerate(xt.numpy()):
        logs = np.array([norm.logpdf(x, a * y, b).sum() for y in data.numpy()])
        weights = np.exp(logs - logs.max())
        out[n] = sum(w * y for w, y in zip(weights / weights.sum(), data.numpy(), strict=True))
    return out


@every_path
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_dataset_against_brute_force(path, shape):
    g = generator(0)
    data, x = (torch.randn(n, *shape, generator=g, dtype=F64) for n in (12, 5))
    for t in (0.05, 0.4, 0.9):
        oracle, time = DatasetOracle(data, path), constant(t, 5)
        np.testing.assert_allclose(oracle(x, time), brute_force(data, path, x, t), rtol=1e-7, atol=1e-9)
        weights = oracle.weights(x, time)
        assert weights.shape == (5, 12)
        assert_close(weights.sum(1), torch.ones(5, dtype=F64))


@every_path
def test_dataset_is_a_mixture_of_tiny_gaussians(path):
    data, x = points(7, seed=1), points(10)
    m = GaussianMixture(torch.full((7,), 1 / 7, dtype=F64), data, torch.full((7,), 1e-10, dtype=F64))
    for t in (0.2, 0.6):
        time = constant(t, 10)
        for target in ("x0", "eps", "score"):
            got = DatasetOracle(data, path).predict(target, x, time)
            assert_close(got, MixtureOracle(m, path).predict(target, x, time), rtol=1e-5, atol=1e-6)


def test_times_of_a_dataset_may_differ_within_a_batch():
    oracle, x = DatasetOracle(points(7, seed=1), Cosine()), points(5)
    t = torch.tensor([0.5, 0.1, 1.0, 0.5, 0.9], dtype=F64)
    alone = torch.cat([oracle(x[n : n + 1], t[n : n + 1]) for n in range(5)])
    assert_close(oracle(x, t), alone, rtol=1e-12, atol=1e-12)


def test_one_image_is_always_the_answer():
    data = torch.randn(1, 1, 2, 2, generator=generator(0), dtype=F64)
    x = torch.randn(4, 1, 2, 2, generator=generator(1), dtype=F64)
    assert_close(DatasetOracle(data, VP())(x, constant(0.5, 4)), data.expand(4, 1, 2, 2))


def test_a_dataset_at_the_ends_of_the_noise():
    """Little noise: the nearest point. No signal: the mean of all."""
    data = points(7, seed=1)
    oracle, eps = DatasetOracle(data, Cosine()), 1e-3 * points(7)
    assert_close(oracle(data + eps, constant(0.01, 7)), data, rtol=0, atol=1e-6)
    assert_close(oracle(points(), constant(1.0, 20)), data.mean(0).expand(20, 2))


# Refusals


@pytest.mark.parametrize("target", ["eps", "score", "velocity", "v"])
def test_without_noise_only_the_data_is_determined(target):
    with pytest.raises(ValueError, match=f"target '{target}' is not determined where b = 0"):
        MixtureOracle(mixture(), Linear()).predict(target, points(2), torch.tensor([0.5, 0.0], dtype=F64))


def test_unknown_target():
    with pytest.raises(ValueError, match=r"target must be one of .*; got 'noise'"):
        MixtureOracle(mixture(), Linear()).predict("noise", points(2), constant(0.5, 2))


@pytest.mark.parametrize("t, match", [
    (constant(0.5, 3), r"t must have shape \(2,\)"),
    (constant(1.5, 2), r"t must lie in \[0, 1\]"),
    (constant(-0.1, 2), r"t must lie in \[0, 1\]"),
    (constant(math.nan, 2), r"t must lie in \[0, 1\]"),
])  # fmt: skip
def test_bad_times(t, match):
    for oracle in (MixtureOracle(mixture(), Linear()), DatasetOracle(points(4), Linear())):
        with pytest.raises(ValueError, match=match):
            oracle(points(2), t)
        with pytest.raises(ValueError, match=match):
            oracle.predict("eps", points(2), t)
    with pytest.raises(ValueError, match=match):
        MixtureOracle(mixture(), Linear()).score(points(2), t)


@pytest.mark.parametrize("t", [1.5, -0.2])
def test_the_noisy_mixture_at_a_time_outside(t):
    with pytest.raises(ValueError, match=r"t must lie in"):
        MixtureOracle(mixture(), Linear()).at(t)


@pytest.mark.parametrize("points", [[[0.0, 1.0]], torch.zeros(3), torch.zeros(0, 2), None])
def test_bad_datasets(points):
    with pytest.raises(ValueError, match=r"points must be a tensor \(N, …\) of at least one point"):
        DatasetOracle(points, Linear())


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (2, 2, 1), (2,)])
def test_samples_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"xt must have samples of shape \(2,\)"):
        DatasetOracle(points(4), Linear())(torch.zeros(shape, dtype=F64), constant(0.5, 2))


def test_samples_with_other_columns_or_type_for_a_mixture():
    oracle = MixtureOracle(mixture(), Linear())
    with pytest.raises(ValueError, match=r"xt must have shape \(B, 2\)"):
        oracle(torch.zeros(2, 3, dtype=F64), constant(0.5, 2))
    with pytest.raises(ValueError, match=r"x must be torch.float64"):
        oracle(torch.zeros(2, 2), constant(0.5, 2).float())


def test_the_bare_oracle_knows_nothing():
    with pytest.raises(NotImplementedError):
        Oracle(Linear())(points(2), constant(0.5, 2))
