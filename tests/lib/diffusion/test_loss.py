"""The regression loss and DDPM's bound, against exact denoisers, torch's distributions and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from scipy.stats import norm
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from course_lib.diffusion.loss import (
    as_eps,
    bound,
    logit_normal,
    one,
    regression,
    table_steps,
    uniform,
    variational_bound,
)
from course_lib.diffusion.oracles import DatasetOracle, MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear, Tabulated
from course_lib.diffusion.target import convert
from course_lib.mixture.gaussian import GaussianMixture

SEEDS = range(5)
F64 = torch.float64
PATHS = {"vp": VP(), "cosine": Cosine(), "linear": Linear(), "ve": VE(0.1, 3.0)}
TARGETS = {
    "vp": ("x0", "eps", "score", "v", "velocity"),
    "cosine": ("x0", "eps", "score", "v", "velocity"),
    "linear": ("x0", "eps", "score", "velocity"),
    "ve": ("x0", "eps", "score", "velocity"),
}
CASES = [(name, target) for name in PATHS for target in TARGETS[name]]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def mixture(seed=0, K=3, D=2):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = torch.randn(K, D, generator=g, dtype=F64)
    return GaussianMixture(weights, means, 0.1 + torch.rand(K, D, generator=g, dtype=F64))


def numbers(path, t):
    return tuple(f(torch.tensor([t], dtype=F64)).item() for f in (path.a, path.b))


def nonlinear(x, t):
    """Any network."""
    return 0.6 * torch.sin(2 * x) + 0.3 * x * t.view(-1, *[1] * (x.ndim - 1)) - 0.1


def seeded(loss, *given, seed=0):
    torch.manual_seed(seed)
    return loss(*given)


# Densities over time


U = torch.linspace(0.001, 0.999, 999, dtype=F64)


def test_densities_against_their_quantiles():
    assert torch.equal(uniform(U), U)
    np.testing.assert_allclose(logit_normal(U), expit(norm.ppf(U)), rtol=1e-10)
    np.testing.assert_allclose(logit_normal(U, -0.5, 1.5), expit(norm(-0.5, 1.5).ppf(U)), rtol=1e-10)


@pytest.mark.parametrize("T", [1, 7, 1000])
def test_table_steps_are_each_as_likely(T):
    u = (torch.arange(10 * T, dtype=F64) + 0.5) / (10 * T)
    n = (table_steps(T)(u) * T).round().long()
    assert torch.equal(torch.bincount(n), torch.tensor([0] + [10] * T))


@pytest.mark.parametrize("T", [1, 7, 1000])
def test_table_steps_at_the_ends_of_the_unit_interval(T):
    """torch.rand can return 0, and 1 - 2**-24 at most."""
    t = table_steps(T)(torch.tensor([0.0, 1 - 2**-24, 1.0]))
    assert Tabulated(torch.full((T,), 0.1)).index(t).tolist() == [1, T, T]


# Weights


@pytest.mark.parametrize("name, target", CASES)
def test_as_eps_makes_all_losses_one(name, target):
    """For a network of ε converted to the target, on the same draws."""
    path, x0 = PATHS[name], normal(200, 3)
    net = lambda x, t: convert(path, "eps", target, nonlinear(x, t), x, t)
    got = seeded(regression(path, end=0.1, target=target, weight=as_eps(target)), net, x0)
    want = seeded(regression(path, end=0.1), nonlinear, x0)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("name, target", CASES)
def test_as_eps_is_the_square_of_a_derivative(name, target):
    """Of ε by the target, x_t held: by autograd through the conversion."""
    path, t = PATHS[name], torch.tensor([0.15, 0.4, 0.8], dtype=F64)
    prediction = normal(3, 1).requires_grad_()
    eps = convert(path, target, "eps", prediction, normal(3, 1, seed=1), t)
    (slope,) = torch.autograd.grad(eps.sum(), prediction)
    assert_close(as_eps(target)(path, t), slope[:, 0] ** 2, rtol=1e-9, atol=0)


def test_one():
    assert torch.equal(one(VP(), torch.tensor([0.1, 0.9])), torch.ones(2))


@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-7), (torch.float32, 2e-3)])
@pytest.mark.parametrize("schedule, T", [("linear", 1000), ("linear", 30), ("cosine", 1000), ("cosine", 10)])
def test_bound_is_ddpms_equation_12(schedule, T, dtype, rtol):
    r""":math:`\beta_n^2 / (2 \sigma_n^2 \alpha_n (1 - \bar\alpha_n))` in NumPy."""
    path = Tabulated.from_betas(schedule, T)
    beta = path.betas[1:].numpy()
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    variance = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    want = beta[1:] ** 2 / (2 * variance * alpha[1:] * (1 - alpha_bar[1:]))  # of n = 2 … T
    t = (torch.arange(1, T + 1, dtype=F64) / T).to(dtype)
    got = bound(T)(path, t)
    np.testing.assert_allclose(got[1:] / T, want, rtol=rtol)
    assert got[0] == got[1]  # the first step has no such term


# Regression


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
@pytest.mark.parametrize("end", [0.0, 0.2])
def test_the_loss_is_a_weighted_mean_square(shape, end):
    """In loops, from the same draws."""
    path, x0 = Cosine(), normal(50, *shape)
    got = seeded(regression(path, target="v", weight=lambda path, t: 1 + t**2, end=end), nonlinear, x0)
    torch.manual_seed(0)
    u, eps = torch.rand(50).double().clamp(end, 1 - end).numpy(), torch.randn_like(x0).numpy()
    total = 0.0
    for n in range(50):
        a, b = math.cos(math.pi * u[n] / 2), math.sin(math.pi * u[n] / 2)
        xt = a * x0[n].numpy() + b * eps[n]
        out = 0.6 * np.sin(2 * xt) + 0.3 * xt * u[n] - 0.1
        total += (1 + u[n] ** 2) * ((out - (a * eps[n] - b * x0[n].numpy())) ** 2).mean()
    assert got.item() == pytest.approx(total / 50, rel=1e-5)


def test_the_loss_keeps_the_digits_of_float64():
    """A network in float64 is not rounded to float32."""
    x0, off = normal(20, 2), 1e-9

    loss = seeded(regression(Linear(), target="x0", times=lambda u: 0 * u), lambda x, t: x + off, x0)
    assert loss.item() == pytest.approx(off**2, rel=1e-4, abs=0)  # at t = 0 x_t is x_0


@pytest.mark.parametrize("name, target", CASES)
def test_simple_loss_of_the_exact_denoiser_is_the_remaining_variance(name, target):
    """One Gaussian: Var[target | x_t] = (c_0 - c_1 a/b)² v b²/(a² v + b²). 5 standard errors over 5 seeds."""
    path, v, t, n = PATHS[name], 0.4, 0.6, 4000
    m = GaussianMixture(*(torch.tensor(k, dtype=F64) for k in ([1.0], [[0.7]], [v])))
    oracle = MixtureOracle(m, path)
    a, b = numbers(path, t)
    at = torch.tensor([t], dtype=F64)
    c0, c1 = {
        "x0": (1, 0), "eps": (0, 1), "score": (0, -1 / b), "v": (-b, a),
        "velocity": (path.da(at).item(), path.db(at).item()),
    }[target]  # fmt: skip
    want = (c0 - c1 * a / b) ** 2 * v * b**2 / (a**2 * v + b**2)
    loss = regression(path, target=target, times=lambda u: torch.full_like(u, t))
    net = lambda x, t: oracle.predict(target, x, t)
    for seed in SEEDS:
        x0, _ = m.sample(n, generator=generator(seed))
        got = seeded(loss, net, x0, seed=seed).item()
        assert abs(got - want) < 5 * want * math.sqrt(2 / n)  # the remainder is Gaussian


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name, target", CASES)
def test_the_exact_denoiser_is_the_optimum(name, target, seed):
    """The gradient along any direction is 0 there, within 5 standard errors, and is not elsewhere."""
    path, m, n = PATHS[name], mixture(seed), 4000
    oracle, (x0, _) = MixtureOracle(m, path), m.sample(4000, generator=generator(seed))
    times = lambda u: (torch.floor(6 * u) + 1) / 8

    def slopes(off):
        theta = torch.zeros(n, 1, dtype=F64, requires_grad=True)  # one parameter, n copies of it

        def net(x, t):
            return oracle.predict(target, x, t) + (off + theta) * torch.cos(x + 3 * t[:, None])

        seeded(
            regression(path, target=target, times=times, weight=as_eps(target)), net, x0, seed=seed
        ).backward()
        return n * theta.grad[:, 0]

    at_best, elsewhere = slopes(0.0), slopes(1.0)
    assert at_best.mean().abs() < 5 * at_best.std() / math.sqrt(n)
    assert elsewhere.mean().abs() > 5 * elsewhere.std() / math.sqrt(n)


@pytest.mark.parametrize("seed", SEEDS)
def test_training_finds_the_denoiser_of_a_gaussian(seed):
    """A linear network at one time, by least squares through the loss's own gradient."""
    m = GaussianMixture(*(torch.tensor(k, dtype=F64) for k in ([1.0], [[0.7]], [0.4])))
    path, t = Cosine(), 0.5
    net = nn.Linear(1, 1, dtype=F64)
    loss = regression(path, target="eps", times=lambda u: torch.full_like(u, t))
    torch.manual_seed(seed)
    x0, _ = m.sample(4000)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=40, tolerance_grad=1e-7)

    def closure():
        optimizer.zero_grad()
        value = seeded(loss, lambda x, t: net(x), x0, seed=seed)
        value.backward()
        return value

    optimizer.step(closure)
    a, b = numbers(path, t)
    slope = b / (a**2 * 0.4 + b**2)  # of E[ε | x_t]
    spread = math.sqrt((1 - b * slope) / (a**2 * 0.4 + b**2) / 4000)
    assert abs(net.weight.item() - slope) < 5 * spread


