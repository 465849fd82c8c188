"""Solvers of the probability flow: their orders against exact flows, loops, and diffusers."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import F64, exact, gaussian, gaussian_flow, mixture, moment_errors, nonlinear, normal, oracle_of
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.samplers import ddim, dopri5, dpm_solver, edm_heun, euler, grid, heun, karras
from course_lib.diffusion.tabulated import Tabulated

VEK = VE(0.002, 80.0)


def by_log_snr(path, steps):
    """Times at which log (a/b) is evenly spaced, from much noise to little."""
    return path.time(torch.linspace(math.log(20), math.log(0.05), steps + 1, dtype=F64).exp())


def by_rho(path, steps):
    return karras(path, steps + 1, sigma_min=0.02, sigma_max=20.0)[:-1]


def evenly(path, steps):
    return grid(steps, start=0.95, stop=0.05)


def from_no_signal(path, steps):
    return grid(steps, stop=0.1)


def back(path, steps):
    return grid(steps, start=0.05, stop=0.95)


def to_the_data(path, steps):
    return grid(steps, start=0.95)


@pytest.mark.parametrize("sampler, path, times, want", [
    (euler, Cosine(), evenly, 1), (euler, Linear(), to_the_data, 1), (euler, VP(), back, 1),
    (ddim, Cosine(), from_no_signal, 1), (ddim, VEK, by_rho, 1), (ddim, VP(), back, 1),
    (heun, Cosine(), evenly, 2), (heun, Linear(), from_no_signal, 2), (heun, Linear(), to_the_data, 2),
    (heun, Cosine(), back, 2),
    (dpm_solver, VP(), by_log_snr, 2), (dpm_solver, VEK, by_log_snr, 2),
    (dpm_solver, Linear(), by_log_snr, 2), (dpm_solver, Linear(), from_no_signal, 2),
    (edm_heun, VEK, by_rho, 2), (edm_heun, VP(), by_rho, 2), (edm_heun, Linear(), evenly, 2),
])  # fmt: skip
def test_orders_against_the_quantiles_of_a_gaussian(sampler, path, times, want):
    """How often the error is halved when the steps are doubled; the exact flow is known."""
    oracle, errors = MixtureOracle(gaussian(), path), []
    for steps in (64, 128):
        t = times(path, steps)
        x = path.mix(torch.zeros(20, 1, dtype=F64), normal(20, 1), t[0].item())
        if times is back:
            x = normal(20, 1)
        exactly = gaussian_flow(path, x, t[0].item(), t[-1].item())
        errors.append((sampler(oracle, x, t) - exactly).norm().item())
    assert abs(math.log2(errors[0] / errors[1]) - want) < 0.25, errors


@pytest.mark.parametrize("sampler, times, want", [
    (euler, evenly, 1), (ddim, evenly, 1), (heun, evenly, 2), (dpm_solver, by_log_snr, 2),
    (edm_heun, by_rho, 2),
])  # fmt: skip
def test_orders_for_a_mixture(sampler, times, want):
    """The error of samples against those of dopri5."""
    oracle, path, errors = oracle_of(Cosine()), Cosine(), []
    for steps in (40, 80):
        t = times(path, steps)
        exactly = dopri5(oracle, normal(20, 2), t[[0, -1]], rtol=1e-7, atol=1e-7)
        errors.append((sampler(oracle, normal(20, 2), t) - exactly).norm().item())
    assert abs(math.log2(errors[0] / errors[1]) - want) < 0.3, errors


@pytest.mark.parametrize("times", [grid(7), grid(5, start=0.2, stop=0.9), grid(6, start=0.95, stop=0.05)])
def test_euler_is_its_loop_and_on_the_linear_path_ddim(times):
    model, x = Denoiser(nonlinear, Linear(), "velocity"), normal(6, 3)
    got, state = euler(model, x, times), x.numpy()
    assert_close(got, ddim(model, x, times), rtol=1e-9, atol=1e-9)
    for t, s in itertools.pairwise(times.tolist()):
        state = state + (s - t) * (0.6 * np.sin(2 * state) + 0.3 * state * t - 0.1)
    np.testing.assert_allclose(got, state, rtol=1e-10)


@pytest.mark.parametrize("last, calls", [(0.0, 9), (0.1, 10)])
def test_heun_asks_twice_but_for_a_last_step_to_the_data(last, calls):
    seen = []
    model = Denoiser(lambda x, t: seen.append(t) or -x, Linear(), "velocity")
    x = normal(2, 1)
    got = heun(model, x, grid(5, stop=last))
    # by hand: the velocity -x over a step h gives x (1 - h + h²/2), Euler x (1 - h)
    h = -(1 - last) / 5
    factor = (1 - h + h**2 / 2) ** (5 - (last == 0)) * ((1 - h) if last == 0 else 1)
    assert len(seen) == calls
    assert_close(got, factor * x, rtol=1e-10, atol=0)


@pytest.mark.parametrize("path, times", [
    (VP(), grid(6)), (Cosine(), grid(5, stop=0.1)), (VE(0.1, 3.0), grid(4)), (Linear(), grid(5)),
])  # fmt: skip
def test_dpm_solver_against_algorithm_2(path, times):
    """DPM-Solver++(2M) in NumPy, from x̂_0 and λ = log (a/b); the first and the last step are DDIM's."""
    model, x = Denoiser(nonlinear, path, "x0"), normal(5, 2)
    got, state, before, last = dpm_solver(model, x, times, trajectory=True), x.numpy(), None, None
    with np.errstate(divide="ignore"):
        a, b = path.a(times).numpy(), path.b(times).numpy()
        lam = np.log(a) - np.log(b)
    for i in range(len(times) - 1):
        x0 = 0.6 * np.sin(2 * state) + 0.3 * state * times[i].item() - 0.1
        h = lam[i + 1] - lam[i]
        D = x0
        if before is not None and b[i + 1] > 0:
            r = last / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        state = b[i + 1] / b[i] * state - a[i + 1] * np.expm1(-h) * D
        before, last = x0, h
        np.testing.assert_allclose(got[i + 1], state, rtol=1e-9, atol=1e-10)


