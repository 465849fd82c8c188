r"""Exact log-likelihood through the probability-flow ODE (Song et al., 2021, section 4.3)."""

import math
from typing import Any

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.ode import integrate
from course_lib.diffusion.samplers.steps import at_least_float32
from course_lib.diffusion.score_matching import along, divergence


def log_likelihood(
    model: BaseDenoiser,
    x0: Tensor,
    *,
    start: float = 1e-5,
    stop: float = 1.0,
    hutchinson: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Tensor:
    r"""Log-density of samples under the flow, in nats, (B,).

    .. math:: \log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla \cdot u(x_t, t)\, dt ,

    along the flow from :math:`x_0`; :math:`p_1` is :math:`\mathcal N(0, b(1)^2 I)`.

    Args:
        model: a denoiser.
        x0: samples (B, …).
        start: where the flow begins, above 0 if the velocity is not defined there.
        stop: where it ends, below 1 if the velocity is not defined there.
        hutchinson: 0 for the exact divergence, which takes one gradient for each value of a sample;
            else the number of random signs for Hutchinson's estimate, which is unbiased.
        rtol, atol: tolerances of the solver, dopri5.
        generator: of the signs.
        condition: goes to the model.

    Raises:
        ValueError: start is not before stop, or the velocity is not defined, or too large, between them.

    >>> from course_lib.diffusion import Denoiser, VP
    >>> model = Denoiser(lambda x, t: -x, VP(), "score")  # the data are standard normal
    >>> round(log_likelihood(model, torch.zeros(1, 2)).item(), 3)  # −log 2π
    -1.838
    """
    if not start < stop:
        raise ValueError(f"start must be before stop; got {start}, {stop}")
    x0 = at_least_float32(x0.detach())
    times = torch.tensor([start, stop], dtype=torch.float64)
    model.require(times, velocity=True)
    signs = [_signs(x0, generator) for _ in range(hutchinson)]

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            u = model.velocity(x, t, **condition)
            if signs:
                gain = torch.stack([along(u, x, v) for v in signs]).mean(0)
            else:
                gain = divergence(u, x)
        return u.detach(), gain.detach()

    times = times.to(x0)
    with torch.no_grad():
        found = integrate(field, (x0, x0.new_zeros(len(x0))), times, rtol=rtol, atol=atol)
    x1, gained = (v[-1] for v in found)
    b, dims = model.path.b(times[1:]), x0[0].numel()
    at_end = -(x1 / b).square().flatten(1).sum(1) / 2 - dims * (math.log(2 * math.pi) / 2 + b.log())
    return at_end + gained


def _signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return 2.0 * torch.randint(2, x.shape, generator=generator, device=x.device).to(x) - 1