def test_conditions_reach_the_network():
    seen = []

    def net(x, t, y, z):
        seen.append((y, z))
        return x

    y, z = torch.arange(4), torch.ones(4)
    regression(Cosine())(net, normal(4, 2), y, z)
    assert seen[0][0] is y and seen[0][1] is z


def test_times_stay_away_from_the_ends():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    regression(Linear(), target="score", end=0.05)(net, normal(5000, 1))
    t = torch.cat(seen)
    assert t.min() == pytest.approx(0.05) and t.max() == pytest.approx(0.95)
    assert ((t == t.min()).double().mean().item()) == pytest.approx(0.05, abs=5 * math.sqrt(0.05 / 5000))


def test_the_network_sees_a_table_only_at_its_steps():
    path = Tabulated.from_betas("linear", 50)
    loss = regression(path, times=table_steps(50), weight=bound(50))
    assert torch.isfinite(loss(nonlinear, normal(100, 2, dtype=torch.float32)))
    with pytest.raises(ValueError, match="t must be one of 0, 1/50"):
        regression(path)(nonlinear, normal(100, 2))


def test_the_loss_of_a_half_network_is_float32():
    net = lambda x, t: nonlinear(x, t).half()
    x0 = normal(50, 2, dtype=torch.float32)
    loss = seeded(regression(Cosine()), net, x0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(seeded(regression(Cosine()), nonlinear, x0).item(), rel=1e-2)


@pytest.mark.parametrize("end", [-0.1, 0.5, 1.0, math.nan])
def test_bad_end(end):
    with pytest.raises(ValueError, match=r"end must be in \[0, 0.5\)"):
        regression(Cosine(), end=end)


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :1], lambda x: x[:1], lambda x: x[..., None], lambda x: x.sum()]
)
def test_a_model_of_another_shape(change):
    with pytest.raises(ValueError, match=r"model must return the shape of x0, \(4, 3\); got"):
        regression(Cosine())(lambda x, t: change(x), normal(4, 3))