# Dormand and Prince


@pytest.mark.parametrize("path", [Cosine(), Linear()])
def test_dopri5_follows_the_quantiles_of_a_gaussian(path):
    x, times = normal(7, 1), torch.tensor([1.0, 0.8, 0.33, 0.1, 0.0], dtype=F64)
    model = MixtureOracle(gaussian(), path)
    got = dopri5(model, x, times, rtol=1e-8, atol=1e-8, trajectory=True)
    assert got.shape == (5, 7, 1)
    for state, s in zip(got, times.tolist(), strict=True):
        assert_close(state, gaussian_flow(path, x, 1.0, s), rtol=1e-6, atol=1e-6)
    assert_close(dopri5(model, got[-1], times.flip(0), rtol=1e-8, atol=1e-8), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start, end", [(1.0, 0.3), (0.9999, 1e-3), (0.1, 0.9), (1e-5, 1.0), (1 / 3, 2 / 3)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dopri5_stays_within_its_times(start, end, dtype):
    seen = []
    model = Denoiser(lambda x, t: seen.append(t[0].item()) or torch.cos(3 * x), Linear(), "velocity")
    dopri5(model, normal(3, 2, dtype=dtype), torch.tensor([start, end], dtype=F64))
    low, high = sorted((start, end))
    assert min(seen) == pytest.approx(low, abs=1e-6) and max(seen) == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize("net", [lambda x, t: -1e3 * x**3, lambda x, t: x * math.nan])
def test_a_flow_that_reaches_infinity(net):
    with pytest.raises(ValueError, match="times must leave out those where the velocity is too large"):
        dopri5(Denoiser(net, Linear(), "velocity"), normal(3, 2), grid(1))


@pytest.mark.parametrize("sampler", [euler, heun, dopri5])
def test_a_velocity_that_is_infinite(sampler):
    """At the start for all; at the last time for those that ask there."""
    with pytest.raises(ValueError, match="velocity is infinite"):
        sampler(exact(oracle_of(VP()), "eps"), normal(3, 2), grid(4, start=0.0, stop=1.0))
    if sampler is dopri5:
        with pytest.raises(ValueError, match="velocity is infinite"):
            sampler(exact(oracle_of(VP()), "eps"), normal(3, 2), grid(4))


# diffusers, where it is installed


@pytest.mark.parametrize("kind", ["dpm", "euler", "heun"])
def test_against_diffusers(kind):
    """Its schedulers count steps from 0 and hold float32 tables; Euler's and Heun's state is x / a."""
    diffusers = pytest.importorskip("diffusers")
    path, table = Tabulated.schedule(), {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    theirs, sampler = {
        "dpm": (lambda: diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero", **table), dpm_solver),
        "euler": (lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **table), ddim),
        "heun": (lambda: diffusers.HeunDiscreteScheduler(timestep_spacing="leading", **table), edm_heun),
    }[kind]
    theirs = theirs()
    theirs.set_timesteps(8)
    steps = torch.tensor(list(dict.fromkeys(theirs.timesteps.tolist())), dtype=F64)  # each once
    times = torch.cat([(steps + 1) / 1000, torch.zeros(1, dtype=F64)])
    x = state = normal(4, 1, 2, 2)
    if kind != "dpm":
        state = x / path.a(times[0])
    for n in theirs.timesteps:
        seen = theirs.scale_model_input(state, n)
        out = nonlinear(seen, (n.double() + 1).expand(4) / 1000)
        state = theirs.step(out, n, state).prev_sample
    got = sampler(Denoiser(nonlinear, path, "eps"), x, times)
    assert_close(got, state, rtol=1e-3, atol=1e-3)


def test_a_mixtures_flow_ends_in_the_mixture():
    """Means and second moments of 4000 samples, within 5 standard errors and a tolerance."""
    m, path = mixture(), Linear()
    for sampler, times in ((heun, grid(10)), (dpm_solver, grid(20, power=1.5)), (dopri5, grid(1, stop=1e-4))):
        error, standard = moment_errors(sampler(MixtureOracle(m, path), normal(4000, 2, seed=20), times), m)
        assert (error < 5 * standard + 0.03).all(), sampler.__name__
