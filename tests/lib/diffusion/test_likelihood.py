"""Likelihood through the flow, against exact densities, matrix exponentials and total probability."""

import math

import numpy as np
import pytest
import torch
from cases import F64, exact, generator, mixture, normal
from scipy.linalg import expm
from scipy.stats import multivariate_normal
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.likelihood import log_likelihood
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.samplers import dopri5
from course_lib.nets.mlp import TimeMLP


def flow(net, path=None):
    """A denoiser that is its velocity."""
    return Denoiser(net, path or Linear(), "velocity")


@pytest.mark.parametrize("path, D, shape, dtype", [
    (Cosine(), 2, "full", torch.float32), (Linear(), 2, "full", torch.float32), (Cosine(), 1, "full", F64),
    (Linear(), 2, "spherical", F64), (Cosine(), 4, "diag", F64),
])  # fmt: skip
def test_the_exact_density(path, D, shape, dtype):
    """At samples, with the default tolerances."""
    m = mixture(1, D=D, shape=shape).to(dtype)
    x, _ = m.sample(40, generator=generator(3))
    got = log_likelihood(MixtureOracle(m, path), x)
    assert got.dtype == dtype and got.shape == (40,)
    assert_close(got, m.log_prob(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_the_exact_density_off_the_data(path):
    """Down to a log-density of -28, with a tighter solver."""
    m, x = mixture(), 1.5 * normal(20, 2)
    got = log_likelihood(MixtureOracle(m, path), x, rtol=1e-6, atol=1e-6)
    assert_close(got, m.log_prob(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("target", ["eps", "score", "velocity", "v", "edm"])
def test_the_target_of_a_network_does_not_matter(target):
    """Away from t = 1, where some are singular; the density there is normal but for 1e-3²."""
    m = mixture()
    x = m.sample(20, generator=generator(0))[0]
    model = exact(MixtureOracle(m, Cosine()), target)
    got = log_likelihood(model, x, start=1e-4, stop=0.9999)
    assert (got - m.log_prob(x)).abs().max() < 2e-3


def test_of_a_component():
    """A condition goes on to the model."""
    m, y = mixture(), torch.tensor([0, 1, 2, 0])
    x = m.means[y] + 0.3 * normal(4, 2)
    want = [multivariate_normal(m.means[k], m.covariances[k]).logpdf(v) for k, v in zip(y, x, strict=True)]
    np.testing.assert_allclose(log_likelihood(MixtureOracle(m, Linear()), x, y=y), want, atol=1e-3)


@pytest.mark.parametrize("path", [VP(), VE(0.05, 12.0)], ids=["vp", "ve"])
def test_where_the_end_is_not_quite_normal(path):
    """The error is that of the normal at the end: known, from the exact density of x_1."""
    m = mixture()
    oracle, x = MixtureOracle(m, path), m.sample(30, generator=generator(0))[0]
    got = log_likelihood(oracle, x, start=1e-4) - m.log_prob(x)
    x1 = dopri5(oracle, x, torch.tensor([1e-4, 1.0]), rtol=1e-6, atol=1e-6)
    b = path.b(torch.ones(1, dtype=F64)).item()
    prior = multivariate_normal(np.zeros(2), b**2 * np.eye(2)).logpdf(x1)
    mismatch = torch.tensor(prior) - oracle.at(1.0).log_prob(x1)
    start = (oracle.at(1e-4).log_prob(x) - m.log_prob(x)).abs().max().item()
    assert (got - mismatch).abs().max() < 1e-3 + start
    if isinstance(path, VP):
        assert mismatch.abs().max() < 0.03


def test_a_linear_field():
    """u = M x moves x to exp(M) x and the density by tr M, on images too; M is not symmetric."""
    matrix, x = 0.7 * normal(4, 4), normal(5, 1, 2, 2, seed=9)
    got = log_likelihood(flow(lambda x, t: (x.flatten(1) @ matrix.T).view_as(x)), x, start=0.0)
    moved = x.flatten(1).numpy() @ expm(matrix.numpy()).T
    want = multivariate_normal(np.zeros(4), np.eye(4)).logpdf(moved) + np.trace(matrix)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_part_of_the_way():
    """From 0.2 to 0.7 a field M x acts for half the time, and the end is N(0, b²)."""
    matrix, x = normal(2, 2), normal(5, 2, seed=1)
    got = log_likelihood(flow(lambda x, t: x @ matrix.T, Cosine()), x, start=0.2, stop=0.7)
    moved = x.numpy() @ expm(0.5 * matrix.numpy()).T
    cov = math.sin(0.35 * math.pi) ** 2 * np.eye(2)
    want = multivariate_normal(np.zeros(2), cov).logpdf(moved) + 0.5 * np.trace(matrix)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_the_density_of_any_network_integrates_to_one():
    """One dimension, by the trapezoidal rule."""
    torch.manual_seed(0)
    model = flow(TimeMLP(1, hidden=16, layers=2).double())
    x = torch.linspace(-14, 14, 601, dtype=F64)[:, None]
    density = log_likelihood(model, x, start=0.0).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-3)


# Hutchinson


@pytest.mark.parametrize("draws", [1, 3])
def test_hutchinson_is_unbiased(draws):
    """500 estimates at the same point: their mean is the exact value within 5 standard errors + 1e-3."""
    m, n = mixture(), 500
    x = m.sample(1, generator=generator(0))[0]
    model = MixtureOracle(m, Cosine())
    got = log_likelihood(model, x.repeat(n, 1), hutchinson=draws, generator=generator(4))
    standard = got.std().item() / math.sqrt(n)
    assert standard > 0
    assert abs(got.mean().item() - m.log_prob(x).item()) < 5 * standard + 1e-3


def test_hutchinsons_variance_is_that_of_random_signs():
    r"""For u = M x it is :math:`\sum_{i<j} (M_{ij} + M_{ji})^2` over the draws."""
    n, matrix = 5000, normal(3, 3)
    symmetric = (matrix + matrix.T).numpy()
    want = (np.triu(symmetric, 1) ** 2).sum()
    x, model = normal(1, 3).repeat(n, 1), flow(lambda x, t: x @ matrix.T)
    for draws in (1, 4):
        got = log_likelihood(model, x, start=0.0, hutchinson=draws, generator=generator(draws))
        # the variance of a variance of nearly normal or three-valued numbers is at most 2/n
        assert got.var().item() == pytest.approx(want / draws, rel=5 * math.sqrt(3 / n))


def test_hutchinson_is_exact_for_a_diagonal_field():
    rates, x = torch.tensor([0.5, -1.0, 0.2], dtype=F64), normal(4, 3)
    model = flow(lambda x, t: rates * x.tanh())
    exactly = log_likelihood(model, x, start=0.0)
    assert_close(log_likelihood(model, x, start=0.0, hutchinson=1), exactly, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hutchinson", [0, 2])
def test_conduct(hutchinson):
    """Half precision is widened, no gradient is recorded, signs follow the generator."""
    layer, x = nn.Linear(2, 2), normal(3, 2).bfloat16().requires_grad_()
    model = flow(lambda x, t: layer(x).sin())
    run = lambda seed: log_likelihood(model, x, hutchinson=hutchinson, generator=generator(seed))
    with torch.no_grad():
        got = run(0)
    assert got.dtype == torch.float32 and not got.requires_grad
    assert torch.equal(run(0), got) and x.grad is None and layer.weight.grad is None
    assert torch.equal(run(1), got) == (not hutchinson)


@pytest.mark.parametrize("given, match", [
    ({"start": -0.1}, r"t must lie in \[0, 1\]"),
    ({"stop": 1.1}, r"t must lie in \[0, 1\]"),
    ({"start": 0.9, "stop": 0.1}, "start must be before stop; got 0.9, 0.1"),
    ({"start": math.nan}, "start must be before stop"),
])  # fmt: skip
def test_bad_times(given, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(flow(lambda x, t: -x), normal(3, 2), **given)


@pytest.mark.parametrize("path, target, options", [
    (Linear(), "eps", {}), (VP(), "x0", {"start": 0.0}), (VP(), "eps", {"start": 0.0}),
])  # fmt: skip
def test_a_velocity_that_is_infinite_at_an_end(path, target, options):
    with pytest.raises(ValueError, match=f"target '{target}' is infinite|velocity is infinite"):
        log_likelihood(Denoiser(lambda x, t: -x, path, target), normal(3, 2), **options)


@pytest.mark.parametrize("net", [lambda x, t: x * math.nan, lambda x, t: 1e3 * x**3])
def test_a_velocity_that_is_too_large(net):
    """NaN, and a flow that reaches infinity on the way."""
    with pytest.raises(ValueError, match="times must leave out those where the velocity is too large"):
        log_likelihood(flow(net), normal(3, 2), start=0.0)