def test_bad_targets():
    with pytest.raises(ValueError, match=r"target must be one of .*; got 'noise'"):
        regression(Cosine(), target="noise")(nonlinear, normal(4, 3))
    with pytest.raises(ValueError, match="target 'v' needs a variance-preserving path"):
        regression(Linear(), target="v")(nonlinear, normal(4, 3))
    with pytest.raises(ValueError, match="target 'score' is infinite"):
        regression(Linear(), target="score", times=lambda u: 0 * u)(nonlinear, normal(4, 3))
    with pytest.raises(ValueError, match="target must be one of"):
        as_eps("noise")(Cosine(), torch.tensor([0.5]))


# DDPM's bound


LEVELS = 5
BETAS = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.8])
LN2 = math.log(2)


def images(B=6, shape=(1, 2, 2), levels=LEVELS, seed=0, dtype=F64):
    return (torch.randint(levels, (B, *shape), generator=generator(seed)) * 2 / (levels - 1) - 1).to(dtype)


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
    path = Tabulated(BETAS) if T == 5 else Tabulated(torch.full((T,), 0.03))
    x0 = images()
    found = variational_bound(nonlinear, path, x0, levels=LEVELS).prior
    alpha_bar = path.alpha_bar[-1]
    q = Normal(alpha_bar.sqrt() * x0, (1 - alpha_bar).sqrt())
    want = kl_divergence(q, Normal(torch.zeros_like(x0), 1.0)).flatten(1).sum(1) / (4 * LN2)
    assert_close(found, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_parts_against_divergences_on_the_same_draws(seed):
    """torch's KL of q(x_{n-1} | x_n, x_0), with the mean of equation 7, and scipy's cell."""
    path, x0 = Tabulated(BETAS), images(seed=seed)
    found = variational_bound(nonlinear, path, x0, levels=LEVELS, generator=generator(seed))
    g, (beta, _, alpha_bar, small), total = generator(seed), chain(path), torch.zeros(6, dtype=F64)
    for n in (5, 4, 3, 2, 1):
        z = torch.randn(x0.shape, generator=g, dtype=F64)
        xt = math.sqrt(alpha_bar[n]) * x0 + math.sqrt(1 - alpha_bar[n]) * z
        guess = clean(path, n, xt, nonlinear(xt, torch.full((6,), n / 5, dtype=F64)))
        if n > 1:
            q, p = (Normal(posterior_mean(path, n, v, xt), math.sqrt(small[n])) for v in (x0, guess))
            total += kl_divergence(q, p).flatten(1).sum(1)
    assert_close(found.steps, total / (4 * LN2), rtol=1e-8, atol=1e-10)
    p, half = norm(guess, math.sqrt(beta[1])), 1 / (LEVELS - 1)
    upper = np.where(x0 == 1, 1.0, p.cdf(x0 + half))
    lower = np.where(x0 == -1, 0.0, p.cdf(x0 - half))
    data = -np.log2(upper - lower).reshape(6, 4).mean(1)
    np.testing.assert_allclose(found.data, data, rtol=1e-6)
    assert_close(found.total, found.prior + found.steps + found.data)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_step_terms_against_a_direct_monte_carlo_divergence(seed):
    """log q - log p at draws of x_n and x_{n-1}: means agree within 5 standard errors of their difference."""
    path, B = Tabulated(BETAS), 4000
    x0 = torch.full((B, 1, 1, 1), 0.5, dtype=F64)
    found = variational_bound(nonlinear, path, x0, levels=LEVELS, generator=generator(seed)).steps * LN2
    rng, (_, _, alpha_bar, small), direct = np.random.default_rng(seed), chain(path), np.zeros(B)
    for n in (2, 3, 4, 5):
        xt = math.sqrt(alpha_bar[n]) * 0.5 + math.sqrt(1 - alpha_bar[n]) * rng.normal(size=B)
        eps = 0.6 * np.sin(2 * xt) + 0.3 * xt * n / 5 - 0.1
        q, p = (
            norm(posterior_mean(path, n, v, xt), math.sqrt(small[n])) for v in (0.5, clean(path, n, xt, eps))
        )
        x = q.rvs(random_state=rng)
        direct += q.logpdf(x) - p.logpdf(x)
    error = math.sqrt((found.var().item() + direct.var()) / B)
    assert abs(found.mean().item() - direct.mean()) < 5 * error


@pytest.mark.parametrize("target", ["x0", "eps", "score", "v"])
def test_the_target_does_not_matter(target):
    path, x0 = Tabulated(BETAS), images()
    net = lambda x, t: convert(path, "eps", target, nonlinear(x, t), x, t)
    found = variational_bound(net, path, x0, levels=LEVELS, target=target, generator=generator(0))
    want = variational_bound(nonlinear, path, x0, levels=LEVELS, generator=generator(0))
    for got, other in zip(found, want, strict=True):
        assert_close(got, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("mean", [0.0, 0.31, 0.97, -1.0, 1.6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_masses_of_all_grey_levels_sum_to_one(levels, mean, dtype):
    """For a network that always says the same x_0: the decoder is then one distribution over the levels."""
    path = Tabulated(torch.tensor([0.01, 0.5]))
    x0 = torch.linspace(-1, 1, levels, dtype=dtype).view(-1, 1, 1, 1)
    net = lambda x, t: torch.full_like(x, mean)
    data = variational_bound(net, path, x0, levels=levels, target="x0").data.double()
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
    path, x0 = Tabulated(BETAS), images(1)
    found = variational_bound(DatasetOracle(x0, path), path, x0, levels=LEVELS, target="x0")
    assert found.steps.item() < 1e-12 and found.prior.item() > 0
    assert_close(found.total, found.prior + found.data)


def exact_bits(path, points, levels):
    """-log2 of the model's probability of each level of one pixel, by sums over a grid of x_n."""
    (beta, _, alpha_bar, small), x = chain(path), np.linspace(-7, 7, 1401)
    density = norm.pdf(x)  # of x_T

    def denoised(n):
        logs = norm.logpdf(x[:, None], math.sqrt(alpha_bar[n]) * points, math.sqrt(1 - alpha_bar[n]))
        weights = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
        return weights @ points

    for n in range(path.T, 1, -1):
        move = norm.pdf(x[:, None], posterior_mean(path, n, denoised(n), x), math.sqrt(small[n]))
        density = move @ density * (x[1] - x[0])
    half, grey, p = 1 / (levels - 1), np.linspace(-1, 1, levels), norm(denoised(1), math.sqrt(beta[1]))
    upper = [1.0 if k == levels - 1 else p.cdf(v + half) for k, v in enumerate(grey)]
    lower = [0.0 if k == 0 else p.cdf(v - half) for k, v in enumerate(grey)]
    masses = np.array(
        [((u - low) * density).sum() * (x[1] - x[0]) for u, low in zip(upper, lower, strict=True)]
    )
    assert masses.sum() == pytest.approx(1, abs=1e-6)
    return -np.log2(masses)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("betas", [(0.1, 0.3, 0.5, 0.9), (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)])
def test_the_bound_lies_above_the_exact_bits(seed, betas):
    """One pixel of three levels, with 5 standard errors of 4000 draws."""
    path = Tabulated(torch.tensor(betas))
    data = torch.tensor([-1.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=F64).view(-1, 1, 1, 1)
    exact = exact_bits(path, data.flatten().numpy(), 3)
    for level, want in zip((-1.0, 0.0, 1.0), exact, strict=True):
        x0 = torch.full((4000, 1, 1, 1), level, dtype=F64)
        total = variational_bound(
            DatasetOracle(data, path), path, x0, levels=3, target="x0", generator=generator(seed)
        ).total
        mean, error = total.mean().item(), total.std().item() / math.sqrt(4000)
        print("bound", level, mean, "exact", want)
        assert want - 5 * error < mean < want + 3


def test_the_bound_is_in_bits_per_dimension():
    """Nine times the same pixel costs nine times as much, shared among nine."""
    path, net = Tabulated(BETAS), lambda x, t: torch.zeros_like(x)
    small, large = images(1, (1, 1, 1)), images(1, (1, 1, 1)).expand(1, 1, 3, 3)
    one_, many = (variational_bound(net, path, x, levels=LEVELS, target="x0") for x in (small, large))
    assert_close(one_.prior, many.prior)
    assert_close(one_.data, many.data)
    assert all(v.shape == (1,) for v in many)


def test_training_weights_are_those_of_the_bound():
    """The sum over n of `bound(T)`/T times the error of ε is the step terms, in nats a value."""
    path, x0 = Tabulated(BETAS), torch.full((20_000, 1, 1, 1), 0.5, dtype=F64)
    steps = variational_bound(nonlinear, path, x0, levels=LEVELS, generator=generator(0)).steps * LN2
    total, square = 0.0, steps.var().item() / len(x0)
    for n in range(2, 6):
        eps, t = normal(20_000, 1, 1, 1, seed=n), torch.full((20_000,), n / 5, dtype=F64)
        errors = (nonlinear(path.mix(x0, eps, t), t) - eps).flatten() ** 2 * bound(5)(path, t) / 5
        total, square = total + errors.mean().item(), square + errors.var().item() / len(x0)
    assert abs(total - steps.mean().item()) < 5 * math.sqrt(square)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    path, seen = Tabulated.from_betas("linear", 50), set()
    x0 = images().to(dtype)

    def net(x, t):
        seen.add(x.dtype)
        return nonlinear(x, t)

    found = variational_bound(net, path, x0, levels=LEVELS, generator=generator(0))
    assert found.total.dtype == torch.float32 and seen == {torch.float32}
    want = variational_bound(nonlinear, path, x0.float(), levels=LEVELS, generator=generator(0))
    assert_close(found.total, want.total, rtol=1e-5, atol=1e-5)


def test_float32_is_enough_for_many_steps():
    path, net = Tabulated.from_betas("linear", 250), lambda x, t: 0.9 * x  # about what noise looks like
    totals = []
    for k, dtype in enumerate((F64, torch.float32)):
        x0 = images(2, dtype=dtype).repeat(20, 1, 1, 1)
        total = variational_bound(net, path, x0, levels=LEVELS, generator=generator(k)).total.double()
        totals.append(total.view(20, 2).mean(1))  # of both images, 20 times
    error = math.sqrt((totals[0].var().item() + totals[1].var().item()) / 20)
    assert abs(totals[0].mean() - totals[1].mean()) < 5 * error + 1e-3 * totals[0].mean()
    assert error < 0.05 * totals[0].mean()


def test_no_gradient_is_recorded():
    layer, recorded = nn.Conv2d(1, 1, 1, dtype=F64), []

    def net(x, t):
        recorded.append(layer(x).requires_grad)
        return layer(x)

    found = variational_bound(net, Tabulated(BETAS), images().requires_grad_(), levels=LEVELS)
    assert not found.total.requires_grad and not any(recorded) and len(recorded) == 5


def test_draws_follow_the_generator():
    run = lambda seed: (
        variational_bound(
            nonlinear, Tabulated(BETAS), images(), levels=LEVELS, generator=generator(seed)
        ).total
    )
    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


@pytest.mark.parametrize("net, match", [
    (lambda x, t: x * math.nan, "net returned NaN or infinity at t = 1"),
    (lambda x, t: x[:, :, :1], r"net must return the shape of x, \(6, 1, 2, 2\); got \(6, 1, 1, 2\)"),
    (lambda x, t: (x, x), "net must return the shape of x.*got tuple"),
])  # fmt: skip
def test_bad_networks(net, match):
    with pytest.raises(ValueError, match=match):
        variational_bound(net, Tabulated(BETAS), images(), levels=LEVELS)


@pytest.mark.parametrize("x0, match", [
    (torch.zeros(4, 3), r"x0 must have shape \(B, C, H, W\)"),
    (torch.zeros(0, 1, 2, 2), r"x0 must have shape \(B, C, H, W\) with B at least 1"),
    (torch.full((1, 1, 2, 2), 255.0), r"x0 must lie in \[-1, 1\]"),
    (torch.full((1, 1, 2, 2), math.nan), r"x0 must lie in \[-1, 1\]"),
    (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "x0 must be a floating-point tensor"),
    (np.zeros((1, 1, 2, 2)), "x0 must be a floating-point tensor"),
])  # fmt: skip
def test_bad_images(x0, match):
    with pytest.raises(ValueError, match=match):
        variational_bound(nonlinear, Tabulated(BETAS), x0, levels=LEVELS)


@pytest.mark.parametrize("levels", [1, 0, -3, 2.0, True])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels must be an integer of at least 2"):
        variational_bound(nonlinear, Tabulated(BETAS), images(), levels=levels)


def test_the_bound_wants_a_table():
    with pytest.raises(ValueError, match="path"):
        variational_bound(nonlinear, Cosine(), images(), levels=LEVELS)


def test_unknown_target_of_the_bound():
    with pytest.raises(ValueError, match="target must be one of"):
        variational_bound(nonlinear, Tabulated(BETAS), images(), levels=LEVELS, target="noise")
