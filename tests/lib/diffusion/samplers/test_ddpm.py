"""DDIM and DDPM, against loops from the papers, moments of linear chains, and diffusers.

With Gaussian data the exact denoiser is affine, so every sampler maps a Gaussian to a Gaussian, whose mean
and variance are found here by a recursion in NumPy: no error of discretization is left in these checks.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import (
    F64,
    MU,
    PATHS,
    VARIANCE,
    exact,
    gaussian,
    generator,
    has_moments,
    mixture,
    moment_errors,
    nonlinear,
    normal,
    numbers,
    oracle_of,
)
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.guidance import Clipped
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.samplers import ancestral, ddim, grid, strided
from course_lib.diffusion.tabulated import Tabulated

TABLE = PATHS["table"]
SUBSET = torch.tensor([100, 77, 76, 40, 13, 2, 1, 0], dtype=F64) / 100


def model(path=TABLE, target="eps"):
    return Denoiser(nonlinear, path, target)


def nonlinear_numpy(x, t):
    return 0.6 * np.sin(2 * x) + 0.3 * x * t - 0.1


def draws(x, steps, seed):
    g = generator(seed)
    return [torch.randn(x.shape, generator=g, dtype=F64).numpy() for _ in range(steps)]


def clean(x, net_out, now):
    return (x - math.sqrt(1 - now) * net_out) / math.sqrt(now)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_against_equation_12(eta, clip):
    """In NumPy, on an uneven subset of the table; a clipped x̂_0 has its own noise."""
    alpha_bar, x = TABLE.alpha_bar.numpy(), normal(6, 3, seed=4)
    denoiser = Clipped(model(), clip) if clip else model()
    got = ddim(denoiser, x, SUBSET, eta=eta, generator=generator(7), trajectory=True)
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
    denoiser = Clipped(model(), clip) if clip else model()
    got = ancestral(denoiser, x, SUBSET, variance=variance, generator=generator(7), trajectory=True)
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


def test_eta_one_is_ancestral():
    x, times = normal(6, 3), strided(100, 9)
    got = ddim(model(), x, times, eta=1.0, generator=generator(3))
    assert_close(got, ancestral(model(), x, times, generator=generator(3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [VP(), Cosine(), Linear(), VE(0.1, 3.0), TABLE])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_keeps_the_marginal(path, eta):
    """DDIM's lemma 1: from the true x_0 and noise, x_s is N(a x_0, b²) whatever η. 5 standard errors."""
    n, x0, (t, s) = 20_000, 0.8, (0.6, 0.35)
    knows = Denoiser(lambda x, t: torch.full_like(x, x0), path, "x0")
    xt = path.mix(torch.full((n, 1), x0, dtype=F64), normal(n, 1), t)
    a, b = numbers(path, s)
    x = ddim(knows, xt, torch.tensor([t, s], dtype=F64), eta=eta, generator=generator(50))
    assert has_moments(x, a * x0, b**2)


@pytest.mark.parametrize("sampler, options", [(ddim, {"eta": 1.0}), (ancestral, {"variance": "forward"})])
def test_no_noise_at_the_last_step(sampler, options):
    """One step to t = 0 is the predicted x_0, whatever the noise."""
    x, now = normal(5, 2), TABLE.alpha_bar[-1].item()
    for seed in (0, 1):
        out = sampler(model(), x, strided(100, 1), generator=generator(seed), **options)
        np.testing.assert_allclose(out, clean(x.numpy(), nonlinear_numpy(x.numpy(), 1.0), now), rtol=1e-9)


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


