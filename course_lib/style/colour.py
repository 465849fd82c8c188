r"""Colours as points in three dimensions: their moments, and affine maps between them."""

import torch
from torch import Tensor

from course_lib.require import require_covariance, require_images, require_values

METHODS = ("monge", "cholesky")
LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601: how bright red, green and blue look


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3,) and covariance (3, 3) of the colours of one image (1, 3, H, W), in float64.

    Examples:
        >>> moments(torch.full((1, 3, 4, 4), 0.5))[0]
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    require_images("x", x, (1, 3, "H", "W"))
    flat = _float64(x)[0].flatten(1)  # (3, H*W)
    return flat.mean(1), torch.cov(flat, correction=0)


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix (D, D) without negative eigenvalues.

    Those that are negative by rounding count as 0.

    Examples:
        >>> root(torch.diag(torch.tensor([4.0, 9.0])))
        tensor([[2., 0.],
                [0., 3.]])
    """
    values, vectors = require_covariance("matrix", matrix)
    return vectors * values.sqrt() @ vectors.mT


def colour_map(source: Tensor, target: Tensor, method: str = "monge") -> Tensor:
    r"""A matrix A with :math:`A \Sigma_s A^\top = \Sigma_t`, for covariances (D, D).

    ``"monge"`` is the symmetric one, :math:`\Sigma_s^{-1/2} (\Sigma_s^{1/2} \Sigma_t \Sigma_s^{1/2})^{1/2}
    \Sigma_s^{-1/2}`, which moves colours least; ``"cholesky"`` is :math:`L_t L_s^{-1}`.

    Raises:
        ValueError: the method is unknown, a matrix is no covariance, the two differ in size, or the source's
            colours do not vary in every direction; with ``"cholesky"`` the target's must do so too.

    Examples:
        >>> colour_map(torch.eye(2), torch.diag(torch.tensor([4.0, 9.0])))
        tensor([[2., 0.],
                [0., 3.]])
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    for name, matrix, whole in (("source", source, True), ("target", target, method == "cholesky")):
        values, _ = require_covariance(name, matrix)
        if whole and not values[0] > 1e-9 * values[-1]:
            raise ValueError(f"{name} must vary in every direction; its covariance is singular")
    require_values("target", target, *source.shape)
    if method == "cholesky":
        lower = torch.linalg.cholesky(target)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(source), lower, upper=False, left=False)
    half = root(source)
    inverse = torch.linalg.inv(half)
    return inverse @ root(half @ target @ half) @ inverse


def match_colours(x: Tensor, like: Tensor, method: str = "monge") -> Tensor:
    """Give one image the mean and the covariance of another's colours, cut to [-1, 1].

    x: (1, 3, H, W), like: (1, 3, H', W'), both in [-1, 1]. See `colour_map`, whose source is `x` and whose
    target is `like`.

    Examples:
        >>> x, like = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) / 2
        >>> bool(torch.allclose(moments(match_colours(x, like))[0], moments(like)[0], atol=0.01))
        True
    """
    (mean, covariance), (want, wanted) = moments(x), moments(like)
    matrix = colour_map(covariance, wanted, method)
    moved = torch.einsum("ij,njhw->nihw", matrix, _float64(x) - mean.view(1, 3, 1, 1))
    return (moved + want.view(1, 3, 1, 1)).to(x).clamp(-1, 1)


def luminance(x: Tensor) -> Tensor:
    """The brightness (N, 1, H, W) of images (N, 3, H, W) in [-1, 1].

    Examples:
        >>> luminance(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item()  # pure red
        0.29899999499320984
    """
    require_images("x", x, (3, "H", "W"))
    return torch.einsum("c,nchw->nhw", torch.tensor(LUMINANCE).to(x), x)[:, None]


def with_luminance(x: Tensor, of: Tensor) -> Tensor:
    """The image `x` with the brightness of the image `of`, cut to [-1, 1]: both (N, 3, H, W) in [-1, 1].

    The same number is added to all three colours of a pixel, so that its differences of colours stay.

    Examples:
        >>> x, of = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
        >>> bool(torch.allclose(with_luminance(x, of), of))
        True
    """
    require_images("of", of, x.shape)  # luminance does so with x
    return (x + luminance(of) - luminance(x)).clamp(-1, 1)


def _float64(x: Tensor) -> Tensor:
    """In float64; on the processor, not MPS, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()
