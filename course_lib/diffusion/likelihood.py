r"""Exact log-likelihood through the probability-flow ODE (Song et al., 2021, section 4.3)."""

import math

import torch
from torch import Tensor
from torchdiffeq import odeint

from course_lib.diffusion.path import Path
from course_lib.diffusion.sample import Net, at_least_float32, velocity
from course_lib.diffusion.score_matching import along, divergence
from course_lib.diffusion.solve import inside


def log_likelihood(
    net: Net,
    path: Path,
    x0: Tensor,
    *,
    target: str = "velocity",
    start: float = 1e-5,
    end: float = 1.0,
    hutchinson: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Log-density of samples under the flow, in nats, (B,).

    .. math:: \log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla \cdot u(x_t, t)\, dt ,

    along the flow from :math:`x_0`; :math:`p_1` is :math:`\mathcal N(0, b(1)^2 I)`.

    Args:
        net: predicts `target`.
        path: of the noise.
        x0: samples (B, …).
        target: what `net` predicts.
        start: where the flow begins, above 0 if the velocity is not defined there.
        end: where it ends, below 1 if the velocity is not defined there.
        hutchinson: 0 for the exact divergence, which takes one gradient for each value of a sample;
            else the number of random signs for Hutchinson's estimate, which is unbiased.
        rtol, atol: tolerances of the solver, dopri5.
        generator: of the signs.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"start and end must be two times in [0, 1], start first; got {start}, {end}")
    if type(hutchinson) is not int or hutchinson < 0:
        raise ValueError(f"hutchinson must be a number of draws, 0 for none; got {hutchinson!r}")
    x0 = at_least_float32(x0.detach())
    signs = [_signs(x0, generator) for _ in range(hutchinson)]

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            u = velocity(net, path, target, x, t.expand(len(x)))
            if signs:
                gain = torch.stack([along(u, x, v) for v in signs]).mean(0)
            else:
                gain = divergence(u, x)
        return u.detach(), gain.detach()

    times = torch.tensor([start, end], dtype=x0.dtype, device=x0.device)
    begin = (x0, x0.new_zeros(len(x0)))
    try:
        with torch.no_grad():
            found = odeint(field, begin, times, rtol=rtol, atol=atol, method="dopri5", options=inside(times))
    except AssertionError as error:  # torchdiffeq's word for steps that have become too small
        raise ValueError(
            f"start and end must leave out times where the velocity is infinite; the solver says {error}"
        ) from error
    x1, gained = (v[-1] for v in found)
    b = path.b(times[1:])
    dims = x0[0].numel()
    at_end = -(x1 / b).square().flatten(1).sum(1) / 2 - dims * (math.log(2 * math.pi) / 2 + b.log())
    return at_end + gained


def _signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return 2.0 * torch.randint(2, x.shape, generator=generator, device=x.device).to(x) - 1
