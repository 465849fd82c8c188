"""Samplers, against loops from the papers, exact moments of linear chains, and the flow's exact solution.

With Gaussian data the exact denoiser is affine, so every sampler maps a Gaussian to a Gaussian, whose mean
and variance are found here by a recursion in NumPy: no error of discretization is left in these checks.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear, Tabulated
from course_lib.diffusion.sample import (
    ancestral,
    ddim,
    evaluate,
    forward_deviation,
    grid,
    posterior_deviation,
    predict,
    step,
    strided,
    velocity,
)
from course_lib.diffusion.solve import (
    annealed_langevin,
    dopri5,
    euler,
    heun,
    langevin,
    predictor_corrector,
    reverse_sde,
    score,
)
from course_lib.diffusion.target import Pair
from course_lib.mixture.gaussian import GaussianMixture

SEEDS = range(5)
F64 = torch.float64
TABLE = Tabulated.from_betas("linear", 100)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def mixture(seed=0, K=3, D=2):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = torch.randn(K, D, generator=g, dtype=F64)
    factor = torch.randn(K, D, D, generator=g, dtype=F64)
    return GaussianMixture(weights, means, 0.2 * factor @ factor.mT + 0.15 * torch.eye(D, dtype=F64))


MU, VARIANCE = 0.7, 0.4  # of the Gaussian data


def gaussian():
    return GaussianMixture(*(torch.tensor(v, dtype=F64) for v in ([1.0], [[MU]], [VARIANCE])))


def numbers(path, t):
    return tuple(f(torch.tensor([t], dtype=F64)).item() for f in (path.a, path.b))


def flow(m, path):
    """The probability flow's velocity at every t from 0 to 1, from the density's score."""
    oracle = MixtureOracle(m, path)

    def net(x, t):
        da, db, b = (f(t)[:, None] for f in (path.da, path.db, path.b))
        return da * oracle(x, t) - db * b * oracle.score(x, t)

    return net


def noise_net(m, path):
    """E[ε | x_t] at every t from 0 to 1."""
    oracle = MixtureOracle(m, path)
    return lambda x, t: -path.b(t)[:, None] * oracle.score(x, t)


def nonlinear(x, t):
    """Any network."""
    return 0.6 * torch.sin(2 * x) + 0.3 * x * t.view(-1, *[1] * (x.ndim - 1)) - 0.1


def nonlinear_numpy(x, t):
    return 0.6 * np.sin(2 * x) + 0.3 * x * t - 0.1


def has_moments(x, mean, variance):
    """Whether Gaussian samples (n, 1) have this mean and variance within 5 standard errors."""
    n = len(x)
    mean_error, variance_error = math.sqrt(variance / n), variance * math.sqrt(2 / (n - 1))
    got = x.mean().item(), x.var().item()
    return abs(got[0] - mean) < 5 * mean_error and abs(got[1] - variance) < 5 * variance_error


def moment_errors(x, m):
    """Errors of the mean and of the second moments of samples (n, D), and their standard errors."""
    want = m.weights @ m.means
    second = torch.einsum("k,kij->ij", m.weights, m.covariances + m.means[:, :, None] * m.means[:, None])
    values = torch.cat([x, (x[:, :, None] * x[:, None]).flatten(1)], 1)
    error = (values.mean(0) - torch.cat([want, second.flatten()])).abs()
    return error, values.std(0) / math.sqrt(len(x))


# Grids


def test_grid():
    assert_close(grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64))
    assert_close(grid(3, start=0.2, end=0.8), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64))
    assert grid(10).dtype == F64


def test_quadratic_grid_is_ddims():
    """τ_i = c i², appendix D.2."""
    want = torch.tensor([(i / 10) ** 2 for i in range(10, -1, -1)], dtype=F64)
    assert_close(grid(10, power=2.0), want)
    some = grid(7, start=0.9, end=0.01, power=3.0)
    assert_close(some[[0, -1]], torch.tensor([0.9, 0.01], dtype=F64))
    roots = some ** (1 / 3)
    assert_close(roots.diff(), roots.diff()[:1].expand(7))


def test_strided():
    """As many steps as wanted, of nearly one size, and a last one from n = 1."""
    assert torch.equal(strided(9, 3), torch.tensor([9, 5, 1, 0], dtype=F64) / 9)
    assert torch.equal(strided(7, 7), torch.arange(7, -1, -1, dtype=F64) / 7)
    assert torch.equal(strided(5, 1), torch.tensor([1.0, 0.0], dtype=F64))
    for T in (*range(1, 40), 1000):
        path = Tabulated.from_betas("cosine", T)
        for S in {1, 2, 3, 7, T // 3, T // 2 + 1, T - 1, T} & set(range(1, T + 1)):
            times = strided(T, S)
            n = path.index(times)
            assert n[0] == T and n[-1] == 0 and len(n) == S + 1
            gaps = -n.diff()
            if S > 1:
                low, high = (T - 1) // (S - 1), math.ceil((T - 1) / (S - 1))
                assert n[-2] == 1 and (gaps[:-1] >= low).all() and (gaps[:-1] <= high).all()


@pytest.mark.parametrize("given, match", [
    ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
    ({"steps": 2.0}, "steps must be an integer of at least 1"),
    ({"steps": True}, "steps must be an integer of at least 1"),
    ({"steps": 5, "start": 1.2}, r"start and end must be two times in \[0, 1\]; got 1.2"),
    ({"steps": 5, "end": -0.1}, "start and end must be two times"),
    ({"steps": 5, "start": math.nan}, "start and end must be two times"),
    ({"steps": 5, "start": 0.5, "end": 0.5}, "start and end must be two times"),
    ({"steps": 5, "power": 0.0}, "power must be positive; got 0.0"),
    ({"steps": 5, "power": -1.0}, "power must be positive"),
    ({"steps": 5, "power": math.inf}, "power must be positive"),
])  # fmt: skip
def test_bad_grids(given, match):
    with pytest.raises(ValueError, match=match):
        grid(**given)


@pytest.mark.parametrize("T, steps", [(10, 0), (10, 11), (10, 2.0), (0, 1), (10.0, 5), (10, True)])
def test_bad_strides(T, steps):
    with pytest.raises(ValueError, match=f"steps must be an integer from 1 to T = {T}; got {steps}"):
        strided(T, steps)


# One step


@pytest.mark.parametrize(
    "t, s", [(0.5, 0.49), (1.0, 0.99), (0.02, 0.01), (0.01, 0.0), (1.0, 0.0), (0.8, 0.3)]
)
def test_deviations_are_ddpms(t, s):
    r"""β and :math:`\tilde\beta` of the chain that visits only these times, by its own algebra."""
    alpha_bar = TABLE.alpha_bar.numpy()
    now, then = alpha_bar[round(100 * t)], alpha_bar[round(100 * s)]
    beta = 1 - now / then
    at, to = torch.tensor([t], dtype=F64), torch.tensor([s], dtype=F64)
    assert forward_deviation(TABLE, at, to).item() ** 2 == pytest.approx(beta, rel=1e-9)
    want = (1 - then) / (1 - now) * beta
    assert posterior_deviation(TABLE, at, to).item() ** 2 == pytest.approx(want, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("path", [VP(), Cosine(), Linear(), VE(0.1, 3.0)])
@pytest.mark.parametrize("t, s", [(0.9, 0.4), (0.3, 0.25), (0.5, 0.01)])
def test_deviations_condition_a_gaussian(path, t, s):
    """Given x_0, (x_s, x_t) are jointly normal when x_t is x_s scaled plus noise."""
    (a, b), (a_s, b_s) = numbers(path, t), numbers(path, s)
    cross = a / a_s * b_s**2  # covariance of x_s and x_t given x_0
    at, to = torch.tensor([t], dtype=F64), torch.tensor([s], dtype=F64)
    forward, posterior = (f(path, at, to).item() ** 2 for f in (forward_deviation, posterior_deviation))
    assert forward == pytest.approx(b**2 - cross**2 / b_s**2, rel=1e-9)
    assert posterior == pytest.approx(b_s**2 - cross**2 / b**2, rel=1e-9)


def same_noise(path, t, s, eta, n=200_000, x0=1.3, eps=-0.4, seed=0):
    """Samples at s from one pair at t."""
    pair = Pair(*(torch.full((n, 1), v, dtype=F64) for v in (x0, eps)))
    at, to = torch.full((n,), t, dtype=F64), torch.full((n,), s, dtype=F64)
    return step(path, pair, at, to, eta=eta, generator=generator(seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t, s", [(1.0, 0.9), (0.5, 0.49), (0.7, 0.2), (0.02, 0.01)])
def test_eta_one_is_ddpms_posterior(t, s, seed):
    r"""Mean :math:`\tilde\mu` and variance :math:`\tilde\beta`, within 5 standard errors."""
    alpha_bar = TABLE.alpha_bar.numpy()
    now, then = alpha_bar[round(100 * t)], alpha_bar[round(100 * s)]
    alpha, beta = now / then, 1 - now / then
    x0, eps = 1.3, -0.4
    xt = math.sqrt(now) * x0 + math.sqrt(1 - now) * eps
    mean = math.sqrt(then) * beta / (1 - now) * x0 + math.sqrt(alpha) * (1 - then) / (1 - now) * xt
    x = same_noise(TABLE, t, s, 1.0, n=20_000, seed=seed)
    assert has_moments(x, mean, (1 - then) / (1 - now) * beta)


@pytest.mark.parametrize("t, s", [(1.0, 0.9), (0.5, 0.49), (0.7, 0.2), (0.02, 0.01), (0.01, 0.0)])
def test_eta_one_is_ddpms_posterior_to_all_digits(t, s):
    """With the same noise, removed: what is left is the mean, and the factor of the noise the deviation."""
    alpha_bar = TABLE.alpha_bar.numpy()
    now, then = alpha_bar[round(100 * t)], alpha_bar[round(100 * s)]
    alpha, beta = now / then, 1 - now / then
    x0, eps, z = (normal(6, 1, seed=k) for k in range(3))
    xt = np.sqrt(now) * x0.numpy() + np.sqrt(1 - now) * eps.numpy()
    mean = np.sqrt(then) * beta / (1 - now) * x0.numpy() + np.sqrt(alpha) * (1 - then) / (1 - now) * xt
    want = mean + np.sqrt((1 - then) / (1 - now) * beta) * z.numpy()
    at, to = torch.full((6,), t, dtype=F64), torch.full((6,), s, dtype=F64)
    got = step(TABLE, Pair(x0, eps), at, to, eta=1.0, generator=generator(2))
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", [VP(), Cosine(), Linear(), TABLE])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_keeps_the_marginal(path, eta, seed):
    """DDIM's lemma 1: from the true x_0 and noise, x_s is N(a x_0, b²) whatever η. 5 standard errors."""
    n, x0, (t, s) = 20_000, 0.8, (0.6, 0.35)
    pair = Pair(torch.full((n, 1), x0, dtype=F64), normal(n, 1, seed=seed))
    at, to = torch.full((n,), t, dtype=F64), torch.full((n,), s, dtype=F64)
    a, b = numbers(path, s)
    x = step(path, pair, at, to, eta=eta, generator=generator(seed + 50))
    assert has_moments(x, a * x0, b**2)


