"""DDPM's bound, against torch's divergences, scipy's cells, and the exact probability of one pixel."""

import math

import numpy as np
import pytest
import torch
from cases import F64, SIGMA_DATA, generator, nonlinear, normal
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.loss import bound
from course_lib.diffusion.oracles import DatasetOracle
from course_lib.diffusion.path import Cosine
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.variational import variational_bound

LEVELS, LN2 = 5, math.log(2)
PATH = Tabulated([0.02, 0.1, 0.3, 0.5, 0.8])


def images(B=6, shape=(1, 2, 2), levels=LEVELS, seed=0, dtype=F64):
    return (torch.randint(levels, (B, *shape), generator=generator(seed)) * 2 / (levels - 1) - 1).to(dtype)


def model(path=PATH, net=nonlinear, target="eps"):
    return Denoiser(net, path, target)


def chain(path):
    """β, α, ᾱ with index n = 0 … T, and the posterior's variances, in NumPy."""
    beta = path.betas.numpy()
    alpha_bar = np.cumprod(1 - beta)
    small = np.zeros_like(beta)
    small[1:] = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
    return beta, 1 - beta, alpha_bar, small


def posterior_mean(path, n, x0, xt):
    """DDPM's equation 7."""
    beta, alpha, alpha_bar, _ = chain(path)
    first = math.sqrt(alpha_bar[n - 1]) * beta[n] / (1 - alpha_bar[n])
    return first * x0 + math.sqrt(alpha[n]) * (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n]) * xt


def clean(path, n, xt, eps):
    alpha_bar = chain(path)[2][n]
    return (xt - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


@pytest.mark.parametrize("T", [1, 5, 100])
def test_the_prior_term_against_torch(T):
    path, x0 = (PATH if T == 5 else Tabulated(torch.full((T,), 0.03))), images()
    found = variational_bound(model(path), x0, levels=LEVELS).prior
    alpha_bar = path.alpha_bar[-1]
    q = Normal(alpha_bar.sqrt() * x0, (1 - alpha_bar).sqrt())
    want = kl_divergence(q, Normal(torch.zeros_like(x0), 1.0)).flatten(1).sum(1) / (4 * LN2)
    assert_close(found, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-7), (torch.float32, 1e-4)])
def test_the_parts_against_divergences_on_the_same_draws(seed, dtype, rtol):
    """torch's KL of q(x_{n-1} | x_n, x_0), with the mean of equation 7, and scipy's cell."""
    x0 = images(seed=seed).to(dtype)
    found = variational_bound(model(), x0, levels=LEVELS, generator=generator(seed))
    g, (beta, _, alpha_bar, small), total = generator(seed), chain(PATH), torch.zeros(6, dtype=F64)
    for n in (5, 4, 3, 2, 1):
        z = torch.randn(x0.shape, generator=g, dtype=dtype).double()
        xt = math.sqrt(alpha_bar[n]) * x0.double() + math.sqrt(1 - alpha_bar[n]) * z
        guess = clean(PATH, n, xt, nonlinear(xt, torch.full((6,), n / 5, dtype=F64)))
        if n > 1:
            q, p = (Normal(posterior_mean(PATH, n, v, xt), math.sqrt(small[n])) for v in (x0.double(), guess))
            total += kl_divergence(q, p).flatten(1).sum(1)
    assert_close(found.steps.double(), total / (4 * LN2), rtol=rtol, atol=1e-10)
    p, half = norm(guess, math.sqrt(beta[1])), 1 / (LEVELS - 1)
    upper = np.where(x0 == 1, 1.0, p.cdf(x0 + half))
    lower = np.where(x0 == -1, 0.0, p.cdf(x0 - half))
    np.testing.assert_allclose(found.data, -np.log2(upper - lower).reshape(6, 4).mean(1), rtol=10 * rtol)
    assert_close(found.total, found.prior + found.steps + found.data)


