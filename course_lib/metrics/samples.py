r"""How far samples are from data: distances between two sets of features.

A feature is what some network says about an image, or the image or point itself: rows (N, D). A feature
extractor is any callable from images to features, such as ``digit_classifier().features``,
`course_lib.metrics.inception.InceptionFeatures` or, for the published FID, `FIDFeatures`; `extract` applies
it. All is computed in float64, on the input's device (on the processor instead of Apple's MPS, which has no
float64).

Elsewhere: what samples cover is in `course_lib.metrics.coverage`, bits per dimension are
`course_lib.vae.pixels.bits_per_dim`, differences of two images are in `course_lib.metrics.images`.
"""

import contextlib
import math
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from course_lib.points import squared_distances
from course_lib.require import require_count, require_covariance, require_values
from course_lib.training.modes import evaluating

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
ROWS = 1024  # of a kernel's matrix at a time: all of it would not fit into memory


@torch.no_grad()
def extract(features: Callable[[Tensor], Tensor], images: Tensor, *, batch: int = 256) -> Tensor:
    """Features (N, D) of images (N, C, H, W), a batch at a time.

    A network, or a method of one, is in evaluation mode meanwhile; then each part is in the mode it was.

    Examples:
        >>> extract(lambda x: x.flatten(1), torch.zeros(5, 1, 2, 2), batch=2).shape
        torch.Size([5, 4])
    """
    network = features if isinstance(features, nn.Module) else getattr(features, "__self__", None)
    with evaluating(network) if isinstance(network, nn.Module) else contextlib.nullcontext():
        return torch.cat([features(part) for part in images.split(batch)])


def frechet(x: Tensor, y: Tensor) -> float:
    r"""Squared Fréchet distance between normals fitted to two sets of features, (N, D) and (M, D).

    With the features of an Inception network it is the FID (Heusel et al., 2017). The covariances are those
    divided by N − 1. Fewer samples than dimensions are allowed.

    Biased upwards by about c/N: compare distances of equal N only (Chong and Forsyth, 2020). For two sets of
    N from one normal whose covariance has the eigenvalues :math:`\lambda_i`, where the distance should be 0,

    .. math:: c = 2 \sum_i \lambda_i + \sum_{ij} \frac{(1 + \delta_{ij}) \lambda_i \lambda_j}{\lambda_i
        + \lambda_j} , \qquad c = D (D + 5) / 2 \text{ for the standard normal.}

    Raises:
        ValueError: fewer than 2 rows, other widths, or a value that is not finite, or whose square is not.

    Examples:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, -1.0], [4.0, 3.0]])
        >>> round(frechet(x, x + torch.tensor([3.0, 4.0])), 6)  # the same shape elsewhere: 3² + 4²
        25.0
    """
    x, y = pair_of_features(("x", x), ("y", y))
    moments = [(z.mean(0), torch.cov(z.T).view(z.shape[1], -1)) for z in (x, y)]
    for name, (_, covariance) in zip("xy", moments, strict=True):
        require_values(f"the covariance of {name}", covariance, "D", "D")
    return frechet_distance(*moments[0], *moments[1])


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    r"""Squared Fréchet distance between two normals, means (D,) and covariances (D, D).

    .. math:: \lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}\bigl( \Sigma_1 + \Sigma_2
        - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2} \bigr) ,

    in the squared units of a feature (Dowson and Landau, 1982, eq. 4; Heusel et al., 2017, eq. 6). It is the
    squared 2-Wasserstein distance. Covariances of any rank are allowed.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a covariance is not symmetric or has
            negative eigenvalues, beyond rounding.

    Examples:
        >>> frechet_distance(torch.zeros(1), torch.tensor([[1.0]]), torch.ones(1), torch.tensor([[9.0]]))
        5.0
    """
    require_values("mean1", mean1, "D")
    require_values("mean2", mean2, *mean1.shape)
    mean1, cov1, mean2, cov2 = map(_float64, (mean1, cov1, mean2, cov2))
    root1, root2 = _root("cov1", cov1), _root("cov2", cov2)
    # with Σ = R Rᵀ the eigenvalues under the root are the squared singular values of R₁ᵀ R₂
    shared = torch.linalg.svdvals(root1.T @ root2).sum()
    apart = (mean1 - mean2).square().sum()
    return (apart + root1.square().sum() + root2.square().sum() - 2 * shared).clamp(min=0).item()