@pytest.mark.parametrize("t, s", [(0.4, 0.6), (0.9, 0.2)])
def test_without_noise_a_step_may_go_either_way(t, s):
    pair = Pair(normal(5, 2), normal(5, 2, seed=1))
    at, to = torch.full((5,), t, dtype=F64), torch.full((5,), s, dtype=F64)
    assert_close(step(Cosine(), pair, at, to), Cosine().mix(*pair, to), rtol=1e-12, atol=0)


def test_each_sample_has_its_own_times():
    pair = Pair(normal(3, 2), normal(3, 2, seed=1))
    at, to = torch.tensor([[0.9, 0.5, 0.3], [0.8, 0.1, 0.0]], dtype=F64)
    whole = step(VP(), pair, at, to)
    for n in range(3):
        one = slice(n, n + 1)
        assert_close(whole[one], step(VP(), Pair(pair.x0[one], pair.eps[one]), at[one], to[one]))


def test_noise_needs_falling_times():
    pair, t, s = Pair(normal(2, 2), normal(2, 2)), torch.full((2,), 0.3), torch.full((2,), 0.5)
    for to in (s, t):
        with pytest.raises(ValueError, match="times must fall from t to s where noise is added"):
            step(VP(), pair, t, to, eta=0.5)
    for deviation in (forward_deviation, posterior_deviation):
        with pytest.raises(ValueError, match="times must fall"):
            deviation(VP(), t, s)


