r"""The reverse SDE, and Langevin dynamics.

They follow the conventions of `course_lib.diffusion.samplers.ddpm`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.steps import Moment, at_least_float32, finish, noise_like, walk


@torch.no_grad()
def reverse_sde(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **condition: Any,
) -> Tensor:
    r"""Anderson's reverse SDE by Euler and Maruyama (Song et al., 2021, eq. 6).

    .. math:: dx = \bigl[ \tfrac{a'}{a} x - g^2 s(x, t) \bigr] dt + g\, d\bar w .

    >>> from course_lib.diffusion import Denoiser, VP, grid
    >>> model = Denoiser(lambda x, t: -x, VP(), "score")  # the data are standard normal
    >>> x = reverse_sde(model, torch.randn(4000, 1), grid(200))
    >>> bool((x.std() - 1).abs() < 0.06)
    True
    """
    x = at_least_float32(x)
    states = [x]
    for now, to, f, g in sde_walk(model, times, progress=progress):
        h = now.t - to.t
        x = x - h * (f * x - g**2 * model.score(x, now.t, **condition))
        if to.t > 0:
            x = x + g * math.sqrt(h) * noise_like(x, generator)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


def sde_walk(
    model: BaseDenoiser, times: Tensor, *, progress: bool = False
) -> Iterator[tuple[Moment, Moment, float, float]]:
    """The steps of a falling grid, each with the SDE's factors a'/a and g at its beginning."""
    steps = walk(model, times, falling=True, progress=progress)
    begin = times.detach().cpu().double()[:-1]
    drift, diffusion = model.path.drift(begin), model.path.diffusion(begin)
    bad = ~torch.isfinite(drift + diffusion)
    if bad.any():
        raise ValueError(f"times: the SDE of this path is infinite at t = {begin[bad][0]:g}; begin below")
    return ((*step, f, g) for step, f, g in zip(steps, drift.tolist(), diffusion.tolist(), strict=True))


@torch.no_grad()
def predictor_corrector(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Tensor:
    r"""A step of the reverse SDE, then Langevin steps at the new time (Song et al., 2021, algorithm 1).

    A Langevin step has :math:`h = 2\,(\text{snr}\, \lVert z \rVert / \lVert s \rVert)^2`, norms averaged over
    the batch (their algorithms 4 and 5, with :math:`\alpha = 1`); none is taken where the score is zero.

    >>> from course_lib.diffusion import Denoiser, VP, grid
    >>> model = Denoiser(lambda x, t: -x, VP(), "score")
    >>> predictor_corrector(model, torch.randn(100, 1), grid(20)).shape
    torch.Size([100, 1])
    """
    length = lambda v: v.flatten(1).norm(dim=1).mean()
    x = at_least_float32(x)
    for now, to, f, g in sde_walk(model, times):
        h = now.t - to.t
        x = x - h * (f * x - g**2 * model.score(x, now.t, **condition))
        if to.t > 0:
            x = x + g * math.sqrt(h) * noise_like(x, generator)
        for _ in range(corrections if to.t > 0 else 0):
            slope, noise = model.score(x, to.t, **condition), noise_like(x, generator)
            h = torch.where(length(slope) > 0, 2 * (snr * length(noise) / length(slope)) ** 2, 0.0)
            x = x + h * slope + torch.sqrt(2 * h) * noise
    return finish([x], False)


@torch.no_grad()
def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    size: float,
    steps: int,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
) -> Tensor:
    r"""Langevin dynamics, :math:`x \leftarrow x + h\, s(x) + \sqrt{2h}\, z`, towards the density of a score.

    Args:
        score: maps x (B, …) to the gradient of a log-density.
        x: the start.
        size: h, positive.
        steps: how many.
        generator: of the noise.
        trajectory: return all states, (steps + 1, B, …).

    >>> x = langevin(lambda x: -x, 5 * torch.ones(4000, 1), size=0.1, steps=100)
    >>> bool((x.mean().abs() < 0.1) and (x.std() - 1).abs() < 0.1)
    True
    """
    if not 0 < size < math.inf:
        raise ValueError(f"size must be positive and finite; got {size!r}")
    x = at_least_float32(x)
    states = [x]
    for _ in range(steps):
        x = x + size * score(x) + math.sqrt(2 * size) * noise_like(x, generator)
        states = [*states, x] if trajectory else [x]
    return finish(states, trajectory)


@torch.no_grad()
def annealed_langevin(
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    size: float = 0.1,
    steps: int = 20,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Tensor:
    r"""Langevin dynamics at falling noise (Song and Ermon, 2019, algorithm 1).

    At each of `times`, all above 0, it takes `steps` steps of length :math:`h = \text{size} \cdot b(t)^2`.

    >>> from course_lib.diffusion import Denoiser, VP, grid
    >>> model = Denoiser(lambda x, t: -x, VP(), "score")
    >>> annealed_langevin(model, torch.randn(10, 1), grid(5, stop=0.1)).shape
    torch.Size([10, 1])
    """
    times = times.detach().cpu().double()
    if not ((times > 0).all() and (times.diff() < 0).all()):
        raise ValueError("times must fall strictly, all above 0: without noise there is no score to follow")
    model.require(times)
    x = at_least_float32(x)
    for t, b in zip(times.tolist(), model.path.b(times).tolist(), strict=True):
        h = size * b**2
        for _ in range(steps):
            x = x + h * model.score(x, t, **condition) + math.sqrt(2 * h) * noise_like(x, generator)
    return finish([x], False)
