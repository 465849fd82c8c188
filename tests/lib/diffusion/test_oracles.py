"""Exact denoisers, against quadrature, conditioning of Gaussians, autograd of a density, and loops."""

import math

import numpy as np
import pytest
import torch
from cases import F64, PATHS, generator, mixture, normal, numbers
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

from course_lib.diffusion.oracles import DatasetOracle, MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.mixture.gaussian import GaussianMixture

SHAPES = ("full", "diag", "spherical")
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def points(n=20, D=2, seed=9):
    return 2 * normal(n, D, seed=seed)


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
@pytest.mark.parametrize("D", [1, 3])
def test_score_and_tweedie_by_autograd_of_the_density(path, shape, D):
    """Of `at`, and of the noisy mixture put together here; the means of data and noise follow by Tweedie."""
    m, x = mixture(D=D, shape=shape), points(D=D).requires_grad_()
    dense = m.covariances if shape == "full" else torch.diag_embed(m.covariances)
    oracle = MixtureOracle(m, path)
    for t in (0.05, 0.7):
        a, b = numbers(path, t)
        noisy = GaussianMixture(m.weights, a * m.means, a**2 * dense + b**2 * torch.eye(D, dtype=F64))
        for now in (noisy, oracle.at(t)):
            (score,) = torch.autograd.grad(now.log_prob(x).sum(), x)
            assert_close(oracle.score(x, t).detach(), score, rtol=1e-8, atol=1e-8)
        x0, eps = (v.detach() for v in oracle.predict(x, t))
        assert_close(x0, ((x + b**2 * score) / a).detach(), rtol=1e-8, atol=1e-8)
        assert_close(eps, -b * score, rtol=1e-8, atol=1e-8)


@every_path
def test_means_and_density_by_quadrature(path):
    m = mixture(1, D=1)
    oracle = MixtureOracle(m, path)
    for t, v in ((0.1, 0.4), (0.5, -1.3), (0.9, 2.0)):
        a, b = numbers(path, t)
        mean, evidence = moment(m, path, t, v, lambda x0: x0)
        noise, _ = moment(m, path, t, v, lambda x0, a=a, b=b, v=v: (v - a * x0) / b)
        x = torch.tensor([[v]], dtype=F64)
        for got, want in zip(oracle.predict(x, t), (mean, noise), strict=True):
            assert got.item() == pytest.approx(want, rel=1e-7, abs=1e-8)
        assert oracle.at(t).log_prob(x).exp().item() == pytest.approx(evidence, rel=1e-7)


@pytest.mark.parametrize("name", ["vp", "cosine", "linear", "ve"])
def test_velocity_by_quadrature(name):
    path, m, t, v = PATHS[name], mixture(1, D=1), 0.4, 0.7
    a, b = numbers(path, t)
    (a1, b1), (a2, b2) = numbers(path, t - 1e-5), numbers(path, t + 1e-5)
    da, db = (a2 - a1) / 2e-5, (b2 - b1) / 2e-5
    want, _ = moment(m, path, t, v, lambda x0: da * x0 + db * (v - a * x0) / b)
    got = MixtureOracle(m, path).velocity(torch.tensor([[v]], dtype=F64), t)
    assert got.item() == pytest.approx(want, rel=1e-6, abs=1e-8)


