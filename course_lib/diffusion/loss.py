r"""The loss: squared error on a target, with a weight and a density over t; and DDPM's bound."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.diffusion.path import Path, Tabulated, per_sample
from course_lib.diffusion.sample import Net, at_least_float32, posterior_deviation, predict, require_output
from course_lib.diffusion.target import Pair, coefficients, combine
from course_lib.require import require_count, require_images

Times = Callable[[Tensor], Tensor]  # from uniform numbers (B,) in (0, 1) to times (B,)
Weight = Callable[[Path, Tensor], Tensor]  # of a path at times (B,), in units of the target
Couple = Callable[[Tensor, Tensor], Tensor]  # from data and noise (B, …) to the noise that goes with each


def uniform(u: Tensor) -> Tensor:
    """Times spread evenly."""
    return u


def logit_normal(u: Tensor, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Times whose logit is normal: more in the middle (Esser et al., 2024, eq. 19)."""
    return torch.sigmoid(mean + deviation * torch.special.ndtri(u))


def table_steps(T: int) -> Times:
    """The times 1/T, …, 1 of a table, each as likely."""
    return lambda u: torch.floor(u * T).add(1).clamp(max=T) / T


def one(path: Path, t: Tensor) -> Tensor:
    r"""Weight 1: with the target ``"eps"``, DDPM's :math:`L_{\text{simple}}` (Ho et al., 2020, eq. 14)."""
    return torch.ones_like(t)


def as_eps(target: str) -> Weight:
    r"""The weight on a target's error that equals weight 1 on the error of :math:`\varepsilon`."""

    def weight(path: Path, t: Tensor) -> Tensor:
        # x_t is given, so an error in the target is the factor (a c1 - b c0)/a times that in ε
        c0, c1 = coefficients(target, path, t)
        return (path.a(t) / (path.a(t) * c1 - path.b(t) * c0)) ** 2

    return weight


def bound(T: int) -> Weight:
    r"""The exact weight of the error of :math:`\varepsilon` at step n in the bound, times T (Ho, eq. 12).

    With the variance :math:`\tilde\beta_n` it is
    :math:`T \beta_n^2 / (2 \tilde\beta_n \alpha_n (1 - \bar\alpha_n))`. Step 1 has no such term; it gets that
    of step 2.
    """

    def weight(path: Path, t: Tensor) -> Tensor:
        if not isinstance(path, Tabulated) or path.T != T:
            raise ValueError(f"path must be a table of {T} steps, those of this weight")
        t = t.clamp(min=2 / T)
        s = ((t * T).round() - 1) / T
        # the two means differ by a factor times the error of ε: q(x_s | x_t, x0) has a(s) x0 + c ε
        small = posterior_deviation(path, t, s)
        c = (path.b(s) ** 2 - small**2).clamp(min=0).sqrt()
        return T * ((path.a(s) * path.b(t) / path.a(t) - c) / small) ** 2 / 2

    return weight


def regression(
    path: Path,
    *,
    target: str = "eps",
    times: Times = uniform,
    weight: Weight = one,
    end: float = 0.0,
    couple: Couple | None = None,
) -> Callable[..., Tensor]:
    r"""The loss to hand to `course_lib.training.loop.train`: mean squared error per value, weighted.

    .. math:: \mathbb E_{t, x_0, \varepsilon}\bigl[ w(t)\, \lVert \text{net}(x_t, t, \dots) -
        (c_0 x_0 + c_1 \varepsilon) \rVert^2 / D \bigr] .

    Args:
        path: of the noise.
        target: what the network predicts.
        times: the density of t.
        weight: :math:`w(t)`.
        end: times are kept at least this far from 0 and 1, where a target or a weight is infinite.
        couple: which noise goes with which data, such as `course_lib.diffusion.coupling.optimal`;
            independent if left out.
    """
    _require_end(end)

    def loss(model: nn.Module, x0: Tensor, *given: Tensor) -> Tensor:
        t = times(torch.rand(len(x0), device=x0.device)).clamp(end, 1 - end)
        eps = torch.randn_like(x0)
        if couple is not None:
            eps = require_output("couple", couple(x0, eps), x0)
        return _mean_square(model, path, target, weight, Pair(x0, eps), t, given)

    return loss


def paired(
    path: Path, *, target: str = "velocity", times: Times = uniform, weight: Weight = one, end: float = 0.0
) -> Callable[..., Tensor]:
    """The same loss for pairs that are given, as for reflow: ``loss(model, x0, eps, …)``.

    The data of the training loop are then two tensors, x0 and eps; see `regression` for the arguments.
    """
    _require_end(end)

    def loss(model: nn.Module, x0: Tensor, eps: Tensor, *given: Tensor) -> Tensor:
        t = times(torch.rand(len(x0), device=x0.device)).clamp(end, 1 - end)
        return _mean_square(model, path, target, weight, Pair(x0, eps), t, given)

    return loss