def test_the_step_terms_against_a_direct_monte_carlo_divergence():
    """log q - log p at draws of x_n and x_{n-1}: means agree within 5 standard errors of their difference."""
    B = 4000
    x0 = torch.full((B, 1, 1, 1), 0.5, dtype=F64)
    found = variational_bound(model(), x0, levels=LEVELS, generator=generator(0)).steps * LN2
    rng, (_, _, alpha_bar, small), direct = np.random.default_rng(0), chain(PATH), np.zeros(B)
    for n in (2, 3, 4, 5):
        xt = math.sqrt(alpha_bar[n]) * 0.5 + math.sqrt(1 - alpha_bar[n]) * rng.normal(size=B)
        eps = 0.6 * np.sin(2 * xt) + 0.3 * xt * n / 5 - 0.1
        q, p = (
            norm(posterior_mean(PATH, n, v, xt), math.sqrt(small[n])) for v in (0.5, clean(PATH, n, xt, eps))
        )
        x = q.rvs(random_state=rng)
        direct += q.logpdf(x) - p.logpdf(x)
    error = math.sqrt((found.var().item() + direct.var()) / B)
    assert abs(found.mean().item() - direct.mean()) < 5 * error


@pytest.mark.parametrize("target", ["x0", "score", "v", "edm"])
def test_the_target_does_not_matter(target):
    """A network that says the same in other words."""
    first, x0 = model(), images()
    other = Denoiser(nonlinear, PATH, target, sigma_data=SIGMA_DATA if target == "edm" else None)

    def net(x, t):
        if target == "edm":
            t = PATH.time(torch.exp(4 * t))
            x = x * (PATH.b(t) ** 2 + (PATH.a(t) * SIGMA_DATA) ** 2).sqrt().view(-1, 1, 1, 1)
        c0, c1 = (c.view(-1, 1, 1, 1) for c in other.coefficients(t))
        pair = first.predict(x, t)
        return c0 * pair.x0 + c1 * pair.eps

    other.net = net
    runs = [variational_bound(m, x0, levels=LEVELS, generator=generator(0)) for m in (other, first)]
    for got, want in zip(*runs, strict=True):
        assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [0.0, 0.97, -1.0, 1.6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_masses_of_all_grey_levels_sum_to_one(levels, mean, dtype):
    """For a network that always says the same x_0: the decoder is then one distribution over the levels."""
    path = Tabulated([0.01, 0.5])
    x0 = torch.linspace(-1, 1, levels, dtype=dtype).view(-1, 1, 1, 1)
    data = variational_bound(model(path, lambda x, t: torch.full_like(x, mean), "x0"), x0, levels=levels).data
    data = data.double()
    assert (2**-data).sum().item() == pytest.approx(1, abs=1e-4 if dtype == torch.float32 else 1e-10)
    # each of them, in logarithms, far into the tails
    half, p = 1 / (levels - 1), norm(mean, 0.1)
    for k, x in enumerate(np.linspace(-1, 1, levels)):
        upper, lower = (np.inf if k == levels - 1 else x + half), (-np.inf if k == 0 else x - half)
        sides = (p.logcdf(upper), p.logcdf(lower)) if x < mean else (p.logsf(lower), p.logsf(upper))
        want = logsumexp(sides, b=(1, -1)) / LN2
        assert -data[k].item() == pytest.approx(want, rel=1e-3 if dtype == torch.float32 else 1e-6, abs=1e-4)


def test_one_image_leaves_nothing_to_learn():
    """Its denoiser is exact, so the steps cost nothing: prior and data remain."""
    x0 = images(1)
    found = variational_bound(DatasetOracle(x0, PATH), x0, levels=LEVELS)
    assert found.steps.item() < 1e-12 and found.prior.item() > 0
    assert_close(found.total, found.prior + found.data)


def exact_bits(path, points, levels):
    """-log2 of the model's probability of each level of one pixel, by sums over a grid of x_n."""
    (beta, _, alpha_bar, small), x = chain(path), np.linspace(-7, 7, 1401)
    density = norm.pdf(x)  # of x_T

    def denoised(n):
        logs = norm.logpdf(x[:, None], math.sqrt(alpha_bar[n]) * points, math.sqrt(1 - alpha_bar[n]))
        return np.exp(logs - logsumexp(logs, axis=1, keepdims=True)) @ points

    for n in range(path.T, 1, -1):
        move = norm.pdf(x[:, None], posterior_mean(path, n, denoised(n), x), math.sqrt(small[n]))
        density = move @ density * (x[1] - x[0])
    half, grey, p = 1 / (levels - 1), np.linspace(-1, 1, levels), norm(denoised(1), math.sqrt(beta[1]))
    upper = [1.0 if k == levels - 1 else p.cdf(v + half) for k, v in enumerate(grey)]
    lower = [0.0 if k == 0 else p.cdf(v - half) for k, v in enumerate(grey)]
    masses = [((u - low) * density).sum() * (x[1] - x[0]) for u, low in zip(upper, lower, strict=True)]
    assert sum(masses) == pytest.approx(1, abs=1e-6)
    return -np.log2(masses)


def test_the_bound_lies_above_the_exact_bits():
    """One pixel of three levels, with 5 standard errors of 4000 draws."""
    path = Tabulated([0.1, 0.3, 0.5, 0.9])
    data = torch.tensor([-1.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=F64).view(-1, 1, 1, 1)
    exact = exact_bits(path, data.flatten().numpy(), 3)
    for level, want in zip((-1.0, 0.0, 1.0), exact, strict=True):
        x0 = torch.full((4000, 1, 1, 1), level, dtype=F64)
        total = variational_bound(DatasetOracle(data, path), x0, levels=3, generator=generator(1)).total
        mean, error = total.mean().item(), total.std().item() / math.sqrt(4000)
        assert want - 5 * error < mean < want + 3


def test_training_weights_are_those_of_the_bound():
    """The sum over n of `bound`/T times the error of ε is the step terms, in nats a value."""
    x0, m = torch.full((20_000, 1, 1, 1), 0.5, dtype=F64), model()
    steps = variational_bound(m, x0, levels=LEVELS, generator=generator(0)).steps * LN2
    total, square = 0.0, steps.var().item() / len(x0)
    for n in range(2, 6):
        eps, t = normal(20_000, 1, 1, 1, seed=n), torch.full((20_000,), n / 5, dtype=F64)
        errors = (nonlinear(PATH.mix(x0, eps, t), t) - eps).flatten() ** 2 * bound(m, t) / 5
        total, square = total + errors.mean().item(), square + errors.var().item() / len(x0)
    assert abs(total - steps.mean().item()) < 5 * math.sqrt(square)


def test_conduct():
    """Conditions arrive; half precision is widened; draws follow the generator; no gradient."""
    layer, seen = torch.nn.Conv2d(1, 1, 1), []

    def net(x, t, y):
        seen.append((x.dtype, y))
        return layer(x)

    run = lambda seed: variational_bound(
        model(net=net), images(dtype=torch.bfloat16), levels=LEVELS, generator=generator(seed), y=3
    )
    found = run(0)
    assert found.total.dtype == torch.float32 and not found.total.requires_grad
    assert seen == [(torch.float32, 3)] * 5
    assert torch.equal(found.total, run(0).total) and not torch.equal(found.total, run(1).total)


@pytest.mark.parametrize("x0, levels, path, match", [
    (torch.zeros(4, 3), 5, PATH, r"x0 must be floating-point \(B, C, H, W\)"),
    (torch.full((1, 1, 2, 2), 255.0), 5, PATH, r"x0 must lie in \[-1, 1\]"),
    (torch.zeros(1, 1, 2, 2), 1, PATH, "levels be at least 2"),
    (torch.zeros(1, 1, 2, 2), 5, Cosine(), "model must have a path that is a table"),
])  # fmt: skip
def test_refusals(x0, levels, path, match):
    with pytest.raises(ValueError, match=match):
        variational_bound(model(path), x0, levels=levels)
