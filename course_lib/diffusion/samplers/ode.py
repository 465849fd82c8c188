r"""Solvers of the probability-flow ODE :math:`\dot x = u(x, t)`: Euler, Heun, DPM-Solver++, Dormand–Prince.

They follow the conventions of `course_lib.diffusion.samplers.ddpm`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.steps import Moment, at_least_float32, finish, walk


@torch.no_grad()
def euler(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    """Euler's method, one evaluation a step.

    >>> from course_lib.diffusion import Denoiser, Linear, grid
    >>> model = Denoiser(lambda x, t: torch.ones_like(x), Linear(), "velocity")
    >>> euler(model, torch.zeros(1, 2), grid(8))
    tensor([[-1., -1.]])
    """
    x = at_least_float32(x)
    states = [x]
    for now, to in walk(model, times, falling=False, velocity=True, progress=progress):
        x = x + (to.t - now.t) * model.velocity(x, now.t, **condition)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


@torch.no_grad()
def heun(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    """Heun's method: the mean of the velocities at both ends of a step, two evaluations each.

    A step that ends at t = 0 is Euler's, since there the velocity need not be defined (Karras et al.,
    2022, algorithm 1). The error still falls with the square of the step.

    >>> from course_lib.diffusion import Denoiser, Linear, grid
    >>> model = Denoiser(lambda x, t: x, Linear(), "velocity")  # from 1 back to t it is exp(t − 1)
    >>> abs(heun(model, torch.ones(1, 1), grid(100, stop=0.5)).item() - math.exp(-0.5)) < 1e-5
    True
    """
    x = at_least_float32(x)
    states = [x]
    for now, to in walk(model, times, falling=False, velocity=True, progress=progress):
        size = to.t - now.t
        u = model.velocity(x, now.t, **condition)
        if to.t > 0:
            u = (u + model.velocity(x + size * u, to.t, **condition)) / 2
        x = x + size * u
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


@torch.no_grad()
def dpm_solver(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    r"""DPM-Solver++(2M), second order with one evaluation a step (Lu et al., 2022b, algorithm 2).

    With :math:`\lambda = \log (a / b)`, :math:`h = \lambda_s - \lambda_t` and r, the step before over h,

    .. math:: x_s = \frac{b_s}{b_t} x_t - a_s (e^{-h} - 1)
        \Bigl[ \bigl(1 + \tfrac1{2r}\bigr)\, \hat x_0 - \tfrac1{2r}\, \hat x_0^{\text{before}} \Bigr] .

    The first step, and one to t = 0, are of first order: DDIM's.

    >>> from course_lib.diffusion import Denoiser, VP, grid
    >>> model = Denoiser(lambda x, t: 0.0 * x, VP(), "x0")
    >>> dpm_solver(model, torch.randn(3, 2), grid(4)).abs().max().item()
    0.0
    """
    x = at_least_float32(x)
    states, before, span = [x], None, 0.0
    for now, to in walk(model, times, falling=True, progress=progress):
        x0, h = model(x, now.t, **condition), _log_ratio(to) - _log_ratio(now)
        seen = x0
        if before is not None and to.t > 0:
            share = h / (2 * span)  # 1 / 2r
            seen = (1 + share) * x0 - share * before
        x = to.b / now.b * x - to.a * math.expm1(-h) * seen
        before, span = x0, h
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


def _log_ratio(moment: Moment) -> float:
    """λ: minus infinity without signal, infinite without noise."""
    if moment.a == 0:
        return -math.inf
    return math.inf if moment.b == 0 else math.log(moment.a / moment.b)


@torch.no_grad()
def dopri5(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trajectory: bool = False,
    **condition: Any,
) -> Tensor:
    """Dormand and Prince's method with steps of its own choice, by torchdiffeq.

    `times` are those at which a trajectory is wanted; the first and the last are the ends. It evaluates the
    velocity at the ends too.

    Raises:
        ValueError: the velocity is not defined at one of the times, or so large that steps become too small.

    >>> from course_lib.diffusion import Denoiser, Linear, grid
    >>> model = Denoiser(lambda x, t: x, Linear(), "velocity")
    >>> abs(dopri5(model, torch.ones(1, 1), grid(1)).item() - math.exp(-1)) < 1e-4
    True
    """
    walk(model, times, falling=False, velocity=True)  # refuses what is no grid
    model.require(times.detach().cpu().double(), velocity=True)
    x, times = at_least_float32(x), times.to(at_least_float32(x))
    states = integrate(lambda t, x: model.velocity(x, t, **condition), x, times, rtol=rtol, atol=atol)
    return finish(list(states), trajectory)


def integrate(field: Any, state: Any, times: Tensor, *, rtol: float, atol: float) -> Any:
    """torchdiffeq's dopri5 that stays within the times: by itself it tries steps beyond the last."""
    inside = {"step_t": times[-1:], "first_step": (times[-1] - times[0]).abs() / 100}
    try:
        return odeint(field, state, times, rtol=rtol, atol=atol, method="dopri5", options=inside)
    except AssertionError as error:  # torchdiffeq's word for steps that have become too small
        raise ValueError(
            f"times must leave out those where the velocity is too large; the solver says: {error}"
        ) from error
