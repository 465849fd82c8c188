r"""Squared distances between points, and the nearest of some centers: no digits are lost.

:math:`\lVert x - y \rVert^2 = \lVert x \rVert^2 + \lVert y \rVert^2 - 2 x^\top y` is fast, and loses the
digits of a distance that is small beside the lengths. So every matrix product here comes with a bound on that
loss, and what it leaves open is computed again from differences, which lose nothing.
"""

import torch
from torch import Tensor

BEST = 4  # candidates that are compared by differences where nothing may be read back


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    r"""Squared distances between rows (N, D) and rows (M, D): (N, M), in float32 at least.

    No digits cancel, wherever the points are. Differentiable once. Nothing is read back from a GPU.

    Examples:
        >>> x = torch.tensor([[1e8, 0.0], [1e8, 3.0]])
        >>> squared_distances(x, x)
        tensor([[0., 9.],
                [9., 0.]])
    """
    dtype = _common(x, y)
    x, y = x.to(dtype), y.to(dtype)
    plain = x.device.type == "cpu" and not (x.requires_grad or y.requires_grad)
    if plain and x.shape[1] >= 32 and torch.get_float32_matmul_precision() == "highest":
        with torch.autocast("cpu", enabled=False):
            return _by_product(x, y)
    return _by_differences(x, y)


@torch.no_grad()
def nearest(x: Tensor, centers: Tensor, *, read: bool = True) -> Tensor:
    r"""Index of each point's nearest center. x: (N, D), centers: (K, D). Returns (N,), int64.

    The answer is that of distances without rounding, but for centers whose distances differ by as little as
    the rounding of a difference. It needs one matrix product, where its bound decides; rows that it
    leaves open are done again, first in float64, then from differences.

    Args:
        x: points, of any floating-point dtype.
        centers: on the same device.
        read: whether a GPU may be asked how many rows are open, for which the processor waits. ``False``
            reads nothing: there each point's four best centers are compared by differences, which is right
            unless more than four are within rounding of the product. On a processor it makes no difference.

    Examples:
        >>> centers = torch.tensor([[0.0], [0.01], [-1e5]])  # the last is far from all points
        >>> nearest(torch.tensor([[0.002], [0.007]]), centers)
        tensor([0, 1])
    """
    dtype = _common(x, centers)
    x, centers = x.to(dtype), centers.to(dtype)
    origin = centers.median(0).values  # one far center does not move it
    c = centers - origin
    length = torch.linalg.vector_norm(c, dim=1)
    gamma = _rounding(x)
    # What the product yields is a lower bound of ½‖x − c‖² less ½‖x‖², which is the same for every c:
    # (½ − γ)‖c‖² − xᵀc − γ‖x‖‖c‖, with the last term as one more column.
    low = (0.5 - gamma) * length.square()
    columns = torch.cat([c, gamma * length[:, None]], 1).T  # (D + 1, K)
    largest = torch.finfo(dtype).max
    found, open_ = [], []
    with torch.autocast(x.device.type, enabled=False):
        for part in _chunks(x, len(c) + 2 * x.shape[1]):
            p = part.new_empty(len(part), x.shape[1] + 1)
            torch.sub(part, origin, out=p[:, :-1])
            far = torch.linalg.vector_norm(p[:, :-1], dim=1, out=p[:, -1])
            bound = torch.addmm(low, p, columns, alpha=-1)  # (n, K)
            if x.device.type != "cpu" and not read:
                found.append(_best_of_few(part, centers, bound))
                continue
            least, index = bound.min(1)
            highest = least + 2 * gamma * length[index] * (far + length[index])  # of the one found
            second = bound.scatter_(1, index[:, None], torch.inf).amin(1)
            # squares that overflow are open too; a NaN among the points has no answer to look for
            sure = (second > highest) & (highest < largest / 4) & (far < largest**0.5 / 4)
            found.append(index)
            open_.append(~sure & ~far.isnan())
    index = torch.cat(found)
    if open_ and len(rows := torch.cat(open_).nonzero()[:, 0]):  # of (N, 1)
        if dtype == torch.float32 and x.device.type != "mps":
            index[rows] = nearest(x[rows].double(), centers.double())
        else:
            index[rows] = torch.cat([_by_largest(p, centers) for p in _chunks(x[rows], centers.numel())])
    return index


def _common(x: Tensor, y: Tensor) -> torch.dtype:
    """The dtype of both, float32 at least."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def _rounding(x: Tensor) -> float:
    r"""γ: a product of rows p and c is off by at most γ‖p‖‖c‖, and ½‖c‖² by γ‖c‖², with that of centering."""
    own = torch.finfo(x.dtype).eps / 2
    short = x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return (x.shape[1] + 16) * own + (2**-6 if short else 0.0)  # short: factors of as few as 8 bits


def _chunks(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Rows whose results of so many numbers each stay in a core's cache; a GPU wants more at a time."""
    size = 2 ** (21 if x.device.type == "cpu" else 28) // (width * x.element_size())
    return x.split(max(64 if width <= 2**14 else 1, size))


def _best_of_few(x: Tensor, centers: Tensor, bound: Tensor) -> Tensor:
    """The nearest of the few centers with the least bounds, by differences: (n,)."""
    few = bound.topk(min(BEST, len(centers)), largest=False).indices  # (n, 4)
    wide = x.dtype if x.device.type == "mps" else torch.float64
    squared = (x[:, None].to(wide) - centers[few].to(wide)).square().sum(2)
    return few.gather(1, squared.argmin(1, keepdim=True))[:, 0]


def _by_largest(x: Tensor, centers: Tensor) -> Tensor:
    """The nearest centers by differences, in units in which no square of the winner overflows: (n,)."""
    apart = (x[:, None] - centers).abs()  # (n, K, D)
    unit = apart.amax(2).amin(1).clamp(min=torch.finfo(x.dtype).tiny)
    return (apart / unit[:, None, None]).square().sum(2).argmin(1)


def _by_differences(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _by_product(x: Tensor, y: Tensor) -> Tensor:
    """By a product about the mean, and again from differences where more than four bits cancel."""
    origin = y.mean(0)
    p, c = x - origin, y - origin
    lengths = p.square().sum(1)[:, None] + c.square().sum(1)  # (N, M)
    squared = torch.addmm(lengths, p, c.T, alpha=-2)
    loses = ~(squared * 16 > lengths)  # with what overflowed
    if (rows_columns := loses.nonzero()).shape[0] * 16 > loses.numel():
        return _by_differences(x, y)
    for part in rows_columns.split(max(1, 2**22 // x.shape[1])):
        i, j = part.T
        squared[i, j] = (x[i] - y[j]).square().sum(1)
    return squared
