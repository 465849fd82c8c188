r"""Images of scenes: each cell is one of 37 tiles of 8×8 pixels on each of 4 backgrounds.

An object is in the middle of its cell: a circle of 5 (small) or 8 (large) pixels' diameter, a square of side
4 or 6, or a triangle of base and height 5 or 8, point upward. A pixel's colour is the mixture of object and
background by the share of the pixel that the object covers, counted on 32×32 points, in whole levels of 256.
Two scenes differ in a tile, and no two tiles are alike, so no two images are.

Six of the colours follow Okabe and Ito's palette, with a lighter pink: to a reader without red or without
green cones any two differ by 18 (CIEDE2000) at least, as far as that palette's own red and green.
"""

from functools import cache

import torch
from torch import Tensor

from course_lib.scenes.scene import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIDE, SIZES, factors, kind

PALETTE = {
    "red": (213, 94, 0),
    "yellow": (240, 228, 66),
    "green": (0, 158, 115),
    "blue": (0, 114, 178),
    "pink": (226, 144, 190),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (205, 205, 205),
    "sand": (232, 208, 168),
    "sky": (170, 214, 246),
}
CELL = 8  # pixels, the side of a cell
WIDTHS = {"circle": (5, 8), "square": (4, 6), "triangle": (5, 8)}  # pixels, small and large
POINTS = 32  # points along a pixel's side, at which coverage is counted


def draw(index: Tensor) -> Tensor:
    """Images (N, 3, 32, 32) of scenes (N,), float32 in [-1, 1], on 256 levels.

    Examples:
        >>> x = draw(torch.tensor([0]))
        >>> [round(level.item()) for level in (x[0, :, 0, 0] + 1) * 127.5]  # the corner is white
        [255, 255, 255]
    """
    scene = factors(index)
    cells = tile_of(index).flatten()  # (N·16,)
    backgrounds = scene.background.repeat_interleave(SIDE**2)
    pixels = tiles().to(index.device)[backgrounds, cells]  # (N·16, 3, 8, 8)
    return _assemble(pixels).float().div_(127.5).sub_(1)


def masks(index: Tensor) -> Tensor:
    """The share of each pixel that each object of a scene covers: (N, 2, 32, 32), float32 from 0 to 1.

    Objects come in the order of `factors`; where there is no second, its mask is 0.

    Examples:
        >>> masks(torch.tensor([0])).sum((2, 3))[0]  # a small circle
        tensor([19.6367,  0.0000])
    """
    scene = factors(index)
    shapes = torch.where(scene.cell < 0, 0, scene.shape * len(SIZES) + scene.size)
    parts = coverage().float().to(index.device)[shapes]  # (N, 2, 8, 8)
    here = torch.arange(SIDE**2, device=index.device) == scene.cell[..., None]  # (N, 2, 16)
    return _assemble((parts[:, :, None] * here[..., None, None]).transpose(1, 2).flatten(0, 1))


def tile_of(index: Tensor) -> Tensor:
    """Which tile is in each cell of scenes (N,): (N, 16), from 0 to 35 an object, 36 none."""
    scene = factors(index)
    result = torch.full((len(index), SIDE**2 + 1), OBJECTS, device=index.device)
    # what is not there is put into a seventeenth cell
    result.scatter_(1, scene.cell % (SIDE**2 + 1), kind(scene.shape, scene.colour, scene.size))
    return result[:, :-1]


@cache
def coverage() -> Tensor:
    """The share of each pixel of a cell that an object covers: (6, 8, 8), by shape, then size."""
    n = CELL * POINTS
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / POINTS - CELL / 2  # exact, as all below
    x, y = at, at[:, None]
    result = []
    for shape in SHAPES:
        for width in WIDTHS[shape]:
            half = width / 2
            inside = {
                "circle": x**2 + y**2 <= half**2,
                "square": (x.abs() <= half) & (y.abs() <= half),
                "triangle": (2 * x.abs() <= y + half) & (y <= half),
            }[shape]
            result.append(inside.double().view(CELL, POINTS, CELL, POINTS).mean((1, 3)))
    return torch.stack(result)


@cache
def tiles() -> Tensor:
    """All tiles: (4, 37, 3, 8, 8), uint8, by background and object; the last of the 37 is empty."""
    share = coverage().view(len(SHAPES), 1, len(SIZES), 1, CELL, CELL)
    colour = torch.tensor([PALETTE[name] for name in COLOURS]).double().view(-1, 1, 3, 1, 1)
    result = []
    for name in BACKGROUNDS:
        behind = torch.tensor(PALETTE[name]).double().view(3, 1, 1)
        drawn = behind + share * (colour - behind)  # (3, 6, 2, 3, 8, 8)
        empty = behind.expand(1, 3, CELL, CELL)
        result.append(torch.cat([drawn.flatten(0, 2), empty]).round().to(torch.uint8))
    return torch.stack(result)


def _assemble(parts: Tensor) -> Tensor:
    """Cells (N·16, C, 8, 8) side by side: (N, C, 32, 32)."""
    n, channels = len(parts) // SIDE**2, parts.shape[1]
    grid = parts.view(n, SIDE, SIDE, channels, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, channels, SIDE * CELL, SIDE * CELL)
