"""Likelihood through the flow, against exact densities, matrix exponentials and total probability."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.stats import multivariate_normal
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.likelihood import log_likelihood
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.solve import dopri5
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.nets.mlp import TimeMLP

SEEDS = range(5)
F64 = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def mixture(seed=0, K=3, D=2, shape="full"):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = torch.randn(K, D, generator=g, dtype=F64)
    factor = torch.randn(K, D, D, generator=g, dtype=F64)
    full = 0.2 * factor @ factor.mT + 0.15 * torch.eye(D, dtype=F64)
    covariances = {"full": full, "diag": full.diagonal(dim1=1, dim2=2), "spherical": full[:, 0, 0]}[shape]
    return GaussianMixture(weights, means, covariances)


def error(path, m, x, dtype=F64, **options):
    """Largest difference from the exact log-density."""
    m, x = m.to(dtype), x.to(dtype)
    got = log_likelihood(MixtureOracle(m, path), path, x, target="x0", **options)
    assert got.shape == (len(x),) and got.dtype == dtype
    return (got - m.log_prob(x)).abs().max().item()


@pytest.mark.parametrize("seed, dtype", [*((k, torch.float32) for k in SEEDS), (0, F64)])
@pytest.mark.parametrize("path", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_the_exact_density(path, seed, dtype):
    """At samples, with the default tolerances."""
    m = mixture(seed)
    found = error(path, m, m.sample(40, generator=generator(3))[0], dtype)
    print("likelihood", type(path).__name__, dtype, seed, found)
    assert found < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_the_exact_density_off_the_data(path, seed):
    """Down to a log-density of -28, with a tighter solver."""
    found = error(path, mixture(seed), 1.5 * normal(20, 2), rtol=1e-6, atol=1e-6)
    print("likelihood, off the data", type(path).__name__, seed, found)
    assert found < 1e-3


@pytest.mark.parametrize("D, shape", [(1, "full"), (2, "diag"), (2, "spherical"), (4, "full")])
def test_the_exact_density_in_other_shapes(D, shape):
    m = mixture(1, D=D, shape=shape)
    assert error(Cosine(), m, m.sample(40, generator=generator(3))[0]) < 1e-3


@pytest.mark.parametrize("target", ["eps", "score", "velocity", "v"])
def test_the_target_of_a_network_does_not_matter(target):
    """Away from t = 1, where eps and score are singular; the density there is normal but for 1e-3²."""
    m, path = mixture(), Cosine()
    oracle, x = MixtureOracle(m, path), m.sample(20, generator=generator(0))[0]
    net = lambda x, t: oracle.predict(target, x, t)
    got = log_likelihood(net, path, x, target=target, start=1e-4, end=0.9999)
    assert (got - m.log_prob(x)).abs().max() < 2e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path", [VP(), VE(0.05, 12.0)], ids=["vp", "ve"])
def test_where_the_end_is_not_quite_normal(path, seed):
    """The error is that of the normal at the end: known, from the exact density of x_1."""
    m = mixture(seed)
    oracle, x = MixtureOracle(m, path), m.sample(30, generator=generator(seed))[0]
    got = log_likelihood(oracle, path, x, target="x0", start=1e-4) - m.log_prob(x)
    x1 = dopri5(oracle, path, x, torch.tensor([1e-4, 1.0]), target="x0", rtol=1e-6, atol=1e-6)
    b = path.b(torch.ones(1, dtype=F64)).item()
    prior = multivariate_normal(np.zeros(2), b**2 * np.eye(2)).logpdf(x1)
    mismatch = torch.tensor(prior) - oracle.at(1.0).log_prob(x1)
    print(
        "mismatch",
        type(path).__name__,
        seed,
        mismatch.abs().max().item(),
        (got - mismatch).abs().max().item(),
    )
    start = (oracle.at(1e-4).log_prob(x) - m.log_prob(x)).abs().max().item()
    assert (got - mismatch).abs().max() < 1e-3 + start
    if isinstance(path, VP):
        assert mismatch.abs().max() < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_field(seed):
    """u = M x moves x to exp(M) x and the density by tr M, on images too; M is not symmetric."""
    matrix, x = 0.7 * normal(4, 4, seed=seed), normal(5, 1, 2, 2, seed=seed + 9)
    net = lambda x, t: (x.flatten(1) @ matrix.T).view_as(x)
    got = log_likelihood(net, Linear(), x, start=0.0)
    moved = x.flatten(1).numpy() @ expm(matrix.numpy()).T
    want = multivariate_normal(np.zeros(4), np.eye(4)).logpdf(moved) + np.trace(matrix)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_part_of_the_way():
    """From 0.2 to 0.7 a field M x acts for half the time, and the end is N(0, b²)."""
    matrix, x = normal(2, 2), normal(5, 2, seed=1)
    got = log_likelihood(lambda x, t: x @ matrix.T, Cosine(), x, start=0.2, end=0.7)
    moved = x.numpy() @ expm(0.5 * matrix.numpy()).T
    cov = math.sin(0.35 * math.pi) ** 2 * np.eye(2)
    want = multivariate_normal(np.zeros(2), cov).logpdf(moved) + 0.5 * np.trace(matrix)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_density_of_any_network_integrates_to_one(seed):
    """One dimension, by the trapezoidal rule."""
    torch.manual_seed(seed)
    net = TimeMLP(1, hidden=16, layers=2).double()
    x = torch.linspace(-14, 14, 1001, dtype=F64)[:, None]
    density = log_likelihood(net, Linear(), x, start=0.0).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-3)


# Hutchinson


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("draws", [1, 3])
def test_hutchinson_is_unbiased(seed, draws):
    """500 estimates at the same point: their mean is the exact value within 5 standard errors + 1e-3."""
    m, path, n = mixture(seed), Cosine(), 500
    oracle, x = MixtureOracle(m, path), m.sample(1, generator=generator(seed))[0]
    got = log_likelihood(
        oracle, path, x.repeat(n, 1), target="x0", hutchinson=draws, generator=generator(seed + 4)
    )
    standard = got.std().item() / math.sqrt(n)
    assert standard > 0
    assert abs(got.mean().item() - m.log_prob(x).item()) < 5 * standard + 1e-3


def test_hutchinsons_variance_is_that_of_random_signs():
    r"""For u = M x it is :math:`\sum_{i<j} (M_{ij} + M_{ji})^2` over the draws."""
    n, matrix = 20_000, normal(3, 3)
    symmetric = (matrix + matrix.T).numpy()
    want = (np.triu(symmetric, 1) ** 2).sum()
    x = normal(1, 3).repeat(n, 1)
    for draws in (1, 4):
        got = log_likelihood(
            lambda x, t: x @ matrix.T, Linear(), x, start=0.0, hutchinson=draws, generator=generator(draws)
        )
        # the variance of a variance of nearly normal or three-valued numbers is at most 2/n
        assert got.var().item() == pytest.approx(want / draws, rel=5 * math.sqrt(3 / n))


def test_hutchinson_is_exact_for_a_diagonal_field():
    rates, x = torch.tensor([0.5, -1.0, 0.2], dtype=F64), normal(4, 3)
    net = lambda x, t: rates * x.tanh()
    exact = log_likelihood(net, Linear(), x, start=0.0)
    assert_close(log_likelihood(net, Linear(), x, start=0.0, hutchinson=1), exact, rtol=1e-6, atol=1e-6)


def test_signs_follow_the_generator():
    net = lambda x, t: torch.sin(x.flip(1) * x)
    runs = [
        log_likelihood(net, Linear(), normal(6, 3), start=0.0, hutchinson=2, generator=generator(k))
        for k in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


# Conduct


@pytest.mark.parametrize("hutchinson", [0, 1])
def test_no_gradient_is_recorded(hutchinson):
    layer = nn.Linear(2, 2, dtype=F64)
    x = normal(3, 2).requires_grad_()
    net = lambda x, t: layer(x)
    got = log_likelihood(net, Linear(), x, hutchinson=hutchinson, generator=generator(0))
    assert not got.requires_grad and x.grad is None and layer.weight.grad is None
    with torch.no_grad():
        assert torch.equal(
            log_likelihood(net, Linear(), x, hutchinson=hutchinson, generator=generator(0)), got
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    x, net = normal(3, 2).to(dtype), lambda x, t: torch.sin(x)
    got = log_likelihood(net, Linear(), x)
    assert got.dtype == torch.float32
    assert_close(got, log_likelihood(net, Linear(), x.float()))


@pytest.mark.parametrize("given, match", [
    ({"start": -0.1}, r"start and end must be two times in \[0, 1\], start first; got -0.1, 1.0"),
    ({"end": 1.1}, "start and end must be two times"),
    ({"start": 0.5, "end": 0.5}, "start and end must be two times"),
    ({"start": 0.9, "end": 0.1}, "start and end must be two times"),
    ({"start": math.nan}, "start and end must be two times"),
    ({"hutchinson": -1}, "hutchinson must be a number of draws, 0 for none; got -1"),
    ({"hutchinson": 1.0}, "hutchinson must be a number of draws"),
    ({"hutchinson": True}, "hutchinson must be a number of draws"),
    ({"target": "noise"}, "target must be one of .*; got 'noise'"),
])  # fmt: skip
def test_bad_arguments(given, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(lambda x, t: -x, Linear(), normal(3, 2), **given)


@pytest.mark.parametrize("net, match", [
    (lambda x, t: x * math.nan, "net returned NaN or infinity at t = "),
    (lambda x, t: x[:, :1], r"net must return the shape of x, \(3, 2\); got \(3, 1\)"),
    (lambda x, t: (x, x), "net must return the shape of x.*got tuple"),
])  # fmt: skip
def test_bad_networks(net, match):
    with pytest.raises(ValueError, match=match):
        log_likelihood(net, Linear(), normal(3, 2))


@pytest.mark.parametrize("path, target, options", [
    (Linear(), "eps", {}), (VP(), "x0", {"start": 0.0}), (Linear(), "x0", {"start": 0.0}),
])  # fmt: skip
def test_a_target_that_is_singular_at_an_end(path, target, options):
    with pytest.raises(
        ValueError, match=f"target '{target}' does not tell x0 and eps apart|start and end must"
    ):
        log_likelihood(lambda x, t: -x, path, normal(3, 2), target=target, **options)
