r"""The sampler of Karras et al. (2022): Heun's method in the noise level, with new noise before a step."""

import math
from typing import Any

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.steps import at_least_float32, finish, noise_like, walk


@torch.no_grad()
def edm_heun(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    r"""Algorithm 2 of Karras et al. (2022), on any path; ``churn=0`` is algorithm 1, without new noise.

    In :math:`\hat x = x / a` and :math:`\sigma = b / a` the probability flow is :math:`d\hat x / d\sigma =
    \hat\varepsilon`. Before a step the noise is raised to :math:`\hat\sigma = (1 + \gamma)\, \sigma`, with
    :math:`\gamma = \min(\text{churn} / S, \sqrt 2 - 1)` where :math:`\sigma` is in [`s_min`, `s_max`]; but
    not beyond the path's largest.

    Args:
        model: a denoiser.
        x: the state at ``times[0]``, (B, …).
        times: the grid, falling, with signal at its beginning; see `karras`.
        churn: :math:`S_\text{churn}` of the paper.
        s_min, s_max: where noise is added.
        s_noise: the new noise's standard deviation.
        generator: of the noise.
        trajectory: return all states.
        progress: show a bar on standard output.
        condition: goes to the model.

    >>> from course_lib.diffusion import Denoiser, VE, karras
    >>> model = Denoiser(lambda x, t: 0.0 * x, VE(0.002, 80.0), "x0")
    >>> edm_heun(model, 80 * torch.randn(3, 2), karras(model.path, 10)).abs().max().item() < 1e-6
    True
    """
    path, steps = model.path, len(times) - 1
    largest = path.sigma(torch.ones((), dtype=torch.float64)).item()
    x = at_least_float32(x)
    states = [x]
    for now, to in walk(model, times, falling=True, progress=progress):
        if now.a == 0:
            raise ValueError("times must begin where there is signal: without it b / a is infinite")
        sigma, target = now.b / now.a, to.b / to.a
        z, t, a = x / now.a, now.t, now.a
        gamma = min(churn / steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        if gamma:
            raised = torch.tensor(min(sigma * (1 + gamma), largest), dtype=torch.float64)
            time = path.time(raised).clamp(max=1)
            higher = path.sigma(time).item()  # of a table, the nearest that it has
            if higher > sigma:
                z = z + s_noise * math.sqrt(higher**2 - sigma**2) * noise_like(z, generator)
                sigma, t, a = higher, time.item(), path.a(time).item()
        slope = model.eps(a * z, t, **condition)
        ahead = z + (target - sigma) * slope
        if to.t > 0:
            slope = (slope + model.eps(to.a * ahead, to.t, **condition)) / 2
        x = to.a * (z + (target - sigma) * slope)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)
