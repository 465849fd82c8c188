r"""DDIM and DDPM's ancestral sampler: from noise to data by predicted data and noise.

Every sampler is a function of a denoiser, a state x (B, …), the grid of times that begins where x is, and
conditions that go to the denoiser. The state is kept in float32 at least, no gradient is recorded, and no
noise is added at t = 0. With ``trajectory=True`` it returns all states, (S + 1, B, …), else the last one.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.steps import (
    at_least_float32,
    deviation,
    finish,
    noise_like,
    posterior_deviation,
    walk,
)


@torch.no_grad()
def ddim(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    r"""DDIM (Song et al., 2021, eq. 12). With rising `times` and ``eta=0`` it encodes data into noise.

    .. math:: x_s = a(s)\, \hat x_0 + \sqrt{b(s)^2 - \sigma^2}\, \hat\varepsilon + \sigma z, \qquad
        \sigma = \eta\, \frac{b(s)}{b(t)} \sqrt{b(t)^2 - \frac{a(t)^2}{a(s)^2}\, b(s)^2} .

    ``eta=0`` is deterministic, and on the linear path Euler's method; ``eta=1`` is DDPM's step with the
    variance :math:`\tilde\beta_t`.

    Args:
        model: a denoiser.
        x: the state at ``times[0]``, (B, …).
        times: the grid, (S + 1,), monotone.
        eta: how much of a step's noise is new.
        generator: of the noise.
        trajectory: return all states.
        progress: show a bar on standard output.
        condition: goes to the model.

    >>> from course_lib.diffusion import Denoiser, Linear, grid
    >>> model = Denoiser(lambda x, t: 0.0 * x, Linear(), "x0")  # all data are 0
    >>> ddim(model, torch.randn(3, 2), grid(4)).abs().max().item()
    0.0
    """
    x = at_least_float32(x)
    states = [x]
    for now, to in walk(model, times, falling=eta != 0, progress=progress):
        x0, eps = model.predict(x, now.t, **condition)
        sigma = eta * posterior_deviation(now, to) if eta else 0.0
        if not 0 <= sigma <= to.b * (1 + 1e-6):  # a NaN fails both
            raise ValueError(f"eta must be at least 0 and leave b(s)² − σ² at least 0; got {eta}")
        x = to.a * x0 + math.sqrt(max(0.0, to.b**2 - sigma**2)) * eps
        if sigma > 0:
            x = x + sigma * noise_like(x, generator)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


@torch.no_grad()
def ancestral(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    variance: str = "posterior",
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    r"""DDPM's sampler (Ho et al., 2020, algorithm 2), on any subset of times.

    The mean is that of :math:`q(x_s \mid x_t, \hat x_0)`. `variance` is ``"posterior"``
    (:math:`\tilde\beta_t`, DDIM's eta = 1) or ``"forward"`` (:math:`\beta_t`, DDIM's
    :math:`\hat\sigma`). The other arguments are those of `ddim`.

    >>> from course_lib.diffusion import Denoiser, Tabulated, strided
    >>> model = Denoiser(lambda x, t: 0.0 * x, Tabulated.schedule("linear", 100), "x0")
    >>> ancestral(model, torch.randn(3, 2), strided(100, 5)).abs().max().item()
    0.0
    """
    if variance not in ("posterior", "forward"):
        raise ValueError(f"variance must be 'posterior' or 'forward'; got {variance!r}")
    x = at_least_float32(x)
    states = [x]
    for now, to in walk(model, times, falling=True, progress=progress):
        x0, eps = model.predict(x, now.t, **condition)
        small = posterior_deviation(now, to)
        x = to.a * x0 + math.sqrt(max(0.0, to.b**2 - small**2)) * eps  # the posterior's mean
        if to.t > 0:
            sigma = small if variance == "posterior" else deviation(now, to)
            x = x + sigma * noise_like(x, generator)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)
