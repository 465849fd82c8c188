r"""Samplers in continuous time: the probability-flow ODE, the reverse SDE, and Langevin dynamics.

They follow the conventions of `course_lib.diffusion.sample`: plain functions of a callable, along a grid of
times that falls from noise to data.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from course_lib.diffusion.path import Path, per_sample
from course_lib.diffusion.sample import (
    Net,
    at_least_float32,
    noise_like,
    predict,
    require_grid,
    require_output,
    velocity,
    walk,
)
from course_lib.diffusion.target import combine


@torch.no_grad()
def euler(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "velocity",
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    """Euler's method for the probability-flow ODE, whose velocity is the mean velocity of the path."""

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x + (s - t).item() * velocity(net, path, target, x, t)

    return walk(move, x, times, falling=False, trajectory=trajectory, progress=progress)


@torch.no_grad()
def heun(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "velocity",
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    """Heun's method: the mean of the velocities at both ends of a step, two evaluations each.

    A step that ends at t = 0 is Euler's, since there the velocity need not be defined (Karras et al.,
    2022, algorithm 1). The error still falls with the square of the step.
    """

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        size, u = (s - t).item(), velocity(net, path, target, x, t)
        if s > 0:
            u = (u + velocity(net, path, target, x + size * u, s)) / 2
        return x + size * u

    return walk(move, x, times, falling=False, trajectory=trajectory, progress=progress)


@torch.no_grad()
def dopri5(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "velocity",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trajectory: bool = False,
) -> Tensor:
    """Dormand and Prince's method with steps of its own choice, by torchdiffeq.

    `times` are those at which a trajectory is wanted; the first and the last are the ends. It evaluates the
    velocity at the ends too, so they should be times at which that is defined.
    """
    require_grid(times, falling=False)
    x = at_least_float32(x)
    field = lambda t, x: velocity(net, path, target, x, t.expand(len(x)))
    times = times.to(x)
    states = odeint(field, x, times, rtol=rtol, atol=atol, method="dopri5", options=inside(times))
    return states if trajectory else states[-1]


def inside(times: Tensor) -> dict[str, Tensor]:
    """Options that keep torchdiffeq within the times: by itself it tries steps beyond the last."""
    return {"step_t": times[-1:], "first_step": (times[-1] - times[0]).abs() / 100}


@torch.no_grad()
def reverse_sde(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "score",
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    r"""Anderson's reverse SDE by Euler and Maruyama (Song et al., 2021, eq. 6).

    .. math:: dx = \bigl[ \tfrac{a'}{a} x - g^2 s(x, t) \bigr] dt + g\, d\bar w .
    """

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return reverse_step(net, path, target, x, t, s, generator)

    return walk(move, x, times, falling=True, trajectory=trajectory, progress=progress)


def reverse_step(
    net: Net, path: Path, target: str, x: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
) -> Tensor:
    """A step of the reverse SDE from time t to time s, one for all samples; without noise if s = 0."""
    at, size = per_sample(t, x), (t - s).item()
    f, g = path.drift(at), path.diffusion(at)
    if not (torch.isfinite(f) & torch.isfinite(g)).all():
        raise ValueError(f"times: the SDE of this path is infinite at t = {t.item():g}; begin below")
    mean = x - size * (f * x - g**2 * score(net, path, target, x, t))
    return mean if s == 0 else mean + g * math.sqrt(size) * noise_like(x, generator)


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
    """
    if not 0 < size < math.inf or type(steps) is not int or steps < 1:
        raise ValueError(f"size must be positive and steps at least 1; got {size!r}, {steps!r}")
    x = at_least_float32(x)
    states = [x]
    for _ in range(steps):
        x = x + size * require_output("score", score(x), x) + math.sqrt(2 * size) * noise_like(x, generator)
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x


@torch.no_grad()
def annealed_langevin(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "score",
    size: float = 0.1,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Langevin dynamics at falling noise (Song and Ermon, 2019, algorithm 1).

    At each of `times`, all above 0, it takes `steps` steps of length :math:`h = \text{size} \cdot b(t)^2`.
    """
    require_grid(times, falling=True)
    if times[-1] == 0:
        raise ValueError("times must be above 0: without noise there is no score to follow")
    x = at_least_float32(x)
    for time in times.tolist():
        t = torch.full((len(x),), time, dtype=torch.float64).to(x)
        b = path.b(per_sample(t, x)).flatten()[0].item()
        here = lambda x, t=t: score(net, path, target, x, t)
        x = langevin(here, x, size=size * b**2, steps=steps, generator=generator)
    return x


@torch.no_grad()
def predictor_corrector(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "score",
    snr: float = 0.16,
    corrections: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A step of the reverse SDE, then Langevin steps at the new time (Song et al., 2021, algorithm 1).

    A Langevin step has :math:`h = 2\,(\text{snr}\, \lVert z \rVert / \lVert s \rVert)^2`, norms averaged over
    the batch (their algorithms 4 and 5, with :math:`\alpha = 1`).
    """
    if not 0 < snr < math.inf or type(corrections) is not int or corrections < 0:
        raise ValueError(f"snr must be positive and corrections at least 0; got {snr!r}, {corrections!r}")
    length = lambda v: v.flatten(1).norm(dim=1).mean()

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x = reverse_step(net, path, target, x, t, s, generator)
        for _ in range(corrections if s > 0 else 0):
            slope, noise = score(net, path, target, x, s), noise_like(x, generator)
            h = 2 * (snr * length(noise) / length(slope)) ** 2
            x = x + h * slope + torch.sqrt(2 * h) * noise
        return x

    return walk(move, x, times, falling=True)


def score(net: Net, path: Path, target: str, x: Tensor, t: Tensor) -> Tensor:
    """The score that the network sees in x (B, …) at times t (B,)."""
    return combine(path, "score", predict(net, path, target, x, t), t)