def _require_end(end: float) -> None:
    if not 0 <= end < 0.5:
        raise ValueError(f"end must be in [0, 0.5); got {end!r}")


def _mean_square(
    model: nn.Module,
    path: Path,
    target: str,
    weight: Weight,
    pair: Pair,
    t: Tensor,
    given: tuple[Tensor, ...],
) -> Tensor:
    xt, want = path.mix(*pair, t), combine(path, target, pair, t)
    out = model(xt, t, *given)
    if out.shape != want.shape:
        raise ValueError(f"model must return the shape of x0, {tuple(want.shape)}; got {tuple(out.shape)}")
    errors = (out.to(want.dtype) - want).square().flatten(1).mean(1)  # (B,)
    return (weight(path, t) * errors).mean()


class Bound(NamedTuple):
    """DDPM's bound in bits per dimension, (B,) each: ``total`` is the sum of the three parts."""

    total: Tensor
    prior: Tensor
    steps: Tensor
    data: Tensor


@torch.no_grad()
def variational_bound(
    net: Net,
    path: Tabulated,
    x0: Tensor,
    *,
    levels: int,
    target: str = "eps",
    generator: torch.Generator | None = None,
) -> Bound:
    r"""The discrete bound :math:`L_T + \sum_{n=2}^T L_{n-1} + L_0` (Ho et al., 2020, eqs. 5, 6 and 13).

    One draw of :math:`x_n` for every n, with the variances :math:`\tilde\beta_n`, and :math:`\beta_1` for the
    last step. :math:`L_0` is the probability of a discrete image: each value is one of `levels` equally
    spaced in [-1, 1], and the outermost cells reach to infinity.

    Args:
        net: predicts `target`.
        path: a table.
        x0: images (B, C, H, W) in [-1, 1].
        levels: how many grey levels.
        target: what `net` predicts.
        generator: of the noise.
    """
    require_images("x0", x0)
    x0 = at_least_float32(x0)
    if not isinstance(path, Tabulated):
        raise ValueError("path must be a table: the bound is a sum over its steps")
    require_count("levels", levels, 2)
    B, dims = len(x0), x0[0].numel()
    time = lambda n: torch.full((B,), n / path.T, dtype=torch.float64).to(x0)
    draw = lambda: torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)

    a, b = path.a(time(path.T)), path.b(time(path.T))  # (B,)
    square = a**2 * x0.square().flatten(1).sum(1)
    prior = 0.5 * (square + dims * (b**2 - 1 - 2 * b.log()))  # KL from N(0, I)

    steps = x0.new_zeros(B)
    for n in range(path.T, 1, -1):
        t, s = time(n), time(n - 1)
        xt = path.mix(x0, draw(), t)
        true = _posterior_mean(path, Pair(x0, _noise_of(path, xt, x0, t)), t, s)
        mean = _posterior_mean(path, predict(net, path, target, xt, t), t, s)
        deviation = posterior_deviation(path, per_sample(t, x0), per_sample(s, x0))
        steps += ((true - mean) / deviation).square().flatten(1).sum(1) / 2

    t = time(1)
    mean = predict(net, path, target, path.mix(x0, draw(), t), t).x0
    data = -_log_cell(x0, mean, path.beta(per_sample(t, x0)).sqrt(), levels).flatten(1).sum(1)
    parts = [v / (dims * math.log(2)) for v in (prior, steps, data)]
    return Bound(sum(parts), *parts)


def _noise_of(path: Path, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    t = per_sample(t, xt)
    return (xt - path.a(t) * x0) / path.b(t)


def _posterior_mean(path: Path, pair: Pair, t: Tensor, s: Tensor) -> Tensor:
    """The mean of q(x_s | x_t, x_0), written with data and noise."""
    t, s = per_sample(t, pair.x0), per_sample(s, pair.x0)
    rest = path.b(s) ** 2 - posterior_deviation(path, t, s) ** 2
    return path.a(s) * pair.x0 + rest.clamp(min=0).sqrt() * pair.eps


def _log_cell(x: Tensor, mean: Tensor, deviation: Tensor, levels: int) -> Tensor:
    """Log-mass that N(mean, deviation²) gives to the cell of each value of x."""
    half = 1 / (levels - 1)
    upper = torch.where(x > 1 - half, torch.inf, (x + half - mean) / deviation)
    lower = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / deviation)
    # in the tail where both are positive, the mirrored difference keeps its digits
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return high + torch.log1p(-torch.exp(low - high))
