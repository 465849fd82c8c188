r"""How far images are from other images, pixel by pixel: RMSE, PSNR, SSIM.

Each takes two batches (B, C, H, W) in [-1, 1], the course's range, of width 2, and returns one float64 figure
per image, (B,). No figure is estimated; a mean over B images has the standard error of any mean. RMSE scales
with the range, PSNR is free of it; SSIM compares brightness, hence is taken of (x + 1)/2, where black is 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.require import require_images

RANGE = 2.0  # from -1 to 1


def rmse(x: Tensor, y: Tensor) -> Tensor:
    r"""Root of the mean squared difference over pixels and channels, from 0 to 2, in units of [-1, 1].

    Its gradient is NaN where x = y: as a root it has none there.

    Examples:
        >>> black = -torch.ones(1, 1, 8, 8)
        >>> rmse(black, -black)
        tensor([2.], dtype=torch.float64)
    """
    x, y = _pair(x, y)
    return (x - y).square().mean((1, 2, 3)).sqrt()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio :math:`20 \log_{10}(2 / \text{RMSE})`, in decibels; infinite if x = y.

    Not differentiable there either; see `rmse`.

    Examples:
        >>> psnr(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2))
        tensor([20.0000], dtype=torch.float64)
    """
    return 20 * torch.log10(RANGE / rmse(x, y))


def ssim(x: Tensor, y: Tensor, *, window: int = 7) -> Tensor:
    r"""Structural similarity, at most 1, which equal images have (Wang et al., 2004, eq. 13).

    .. math:: \frac{(2 \mu_x \mu_y + c_1) (2 \sigma_{xy} + c_2)}
        {(\mu_x^2 + \mu_y^2 + c_1) (\sigma_x^2 + \sigma_y^2 + c_2)} , \qquad
        c_1 = 0.01^2, \quad c_2 = 0.03^2,

    with means, variances and covariances (divided by n − 1) over the n pixels of a square window; averaged
    over all windows inside the image and over channels. This is scikit-image's default; Wang et al. weight a
    window of 11×11 pixels by a Gaussian, so figures differ from theirs.

    Args:
        x, y: images (B, C, H, W).
        window: side of the square, odd, from 3 to the image's smaller side.

    Examples:
        >>> x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> ssim(x, x)
        tensor([1., 1.], dtype=torch.float64)
    """
    x, y = _pair(x, y)
    side = min(x.shape[2:])
    if window % 2 == 0 or not 3 <= window <= side:
        raise ValueError(f"window must be odd, from 3 to the images' smaller side, {side}; got {window!r}")
    x, y = (x + 1) / RANGE, (y + 1) / RANGE  # in [0, 1]
    mean = lambda z: F.avg_pool2d(z, window, stride=1)  # (B, C, H - window + 1, W - window + 1)
    unbiased = window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy = (unbiased * (mean(z * z) - m * m) for z, m in ((x, mx), (y, my)))
    vxy = unbiased * (mean(x * y) - mx * my)
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return similarity.mean((1, 2, 3))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of images of one shape, in float64; on the processor, not MPS, which has no float64."""
    require_images("x", x)
    require_images("y", y, x.shape)
    return tuple((z.cpu() if z.device.type == "mps" else z).double() for z in (x, y))
