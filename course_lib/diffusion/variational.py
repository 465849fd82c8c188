r"""DDPM's bound on the log-likelihood of discrete images."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.samplers.steps import (
    Moment,
    at_least_float32,
    deviation,
    noise_like,
    posterior_deviation,
)
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.target import Pair
from course_lib.require import require_images


class Bound(NamedTuple):
    """DDPM's bound in bits per dimension, (B,) each: ``total`` is the sum of the three parts."""

    total: Tensor
    prior: Tensor
    steps: Tensor
    data: Tensor


@torch.no_grad()
def variational_bound(
    model: BaseDenoiser,
    x0: Tensor,
    *,
    levels: int,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Bound:
    r"""The discrete bound :math:`L_T + \sum_{n=2}^T L_{n-1} + L_0` (Ho et al., 2020, eqs. 5, 6 and 13).

    One draw of :math:`x_n` for every n, with the variances :math:`\tilde\beta_n`, and :math:`\beta_1` for the
    last step. :math:`L_0` is the probability of a discrete image: each value is one of `levels` equally
    spaced in [-1, 1], and the outermost cells reach to infinity.

    Args:
        model: a denoiser whose path is a table.
        x0: images (B, C, H, W) in [-1, 1].
        levels: how many grey levels, at least 2.
        generator: of the noise.
        condition: goes to the model.

    >>> from course_lib.diffusion import Denoiser
    >>> model = Denoiser(lambda x, t: x, Tabulated.schedule("linear", 50), "eps")
    >>> found = variational_bound(model, torch.ones(2, 1, 4, 4), levels=17)
    >>> bool(torch.allclose(found.total, found.prior + found.steps + found.data))
    True
    """
    require_images("x0", x0)
    path = model.path
    if not isinstance(path, Tabulated) or levels < 2:
        raise ValueError("model must have a path that is a table, and levels be at least 2")
    x0 = at_least_float32(x0)
    dims = x0[0].numel()
    n = torch.arange(path.T + 1, dtype=torch.float64) / path.T
    at = list(map(Moment, n.tolist(), path.a(n).tolist(), path.b(n).tolist()))

    end = at[-1]
    square = end.a**2 * x0.square().flatten(1).sum(1)  # (B,)
    prior = 0.5 * (square + dims * (end.b**2 - 1 - 2 * math.log(end.b)))  # KL from N(0, I)

    steps = torch.zeros_like(prior)
    for now, to in zip(at[:1:-1], at[-2:0:-1], strict=True):  # from n to n − 1, down to n = 2
        eps = noise_like(x0, generator)
        xt = now.a * x0 + now.b * eps
        true = posterior_mean(Pair(x0, eps), now, to)
        mean = posterior_mean(model.predict(xt, now.t, **condition), now, to)
        steps += ((true - mean) / posterior_deviation(now, to)).square().flatten(1).sum(1) / 2

    first = at[1]
    mean = model(first.a * x0 + first.b * noise_like(x0, generator), first.t, **condition)
    data = -log_cell(x0, mean, deviation(first, at[0]), levels).flatten(1).sum(1)
    parts = [v / (dims * math.log(2)) for v in (prior, steps, data)]
    return Bound(sum(parts), *parts)


def posterior_mean(pair: Pair, now: Moment, to: Moment) -> Tensor:
    """The mean of q(x_s | x_t, x_0), written with data and noise."""
    rest = to.b**2 - posterior_deviation(now, to) ** 2
    return to.a * pair.x0 + math.sqrt(max(0.0, rest)) * pair.eps


def log_cell(x: Tensor, mean: Tensor, deviation: float, levels: int) -> Tensor:
    """Log-mass that N(mean, deviation²) gives to the cell of each value of x."""
    half = 1 / (levels - 1)
    upper = torch.where(x > 1 - half, torch.inf, (x + half - mean) / deviation)
    lower = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / deviation)
    # in the tail where both are positive, the mirrored difference keeps its digits
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return high + torch.log1p(-torch.exp(low - high))
