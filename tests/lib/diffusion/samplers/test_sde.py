"""The reverse SDE and Langevin dynamics, against moments of linear chains and loops from the papers."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import (
    F64,
    MU,
    VARIANCE,
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
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.samplers import annealed_langevin, grid, langevin, predictor_corrector, reverse_sde
from course_lib.mixture.gaussian import GaussianMixture

N = 20_000


def coefficients(path, t):
    r"""f and g² of the literature: VP has −β/2 and β, VE 0 and the derivative of b²."""
    if isinstance(path, VP):
        beta = 0.1 + 19.9 * t
        return -beta / 2, beta
    return 0.0, 2 * path.rate * (path.sigma_min * math.exp(path.rate * t)) ** 2


@pytest.mark.parametrize("path", [VP(), VE(0.1, 3.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("stop", [0.0, 0.05])
def test_moments_of_the_reverse_sde(path, stop):
    """No noise where it ends at the data, noise where it ends before. 5 standard errors."""
    times, (_, scale) = grid(60, stop=stop), numbers(path, 1.0)
    mean, variance = 0.0, scale**2
    for t, s in itertools.pairwise(times.tolist()):
        (a, b), (f, square), h = numbers(path, t), coefficients(path, t), t - s
        total = a**2 * VARIANCE + b**2
        # x ← x − h (f x − g² s), with the score s = (a μ − x) / total
        factor = 1 - h * f - h * square / total
        mean = factor * mean + h * square * a * MU / total
        variance = factor**2 * variance + (h * square if s else 0)
    out = reverse_sde(MixtureOracle(gaussian(), path), scale * normal(N, 1), times, generator=generator(9))
    assert has_moments(out, mean, variance)


def test_the_reverse_sde_adds_no_noise_at_the_last_step():
    for stop, same in ((0.0, True), (0.1, False)):
        outs = [
            reverse_sde(
                Denoiser(nonlinear, VP(), "eps"), normal(4, 2), torch.tensor([0.3, stop]), generator=g
            )
            for g in (generator(0), generator(1))
        ]
        assert torch.equal(*outs) == same


def test_moments_of_langevin():
    """An autoregression: x ← x + h (μ - x)/v + √(2h) z. 5 standard errors."""
    h, steps = 0.05, 20
    score = lambda x: (MU - x) / VARIANCE
    out = langevin(score, 3 * normal(N, 1), size=h, steps=steps, generator=generator(9))
    mean, variance, r = 0.0, 9.0, 1 - h / VARIANCE
    for _ in range(steps):
        mean, variance = MU + r * (mean - MU), r**2 * variance + 2 * h
    assert has_moments(out, mean, variance)


def test_moments_of_annealed_langevin():
    """At each time an autoregression towards N(aμ, a²v + b²) with h = size · b²."""
    path, times, size, steps = VE(0.1, 3.0), torch.tensor([1.0, 0.6, 0.3, 0.1]), 0.2, 7
    out = annealed_langevin(
        MixtureOracle(gaussian(), path),
        3 * normal(N, 1),
        times,
        size=size,
        steps=steps,
        generator=generator(9),
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
    times, snr, g = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=F64), 0.16, generator(5)
    x = normal(50, 3)
    model = Denoiser(nonlinear, VP(), "score")
    got = predictor_corrector(model, x, times, snr=snr, corrections=2, generator=generator(5))
    noises = iter([torch.randn(x.shape, generator=g, dtype=F64).numpy() for _ in range(7)])
    net = lambda x, t: 0.6 * np.sin(2 * x) + 0.3 * x * t - 0.1
    state, size = x.numpy(), lambda v: np.sqrt((v**2).sum(1)).mean()
    for t, s in itertools.pairwise((1.0, 0.7, 0.4, 0.0)):
        beta, h = 0.1 + 19.9 * t, t - s
        state = state + h * beta * (state / 2 + net(state, t))
        state = state + (math.sqrt(beta * h) * next(noises) if s else 0)
        for _ in range(2 if s else 0):
            slope, z = net(state, s), next(noises)
            eps = 2 * (snr * size(z) / size(slope)) ** 2
            state = state + eps * slope + math.sqrt(2 * eps) * z
    np.testing.assert_allclose(got, state, rtol=1e-8, atol=1e-9)


def test_no_correction_is_the_reverse_sde():
    oracle, x, times = oracle_of(VP()), normal(6, 2), grid(9)
    got = predictor_corrector(oracle, x, times, corrections=0, generator=generator(1))
    assert_close(got, reverse_sde(oracle, x, times, generator=generator(1)))


def test_a_score_of_zero_is_no_correction():
    """No NaN, but the predictor's step."""
    flat, x = Denoiser(lambda x, t: 0 * x, VP(), "score"), normal(6, 2)
    got = predictor_corrector(flat, x, torch.tensor([1.0, 0.5, 0.0]), generator=generator(1))
    g, state = generator(1), x
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        beta = 0.1 + 19.9 * t
        state = state * (1 + (t - s) * beta / 2)
        if s:
            state = state + math.sqrt(beta * (t - s)) * torch.randn(x.shape, generator=g, dtype=F64)
    assert_close(got, state)


