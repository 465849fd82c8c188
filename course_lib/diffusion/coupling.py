r"""Which data goes with which noise: couplings of a batch, and how straight flows are.

A coupling is a function ``couple(x0, eps)`` that returns the noise in a new order, or drawn anew, so that its
rows belong to those of the data. `Denoiser.loss` takes one; without it data and noise are independent.
"""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from course_lib.points import squared_distances


@torch.no_grad()
def optimal(x0: Tensor, eps: Tensor) -> Tensor:
    r"""The noise in the order that makes :math:`\sum_i \lVert x_{0,i} - \varepsilon_i \rVert^2` least.

    Exact optimal transport between the points of a batch (Tong et al., 2024; Pooladian et al., 2023). The
    squares are the same in every order: it makes :math:`\sum_i x_{0,i}^\top \varepsilon_i` greatest.

    Args:
        x0: data (B, …).
        eps: noise of the same shape.

    >>> optimal(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-0.5], [0.3]]))
    tensor([[ 0.3000],
            [-0.5000]])
    """
    if x0.shape != eps.shape:
        raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}")
    _, order = linear_sum_assignment(_products(x0.flatten(1), eps.flatten(1)), maximize=True)
    return eps[torch.from_numpy(order).to(eps.device)]


def _products(x: Tensor, y: Tensor) -> np.ndarray:
    """The inner products (B, B) of rows (B, D), up to a constant in each row and in each column.

    These change no assignment; without them it is found several times as fast. Where they outweigh the rest,
    digits are lost in it, and the products are taken again about the means.
    """
    short = x.device.type != "mps" and torch.get_float32_matmul_precision() != "highest"
    kind = torch.float64 if short else torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(kind), y.to(kind)
    with torch.autocast(x.device.type, enabled=False):
        # in NumPy: on so small a matrix PyTorch's threads cost more than they save
        raw = (x @ y.T).cpu().numpy()
        rest = raw - raw.mean(0) - raw.mean(1, keepdims=True)
        if np.abs(raw).max() > 16 * np.ptp(rest):
            return ((x - x.mean(0)) @ (y - y.mean(0)).T).cpu().numpy()
    return rest


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
        ValueError: `reg` is not positive, or the columns are not right after so many steps.

    >>> plan = sinkhorn(torch.randn(4, 2), torch.randn(4, 2), reg=1.0)
    >>> bool(torch.allclose(plan.sum(1), torch.full((4,), 0.25, dtype=torch.float64)))
    True
    """
    if not 0 < reg < math.inf:
        raise ValueError(f"reg must be positive and finite; got {reg!r}")
    x, y = (v.flatten(1).cpu().double() for v in (x0, eps))
    kernel = -squared_distances(x, y) / reg  # (B, B)
    log_mass = -math.log(len(x))
    g = kernel.new_zeros(len(x))
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
    """For each row of a plan (B, B) one of the noises (B, …), drawn with the row's probabilities.

    >>> pick(torch.eye(2).flip(0), torch.tensor([[1.0], [2.0]])).flatten().tolist()
    [2.0, 1.0]
    """
    if plan.shape != (len(eps), len(eps)):
        raise ValueError(f"plan must have shape ({len(eps)}, {len(eps)}); got {tuple(plan.shape)}")
    return eps[torch.multinomial(plan, 1, generator=generator)[:, 0].to(eps.device)]


@torch.no_grad()
def straightness(trajectory: Tensor, times: Tensor) -> Tensor:
    r"""How far from straight trajectories are, (B,): zero if they are lines at constant speed.

    .. math:: \int \lVert \bar u - \dot x_t \rVert^2\, dt, \qquad
        \bar u = \frac{x_{\text{end}} - x_{\text{start}}}{t_{\text{end}} - t_{\text{start}}} ,

    for the polygon through the states; averaged over samples it is S of Liu et al. (2023).

    Args:
        trajectory: states (S + 1, B, …), as a sampler returns them.
        times: theirs, (S + 1,), monotone.

    >>> straightness(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([1.0, 0.5, 0.0])).item()
    0.0
    """
    gaps = times.diff().to(trajectory)
    if len(times) != len(trajectory) or not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError("times must rise or fall strictly, one for each state")
    states = trajectory.flatten(2)  # (S + 1, B, D)
    gaps = gaps[:, None]
    speeds = states.diff(dim=0) / gaps[:, None]  # (S, B, D)
    mean = (states[-1] - states[0]) / gaps.sum()
    return ((speeds - mean).square().sum(2) * gaps.abs()).sum(0)
