"""The sampler of Karras et al. (2022), against their algorithm and the exact distribution."""

import numpy as np
import pytest
import torch
from cases import (
    F64,
    MU,
    VARIANCE,
    exact,
    gaussian,
    generator,
    has_moments,
    nonlinear,
    normal,
    oracle_of,
)
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Linear
from course_lib.diffusion.samplers import ddim, edm_heun, grid, karras
from course_lib.diffusion.tabulated import Tabulated

PATH = VE(0.002, 80.0)


@pytest.mark.parametrize("options", [
    {}, {"churn": 4.0}, {"churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
])  # fmt: skip
def test_algorithm_2(options):
    """In NumPy, with the same noise; one evaluation in the last step, two in the others."""
    times, x = karras(PATH, 9), 80 * normal(5, 3)
    calls = []

    def D(x, sigma):
        """Any denoiser of x at a noise level."""
        return 0.6 * np.sin(2 * x / (1 + sigma)) + 0.3 * x / (1 + sigma**2)

    def net(x, t):
        calls.append(t)
        return torch.from_numpy(D(x.numpy(), PATH.b(t).numpy()[:, None]))

    got = edm_heun(Denoiser(net, PATH, "x0"), x, times, generator=generator(3), trajectory=True, **options)
    N, g, state = 9, generator(3), x.numpy()
    churn, low, high, s_noise = (
        options.get(k, v) for k, v in (("churn", 0), ("s_min", 0), ("s_max", np.inf), ("s_noise", 1))
    )
    t = PATH.b(times).numpy()  # their time is the noise level
    for i in range(N):
        gamma = min(churn / N, 2**0.5 - 1) if low <= t[i] <= high else 0
        hat = min(t[i] + gamma * t[i], t[0])  # not beyond what the network knows
        eps = s_noise * torch.randn(x.shape, generator=g, dtype=F64).numpy() if hat > t[i] else 0
        xhat = state + np.sqrt(hat**2 - t[i] ** 2) * eps
        d = (xhat - D(xhat, hat)) / hat
        state = xhat + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            slope = (state - D(state, t[i + 1])) / t[i + 1]
            state = xhat + (t[i + 1] - hat) * (d / 2 + slope / 2)
        np.testing.assert_allclose(got[i + 1], state, rtol=1e-6, atol=1e-7)
    assert len(calls) == 2 * N - 1


@pytest.mark.parametrize("path", [PATH, VP(), Linear()], ids=["ve", "vp", "linear"])
@pytest.mark.parametrize("churn", [0.0, 20.0, 1e3])
def test_churn_keeps_the_distribution(path, churn):
    """Mean and variance of exact Gaussian data, within 5 standard errors of 10 000 samples."""
    times = karras(path, 60, sigma_max=20.0)
    t = times[0].item()
    x = path.mix(MU + VARIANCE**0.5 * normal(10_000, 1), normal(10_000, 1, seed=1), t)
    out = edm_heun(MixtureOracle(gaussian(), path), x, times, churn=churn, generator=generator(2))
    assert has_moments(out, MU, VARIANCE)


def test_churn_on_a_table_goes_to_noise_that_it_has():
    """To the nearest step; so x is a x_0 + b ε with the a, b of its time whenever the network is asked."""
    path, n, x0, seen = Tabulated([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6]), 20_000, 0.8, []

    def knows(x, t):
        a, b = path.a(t[:1]), path.b(t[:1])
        seen.append((t[0].item(), ((x - a * x0) / b).square().mean().item()))
        return torch.full_like(x, x0)

    times = torch.tensor([6, 4, 2, 1, 0], dtype=F64) / 7
    x = path.mix(torch.full((n, 1), x0, dtype=F64), normal(n, 1), 6 / 7)
    edm_heun(Denoiser(knows, path, "x0"), x, times, churn=1.2, generator=generator(2))
    assert all(abs(square - 1) < 5 * (2 / n) ** 0.5 for _, square in seen)
    assert {round(7 * t) for t, _ in seen} > {6, 4, 2, 1}


def test_on_the_variance_exploding_path_a_step_to_the_data_is_ddims():
    model, x = Denoiser(nonlinear, PATH, "eps"), normal(4, 2)
    assert_close(edm_heun(model, x, grid(1)), ddim(model, x, grid(1)), rtol=1e-9, atol=1e-9)


def test_a_network_in_edms_form_on_its_own_path():
    x = 80 * normal(50, 2)
    got = edm_heun(exact(oracle_of(PATH), "edm"), x, karras(PATH, 18))
    assert_close(got, edm_heun(oracle_of(PATH), x, karras(PATH, 18)), rtol=1e-6, atol=1e-6)


def test_where_there_is_no_signal():
    with pytest.raises(ValueError, match="times must begin where there is signal"):
        edm_heun(Denoiser(nonlinear, Linear(), "velocity"), normal(4, 2), grid(3))