def wasserstein(x: Tensor, y: Tensor) -> float:
    r"""The distance :math:`W_2` between two sets of equally many points (B, …): exact, by assignment.

    .. math:: W_2^2 = \min_\pi \frac1B \sum_i \lVert x_i - y_{\pi(i)} \rVert^2 .

    In units of a point. Between two sets from one distribution it is above 0, and falls with B, slowly in
    many dimensions: compare distances of equal B only.

    Examples:
        >>> wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [3.0]]))
        3.0
    """
    x, y = (z.flatten(1) for z in (x, y))
    require_values("x", x, "B", "D")
    require_values("y", y, *x.shape)
    cost = squared_distances(_float64(x).cpu(), _float64(y).cpu()).numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    r"""Squared maximum mean discrepancy between two sets, (N, D) and (M, D), under a kernel.

    .. math:: \frac{1}{N (N - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{M (M - 1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{N M} \sum_{ij} k(x_i, y_j) ,

    in the units of the kernel (Gretton et al., 2012, eq. 3). Unbiased, hence often negative where the
    distributions are equal. There its standard deviation falls as 1/N, elsewhere as :math:`1/\sqrt N`.

    Args:
        x, y: features, at least 2 rows each.
        kernel: from rows (N, D) and (M, D) to (N, M): `cubic`, or ``rbf(bandwidth)``. It is asked for 1024
            rows at a time.

    Raises:
        ValueError: features do not fit, or the kernel's values have another shape.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 200, 2, generator=draw)
        >>> abs(mmd(x, y, rbf(1.0))) < 0.01 < mmd(x, y + 1, rbf(1.0))
        True
    """
    x, y = pair_of_features(("x", x), ("y", y))

    def total(a: Tensor, b: Tensor) -> Tensor:
        """The sum of the kernel's values, without those of a row beside itself where the sets are one."""
        found = a.new_zeros(())
        for start in range(0, len(a), ROWS):
            values = kernel(a[start : start + ROWS], b)
            if values.shape != (min(ROWS, len(a) - start), len(b)):
                raise ValueError(f"kernel must return a value for each two rows; got {tuple(values.shape)}")
            found = found + values.sum() - (values.diagonal(start).sum() if a is b else 0)
        return found

    N, M = len(x), len(y)
    found = (total(x, x) / (N * (N - 1)) + total(y, y) / (M * (M - 1)) - 2 * total(x, y) / (N * M)).item()
    return found


def cubic(x: Tensor, y: Tensor) -> Tensor:
    r"""The kernel :math:`(x^\top y / D + 1)^3` (Bińkowski et al., 2018): (N, D), (M, D) to (N, M).

    Examples:
        >>> cubic(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        tensor([[8., 1.]])
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(bandwidth: float) -> Kernel:
    r"""The kernel :math:`\exp(-\lVert x - y \rVert^2 / 2 h^2)` of bandwidth h, in units of a feature.

    Examples:
        >>> rbf(1.0)(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]]))
        tensor([[1.0000, 0.6065]])
    """
    return lambda x, y: torch.exp(squared_distances(x, y) / (-2 * bandwidth**2))


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel distance: `mmd` under `cubic` of all samples (Bińkowski et al., 2018). Unbiased; may be < 0.

    Examples:
        >>> x = torch.eye(3)
        >>> kid(x, x) < 0 < kid(x, x + 1)
        True
    """
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

    Its cost does not grow with N. Subsets share samples: their spread over the root of their number says how
    far the mean is from `kid` of all samples, not from the truth.

    Args:
        x, y: features (N, D) and (M, D).
        subsets: how many.
        size: of each, drawn without replacement; at least 2, at most N and M.
        generator: for the draws.

    Examples:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> kid_subsets(x, x + 1, subsets=3, size=20).shape
        torch.Size([3])
    """
    require_count("size", size, 2)
    if size > min(len(x), len(y)):
        raise ValueError(f"size must be at most the number of samples, {min(len(x), len(y))}; got {size}")
    draw = lambda z: z[torch.randperm(len(z), generator=generator)[:size].to(z.device)]
    return torch.tensor([kid(draw(x), draw(y)) for _ in range(subsets)], dtype=torch.float64)


def inception_score(logits: Tensor) -> float:
    r"""Inception score, from 1 to C, by a classifier's logits (N, C) of samples (Salimans et al., 2016).

    .. math:: \exp \Bigl( \frac1N \sum_i \operatorname{KL}(p(y \mid x_i) \Vert \hat p(y)) \Bigr) , \qquad
        \hat p(y) = \frac1N \sum_i p(y \mid x_i) .

    Its logarithm, in nats, is biased downwards, by about (C − 1)/2N where the classifier is always certain.
    For the mean of ten parts, as in the paper, average over ``logits.chunk(10)``.

    Examples:
        >>> round(inception_score(100 * torch.eye(4)), 6)  # four classes, each told for certain
        4.0
    """
    require_values("logits", logits, "N", "C")
    log_p = _float64(logits).log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))  # (C,)
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def pair_of_features(
    first: tuple[str, Tensor], second: tuple[str, Tensor], least: int = 2, *, wide: bool = True
) -> list[Tensor]:
    """Two named sets of features of one width; refuse what is not finite or has few rows.

    In float64 if `wide`, else in float32 at least.
    """
    (_, x), _ = first, second
    for name, value in (first, second):
        require_values(name, value, "N", *(x.shape[1:] if value is not x else "D"))
        if len(value) < least:
            raise ValueError(f"{name} must hold at least {least} samples; got {len(value)}")
    if wide:
        return [_float64(value) for _, value in (first, second)]
    return [
        value.detach().to(torch.promote_types(value.dtype, torch.float32)) for _, value in (first, second)
    ]


def _root(name: str, covariance: Tensor) -> Tensor:
    """R with R Rᵀ = Σ, from the eigenvectors: it exists whatever the rank."""
    values, vectors = require_covariance(name, covariance)
    return vectors * values.sqrt()


def _float64(value: Tensor) -> Tensor:
    return (value.cpu() if value.device.type == "mps" else value).detach().double()
