r"""How far samples are from data: distances between two sets of features.

A feature is what some network says about an image, or the image itself: rows (N, D). All is computed in
float64, whatever the type of the input, and on its device.
"""

import torch
from torch import Tensor


def frechet(x: Tensor, y: Tensor) -> float:
    r"""Squared Fréchet distance between normals fitted to two sets of features, (N, D) and (M, D).

    With the features of an Inception network it is the FID (Heusel et al., 2017). The covariances are those
    divided by N − 1. Fewer samples than dimensions are allowed, but the fewer, the larger it tends to be:
    compare distances of equal N only.

    Raises:
        ValueError: shapes differ or are not (N, D), fewer than 2 rows, or a value is not finite.
    """
    for name, features in (("x", x), ("y", y)):
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) < 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{name} must be features (N, D) of at least 2 samples; got {got}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y must have as many features as x, {x.shape[1]}; got {y.shape[1]}")
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
        _require_finite(name, value)
    root1, root2 = _root("cov1", cov1.double()), _root("cov2", cov2.double())
    # with Σ = R Rᵀ the eigenvalues under the root are the squared singular values of R₁ᵀ R₂
    shared = torch.linalg.svdvals(root1.T @ root2).sum()
    apart = (mean1.double() - mean2.double()).square().sum()
    return (apart + root1.square().sum() + root2.square().sum() - 2 * shared).clamp(min=0).item()


def _moments(name: str, features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D)."""
    _require_finite(name, features)
    features = features.double()
    return features.mean(0), torch.cov(features.T).view(features.shape[1], -1)


def _root(name: str, covariance: Tensor) -> Tensor:
    """R with R Rᵀ = Σ, from the eigenvectors: it exists whatever the rank."""
    scale = covariance.abs().max()
    if (covariance - covariance.T).abs().max() > 1e-5 * scale:
        raise ValueError(f"{name} must be symmetric")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-5 * scale:
        raise ValueError(f"{name} must have no negative eigenvalue; got {values[0]:g}")
    return vectors * values.clamp(min=0).sqrt()


def _require_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
