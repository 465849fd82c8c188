r"""How far samples are from data: distances between two sets of features, and what samples cover.

A feature is what some network says about an image, or the image or point itself: rows (N, D). A feature
extractor is any callable from images to features, such as `course_lib.metrics.classifier.load().features` or
`course_lib.metrics.inception.InceptionFeatures`; `extract` applies it. All is computed in float64, on the input's
device (on the processor instead of Apple's MPS, which has no float64).

Elsewhere: the exact distance :math:`W_2` between small sets is `course_lib.diffusion.coupling.wasserstein`;
bits per dimension are `course_lib.vae.pixels.bits_per_dim`; differences of two images are in
`course_lib.metrics.images`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.require import require_count, require_covariance

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)


@torch.no_grad()
def extract(features: Callable[[Tensor], Tensor], images: Tensor, *, batch: int = 256) -> Tensor:
    """Features (N, D) of images (N, C, H, W), a batch at a time."""
    require_count("batch", batch)
    if not isinstance(images, Tensor) or images.ndim == 0 or len(images) == 0:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of at least one image; got {got}")
    parts = [features(part) for part in images.split(batch)]
    if not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"features must return a tensor; got {type(parts[0]).__name__}")
    out = torch.cat(parts)
    if out.ndim != 2 or len(out) != len(images):
        wanted = f"{len(images)} images to ({len(images)}, D)"
        raise ValueError(f"features must map {wanted}; got {tuple(out.shape)}")
    return out


def frechet(x: Tensor, y: Tensor) -> float:
    r"""Squared Fréchet distance between normals fitted to two sets of features, (N, D) and (M, D).

    With the features of an Inception network it is the FID (Heusel et al., 2017). The covariances are those
    divided by N − 1. Fewer samples than dimensions are allowed.

    Biased upwards by about c/N: compare distances of equal N only (Chong and Forsyth, 2020). For two sets of
    N from one normal whose covariance has the eigenvalues :math:`\lambda_i`, where the distance should be 0,

    .. math:: c = 2 \sum_i \lambda_i + \sum_{ij} \frac{(1 + \delta_{ij}) \lambda_i \lambda_j}{\lambda_i
        + \lambda_j} , \qquad c = D (D + 5) / 2 \text{ for the standard normal.}

    Raises:
        ValueError: shapes differ or are not (N, D), fewer than 2 rows, or a value is not finite.
    """
    x, y = _pair(("x", x), ("y", y))
    return frechet_distance(*_moments("x", x), *_moments("y", y))


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    r"""Squared Fréchet distance between two normals, means (D,) and covariances (D, D).

    .. math:: \lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}\bigl( \Sigma_1 + \Sigma_2
        - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2} \bigr) ,

    in the squared units of a feature (Dowson and Landau, 1982, eq. 4; Heusel et al., 2017, eq. 6). It is the
    squared 2-Wasserstein distance. Covariances of any rank are allowed.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a covariance is not symmetric or has
            negative eigenvalues, beyond rounding.
    """
    D = len(mean1) if isinstance(mean1, Tensor) and mean1.ndim == 1 else 0
    given = (("mean1", mean1, (D,)), ("cov1", cov1, (D, D)), ("mean2", mean2, (D,)), ("cov2", cov2, (D, D)))
    for name, value, shape in given:
        if not isinstance(value, Tensor) or value.shape != shape or D == 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            wanted = f"shape {shape}" if D else "shape (D,) with D at least 1"
            raise ValueError(f"{name} must be a tensor of {wanted}; got {got}")
        _require_real(name, value)
    mean1, cov1, mean2, cov2 = (_float64(value) for _, value, _ in given)
    root1, root2 = _root("cov1", cov1), _root("cov2", cov2)
    # with Σ = R Rᵀ the eigenvalues under the root are the squared singular values of R₁ᵀ R₂
    shared = torch.linalg.svdvals(root1.T @ root2).sum()
    apart = (mean1 - mean2).square().sum()
    return (apart + root1.square().sum() + root2.square().sum() - 2 * shared).clamp(min=0).item()


def mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    r"""Squared maximum mean discrepancy between two sets, (N, D) and (M, D), under a kernel.

    .. math:: \frac{1}{N (N - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{M (M - 1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{N M} \sum_{ij} k(x_i, y_j) ,

    in the units of the kernel (Gretton et al., 2012, eq. 3). Unbiased, hence often negative where the
    distributions are equal. There its standard deviation falls as 1/N, elsewhere as :math:`1/\sqrt N`. It
    needs N² + M² + N M values at once.

    Args:
        x, y: features, at least 2 rows each.
        kernel: from rows (N, D) and (M, D) to (N, M): `cubic`, or ``rbf(bandwidth)``.

    Raises:
        ValueError: features do not fit, or the kernel's values have another shape or are not finite.
    """
    x, y = _pair(("x", x), ("y", y))

    def within(z: Tensor) -> Tensor:
        values = kernel(z, z)
        return (values.sum() - values.trace()) / (len(z) * (len(z) - 1))

    across = kernel(x, y)
    if across.shape != (len(x), len(y)):
        raise ValueError(f"kernel must return ({len(x)}, {len(y)}); got {tuple(across.shape)}")
    found = (within(x) + within(y) - 2 * across.mean()).item()
    if not math.isfinite(found):
        raise ValueError("kernel must return finite values of x and y, with finite sums")
    return found


def cubic(x: Tensor, y: Tensor) -> Tensor:
    r"""The kernel :math:`(x^\top y / D + 1)^3` (Bińkowski et al., 2018): (N, D), (M, D) to (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(bandwidth: float) -> Kernel:
    r"""The kernel :math:`\exp(-\lVert x - y \rVert^2 / 2 h^2)` of bandwidth h, in units of a feature."""
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite; got {bandwidth!r}")
    return lambda x, y: torch.exp(_distances(x, y).square() / (-2 * bandwidth**2))


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel distance: `mmd` under `cubic` of all samples (Bińkowski et al., 2018). Unbiased; may be < 0."""
    return mmd(x, y, cubic)


def kid_subsets(
    x: Tensor,
    y: Tensor,
    *,
    subsets: int = 100,
    size: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`kid` of random subsets, (subsets,), as Bińkowski et al. report it: their mean is unbiased.

    Its cost is linear in N. Subsets share samples: their spread over the root of their number says how
    far the mean is from `kid` of all samples, not from the truth.

    Args:
        x, y: features (N, D) and (M, D).
        subsets: how many.
        size: of each, drawn without replacement; at least 2, at most N and M.
        generator: for the draws.
    """
    require_count("subsets", subsets)
    x, y = _pair(("x", x), ("y", y))
    if type(size) is not int or not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"size must be an integer from 2 to {min(len(x), len(y))}; got {size!r}")
    draw = lambda z: z[torch.randperm(len(z), generator=generator)[:size].to(z.device)]
    return torch.tensor([kid(draw(x), draw(y)) for _ in range(subsets)], dtype=torch.float64)


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
    """
    require_count("k", k)
    real, fake = _pair(("real", real), ("fake", fake), least=k + 1)
    return PrecisionRecall(_inside(fake, real, k), _inside(real, fake, k))


def inception_score(logits: Tensor) -> float:
    r"""Inception score, from 1 to C, by a classifier's logits (N, C) of samples (Salimans et al., 2016).

    .. math:: \exp \Bigl( \frac1N \sum_i \operatorname{KL}(p(y \mid x_i) \Vert \hat p(y)) \Bigr) , \qquad
        \hat p(y) = \frac1N \sum_i p(y \mid x_i) .

    Its logarithm, in nats, is biased downwards, by about (C − 1)/2N where the classifier is always certain.
    For the mean of ten parts, as in the paper, average over ``logits.chunk(10)``.
    """
    log_p = _features("logits", logits, 1).log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))  # (C,)
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


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
    """
    samples, centres = _pair(("samples", samples), ("centres", centres), least=1)
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite; got {radius!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1]; got {share!r}")
    distance, mode = _distances(samples, centres).min(1)
    counts = mode[distance <= radius].bincount(minlength=len(centres))
    covered = ((counts > 0) & (counts.double() / len(samples) >= share)).sum()
    return ModeCoverage(covered.item(), counts.sum().item() / len(samples), counts)


def _inside(x: Tensor, support: Tensor, k: int) -> float:
    """The share of rows in any ball around a point of the support, as far as its k-th neighbour."""
    rows = 1024  # at a time: all distances at once would not fit into memory
    own = (_distances(part, support) for part in support.split(rows))
    radii = torch.cat([d.kthvalue(k + 1).values for d in own])  # a point's nearest is itself
    inside = torch.cat([(_distances(part, support) <= radii).any(1) for part in x.split(rows)])
    return inside.double().mean().item()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # no digits cancel


def _moments(name: str, features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D)."""
    covariance = torch.cov(features.T).view(features.shape[1], -1)
    if not torch.isfinite(covariance).all():
        raise ValueError(f"{name} must not be so large that its covariance overflows")
    return features.mean(0), covariance


def _root(name: str, covariance: Tensor) -> Tensor:
    """R with R Rᵀ = Σ, from the eigenvectors: it exists whatever the rank."""
    values, vectors = require_covariance(name, covariance)
    return vectors * values.sqrt()


def _pair(first: tuple[str, Tensor], second: tuple[str, Tensor], least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features in float64, of one width."""
    x, y = _features(*first, least), _features(*second, least)
    if x.shape[1] != y.shape[1]:
        wanted = f"as many features as {first[0]}, {x.shape[1]}"
        raise ValueError(f"{second[0]} must have {wanted}; got {y.shape[1]}")
    return x, y


def _features(name: str, features: Tensor, least: int) -> Tensor:
    fits = isinstance(features, Tensor) and features.ndim == 2 and features.shape[1] > 0
    if not fits or len(features) < least:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{name} must be features (N, D) of at least {least} samples; got {got}")
    _require_real(name, features)
    return _float64(features)


def _float64(value: Tensor) -> Tensor:
    return (value.cpu() if value.device.type == "mps" else value).detach().double()


def _require_real(name: str, value: Tensor) -> None:
    if value.is_complex():
        raise ValueError(f"{name} must be real; got {value.dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
