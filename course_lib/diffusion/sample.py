r"""Samplers: plain functions of a callable ``net(x, t)``, a network or an exact oracle.

All go along a grid of times, from noise at its beginning to data at its end. The state is kept in
float32 at least, no gradient is recorded, and no noise is added at t = 0. What `net` predicts is named
by `target`. With ``trajectory=True`` a sampler returns all states, (S + 1, B, …), else the last one.
"""

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib.diffusion.path import Path, per_sample
from course_lib.diffusion.target import Pair, combine, split
from course_lib.require import require_count

Net = Callable[[Tensor, Tensor], Tensor]


def grid(steps: int, *, start: float = 1.0, end: float = 0.0, power: float = 1.0) -> Tensor:
    r"""Times (S + 1,) from `start` to `end`, float64. With `power` p, :math:`t^{1/p}` is evenly spaced.

    p = 1 is DDIM's linear, p = 2 its quadratic spacing (Song et al., 2021, appendix D.2).
    """
    require_count("steps", steps)
    if not (0 <= start <= 1 and 0 <= end <= 1) or start == end:
        raise ValueError(f"start and end must be two times in [0, 1]; got {start}, {end}")
    if not 0 < power < math.inf:
        raise ValueError(f"power must be positive; got {power!r}")
    return torch.linspace(start ** (1 / power), end ** (1 / power), steps + 1, dtype=torch.float64) ** power


def strided(T: int, steps: int) -> Tensor:
    """A subset of a table's times n/T for so many steps: n evenly spaced from T to 1, then 0.

    As in the DDIM paper the last step is that from n = 1 to 0, however few there are.
    """
    if type(T) is not int or type(steps) is not int or not 1 <= steps <= T:
        raise ValueError(f"steps must be an integer from 1 to T = {T}; got {steps!r}")
    visited = torch.linspace(T, 1, steps, dtype=torch.float64).round() / T
    return torch.cat([visited, torch.zeros(1, dtype=torch.float64)])


