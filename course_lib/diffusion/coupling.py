r"""Which data goes with which noise: couplings of a batch, what they cost, and how straight flows are.

A coupling is a function ``couple(x0, eps)`` that returns the noise in a new order, or drawn anew, so that its
rows belong to those of the data. `course_lib.diffusion.loss.regression` takes one; without it data and noise
are independent.
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def optimal(x0: Tensor, eps: Tensor) -> Tensor:
    r"""The noise in the order that makes :math:`\sum_i \lVert x_{0,i} - \varepsilon_i \rVert^2` least.

    Exact optimal transport between the points of a batch (Tong et al., 2024; Pooladian et al., 2023).

    Args:
        x0: data (B, …).
        eps: noise of the same shape.
    """
    _, order = linear_sum_assignment(costs(x0, eps).numpy())
    return eps[torch.from_numpy(order).to(eps.device)]


@torch.no_grad()
def sinkhorn(x0: Tensor, eps: Tensor, *, reg: float, tolerance: float = 1e-3, steps: int = 10_000) -> Tensor:
    r"""The plan P (B, B) of entropic optimal transport, by Sinkhorn's iterations on logarithms (float64).

    It makes :math:`\sum_{ij} P_{ij} C_{ij} + \kappa \sum_{ij} P_{ij} \log P_{ij}` least among all plans whose
    rows and columns sum to 1/B; C are the squared distances (Cuturi, 2013).

    Args:
        x0: data (B, …), the rows of the plan.
        eps: noise of the same shape, the columns.
        reg: :math:`\kappa`, in units of a squared distance. Near 0 the plan is the best permutation and the
            iterations are slow; for a large one data and noise are independent.
        tolerance: of the sum of a column, relative; the rows are exact.
        steps: iterations at most.

    Raises:
        ValueError: input does not fit, or the columns are not right after so many steps.
    """
    if not 0 < reg < math.inf:
        raise ValueError(f"reg must be positive and finite; got {reg!r}")
    if not tolerance > 0 or type(steps) is not int or steps < 1:
        raise ValueError(
            f"tolerance must be positive and steps at least 1, an integer; got {tolerance!r}, {steps!r}"
        )
    kernel = -costs(x0, eps) / reg  # (B, B)
    log_mass = -math.log(len(x0))
    g = kernel.new_zeros(len(x0))
    for _ in range(steps):
        f = log_mass - torch.logsumexp(kernel + g, 1)  # now the rows are right
        columns = torch.logsumexp(kernel + f[:, None], 0) + g
        if (columns - log_mass).expm1().abs().max() <= tolerance:
            return (kernel + f[:, None] + g).exp()
        g = g + log_mass - columns  # now the columns are
    raise ValueError(
        f"reg = {reg:g} is too small for {steps} steps: columns are still off; take more of either"
    )


def pick(plan: Tensor, eps: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """For each row of a plan (B, B) one of the noises (B, …), drawn with the row's probabilities."""
    if plan.shape != (len(eps), len(eps)):
        raise ValueError(f"plan must have shape ({len(eps)}, {len(eps)}); got {tuple(plan.shape)}")
    if not ((plan >= 0).all() and (plan.sum(1) > 0).all() and torch.isfinite(plan).all()):
        raise ValueError("plan must be finite and at least 0, with something in every row")
    return eps[torch.multinomial(plan, 1, generator=generator)[:, 0].to(eps.device)]


@torch.no_grad()
def wasserstein(x: Tensor, y: Tensor) -> float:
    r"""The distance :math:`W_2` between two sets of equally many points (B, …), exact, by assignment."""
    cost = costs(x, y, names=("x", "y")).numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


@torch.no_grad()
def straightness(trajectory: Tensor, times: Tensor) -> Tensor:
    r"""How far from straight trajectories are, (B,): zero if they are lines at constant speed.

    .. math:: \int \lVert \bar u - \dot x_t \rVert^2\, dt, \qquad
        \bar u = \frac{x_{\text{end}} - x_{\text{start}}}{t_{\text{end}} - t_{\text{start}}} ,

    for the polygon through the states; averaged over samples it is S of Liu et al. (2023).

    Args:
        trajectory: states (S + 1, B, …), as a sampler returns them.
        times: theirs, (S + 1,), monotone.
    """
    if times.ndim != 1 or len(times) < 2 or len(trajectory) != len(times):
        raise ValueError(
            f"times must have shape ({len(trajectory)},), one for each state; got {tuple(times.shape)}"
        )
    gaps = times.diff().to(trajectory)
    if not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError("times must rise or fall strictly")
    states = trajectory.flatten(2)  # (S + 1, B, D)
    gaps = gaps[:, None]
    speeds = states.diff(dim=0) / gaps[:, None]  # (S, B, D)
    mean = (states[-1] - states[0]) / gaps.sum()
    return ((speeds - mean).square().sum(2) * gaps.abs()).sum(0)


def costs(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x0", "eps")) -> Tensor:
    """Squared distances between two batches of one shape (B, …): (B, B), float64, on the processor.

    `names` are what the caller calls them, for the errors.
    """
    for name, value in zip(names, (x, y), strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or not len(value):
            raise ValueError(f"{name} must be a floating-point tensor (B, …) with B at least 1")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    if x.shape != y.shape:
        raise ValueError(
            f"{names[1]} must have the shape of {names[0]}, {tuple(x.shape)}; got {tuple(y.shape)}"
        )
    x, y = (v.flatten(1).cpu().double() for v in (x, y))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()  # no digits cancel