def test_too_large_an_eta():
    pair, t, s = Pair(normal(2, 2), normal(2, 2)), torch.full((2,), 0.9), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"eta must leave .* at least 0; 5.0 is too large"):
        step(VP(), pair, t, s, eta=5.0)


@pytest.mark.parametrize("eta", [math.nan, -1.0])
def test_no_such_eta(eta):
    with pytest.raises(ValueError, match="eta"):
        ddim(nonlinear, VP(), normal(2, 2), torch.tensor([0.5, 0.2]), eta=eta)


# DDIM and DDPM, against loops with the same noise


SUBSET = torch.tensor([100, 77, 76, 40, 13, 2, 1, 0], dtype=F64) / 100


def draws(x, steps, seed):
    g = generator(seed)
    return [torch.randn(x.shape, generator=g, dtype=F64).numpy() for _ in range(steps)]


def clean(x, net_out, now):
    return (x - math.sqrt(1 - now) * net_out) / math.sqrt(now)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_ddim_against_equation_12(eta, clip):
    """In NumPy, on an uneven subset of the table; a clipped x̂_0 has its own noise."""
    alpha_bar, x = TABLE.alpha_bar.numpy(), normal(6, 3, seed=4)
    got = ddim(nonlinear, TABLE, x, SUBSET, eta=eta, clip=clip, generator=generator(7), trajectory=True)
    state = x.numpy()
    n = (100 * SUBSET).round().int().tolist()
    for i, z in enumerate(draws(x, 7, 7)):
        now, then = alpha_bar[n[i]], alpha_bar[n[i + 1]]
        eps = nonlinear_numpy(state, n[i] / 100)
        x0 = clean(state, eps, now)
        if clip:
            x0 = np.clip(x0, -clip, clip)
            eps = (state - math.sqrt(now) * x0) / math.sqrt(1 - now)
        sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        state = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * eps + sigma * z
        np.testing.assert_allclose(got[i + 1], state, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_ancestral_against_algorithm_2(variance, clip):
    """In NumPy, with the β of the chain that visits an uneven subset; no noise at the last step."""
    alpha_bar, x = TABLE.alpha_bar.numpy(), normal(6, 3, seed=4)
    got = ancestral(
        nonlinear, TABLE, x, SUBSET, variance=variance, clip=clip, generator=generator(7), trajectory=True
    )
    state = x.numpy()
    n = (100 * SUBSET).round().int().tolist()
    for i, z in enumerate(draws(x, 7, 7)):
        now, then = alpha_bar[n[i]], alpha_bar[n[i + 1]]
        alpha, beta = now / then, 1 - now / then
        eps = nonlinear_numpy(state, n[i] / 100)
        if clip:
            x0 = np.clip(clean(state, eps, now), -clip, clip)
            mean = math.sqrt(then) * beta / (1 - now) * x0 + math.sqrt(alpha) * (1 - then) / (1 - now) * state
        else:  # algorithm 2, line 4
            mean = (state - beta / math.sqrt(1 - now) * eps) / math.sqrt(alpha)
        square = beta if variance == "forward" else (1 - then) / (1 - now) * beta
        state = mean + (math.sqrt(square) * z if n[i + 1] else 0)
        np.testing.assert_allclose(got[i + 1], state, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "eps", "score", "v"])
