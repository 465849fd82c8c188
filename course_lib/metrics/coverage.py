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
from course_lib.require import require_count, require_weight

CHUNK = 2**22  # distances at a time, or numbers of points that are measured again
SPARE = 8  # candidates for a k-th neighbour beyond those that are needed


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
    real, fake = pair_of_features(("real", real), ("fake", fake), least=k + 1)
    radii = [_squared_radii(z, k) for z in (real, fake)]
    product = _Products(real, fake)
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
    require_weight("radius", radius)
    require_weight("share", share)
    mode = nearest(samples, centres)
    distance = torch.linalg.vector_norm(samples - centres[mode], dim=1)
    counts = mode[distance <= radius].bincount(minlength=len(centres))
    covered = ((counts > 0) & (counts >= share * len(samples))).sum()
    return ModeCoverage(covered.item(), counts.sum().item() / len(samples), counts)
