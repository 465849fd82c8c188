"""Score matching, against Jacobians by finite differences, exact Fisher divergences and closed forms."""

import numpy as np
import pytest
import torch
from cases import F64, generator, normal
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.score_matching import along, denoising, divergence, hyvarinen, sliced
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.nets.mlp import mlp

SEEDS = range(3)


def field(seed=0, dim=3):
    torch.manual_seed(seed)
    return mlp(dim, 16, dim).double()


def jacobian(f, x, h=1e-5):
    """Of one point (D,), by central differences."""
    columns = [(f(x + h * e) - f(x - h * e)) / (2 * h) for e in torch.eye(len(x), dtype=F64)]
    return torch.stack(columns, 1).detach()


@pytest.mark.parametrize("seed", SEEDS)
def test_divergence_and_directional_derivative(seed):
    f, x, v = field(seed), normal(6, 3, seed=seed), normal(6, 3, seed=seed + 9)
    at = x.clone().requires_grad_()
    u = f(at)
    jacobians = torch.stack([jacobian(f, row) for row in x])
    assert_close(divergence(u, at), jacobians.diagonal(dim1=1, dim2=2).sum(1), atol=1e-7, rtol=0)
    assert_close(along(u, at, v), torch.einsum("bi,bij,bj->b", v, jacobians, v), atol=1e-7, rtol=0)


def test_images_and_a_field_that_ignores_some_values():
    x = normal(2, 1, 2, 2).requires_grad_()
    u = torch.zeros_like(x) + x[:, :, :1] * 3  # each value depends on one row only
    want = torch.tensor([6.0, 6.0], dtype=F64)  # ∂u/∂x = 3 in the two places of the first row
    assert_close(divergence(u, x), want)
    v = torch.ones_like(x)
    assert_close(along(u, x, v), torch.tensor([12.0, 12.0], dtype=F64))


def test_a_constant_field_without_a_graph_is_refused():
    x = normal(2, 3).requires_grad_()
    with pytest.raises(ValueError, match="differentiate"):
        divergence(torch.ones(2, 3, dtype=F64), x)
    with torch.no_grad(), pytest.raises(ValueError, match="differentiate"):
        hyvarinen(field(), normal(2, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_hyvarinen_differs_from_the_fisher_divergence_by_a_constant(seed):
    """On a grid, for two models."""
    mixture = GaussianMixture(
        torch.softmax(normal(3, seed=seed), 0),
        normal(3, 1, seed=seed + 1),
        torch.full((3, 1), 0.2, dtype=F64),
    )
    grid = torch.linspace(-8, 8, 20_001, dtype=F64)[:, None]
    p, s = mixture.log_prob(grid).exp(), mixture.score(grid)
    gaps = []
    for k in range(2):
        f = field(seed + k, dim=1)
        fisher = torch.trapezoid(p * (f(grid) - s).square()[:, 0] / 2, grid[:, 0])
        gaps.append((fisher - torch.trapezoid(p * hyvarinen(f, grid), grid[:, 0])).item())
    wanted = torch.trapezoid(p * s[:, 0] ** 2 / 2, grid[:, 0]).item()
    np.testing.assert_allclose(gaps, wanted, rtol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["normal", "signs"])
def test_the_mean_of_sliced_is_hyvarinens(seed, kind):
    f, n = field(seed), 20_000
    x = normal(1, 3, seed=seed)
    g = generator(seed)
    v = torch.randn(n, 3, generator=g, dtype=F64)
    v = v if kind == "normal" else v.sign()
    drawn = sliced(f, x.expand(n, 3), v).detach()
    want = hyvarinen(f, x).item()
    assert abs(drawn.mean().item() - want) < 5 * drawn.std().item() / n**0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_denoising_finds_the_score_of_the_noisy_density(seed):
    """Data N(0, 1): among θx the best is -1/(1 + σ²), by least squares on the loss's own draws."""
    sigma, n = 0.7, 100_000
    x = normal(n, 1, seed=seed)
    values = [
        denoising(lambda y, c=c: c * y, x, sigma, generator=generator(seed + 50)).mean().item()
        for c in (-1, 0, 1)
    ]  # a parabola in θ
    second, first = values[0] + values[2] - 2 * values[1], (values[2] - values[0]) / 2
    assert abs(-first / second + 1 / (1 + sigma**2)) < 5 * 1.5 / n**0.5


def test_denoising_by_hand():
    x, g = normal(4, 2), generator(3)
    got = denoising(lambda y: -y, x, 0.5, generator=generator(3))
    eps = torch.randn(4, 2, generator=g, dtype=F64).numpy()
    want = 0.5 * ((-(x.numpy() + 0.5 * eps) + eps / 0.5) ** 2).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("loss", [hyvarinen, lambda f, x: sliced(f, x, torch.ones_like(x))])
def test_gradients_by_parameters(loss):
    """Of the whole loss, against finite differences: the divergence is part of the graph."""
    f, x = field(2), normal(5, 3)
    loss(f, x).mean().backward()
    weight = f[0].weight
    got = weight.grad[0, 0].item()
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += h
        values.append(loss(f, x).mean().item())
        with torch.no_grad():
            weight[0, 0] -= h
    assert abs(got - (values[0] - values[1]) / 2e-5) < 1e-7


def test_a_score_of_another_shape_is_refused():
    """It would be broadcast."""
    wrong = nn.Linear(3, 1).double()
    for call in (
        lambda: hyvarinen(wrong, normal(4, 3)),
        lambda: sliced(wrong, normal(4, 3), normal(4, 3)),
        lambda: denoising(wrong, normal(4, 3), 0.1),
    ):
        with pytest.raises(ValueError, match="score must return the shape of x"):
            call()