def test_the_target_of_a_network_does_not_matter(target):
    """With an exact denoiser all are the same prediction."""
    oracle, x, times = MixtureOracle(mixture(), TABLE), normal(6, 2), strided(100, 8)
    net = lambda x, t: oracle.predict(target, x, t)
    for sampler, options in ((ddim, {}), (ddim, {"eta": 0.7}), (ancestral, {})):
        want = sampler(oracle, TABLE, x, times, target="x0", generator=generator(1), **options)
        got = sampler(net, TABLE, x, times, target=target, generator=generator(1), **options)
        assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_eta_one_is_ancestral():
    x, times = normal(6, 3), strided(100, 9)
    got = ddim(nonlinear, TABLE, x, times, eta=1.0, generator=generator(3))
    assert_close(got, ancestral(nonlinear, TABLE, x, times, generator=generator(3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "velocity"])
@pytest.mark.parametrize(
    "times", [grid(7), grid(5, start=0.2, end=0.9), grid(6, start=0.95, end=0.05, power=2)]
)
def test_ddim_on_the_linear_path_is_euler(target, times):
    x = normal(6, 3)
    got = ddim(nonlinear, Linear(), x, times, target=target, trajectory=True)
    assert_close(
        got, euler(nonlinear, Linear(), x, times, target=target, trajectory=True), rtol=1e-9, atol=1e-9
    )
    if target == "velocity":  # and Euler is this loop
        state = x.numpy()
        for t, s in itertools.pairwise(times.tolist()):
            state = state + (s - t) * nonlinear_numpy(state, t)
        np.testing.assert_allclose(got[-1], state, rtol=1e-10)


@pytest.mark.parametrize("sampler", [ddim, ancestral])
def test_no_noise_at_the_last_step(sampler):
    """One step to t = 0 is the predicted x_0, whatever the noise."""
    x = normal(5, 2)
    options = {"eta": 1.0} if sampler is ddim else {"variance": "forward"}
    outs = [sampler(nonlinear, TABLE, x, strided(100, 1), generator=generator(k), **options) for k in (0, 1)]
    assert torch.equal(*outs)
    now = TABLE.alpha_bar[-1].item()
    np.testing.assert_allclose(outs[0], clean(x.numpy(), nonlinear_numpy(x.numpy(), 1.0), now), rtol=1e-9)


# Moments of linear chains


def affine(path, t):
    """E[x_0 | x_t] = slope x + offset, of the Gaussian data."""
    a, b = numbers(path, t)
    slope = a * VARIANCE / (a**2 * VARIANCE + b**2)
    return slope, MU - slope * a * MU


def recursion(path, times, move, mean=0.0, variance=1.0):
    """Moments after steps x ← (p x̂_0 + q x) + σ z; `move` gives p, q and σ² from two times."""
    for t, s in itertools.pairwise(times.tolist()):
        slope, offset = affine(path, t)
        p, q, square = move(t, s)
        mean = (p * slope + q) * mean + p * offset
        variance = (p * slope + q) ** 2 * variance + square
    return mean, variance


def ddpm_move(path, kind, eta=1.0):
    def move(t, s):
        now, then = numbers(path, t)[0] ** 2, numbers(path, s)[0] ** 2
        alpha, beta = now / then, 1 - now / then
        small = (1 - then) / (1 - now) * beta
        if kind == "ddim":  # equation 12, with ε̂ = (x - √ᾱ x̂_0)/√(1 - ᾱ)
            q = math.sqrt((1 - then - eta**2 * small) / (1 - now))
            return math.sqrt(then) - q * math.sqrt(now), q, eta**2 * small
        p, q = math.sqrt(then) * beta / (1 - now), math.sqrt(alpha) * (1 - then) / (1 - now)
        return p, q, 0 if s == 0 else beta if kind == "forward" else small

    return move


N = 10_000
CHAINS = {
    "ddim-0": (ddim, {"eta": 0.0}, ("ddim", 0.0)),
    "ddim-half": (ddim, {"eta": 0.5}, ("ddim", 0.5)),
    "ddim-1": (ddim, {"eta": 1.0}, ("ddim", 1.0)),
    "posterior": (ancestral, {"variance": "posterior"}, ("posterior",)),
    "forward": (ancestral, {"variance": "forward"}, ("forward",)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("steps", [3, 10])
def test_moments_of_chains_on_a_strided_subset(chain, steps, seed):
    """However few the steps: 5 standard errors of 10 000 samples."""
    sampler, options, kind = CHAINS[chain]
    times = strided(100, steps)
    x = normal(N, 1, seed=seed)
    net = MixtureOracle(gaussian(), TABLE)
    out = sampler(net, TABLE, x, times, target="x0", generator=generator(seed + 9), **options)
    assert has_moments(out, *recursion(TABLE, times, ddpm_move(TABLE, *kind)))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", ["vp", "cosine", "table"])
def test_chains_tend_to_the_data(name, chain):
    """The recursion itself: as the steps grow tenfold its end comes nearly ten times nearer to the data."""
    errors = []
    for steps in (50, 500):
        path = {"vp": VP(), "cosine": Cosine(), "table": Tabulated.from_betas(T=steps)}[name]
        times = grid(steps, start=0.99 if name == "cosine" else 1.0)
        start = numbers(path, times[0].item())[0]  # from the exact moments there
        mean, variance = start * MU, start**2 * VARIANCE + 1 - start**2
        mean, variance = recursion(path, times, ddpm_move(path, *CHAINS[chain][2]), mean, variance)
        errors.append(abs(mean - MU) + abs(variance - VARIANCE))
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.02


def sde_move(path):
    r"""Anderson's reverse SDE of VP: :math:`f = -\beta/2, g^2 = \beta`, the score by Tweedie."""

    def move(t, s):
        a, b = numbers(path, t)
        beta = 0.1 + 19.9 * t
        h = t - s
        # x + h (β x/2 + β score), and score = (a x̂_0 - x)/b²
        return h * beta * a / b**2, 1 + h * beta / 2 - h * beta / b**2, 0 if s == 0 else h * beta

    return move


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_moments_of_the_reverse_sde(end, seed):
    """No noise where it ends at the data, noise where it ends before. 5 standard errors of 10 000."""
    times = grid(60, end=end)
    oracle = MixtureOracle(gaussian(), VP())
    x, net = normal(N, 1, seed=seed), lambda x, t: oracle.predict("score", x, t)
    out = reverse_sde(net, VP(), x, times, generator=generator(seed + 9))
    assert has_moments(out, *recursion(VP(), times, sde_move(VP())))


def test_the_reverse_sde_adds_no_noise_at_the_last_step():
    outs = [
        reverse_sde(nonlinear, VP(), normal(4, 2), torch.tensor([0.3, 0.0]), generator=generator(k))
        for k in (0, 1)
    ]
    assert torch.equal(*outs)
    others = [
        reverse_sde(nonlinear, VP(), normal(4, 2), torch.tensor([0.3, 0.1]), generator=generator(k))
        for k in (0, 1)
    ]
    assert not torch.equal(*others)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("steps", [1, 20])
def test_moments_of_langevin(steps, seed):
    """An autoregression: x ← x + h (μ - x)/v + √(2h) z. 5 standard errors of 10 000."""
    h = 0.05
    out = langevin(
        lambda x: (MU - x) / VARIANCE,
        3 * normal(N, 1, seed=seed),
        size=h,
        steps=steps,
        generator=generator(seed + 9),
    )
    mean, variance, r = 0.0, 9.0, 1 - h / VARIANCE
    for _ in range(steps):
        mean, variance = MU + r * (mean - MU), r**2 * variance + 2 * h
    assert has_moments(out, mean, variance)


@pytest.mark.parametrize("seed", SEEDS)
def test_moments_of_annealed_langevin(seed):
    """At each time an autoregression towards N(aμ, a²v + b²) with h = size · b²."""
    path, times, size, steps = VE(0.1, 3.0), torch.tensor([1.0, 0.6, 0.3, 0.1]), 0.2, 7
    oracle = MixtureOracle(gaussian(), path)
    net = lambda x, t: oracle.predict("score", x, t)
    out = annealed_langevin(
        net, path, 3 * normal(N, 1, seed=seed), times, size=size, steps=steps, generator=generator(seed + 9)
    )
    mean, variance = 0.0, 9.0
    for t in times.tolist():
        a, b = numbers(path, t)
        h, total = size * b**2, a**2 * VARIANCE + b**2
        for _ in range(steps):
            mean = mean + h * (a * MU - mean) / total
            variance = (1 - h / total) ** 2 * variance + 2 * h
    assert has_moments(out, mean, variance)


def test_predictor_corrector_against_algorithms_3_and_5():
    """Song et al., 2021: h = 2 (r ‖z‖/‖s‖)², x ← x + h s + √(2h) z, on VP without their α."""
    path, times, snr = VP(), torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=F64), 0.16
    x = normal(50, 3)
    got = predictor_corrector(nonlinear, path, x, times, snr=snr, corrections=2, generator=generator(5))
    noises = iter(draws(x, 7, 5))
    state = x.numpy()
    size = lambda v: np.sqrt((v**2).sum(1)).mean()
    for t, s in ((1.0, 0.7), (0.7, 0.4), (0.4, 0.0)):
        beta, h = 0.1 + 19.9 * t, t - s
        state = state + h * beta * (state / 2 + nonlinear_numpy(state, t))
        state = state + (math.sqrt(beta * h) * next(noises) if s else 0)
        for _ in range(2 if s else 0):
            slope, z = nonlinear_numpy(state, s), next(noises)
            eps = 2 * (snr * size(z) / size(slope)) ** 2
            state = state + eps * slope + math.sqrt(2 * eps) * z
    np.testing.assert_allclose(got, state, rtol=1e-8, atol=1e-9)


def test_no_correction_is_the_reverse_sde():
    oracle, x, times = MixtureOracle(mixture(), VP()), normal(6, 2), grid(9)
    net = lambda x, t: oracle.predict("score", x, t)
    got = predictor_corrector(net, VP(), x, times, corrections=0, generator=generator(1))
    assert_close(got, reverse_sde(net, VP(), x, times, generator=generator(1)))


# Mixtures


def with_options(sampler, times, **options):
    return lambda o, x, k: sampler(o, o.path, x, times, target="x0", **options, generator=k)


def without_noise(sampler, times):
    return lambda o, x, k: sampler(o, o.path, x, times, target="x0")


def from_samples(o, x, k):
    """Langevin keeps what is there; between modes it moves too slowly."""
    start, _ = o.mixture.sample(len(x), generator=k)
    return langevin(o.mixture.score, start, size=0.01, steps=100, generator=k)


WIDE = VE(0.1, 3.0)
TO_THE_MIXTURE = {
    # sampler(oracle, x, generator), its path, and a tolerance for the error of discretization
    "ddim-0": (with_options(ddim, grid(40)), Cosine(), 0.05),
    "ddim-half": (with_options(ddim, grid(40), eta=0.5), Cosine(), 0.05),
    "posterior": (with_options(ancestral, grid(40)), Cosine(), 0.08),
    "forward": (with_options(ancestral, grid(40), variance="forward"), Cosine(), 0.08),
    "euler": (without_noise(euler, grid(40)), Linear(), 0.05),
    "heun": (without_noise(heun, grid(20)), Linear(), 0.02),
    "dopri5": (without_noise(dopri5, torch.tensor([1.0, 1e-4])), Linear(), 0.01),
    "reverse_sde": (with_options(reverse_sde, grid(80)), VP(), 0.1),
    "predictor_corrector": (with_options(predictor_corrector, grid(50)), VP(), 0.1),
    "langevin": (from_samples, Linear(), 0.1),
    "annealed": (with_options(annealed_langevin, grid(20, end=0.1), size=0.2), WIDE, 0.2),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TO_THE_MIXTURE)
def test_exact_denoisers_lead_to_the_mixture(name, seed):
    """Means and second moments of 2000 samples, within 5 standard errors and a tolerance."""
    sampler, path, tolerance = TO_THE_MIXTURE[name]
    m, scale = mixture(seed), path.b(torch.ones(1, dtype=F64))
    out = sampler(MixtureOracle(m, path), scale * normal(2000, 2, seed=seed + 20), generator(seed))
    error, standard = moment_errors(out, m)
    print(name, seed, (error / standard).max().item(), (error - 5 * standard).max().item())
    assert (error < 5 * standard + tolerance).all()


def test_annealing_brings_samples_to_a_far_mode():
    """Plain Langevin cannot weigh two distant modes when it starts at one; with annealing it can."""
    weights, means = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([[-4.0, 0], [4.0, 0]], dtype=F64)
    m, path = GaussianMixture(weights, means, torch.tensor([0.25, 0.25], dtype=F64)), VE(0.05, 10.0)
    oracle, start = MixtureOracle(m, path), normal(1000, 2) + torch.tensor([4.0, 0.0], dtype=F64)
    plain = langevin(m.score, start, size=0.02, steps=200, generator=generator(0))
    annealed = annealed_langevin(
        oracle, path, start, grid(20, end=0.05), target="x0", steps=20, generator=generator(0)
    )
    share = lambda x: (x[:, 0] < 0).double().mean().item()
    assert share(plain) < 0.01
    assert abs(share(annealed) - 0.8) < 5 * math.sqrt(0.16 / 1000) + 0.1


# Orders, and the flow


def gaussian_flow(path, x, t, s):
    """The flow of Gaussian data moves x along its quantile."""
    (a, b), (a_s, b_s) = numbers(path, t), numbers(path, s)
    scale = math.sqrt((a_s**2 * VARIANCE + b_s**2) / (a**2 * VARIANCE + b**2))
    return a_s * MU + scale * (x - a * MU)


@pytest.mark.parametrize("path", [Cosine(), Linear()])
def test_dopri5_follows_the_quantiles_of_a_gaussian(path):
    x, times = normal(7, 1), torch.tensor([1.0, 0.8, 0.33, 0.1, 0.0], dtype=F64)
    got = dopri5(flow(gaussian(), path), path, x, times, rtol=1e-8, atol=1e-8, trajectory=True)
    assert got.shape == (5, 7, 1)
    for state, s in zip(got, times.tolist(), strict=True):
        assert_close(state, gaussian_flow(path, x, 1.0, s), rtol=1e-6, atol=1e-6)
    back = dopri5(flow(gaussian(), path), path, got[-1], times.flip(0), rtol=1e-8, atol=1e-8)
    assert_close(back, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "start, end", [(1.0, 0.3), (0.7, 0.1), (0.9999, 1e-3), (0.1, 0.9), (1e-5, 1.0), (1 / 3, 2 / 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dopri5_stays_within_its_times(start, end, dtype):
    seen = []

    def net(x, t):
        seen.append(t[0].item())
        return torch.cos(3 * x)

    dopri5(net, Linear(), normal(3, 2, dtype=dtype), torch.tensor([start, end], dtype=F64))
    low, high = sorted((start, end))
    assert low - 1e-6 <= min(seen) and max(seen) <= high + 1e-6
    assert min(seen) == pytest.approx(low, abs=1e-6) and max(seen) == pytest.approx(high, abs=1e-6)


def order(sampler, net, path, x, exact, ends, steps):
    """How often the error is halved when the steps are doubled."""
    grids = [grid(n, start=ends[0], end=ends[1]) for n in (steps, 2 * steps)]
    errors = [(sampler(net, path, x, g, target="velocity") - exact).square().mean().sqrt() for g in grids]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_orders(path, seed):
    """The error of samples of a mixture against dopri5's: 1 for Euler and DDIM, 2 for Heun."""
    m, x = mixture(seed), normal(50, 2, seed=seed + 5)
    net = flow(m, path)
    exact = dopri5(net, path, x, torch.tensor([1.0, 0.0], dtype=F64), rtol=1e-7, atol=1e-7)
    for sampler, steps, want in ((euler, 40, 1), (ddim, 40, 1), (heun, 25, 2)):
        found = order(sampler, net, path, x, exact, (1.0, 0.0), steps)
        print("order", sampler.__name__, type(path).__name__, seed, round(found, 3))
        assert abs(found - want) < 0.25, sampler.__name__


@pytest.mark.parametrize("sampler, want", [(euler, 1), (heun, 2), (ddim, 1)])
@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0), (0.9, 0.2)])
def test_orders_against_the_quantiles_of_a_gaussian(sampler, want, ends):
    """Decoding and encoding, whose exact solution is known."""
    path, x = Cosine(), normal(50, 1)
    found = order(sampler, flow(gaussian(), path), path, x, gaussian_flow(path, x, *ends), ends, 40)
    print("order, Gaussian", sampler.__name__, ends, round(found, 3))
    assert abs(found - want) < 0.25


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path, target", [(VP(), "eps"), (Linear(), "velocity")])
def test_encoding_and_back(path, target, seed):
    """The codes are standard normal (5 standard errors); decoding returns, closer with more steps."""
    m = mixture(seed)
    x, _ = m.sample(500, generator=generator(seed))
    net = noise_net(m, path) if target == "eps" else flow(m, path)
    errors = []
    for steps in (15, 30, 60):
        code = ddim(net, path, x, grid(steps, start=0.0, end=1.0), target=target)
        back = ddim(net, path, code, grid(steps), target=target)
        errors.append((back - x).square().mean().sqrt().item())
    print("encode, decode", type(path).__name__, seed, errors)
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2] and errors[2] < 0.2
    values = torch.cat([code, code**2 - 1], 1)
    assert (values.mean(0).abs() < 5 * values.std(0) / math.sqrt(500) + 0.05).all()


@pytest.mark.parametrize("steps, last, calls", [(5, 0.0, 9), (5, 0.1, 10)])
def test_heun_calls_its_network_twice_but_for_a_last_step_to_the_data(steps, last, calls):
    seen = []

    def net(x, t):
        seen.append(t[0].item())
        return -x

    got = heun(net, Linear(), normal(2, 1), grid(steps, end=last), trajectory=True)
    assert len(seen) == calls and len(got) == steps + 1
    # by hand: the velocity -x over a step h gives x (1 - h + h²/2), Euler x (1 - h)
    h = -(1 - last) / steps
    factor = (1 - h + h**2 / 2) ** (steps - (last == 0)) * ((1 - h) if last == 0 else 1)
    assert_close(got[-1], factor * got[0], rtol=1e-10, atol=0)


def test_score_and_velocity_of_a_network():
    oracle, x, t = MixtureOracle(mixture(), Cosine()), normal(6, 2), torch.full((6,), 0.4, dtype=F64)
    density = oracle.at(0.4)
    assert_close(score(oracle, Cosine(), "x0", x, t), density.score(x), rtol=1e-8, atol=1e-8)
    want = flow(mixture(), Cosine())(x, t)
    assert_close(velocity(oracle, Cosine(), "x0", x, t), want, rtol=1e-8, atol=1e-8)
    assert torch.equal(velocity(nonlinear, Cosine(), "velocity", x, t), nonlinear(x, t))


# What all samplers keep to


OPEN = torch.tensor([0.9, 0.5, 0.25, 0.125], dtype=F64)


def on_vp(sampler, noise=True, **options):
    def run(net, x, **given):
        if noise:
            given["generator"] = generator(3)
        return sampler(net, VP(), x, OPEN, **options, **given)

    return run


def one_time_langevin(net, x, **given):
    here = lambda x: net(x, torch.full((len(x),), 0.5).to(x.dtype))
    return langevin(here, x, size=0.01, steps=3, generator=generator(3), **given)


SAMPLERS = {
    "ddim": on_vp(ddim),
    "ddim-eta": on_vp(ddim, eta=0.7),
    "posterior": on_vp(ancestral),
    "forward": on_vp(ancestral, variance="forward"),
    "euler": on_vp(euler, noise=False),
    "heun": on_vp(heun, noise=False),
    "dopri5": on_vp(dopri5, noise=False),
    "reverse_sde": on_vp(reverse_sde),
    "langevin": one_time_langevin,
    "annealed": on_vp(annealed_langevin, steps=2),
    "predictor_corrector": on_vp(predictor_corrector),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
TRACED = {k: v for k, v in SAMPLERS.items() if k not in ("annealed", "predictor_corrector")}
LONG = {k: v for k, v in TRACED.items() if k not in ("dopri5", "langevin")}


@pytest.mark.parametrize("sampler", TRACED.values(), ids=TRACED)
@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2, 2)])
def test_trajectories(sampler, shape):
    x = normal(*shape)
    states, last = sampler(nonlinear, x, trajectory=True), sampler(nonlinear, x)
    assert states.shape == (4, *shape) and last.shape == shape
    assert torch.equal(states[0], x) and torch.equal(states[-1], last)
    assert all(not torch.equal(*both) for both in itertools.pairwise(states))