@pytest.mark.parametrize("name, sampler", [
    ("reverse_sde", lambda o, x, g: reverse_sde(o, x, grid(100), generator=g)),
    ("predictor_corrector", lambda o, x, g: predictor_corrector(o, x, grid(60), generator=g)),
    ("annealed", lambda o, x, g: annealed_langevin(o, x, grid(20, stop=0.1), size=0.2, generator=g)),
])  # fmt: skip
def test_exact_denoisers_lead_to_the_mixture(name, sampler):
    """Means and second moments of 2000 samples, within 5 standard errors and a tolerance."""
    m, path = mixture(), VE(0.1, 3.0) if name == "annealed" else VP()
    x = path.b(torch.ones(1, dtype=F64)) * normal(2000, 2, seed=20)
    error, standard = moment_errors(sampler(MixtureOracle(m, path), x, generator(0)), m)
    assert (error < 5 * standard + (0.2 if name == "annealed" else 0.08)).all()


def test_annealing_brings_samples_to_a_far_mode():
    """Plain Langevin cannot weigh two distant modes when it starts at one; with annealing it can."""
    weights, means = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([[-4.0, 0], [4.0, 0]], dtype=F64)
    m, path = GaussianMixture(weights, means, torch.tensor([0.25, 0.25], dtype=F64)), VE(0.05, 10.0)
    start = normal(1000, 2) + torch.tensor([4.0, 0.0], dtype=F64)
    plain = langevin(m.score, start, size=0.02, steps=200, generator=generator(0))
    annealed = annealed_langevin(
        MixtureOracle(m, path), start, grid(20, stop=0.05), steps=20, generator=generator(0)
    )
    share = lambda x: (x[:, 0] < 0).double().mean().item()
    assert share(plain) < 0.01
    assert abs(share(annealed) - 0.8) < 5 * math.sqrt(0.16 / 1000) + 0.1


@pytest.mark.parametrize("path", [Cosine(), Linear()])
@pytest.mark.parametrize("sampler", [reverse_sde, predictor_corrector])
def test_the_reverse_sde_cannot_begin_where_its_drift_is_infinite(sampler, path):
    """a = 0 at t = 1: a clear error, no NaN."""
    with pytest.raises(ValueError, match="times: the SDE of this path is infinite at t = 1; begin below"):
        sampler(Denoiser(nonlinear, path, "x0"), normal(4, 3), grid(3))


@pytest.mark.parametrize("size", [0.0, -1.0, math.inf, math.nan])
def test_bad_sizes(size):
    """A negative one would be its own root's NaN, and an infinite one's."""
    with pytest.raises(ValueError, match="size must be positive and finite"):
        langevin(lambda x: -x, normal(4, 3), size=size, steps=2)


@pytest.mark.parametrize("times", [[0.5, 0.0], [0.1, 0.5], [0.5, 0.5], [500.0, 0.5], [math.nan, 0.5]])
def test_annealed_langevin_goes_down_and_stops_before_the_data(times):
    with pytest.raises(ValueError, match=r"times must fall strictly, all above 0|t must lie in \[0, 1\]"):
        annealed_langevin(Denoiser(nonlinear, VP(), "eps"), normal(4, 3), torch.tensor(times))
