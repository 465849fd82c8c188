"""Images of scenes: against another renderer, against their masks, and all different."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from course_lib.scenes import BACKGROUNDS, COLOURS, COUNT, PALETTE, SHAPES, SINGLES, draw, factors, masks
from course_lib.scenes.drawing import WIDTHS, coverage, tiles

INDEX = torch.cat(
    [torch.arange(SINGLES), torch.randint(SINGLES, COUNT, (500,), generator=torch.Generator().manual_seed(0))]
)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return draw(INDEX)


def test_images_have_256_levels(images) -> None:
    assert images.shape == (len(INDEX), 3, 32, 32) and images.dtype == torch.float32
    levels = (images.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4 and levels.min() >= 0 and levels.max() <= 255
    assert torch.equal(images, (levels.round().float() / 127.5) - 1)


def test_no_scenes_are_no_images() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert draw(none).shape == (0, 3, 32, 32) and masks(none).shape == (0, 2, 32, 32)


@pytest.mark.parametrize("i, shape", [*enumerate(SHAPES)])
@pytest.mark.parametrize("j", [0, 1])
def test_shapes_are_those_of_another_renderer(i, shape, j) -> None:
    scale, width = 64, WIDTHS[shape][j]
    low, high = (4 - width / 2) * scale, (4 + width / 2) * scale - 1  # Pillow's boxes include both ends
    image = Image.new("L", (8 * scale, 8 * scale))
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((low, low, high, high), fill=255)
        case "square":
            pen.rectangle((low, low, high, high), fill=255)
        case "triangle":
            pen.polygon([(low, high), (high, high), ((low + high) / 2, low)], fill=255)
    expected = np.asarray(image, float).reshape(8, scale, 8, scale).mean((1, 3)) / 255
    np.testing.assert_allclose(coverage()[2 * i + j], expected, atol=0.05)
    area = {"circle": math.pi / 4, "square": 1, "triangle": 1 / 2}[shape] * width**2
    assert coverage()[2 * i + j].sum().item() == pytest.approx(area, rel=1e-3)


def test_images_are_mixtures_by_the_masks(images) -> None:
    scene = factors(INDEX)
    colour = torch.tensor([PALETTE[name] for name in (*BACKGROUNDS, *COLOURS)]) / 127.5 - 1
    cover = masks(INDEX)
    expected = colour[scene.background][:, :, None, None] * (1 - cover.sum(1, keepdim=True))
    for k in (0, 1):
        expected += colour[len(BACKGROUNDS) + scene.colour[:, k]][:, :, None, None] * cover[:, k, None]
    assert (images - expected).abs().max() < 0.51 / 127.5


def test_masks_are_in_their_cells() -> None:
    cover, scene = masks(INDEX), factors(INDEX)
    assert cover.min() == 0 and cover.max() == 1 and cover.sum(1).max() <= 1
    assert torch.equal(cover.amax((2, 3)) > 0, scene.cell >= 0)
    row, column = torch.meshgrid(torch.arange(32) // 8, torch.arange(32) // 8, indexing="ij")
    elsewhere = row * 4 + column != scene.cell[:, :, None, None]
    assert not cover[elsewhere].any()


def test_all_images_differ(images) -> None:
    """No two tiles on a background are alike, so images on it differ where their cells do; two backgrounds
    differ in every empty cell, of which any two scenes share 12 at least."""
    for drawn in tiles():
        assert len(drawn.flatten(1).unique(dim=0)) == 37
    assert len(tiles()[:, -1].flatten(1).unique(dim=0)) == 4
    assert len(images[:SINGLES].flatten(1).unique(dim=0)) == SINGLES


def test_colours_differ_for_all_readers() -> None:
    """Seen without red or without green cones (Machado and others, 2009): as far apart as `drawing` says."""
    color = pytest.importorskip("skimage.color")
    cones = (
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    )
    rgb = np.array([PALETTE[name] for name in COLOURS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in cones:
        seen = (linear @ np.transpose(matrix)).clip(0, 1)
        seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = color.rgb2lab(seen)
        apart = color.deltaE_ciede2000(lab[:, None], lab[None])[~np.eye(len(lab), dtype=bool)]
        assert apart.min() > 17.5