@every_path
def test_its_derivative_is_the_posterior_variance(path):
    """Tweedie's second formula: Var[x_0 | x_t] = b²/a · dE/dx."""
    m, t, v = mixture(2, D=1), 0.4, 0.3
    a, b = numbers(path, t)
    x = torch.tensor([[v]], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(MixtureOracle(m, path)(x, t).sum(), x)
    mean, _ = moment(m, path, t, v, lambda x0: x0)
    variance, _ = moment(m, path, t, v, lambda x0: (x0 - mean) ** 2)
    assert b**2 / a * slope.item() == pytest.approx(variance, rel=1e-6)


@every_path
def test_one_gaussian_by_conditioning(path):
    """In the joint normal of x_0 and x_t, with NumPy."""
    m, x = mixture(3, K=1, D=3), points(6, 3)
    mean, cov = m.means[0].numpy(), m.covariances[0].numpy()
    for t in (0.1, 0.8):
        a, b = numbers(path, t)
        gain = a * cov @ np.linalg.inv(a**2 * cov + b**2 * np.eye(3))
        want = mean + (x.numpy() - a * mean) @ gain.T
        np.testing.assert_allclose(MixtureOracle(m, path)(x, t), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_component_alone(shape):
    """y= against the mixture that has this component only."""
    m, path, x = mixture(shape=shape), Cosine(), points(9)
    y = torch.tensor([0, 1, 2] * 3)
    got, score = MixtureOracle(m, path).predict(x, 0.6, y=y), MixtureOracle(m, path).score(x, 0.6, y=y)
    for k in range(3):
        one = GaussianMixture(torch.ones(1, dtype=F64), m.means[k : k + 1], m.covariances[k : k + 1])
        alone = MixtureOracle(one, path)
        for value, want in zip((*got, score), (*alone.predict(x, 0.6), alone.score(x, 0.6)), strict=True):
            assert_close(value[y == k], want[y == k], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("oracle", [
    *(MixtureOracle(mixture(shape=shape), Cosine()) for shape in SHAPES),
    DatasetOracle(points(7, seed=1), Cosine()),
])  # fmt: skip
def test_times_may_differ_within_a_batch(oracle):
    x, t = points(6), torch.tensor([0.5, 0.1, 1.0, 0.5, 0.9, 0.01], dtype=F64)
    for method in (oracle, oracle.eps, oracle.score, oracle.velocity):
        alone = torch.cat([method(x[n : n + 1], t[n].item()) for n in range(6)])
        assert_close(method(x, t), alone, rtol=1e-12, atol=1e-12)


@every_path
@pytest.mark.parametrize("shape", SHAPES)
def test_without_noise_the_sample_is_the_data(path, shape):
    """And the mean of the noise, which is independent of the data, is 0."""
    x0, eps = MixtureOracle(mixture(shape=shape), path).predict(points(), 0.0)
    assert_close(x0, points(), rtol=1e-10, atol=1e-10)
    assert not eps.any()


@pytest.mark.parametrize("path", [Cosine(), Linear()])
def test_without_signal_the_mean_is_the_prior_mean(path):
    m = mixture()
    want = (m.weights @ m.means).expand(20, 2)
    assert_close(MixtureOracle(m, path)(points(), 1.0), want, rtol=1e-12, atol=1e-12)
    data = points(7, seed=1)
    assert_close(DatasetOracle(data, path)(points(), 1.0), data.mean(0).expand(20, 2))


@every_path
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_also_where_there_is_little_noise(path, shape):
    """The noise is not a difference that cancels: data around 100 with a deviation of 0.1."""
    m = mixture(shape=shape)
    far = GaussianMixture(m.weights, 100 + m.means / 10, m.covariances / 100)
    oracles = MixtureOracle(far.to(torch.float32), path), MixtureOracle(far, path)
    for t in (0.01, 0.5):
        x = path.mix(100 + points() / 10, normal(20, 2), t).float()
        for method in ("forward", "eps"):
            got, want = (getattr(o, method)(v, t) for o, v in zip(oracles, (x, x.double()), strict=True))
            assert got.dtype == torch.float32
            # a rounding of x, in units of the noise or of the data, whichever is larger
            off = 1e-4 * max(1.0, want.abs().max()) + 1e-5 / max(0.01, numbers(path, t)[1])
            assert (got - want).abs().max() < off, method


@every_path
def test_under_autocast(path):
    x, m = points(), mixture()
    oracle, given = MixtureOracle(m.to(torch.float32), path), x.float()
    want = oracle.predict(given, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        for got, other in zip(oracle.predict(given, 0.5), want, strict=True):
            assert torch.equal(got, other)


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
    data, x = normal(12, *shape), normal(5, *shape, seed=1)
    oracle = DatasetOracle(data, path)
    for t in (0.05, 0.4, 0.9):
        (x0, eps), (a, b) = oracle.predict(x, t), numbers(path, t)
        np.testing.assert_allclose(x0, brute_force(data, path, x, t), rtol=1e-7, atol=1e-9)
        assert_close(a * x0 + b * eps, x)
        assert_close(oracle.weights(x, t).sum(1), torch.ones(5, dtype=F64))


@every_path
def test_dataset_is_a_mixture_of_tiny_gaussians(path):
    data, x = points(7, seed=1), points(10)
    m = GaussianMixture(torch.full((7,), 1 / 7, dtype=F64), data, torch.full((7,), 1e-10, dtype=F64))
    for t in (0.2, 0.6):
        pairs = DatasetOracle(data, path).predict(x, t), MixtureOracle(m, path).predict(x, t)
        for got, want in zip(*pairs, strict=True):
            assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("far", [0.0, -99_999.0, 1e8])
def test_float32_points_far_from_the_origin(far):
    """100 ± 0.1, and one that is far from all: the weights are those of float64."""
    data = 100 + 0.1 * points(8).float()
    data[0] += far
    x, path = Linear().mix(data[1:5], normal(4, 2).float(), 0.05), Linear()
    got, want = DatasetOracle(data, path), brute_force(data.double(), path, x.double(), 0.05)
    np.testing.assert_allclose(got(x, 0.05), want, atol=2e-5)
    noise = (x.double().numpy() - 0.95 * want) / 0.05
    np.testing.assert_allclose(got.eps(x, 0.05), noise, atol=2e-4)
    assert got(x, 0.05).dtype == torch.float32


def test_little_noise_finds_the_nearest_point():
    data = points(7, seed=1)
    assert_close(DatasetOracle(data, Cosine())(data + 1e-3 * points(7), 0.01), data, rtol=0, atol=1e-6)


# Refusals


@pytest.mark.parametrize("t", [1.5, -0.2, math.nan])
def test_no_times(t):
    for oracle in (MixtureOracle(mixture(), Linear()), DatasetOracle(points(4), VP())):
        for method in (oracle, oracle.score, oracle.predict):
            with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
                method(points(2), t)
    with pytest.raises(ValueError, match=r"t must lie in"):
        MixtureOracle(mixture(), VE()).at(t)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (2, 2, 1)])
def test_samples_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"x must be samples \(2,\)"):
        DatasetOracle(points(4), Linear())(torch.zeros(shape, dtype=F64), 0.5)


@pytest.mark.parametrize("data", [torch.zeros(3), torch.zeros(0, 2)])
def test_no_data(data):
    with pytest.raises(ValueError, match=r"points must be \(N, …\), at least one"):
        DatasetOracle(data, Linear())


def test_a_noisy_sample_of_the_mixture_has_its_moments():
    """Within 5 standard errors, of 20 000 samples at t = 0.3: `at` is the density of x_t."""
    m, path, n = mixture(), Cosine(), 20_000
    x0, _ = m.sample(n, generator=generator(0))
    x, now = path.mix(x0, normal(n, 2, seed=70), 0.3), MixtureOracle(m, path).at(0.3)
    second = now.covariances + now.means[:, :, None] * now.means[:, None]
    products = (x[:, :, None] * x[:, None]).flatten(1)
    wants = now.weights @ now.means, torch.einsum("k,kij->ij", now.weights, second).flatten()
    for values, want in zip((x, products), wants, strict=True):
        assert ((values.mean(0) - want).abs() < 5 * values.std(0) / math.sqrt(n)).all()