@every_sampler
def test_the_start_is_left_as_it_was(sampler):
    x = normal(4, 3)
    before = x.clone()
    sampler(nonlinear, x)
    assert torch.equal(x, before)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_is_float32_at_least(sampler, dtype):
    """From half a precision the run is that of the same numbers in float32, and the network sees those."""
    x, seen = normal(4, 3).to(dtype), set()

    def net(x, t):
        seen.update((x.dtype, t.dtype))
        return nonlinear(x, t)

    out = sampler(net, x)
    assert out.dtype == torch.float32 and seen == {torch.float32}
    assert_close(out, sampler(nonlinear, x.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampler", [ddim, ancestral])
def test_a_table_takes_half_precision(sampler, dtype):
    x, path = normal(4, 3).to(dtype), Tabulated.from_betas()
    out = sampler(nonlinear, path, x, strided(1000, 7), generator=generator(0))
    assert_close(out, sampler(nonlinear, path, x.float(), strided(1000, 7), generator=generator(0)))


@every_sampler
def test_a_network_in_half_precision_leaves_the_state_in_float32(sampler):
    out = sampler(lambda x, t: nonlinear(x, t).half(), normal(4, 3, dtype=torch.float32))
    assert out.dtype == torch.float32
    assert_close(out, sampler(nonlinear, normal(4, 3, dtype=torch.float32)), rtol=0.05, atol=0.05)


@every_sampler
def test_float64_stays(sampler):
    seen = set()

    def net(x, t):
        seen.update((x.dtype, t.dtype))
        return nonlinear(x, t)

    assert sampler(net, normal(4, 3)).dtype == F64 and seen == {F64}


@every_sampler
def test_no_gradient_is_recorded(sampler):
    layer = nn.Linear(3, 3, dtype=F64)
    recorded = []

    def net(x, t):
        out = 0.1 * layer(x)
        recorded.append(out.requires_grad)
        return out

    assert not sampler(net, normal(4, 3).requires_grad_()).requires_grad
    assert not any(recorded) and torch.is_grad_enabled()


@every_sampler
def test_samples_follow_the_generator(sampler):
    assert torch.equal(sampler(nonlinear, normal(4, 3)), sampler(nonlinear, normal(4, 3)))


@pytest.mark.parametrize("sampler", LONG.values(), ids=LONG)
def test_progress_is_shown_on_standard_output(sampler, capsys):
    quiet = sampler(nonlinear, normal(4, 3))
    assert capsys.readouterr() == ("", "")
    assert torch.equal(sampler(nonlinear, normal(4, 3), progress=True), quiet)
    out, err = capsys.readouterr()
    assert "3/3" in out and not err


@every_sampler
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_returns_nan(sampler, bad):
    with pytest.raises(ValueError, match="returned NaN or infinity"):
        sampler(lambda x, t: x.clone().index_fill(0, torch.tensor([1]), bad), normal(4, 3))


@every_sampler
@pytest.mark.parametrize("change", [
    lambda x: x[:, :1], lambda x: x[:1], lambda x: x[..., None], lambda x: x.sum(), lambda x: (x, x),
])  # fmt: skip
def test_a_network_of_another_shape(sampler, change):
    with pytest.raises(ValueError, match=r"must return the shape of x, \(4, 3\); got"):
        sampler(lambda x, t: change(x), normal(4, 3))


def test_what_the_network_returned_is_told():
    x, t = normal(2, 3), torch.full((2,), 0.25, dtype=F64)
    with pytest.raises(ValueError, match=r"net returned NaN or infinity at t = 0.25"):
        evaluate(lambda x, t: x / 0, x, t)
    with pytest.raises(ValueError, match="got tuple"):
        evaluate(lambda x, t: (x, x), x, t)
    with pytest.raises(ValueError, match=r"got \(2, 1\)"):
        evaluate(lambda x, t: x[:, :1], x, t)


GRIDS = [
    (torch.tensor([1.0, 0.5, 0.7]), "strictly along the grid"),
    (torch.tensor([0.5, 0.5]), "strictly along the grid"),
    (torch.tensor([1.5, 0.5]), r"times must lie in \[0, 1\]; got 0.5 to 1.5"),
    (torch.tensor([0.5, -0.1]), r"times must lie in \[0, 1\]"),
    (torch.tensor([0.5, math.nan]), r"times must lie in \[0, 1\]"),
    (torch.tensor([0.5]), r"times must be a tensor \(S \+ 1,\)"),
    (torch.tensor(0.5), r"times must be a tensor \(S \+ 1,\)"),
    (torch.zeros(2, 2), r"times must be a tensor \(S \+ 1,\)"),
    ([1.0, 0.5], r"times must be a tensor \(S \+ 1,\)"),
]


@pytest.mark.parametrize("times, match", GRIDS)
@pytest.mark.parametrize(
    "sampler", [ddim, ancestral, euler, heun, dopri5, reverse_sde, annealed_langevin, predictor_corrector]
)
def test_bad_times(sampler, times, match):
    with pytest.raises(ValueError, match=match):
        sampler(nonlinear, VP(), normal(4, 3), times)


@pytest.mark.parametrize("sampler", [ancestral, reverse_sde, annealed_langevin, predictor_corrector])
def test_noise_goes_from_noise_to_data(sampler):
    with pytest.raises(ValueError, match="times must fall strictly along the grid"):
        sampler(nonlinear, VP(), normal(4, 3), OPEN.flip(0))


def test_eta_goes_from_noise_to_data():
    with pytest.raises(ValueError, match="times must fall strictly along the grid"):
        ddim(nonlinear, VP(), normal(4, 3), OPEN.flip(0), eta=0.1)


@pytest.mark.parametrize("sampler", [ddim, ancestral])
def test_times_that_a_table_lacks(sampler):
    with pytest.raises(ValueError, match="t must be one of 0, 1/100"):
        sampler(nonlinear, TABLE, normal(4, 3), torch.tensor([1.0, 0.505, 0.0]))


@pytest.mark.parametrize("sampler", [ddim, ancestral, euler, heun, reverse_sde])
def test_unknown_target(sampler):
    with pytest.raises(ValueError, match=r"target must be one of .*; got 'noise'"):
        sampler(nonlinear, VP(), normal(4, 3), OPEN, target="noise")


@pytest.mark.parametrize(
    "sampler, target", [(ddim, "eps"), (ancestral, "eps"), (ddim, "score"), (euler, "eps")]
)
def test_a_target_that_is_singular_at_the_start(sampler, target):
    with pytest.raises(ValueError, match=f"target '{target}' does not tell x0 and eps apart .* t = 1"):
        sampler(nonlinear, Cosine(), normal(4, 3), grid(3), target=target)


@pytest.mark.parametrize("path", [Cosine(), Linear()])
@pytest.mark.parametrize("sampler", [reverse_sde, predictor_corrector])
def test_the_reverse_sde_cannot_begin_where_its_drift_is_infinite(sampler, path):
    """a = 0 at t = 1: a clear error, no NaN."""
    with pytest.raises(ValueError, match=r"drift|diffusion|times|path"):
        sampler(nonlinear, path, normal(4, 3), torch.tensor([1.0, 0.5]), target="x0")


def test_unknown_variance():
    with pytest.raises(ValueError, match="variance must be 'posterior' or 'forward'; got 'beta'"):
        ancestral(nonlinear, VP(), normal(4, 3), OPEN, variance="beta")


@pytest.mark.parametrize("clip", [-1.0, 0.0, math.nan])
def test_bad_clip(clip):
    with pytest.raises(ValueError, match="clip"):
        ddim(nonlinear, VP(), normal(4, 3), OPEN, clip=clip)


def test_clipping_at_the_data():
    """Where b = 0, x says nothing of the noise: the net's own stays."""
    x = normal(4, 3).clip(-1, 1)
    t = torch.zeros(4, dtype=F64)
    assert_close(predict(nonlinear, VP(), "eps", x, t, clip=1.0).eps, nonlinear(x, t))
    assert torch.isfinite(ddim(nonlinear, VP(), x, torch.tensor([0.0, 0.5]), clip=1.0)).all()


def test_clipping():
    x, t = normal(4, 3), torch.full((4,), 0.5, dtype=F64)
    pair = predict(nonlinear, Cosine(), "eps", x, t, clip=0.3)
    free = predict(nonlinear, Cosine(), "eps", x, t)
    assert pair.x0.abs().max() == 0.3
    assert_close(pair.x0, free.x0.clip(-0.3, 0.3))
    assert_close(Cosine().mix(*pair, t), x)


@pytest.mark.parametrize("given", [
    {"size": 0.0}, {"size": -1.0}, {"size": math.inf}, {"size": math.nan}, {"steps": 0}, {"steps": 2.0},
    {"steps": True},
])  # fmt: skip
def test_bad_langevin(given):
    with pytest.raises(ValueError, match="size must be positive and steps at least 1"):
        langevin(lambda x: -x, normal(4, 3), **{"size": 0.1, "steps": 2, **given})
    with pytest.raises(ValueError, match="size must be positive and steps at least 1"):
        annealed_langevin(nonlinear, VP(), normal(4, 3), OPEN, **given)


def test_annealed_langevin_stops_before_the_data():
    with pytest.raises(ValueError, match=r"times|target 'score' is infinite"):
        annealed_langevin(nonlinear, VP(), normal(4, 3), torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("given", [
    {"snr": 0.0}, {"snr": -1.0}, {"snr": math.inf}, {"corrections": -1}, {"corrections": 1.0},
])  # fmt: skip
def test_bad_correction(given):
    with pytest.raises(ValueError, match="snr must be positive and corrections at least 0"):
        predictor_corrector(nonlinear, VP(), normal(4, 3), OPEN, **given)


def test_a_copied_generator_repeats_a_run():
    g = generator(0)
    twin = copy.deepcopy(g)
    first = ancestral(nonlinear, VP(), normal(4, 3), OPEN, generator=g)
    assert torch.equal(first, ancestral(nonlinear, VP(), normal(4, 3), OPEN, generator=twin))
    assert not torch.equal(first, ancestral(nonlinear, VP(), normal(4, 3), OPEN, generator=g))
