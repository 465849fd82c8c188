r"""Times to walk along, and what all samplers share.

A sampler is one loop over the steps of a grid of times. All numbers of the path are computed before the loop,
in float64 on the processor: in a step nothing is read back from the device.
"""

import contextlib
import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.path import GaussianPath


class Moment(NamedTuple):
    """A time of a grid, with the path's signal and noise there."""

    t: float
    a: float
    b: float


def grid(steps: int, *, start: float = 1.0, stop: float = 0.0, power: float = 1.0) -> Tensor:
    r"""Times (S + 1,) from `start` to `stop`, float64. With `power` p, :math:`t^{1/p}` is evenly spaced.

    p = 1 is DDIM's linear, p = 2 its quadratic spacing (Song et al., 2021, appendix D.2).

    >>> grid(4, power=2).tolist()
    [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    if start == stop or steps < 1:
        raise ValueError(f"steps must be at least 1, and start and stop differ; got {steps}, {start}, {stop}")
    return torch.linspace(start ** (1 / power), stop ** (1 / power), steps + 1, dtype=torch.float64) ** power


def strided(T: int, steps: int) -> Tensor:
    """A subset of a table's times n/T for so many steps: n evenly spaced from T to 1, then 0.

    As in the DDIM paper the last step is that from n = 1 to 0, however few there are.

    >>> (1000 * strided(1000, 4)).tolist()
    [1000.0, 667.0, 334.0, 1.0, 0.0]
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be an integer from 1 to T = {T}; got {steps!r}")
    visited = torch.linspace(T, 1, steps, dtype=torch.float64).round() / T
    return torch.cat([visited, torch.zeros(1, dtype=torch.float64)])


def karras(
    path: GaussianPath, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    r"""Times (S + 1,) at which :math:`\sigma^{1/\rho}` is evenly spaced, then 0 (Karras et al., 2022, eq. 5).

    :math:`\sigma = b / a`; the defaults are theirs. Where the path's own noise ends before, it ends there.

    >>> from course_lib.diffusion.path import VE
    >>> path = VE(0.002, 80.0)
    >>> [round(s, 3) for s in path.sigma(karras(path, 4)).tolist()]
    [80.0, 9.723, 0.47, 0.002, 0.0]
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2; got {steps}")
    top = min(sigma_max, path.sigma(torch.ones((), dtype=torch.float64)).item())
    low = max(sigma_min, path.sigma(path.inside(torch.zeros((), dtype=torch.float64))).item())
    root = torch.linspace(top ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64)
    return torch.cat([path.time(root**rho), torch.zeros(1, dtype=torch.float64)]).clamp(0, 1)


def walk(
    model: BaseDenoiser,
    times: Tensor,
    *,
    falling: bool,
    velocity: bool = False,
    progress: bool = False,
) -> Iterator[tuple[Moment, Moment]]:
    """The steps of a grid (S + 1,): from one moment to the next.

    Raises:
        ValueError: times do not fall, or rise, strictly; or the model is not defined at one of them but the
            last, which samplers do not ask for.
    """
    times = times.detach().cpu().double()
    gaps = times.diff()
    if not len(gaps) or not ((gaps < 0).all() or (not falling and (gaps > 0).all())):
        raise ValueError(f"times must {'fall' if falling else 'rise or fall'} strictly, at least two of them")
    path = model.path
    path.require(times)
    model.require(times[:-1], velocity=velocity)
    moments = map(Moment, times.tolist(), path.a(times).tolist(), path.b(times).tolist())
    return iter(tqdm(list(itertools.pairwise(moments)), disable=not progress, file=sys.stdout, unit="step"))


def deviation(now: Moment, to: Moment) -> float:
    r"""Of :math:`q(x_t \mid x_s)` for s < t; for neighbours of a table it is :math:`\beta_t^{1/2}`."""
    return math.sqrt(max(0.0, now.b**2 - (now.a / to.a) ** 2 * to.b**2))


def posterior_deviation(now: Moment, to: Moment) -> float:
    r"""Of :math:`q(x_s \mid x_t, x_0)` for s < t; for neighbours of a table :math:`\tilde\beta_t^{1/2}`."""
    return to.b / now.b * deviation(now, to)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def finish(states: list[Tensor], trajectory: bool) -> Tensor:
    """All states, (S + 1, B, …), or the last one; refused where it is not finite."""
    if not torch.isfinite(states[-1]).all():
        raise ValueError("model returned NaN or infinity on the way")
    return torch.stack(states) if trajectory else states[-1]


def in_batches(
    sampler: Any,
    model: BaseDenoiser,
    x: Tensor,
    times: Tensor,
    *,
    batch_size: int,
    accelerator: Any = None,
    **options: Any,
) -> Tensor:
    """A sampler on many samples, so many at a time; with an `Accelerator`, each process does its share.

    Args:
        sampler: such as `heun`.
        model: on its device.
        x: where to begin, (N, …), on the processor or the model's device; the same in all processes.
        times: the grid.
        batch_size: samples at a time.
        accelerator: of several processes. All get all samples. Without a `generator` their noise differs,
            however they are seeded; a generator should be each process's own.
        options: of the sampler, and conditions; a tensor (N, …) among them is cut as x is.

    Returns:
        The samples (N, …), on the processor.

    >>> from course_lib.diffusion import Denoiser, Linear, heun
    >>> model = Denoiser(lambda x, t: x, Linear(), "velocity")
    >>> x = torch.randn(5, 2)
    >>> bool(torch.allclose(in_batches(heun, model, x, grid(3), batch_size=2), heun(model, x, grid(3))))
    True
    """
    if options.get("trajectory"):
        raise ValueError("trajectory must be left out: batches are joined at their end")
    index, several = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows = torch.arange(len(x))[index::several]
    device = next((w.device for w in model.parameters()), x.device)
    cut = {k: v for k, v in options.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(x)}
    made = at_least_float32(x).to("cpu", copy=True)
    with _own_noise(index, several, device):
        for own in rows.split(batch_size) if len(rows) else ():
            given = options | {name: value[own.to(value.device)].to(device) for name, value in cut.items()}
            made[own] = sampler(model, x[own.to(x.device)].to(device), times, **given).cpu()
    if several == 1:
        return made
    from accelerate.utils import gather_object

    for part, share in enumerate(gather_object([made[rows]])):
        made[part::several] = share
    return made


@contextlib.contextmanager
def _own_noise(index: int, several: int, device: torch.device) -> Iterator[None]:
    """Another state of the global generators in each of several processes, for as long as it lasts."""
    seed = torch.randint(2**62, ()).item() if several > 1 else 0
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=several > 1):
        if several > 1:
            torch.manual_seed(seed + index)
        yield