def step(
    path: Path,
    pair: Pair,
    t: Tensor,
    s: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""From predicted data and noise at times t to a sample at times s, (B,) or (1,) (DDIM's eq. 12).

    .. math:: x_s = a(s)\, \hat x_0 + \sqrt{b(s)^2 - \sigma^2}\, \hat\varepsilon + \sigma z, \qquad
        \sigma = \eta\, \frac{b(s)}{b(t)} \sqrt{b(t)^2 - \frac{a(t)^2}{a(s)^2}\, b(s)^2} .

    ``eta=0`` is DDIM, and on the linear path Euler's method; ``eta=1`` is DDPM's step with the variance
    :math:`\tilde\beta_t`. Steps towards noise, s > t, take ``eta=0``.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be at least 0 and finite; got {eta!r}")
    t, s = per_sample(t, pair.x0), per_sample(s, pair.x0)
    mean, deviation = path.a(s) * pair.x0, path.b(s)
    if eta == 0:
        return mean + deviation * pair.eps
    sigma = eta * posterior_deviation(path, t, s)
    rest = deviation**2 - sigma**2
    if (rest < -1e-6).any():
        raise ValueError(f"eta must leave b(s)² − σ² at least 0; {eta} is too large for this step")
    return mean + rest.clamp(min=0).sqrt() * pair.eps + sigma * noise_like(pair.x0, generator)


def posterior_deviation(path: Path, t: Tensor, s: Tensor) -> Tensor:
    r"""Standard deviation of :math:`q(x_s \mid x_t, x_0)`, s < t; DDPM's is :math:`\tilde\beta_t^{1/2}`."""
    return path.b(s) / path.b(t) * forward_deviation(path, t, s)


def forward_deviation(path: Path, t: Tensor, s: Tensor) -> Tensor:
    r"""Standard deviation of :math:`q(x_t \mid x_s)` for s < t; DDPM's is :math:`\beta_t^{1/2}`."""
    if (s >= t).any():
        raise ValueError("times must fall from t to s where noise is added; step towards noise with eta=0")
    return (path.b(t) ** 2 - (path.a(t) / path.a(s)) ** 2 * path.b(s) ** 2).clamp(min=0).sqrt()


@torch.no_grad()
def ddim(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "eps",
    eta: float = 0.0,
    clip: float | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    r"""DDIM (Song et al., 2021). With rising `times` and ``eta=0`` it encodes data into noise.

    Args:
        net: predicts `target` from :math:`x_t` (B, …) and t (B,).
        path: of the noise.
        x: the state at ``times[0]``, (B, …).
        times: the grid, (S + 1,), monotone.
        target: what `net` predicts.
        eta: 0 is deterministic, 1 is DDPM's step; see `step`.
        clip: keep :math:`\hat x_0` within ±clip, and :math:`\hat\varepsilon` consistent with it.
        generator: of the noise.
        trajectory: return all states.
        progress: show a bar on standard output.
    """

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return step(path, predict(net, path, target, x, t, clip), t, s, eta=eta, generator=generator)

    return walk(move, x, times, falling=eta != 0, trajectory=trajectory, progress=progress)


@torch.no_grad()
def ancestral(
    net: Net,
    path: Path,
    x: Tensor,
    times: Tensor,
    *,
    target: str = "eps",
    variance: str = "posterior",
    clip: float | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    r"""DDPM's sampler (Ho et al., 2020, algorithm 2), on any subset of times.

    The mean is that of :math:`q(x_s \mid x_t, \hat x_0)`. `variance` is ``"posterior"``
    (:math:`\tilde\beta_t`, DDIM's eta = 1) or ``"forward"`` (:math:`\beta_t`, DDIM's
    :math:`\hat\sigma`). The other arguments are those of `ddim`.
    """
    if variance not in ("posterior", "forward"):
        raise ValueError(f"variance must be 'posterior' or 'forward'; got {variance!r}")

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        pair = predict(net, path, target, x, t, clip)
        at, to = per_sample(t, x), per_sample(s, x)
        small = posterior_deviation(path, at, to)
        mean = path.a(to) * pair.x0 + (path.b(to) ** 2 - small**2).clamp(min=0).sqrt() * pair.eps
        if s == 0:
            return mean
        sigma = small if variance == "posterior" else forward_deviation(path, at, to)
        return mean + sigma * noise_like(x, generator)

    return walk(move, x, times, falling=True, trajectory=trajectory, progress=progress)


# What all samplers share


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def evaluate(net: Net, x: Tensor, t: Tensor) -> Tensor:
    """What the network returns, refused where it is no array like x or not finite."""
    t = per_sample(t, x).flatten().expand(len(x))
    return require_output("net", net(x, t), x, f" at t = {t[0].item():g}")


def require_output(name: str, out: Tensor, x: Tensor, where: str = "") -> Tensor:
    """What a callable returned, in the type of x."""
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must return the shape of x, {tuple(x.shape)}; got {got}")
    low, high = out.aminmax()
    if not (low > -math.inf and high < math.inf):  # a NaN fails both
        raise ValueError(f"{name} returned NaN or infinity{where}")
    return out.to(x.dtype)


def predict(net: Net, path: Path, target: str, x: Tensor, t: Tensor, clip: float | None = None) -> Pair:
    """Data and noise that the network sees in x (B, …) at times t (B,) or (1,)."""
    pair = split(path, target, evaluate(net, x, t), x, t)
    if clip is None:
        return pair
    if not 0 < clip < math.inf:
        raise ValueError(f"clip must be positive and finite, or None; got {clip!r}")
    x0 = pair.x0.clamp(-clip, clip)
    a, b = path.a(per_sample(t, x)), path.b(per_sample(t, x))
    consistent = (x - a * x0) / torch.where(b > 0, b, 1.0)
    return Pair(x0, torch.where(b > 0, consistent, pair.eps))  # where b = 0, x says nothing of the noise


def velocity(net: Net, path: Path, target: str, x: Tensor, t: Tensor) -> Tensor:
    """The velocity of the probability flow that the network sees."""
    if target == "velocity":
        return evaluate(net, x, t)
    return combine(path, "velocity", predict(net, path, target, x, t), t)


def require_grid(times: Tensor, *, falling: bool) -> None:
    """Refuse what is no monotone grid of times in [0, 1]."""
    if not isinstance(times, Tensor) or times.ndim != 1 or len(times) < 2:
        raise ValueError("times must be a tensor (S + 1,) of at least two times")
    if not ((times >= 0) & (times <= 1)).all():
        raise ValueError(f"times must lie in [0, 1]; got {times.min()} to {times.max()}")
    gaps = times.diff()
    if not ((gaps < 0).all() or (not falling and (gaps > 0).all())):
        raise ValueError(f"times must {'fall' if falling else 'rise or fall'} strictly along the grid")


def walk(
    move: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    falling: bool,
    trajectory: bool = False,
    progress: bool = False,
) -> Tensor:
    """Go along a grid: ``move(x, t, s)`` takes the state from time t to time s, (1, 1, …) each."""
    require_grid(times, falling=falling)
    x = at_least_float32(x)
    states = [x]
    whole = times.to(x).view(-1, *[1] * x.ndim)  # (S + 1, 1, …): checked once, and not for every sample
    for i in tqdm(range(len(times) - 1), disable=not progress, file=sys.stdout, unit="step"):
        x = move(x, whole[i], whole[i + 1])
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x
