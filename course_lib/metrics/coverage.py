r"""What samples cover: precision and recall by balls around points, and modes that are known.

Distances between N and M points of many dimensions are one matrix product, in float32. What it says goes with
a bound on its rounding; only pairs that the bound leaves open are measured again, from differences.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.metrics.samples import pair_of_features
from course_lib.points import nearest
from course_lib.require import require_count

CHUNK = 2**21  # distances at a time, or numbers of points that are measured again
SPARE = 4  # candidates for a k-th neighbour beyond those that are needed


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1: of samples among the data, and of data among the samples."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> PrecisionRecall:
    r"""Improved precision and recall of samples (M, D) against data (N, D).

    A set's support is the union of balls around its points, each as far as the point's k-th neighbour in the
    set. Precision is the share of samples in the support of the data, recall the share of data in the support
    of the samples (Kynkäänniemi et al., 2019, eqs. 1 and 2; there k = 3 and N = M = 50,000).

    They see supports, not densities: as N grows, precision tends to the share of samples that lie where data
    have a density at all, times a factor below 1, which is 1 − 4⁻ᵏ on a line. From below or from above:
    compare values of equal N and M only. The standard error of a precision p is at least that of a share of
    M samples, :math:`\sqrt{p (1 - p) / M}`; of a recall r that of N data, :math:`\sqrt{r (1 - r) / N}`.

    Raises:
        ValueError: features do not fit, or a set has not more than k rows.

    Examples:
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [100.0], [101.0], [102.0]])
        >>> precision_recall(real, real[:3], k=1)  # one mode of two
        PrecisionRecall(precision=1.0, recall=0.5)
    """
    require_count("k", k)
    real, fake = pair_of_features(("real", real), ("fake", fake), least=k + 1, wide=False)
    exponent = math.frexp(max(abs(end.item()) for z in (real, fake) for end in z.aminmax()))[1]
    if abs(exponent) > 20:  # in units of a power of two, which rounds nothing, no square overflows
        real, fake = (z.double() * 2.0 ** -max(exponent, -1000) for z in (real, fake))
    radii = [_squared_radii(z, k) for z in (real, fake)]
    product = _Products(fake, real)
    in_fake = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    in_real = []
    for rows in torch.arange(len(fake), device=fake.device).split(max(1, CHUNK // len(real))):
        low, high = product.bounds(rows)  # (n, N)
        in_real.append(_inside(fake[rows], real, low, high, radii[0]))
        in_fake |= _inside(real, fake[rows], low.T, high.T, radii[1][rows])
    share = lambda inside: inside.count_nonzero().item() / len(inside)
    return PrecisionRecall(share(torch.cat(in_real)), share(in_fake))


class ModeCoverage(NamedTuple):
    """How many modes are covered, the share of samples near a mode, and how many are near each, (K,)."""

    covered: int
    quality: float
    counts: Tensor


def mode_coverage(samples: Tensor, centres: Tensor, radius: float, *, share: float = 0.0) -> ModeCoverage:
    r"""Which of K known modes (K, D) samples (N, D) reach, and how many samples are of high quality.

    A sample is of high quality if its nearest centre is within the radius; often three standard deviations
    of a mode (Srivastava et al., 2017), where in two dimensions a perfect sampler has
    :math:`1 - e^{-9/2} \approx 0.989`. That share is unbiased, with the standard error
    :math:`\sqrt{q (1 - q) / N}`. A mode is covered if at least one sample of high quality is its own, and at
    least the given share of all samples: with few samples too few modes are, by chance.

    Examples:
        >>> modes = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> mode_coverage(torch.tensor([[0.1, 0.0], [0.0, 0.2], [5.0, 5.0], [0.3, 0.0]]), modes, 1.0)
        ModeCoverage(covered=1, quality=0.75, counts=tensor([3, 0]))
    """
    samples, centres = pair_of_features(("samples", samples), ("centres", centres), least=1)
    mode = nearest(samples, centres)
    distance = torch.linalg.vector_norm(samples - centres[mode], dim=1)
    counts = mode[distance <= radius].bincount(minlength=len(centres))
    covered = ((counts > 0) & (counts >= share * len(samples))).sum()
    return ModeCoverage(covered.item(), counts.sum().item() / len(samples), counts)


class _Products:
    """Squared distances of rows x (N, D) and y (M, D), none of them beyond float32, between two bounds."""

    def __init__(self, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float32) -> None:
        if torch.get_float32_matmul_precision() != "highest":
            dtype = torch.float64  # else products might have few bits
        self.gamma = 2 * (x.shape[1] + 10) * torch.finfo(dtype).eps  # more than rounding, relative to a + b
        origin = y.mean(0)  # nearer to all points than 0 is: less cancels
        self.left, self.right = (z.new_ones(len(z), z.shape[1] + 2, dtype=dtype) for z in (x, y))
        p, q = (  # written in place: no copies of large sets
            torch.sub(z, origin, out=m[:, :-2]) for z, m in ((x, self.left), (y, self.right))
        )
        self.a, self.b = (torch.linalg.vector_norm(z, dim=1).square() for z in (p, q))
        # a row p, (1 − γ)a, 1 times a row −2q, 1, (1 − γ)b
        q.mul_(-2)
        self.left[:, -2], self.right[:, -1] = (1 - self.gamma) * self.a, (1 - self.gamma) * self.b

    def bounds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """From below and from above, (n, M) each, for some rows (n,) of x."""
        low = self.left[rows] @ self.right.T
        # squares below the smallest number are 0, so the upper bound is never that small
        return low, low + 2 * self.gamma * (self.a[rows, None] + self.b) + 1e-36


def _squared_radii(z: Tensor, k: int) -> Tensor:
    """Each point's squared distance from its k-th neighbour in the set, (N,), in float64."""
    radii, open_ = _exact(z[:, 0]).clone(), torch.arange(len(z), device=z.device)
    take = min(k + 1 + SPARE, len(z))  # a point's nearest is itself
    for dtype in (torch.float32, torch.float64):
        product, left = _Products(z, z, dtype), []
        for rows in open_.split(max(1, CHUNK // max(len(z), take * z.shape[1]))):
            low, near = product.bounds(rows)[0].topk(take, largest=False)
            squared = _squared(z, rows.repeat_interleave(take), z, near.flatten()).view(-1, take)
            radii[rows] = squared.kthvalue(k + 1).values
            # all others are at least as far as the last candidate's lower bound
            left.append(rows[(radii[rows] > low[:, -1]) & (take < len(z))])
        if not len(open_ := torch.cat(left)):
            return radii
    for row in open_.tolist():
        apart = z.to(radii.dtype) - z[row]
        radii[row] = apart.square_().sum(1).kthvalue(k + 1).values
    return radii


def _inside(x: Tensor, support: Tensor, low: Tensor, high: Tensor, radii: Tensor) -> Tensor:
    """Which rows (n,) are in any ball (M,) of the support, by bounds (n, M) on squared distances."""
    inside = (high <= (radii * (1 - 1e-6)).to(high)).any(1)
    open_ = (~inside).nonzero()[:, 0]
    pairs = (low[open_] <= (radii * (1 + 1e-6)).to(low)).nonzero()
    for part in pairs.split(max(1, CHUNK // x.shape[1])):
        row, ball = open_[part[:, 0]], part[:, 1]
        inside[row[_squared(x, row, support, ball) <= radii[ball]]] = True
    return inside


def _squared(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    return (_exact(x[i]) - _exact(y[j])).square_().sum(1)


def _exact(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()
