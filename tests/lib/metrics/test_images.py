"""RMSE, PSNR and SSIM, against scikit-image and torchmetrics."""

import math

import pytest
import torch
from skimage import metrics as skimage
from torchmetrics.functional.image import peak_signal_noise_ratio

from course_lib.metrics.images import psnr, rmse, ssim
from course_lib.training import load_dataset

SEEDS = range(5)


def pair(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and the same with noise."""
    k = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=k) * 2 - 1
    return x, (x + 0.4 * torch.randn(shape, generator=k)).clamp(-1, 1)


def each(x: torch.Tensor, y: torch.Tensor, metric) -> list[float]:
    """A metric of scikit-image, image by image, channels last and in [0, 1]."""
    last = lambda z: ((z.double() + 1) / 2).permute(0, 2, 3, 1).numpy()
    return [float(metric(a, b)) for a, b in zip(last(x), last(y), strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 17, 9)])
def test_as_scikit_image(shape, seed):
    """Theirs of images in [0, 1]: there the RMSE is half as large, the others are the same."""
    x, y = pair(seed, *shape)
    root = lambda a, b: math.sqrt(skimage.mean_squared_error(a, b))
    assert rmse(x, y).tolist() == pytest.approx([2 * r for r in each(x, y, root)], abs=1e-9)
    ratio = lambda a, b: skimage.peak_signal_noise_ratio(a, b, data_range=1)
    assert psnr(x, y).tolist() == pytest.approx(each(x, y, ratio), abs=1e-9)
    for window in (3, 7):
        similar = lambda a, b, w=window: skimage.structural_similarity(
            a, b, win_size=w, data_range=1, channel_axis=2
        )
        assert ssim(x, y, window=window).tolist() == pytest.approx(each(x, y, similar), abs=1e-9)


def test_on_digits():
    """Bundled images, their flat backgrounds included."""
    x = load_dataset("digits").test
    y = 0.5 * x
    similar = lambda a, b: skimage.structural_similarity(a, b, data_range=1, channel_axis=2)
    assert ssim(x, y).tolist() == pytest.approx(each(x, y, similar), abs=1e-9)


def test_psnr_as_torchmetrics():
    x, y = pair(0, 1, 3, 12, 12)
    assert psnr(x, y).item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2.0).item(), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_and_opposite_images(seed):
    x, y = pair(seed, 4, 2, 8, 8)
    assert rmse(x, x).tolist() == [0] * 4 and psnr(x, x).tolist() == [math.inf] * 4
    assert ssim(x, x).tolist() == pytest.approx([1] * 4)
    assert torch.equal(ssim(x, y), ssim(y, x)) and (ssim(x, -x) < 0).all() and (ssim(x, y) < 1).all()
    white = torch.ones(1, 1, 7, 7)
    assert rmse(white, -white).item() == 2 and psnr(white, -white).item() == 0


def test_gradients_flow_where_images_differ():
    """There they may serve as losses; RMSE and PSNR have no gradient where x = y."""
    x, y = pair(0, 1, 1, 8, 8)
    y.requires_grad_()
    (ssim(x, y).sum() - psnr(x, y).sum()).backward()
    assert torch.isfinite(y.grad).all() and y.grad.abs().sum() > 0


@pytest.mark.parametrize("metric", [rmse, psnr, ssim])
def test_images_out_of_range_or_of_other_shapes_are_refused(metric):
    good = torch.zeros(2, 1, 8, 8)
    for x, y in ((good + 1.5, good), (good, good * math.nan), (good, good[:1])):
        with pytest.raises(ValueError, match=r"[xy] must"):
            metric(x, y)


def test_windows_that_have_no_middle_or_do_not_fit_are_refused():
    for window in (6, 9):
        with pytest.raises(ValueError, match="window must be odd, from 3 to the images' smaller side, 8"):
            ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), window=window)