CHAINS = {
    "ddim-0": (ddim, {"eta": 0.0}, ("ddim", 0.0)),
    "ddim-half": (ddim, {"eta": 0.5}, ("ddim", 0.5)),
    "ddim-1": (ddim, {"eta": 1.0}, ("ddim", 1.0)),
    "posterior": (ancestral, {"variance": "posterior"}, ("posterior",)),
    "forward": (ancestral, {"variance": "forward"}, ("forward",)),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("steps", [3, 10])
def test_moments_of_chains_on_a_strided_subset(chain, steps):
    """However few the steps: 5 standard errors of 20 000 samples."""
    sampler, options, kind = CHAINS[chain]
    times, n = strided(100, steps), 20_000
    out = sampler(MixtureOracle(gaussian(), TABLE), normal(n, 1), times, generator=generator(9), **options)
    assert has_moments(out, *recursion(TABLE, times, ddpm_move(TABLE, *kind)))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", ["cosine", "table"])
def test_chains_tend_to_the_data(name, chain):
    """The recursion itself: as the steps grow tenfold its end comes nearly ten times nearer to the data."""
    errors = []
    for steps in (50, 500):
        path = {"cosine": Cosine(), "table": Tabulated.schedule(T=steps)}[name]
        times = grid(steps, start=0.99 if name == "cosine" else 1.0)
        start = numbers(path, times[0].item())[0]  # from the exact moments there
        mean, variance = start * MU, start**2 * VARIANCE + 1 - start**2
        mean, variance = recursion(path, times, ddpm_move(path, *CHAINS[chain][2]), mean, variance)
        errors.append(abs(mean - MU) + abs(variance - VARIANCE))
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.02


@pytest.mark.parametrize("path", [Linear(), VE(0.1, 10.0)])
@pytest.mark.parametrize("name", ["ddim-0", "ddim-half", "posterior", "forward"])
def test_exact_denoisers_lead_to_the_mixture(name, path):
    """Means and second moments of 2000 samples, within 5 standard errors and a tolerance for the steps."""
    (sampler, options, _), m = CHAINS[name], mixture()
    x = path.b(torch.ones(1, dtype=F64)) * normal(2000, 2, seed=20)
    out = sampler(MixtureOracle(m, path), x, grid(60), generator=generator(0), **options)
    error, standard = moment_errors(out, m)
    assert (error < 5 * standard + 0.06).all()


@pytest.mark.parametrize("target", ["oracle", "v", "velocity", "edm"])
def test_encoding_and_back(target):
    """The codes are standard normal (5 standard errors); decoding returns, closer with more steps."""
    path = VP()
    x, _ = mixture().sample(500, generator=generator(0))
    net, errors = oracle_of(path) if target == "oracle" else exact(oracle_of(path), target), []
    low = 0.0 if target == "oracle" else 1e-3  # the exact networks divide by b
    for steps in (15, 30, 60):
        code = ddim(net, x, grid(steps, start=low, stop=1.0))
        back = ddim(net, code, grid(steps, stop=low))
        errors.append((back - x).square().mean().sqrt().item())
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2] and errors[2] < 0.2
    values = torch.cat([code, code**2 - 1], 1)
    assert (values.mean(0).abs() < 5 * values.std(0) / math.sqrt(500) + 0.05).all()


# diffusers, where it is installed


@pytest.mark.parametrize("kind", ["ddim", "ddim-eta", "fixed_small", "fixed_large"])
def test_against_diffusers(kind):
    """Its schedulers count steps from 0, hold float32 tables, and see the same network and noise."""
    diffusers = pytest.importorskip("diffusers")
    table = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}
    if kind.startswith("ddim"):
        theirs, sampler = diffusers.DDIMScheduler(**table), ddim
        given, options = ({"eta": 0.6}, {"eta": 0.6}) if kind == "ddim-eta" else ({}, {})
    else:
        theirs, sampler, given = diffusers.DDPMScheduler(variance_type=kind, **table), ancestral, {}
        options = {"variance": "posterior" if kind == "fixed_small" else "forward"}
    theirs.set_timesteps(10)
    x = state = normal(4, 1, 2, 2)
    g = generator(5)
    for n in theirs.timesteps:
        out = nonlinear(state, (n.double() + 1).expand(4) / 1000)
        state = theirs.step(out, n, state, generator=g, **given).prev_sample
    times = torch.cat([(theirs.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=F64)])
    got = sampler(model(Tabulated.schedule()), x, times, generator=generator(5), **options)
    assert_close(got, state, rtol=1e-4, atol=1e-4)


# Refusals


@pytest.mark.parametrize("eta", [5.0, -1.0, math.nan])
def test_no_such_eta(eta):
    with pytest.raises(ValueError, match=r"eta must be at least 0 and leave .* at least 0; got"):
        ddim(model(VP()), normal(2, 2), torch.tensor([0.9, 0.5]), eta=eta)


def test_unknown_variance():
    with pytest.raises(ValueError, match="variance must be 'posterior' or 'forward'; got 'beta'"):
        ancestral(model(VP()), normal(4, 3), grid(3), variance="beta")
