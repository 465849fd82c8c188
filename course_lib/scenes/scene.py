r"""The list of all scenes: one or two objects in different cells of a grid of 4×4, on a background.

An object has one of 3 shapes, 6 colours and 2 sizes, so there are 36; a background has one of 4 colours. That
is :math:`36 \cdot 16 \cdot 4 = 2{,}304` scenes of one object and
:math:`36^2 \cdot \binom{16}{2} \cdot 4 = 622{,}080` of two: 624,384 in all. A scene is known by its place in
this list, its index; what is in it are digits of that number, in mixed radix.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.require import require_count

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "yellow", "green", "blue", "pink", "black")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "sand", "sky")
SIDE = 4  # cells in a row, and in a column
OBJECTS = len(SHAPES) * len(COLOURS) * len(SIZES)
SINGLES = len(BACKGROUNDS) * SIDE**2 * OBJECTS  # the indices below this are scenes of one object
PAIRS = math.comb(SIDE**2, 2)
COUNT = SINGLES + len(BACKGROUNDS) * PAIRS * OBJECTS**2
ENTROPY = math.log2(COUNT)  # bits, of a scene drawn uniformly

_PAIR = torch.combinations(torch.arange(SIDE**2))  # (120, 2): the lower cell first
_PLACE = torch.zeros(SIDE**2, SIDE**2, dtype=torch.int64)  # the place of a pair in that list
_PLACE[_PAIR[:, 0], _PAIR[:, 1]] = _PLACE[_PAIR[:, 1], _PAIR[:, 0]] = torch.arange(PAIRS)


class Scene(NamedTuple):
    """What is in N scenes: positions in `BACKGROUNDS`, `SHAPES`, `COLOURS` and `SIZES`, and cells, int64.

    The two columns are objects, the one in the lower cell first; where there is no second, it has −1
    everywhere. Cells are numbered from 0 to 15, row by row from the top left: row ``cell // 4``, column
    ``cell % 4``.
    """

    background: Tensor  # (N,)
    shape: Tensor  # (N, 2), as all that follow
    colour: Tensor
    size: Tensor
    cell: Tensor


def kind(shape: Tensor, colour: Tensor, size: Tensor) -> Tensor:
    """Which of the 36 objects has this shape, colour and size."""
    return (shape * len(COLOURS) + colour) * len(SIZES) + size


def look(kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, colour and size of objects, the inverse of `kind`."""
    rest = kind // len(SIZES)
    return rest // len(COLOURS), rest % len(COLOURS), kind % len(SIZES)


def require_index(index: Tensor) -> None:
    """Refuse what is not a tensor (N,) of indices of scenes."""
    fits = isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1
    if not fits or (len(index) and not 0 <= index.min() <= index.max() < COUNT):
        raise ValueError(f"index must be int64 (N,), from 0 to {COUNT - 1}; got {index}")


def factors(index: Tensor) -> Scene:
    """What is in the scenes with these indices (N,).

    Examples:
        >>> scene = factors(torch.tensor([0, COUNT - 1]))
        >>> scene.cell
        tensor([[ 0, -1],
                [14, 15]])
        >>> [SHAPES[i] for i in scene.shape[1]], BACKGROUNDS[scene.background[1]]
        (['triangle', 'triangle'], 'sky')
    """
    require_index(index)
    single = index < SINGLES
    rest = torch.where(single, index, index - SINGLES)
    # one object: background, cell, object; two: background, pair of cells, first object, second object
    last, rest = rest % OBJECTS, rest // OBJECTS
    first = torch.where(single, last, rest % OBJECTS)
    rest = torch.where(single, rest, rest // OBJECTS)
    places = torch.where(single, SIDE**2, PAIRS)
    place, background = rest % places, rest // places
    alone = torch.stack([place, torch.full_like(place, -1)], 1)
    cell = torch.where(single[:, None], alone, _PAIR.to(index.device)[place])
    objects = torch.stack([first, last], 1)
    there = cell >= 0
    return Scene(background, *(torch.where(there, part, -1) for part in look(objects)), cell)


def index_of(scene: Scene) -> Tensor:
    """The indices (N,) of scenes; two objects may come in either order, one alone must come first.

    Raises:
        ValueError: a factor has the wrong shape or is out of range, or two objects share a cell.

    Examples:
        >>> one = torch.tensor([[1, -1]])  # a yellow large square in the second cell, and nothing else
        >>> index_of(Scene(torch.tensor([0]), one, one, one, one))
        tensor([51])
    """
    _require_scene(scene)
    background, shape, colour, size, cell = scene
    objects = kind(shape, colour, size)
    single = cell[:, 1] < 0
    swap = (cell[:, 0] > cell[:, 1]) & ~single
    first, last = torch.where(swap[:, None], objects.flip(1), objects).T
    place = _PLACE.to(cell.device)[cell[:, 0], cell[:, 1].clamp(min=0)]
    one = (background * SIDE**2 + cell[:, 0]) * OBJECTS + objects[:, 0]
    two = ((background * PAIRS + place) * OBJECTS + first) * OBJECTS + last
    return torch.where(single, one, SINGLES + two)


def sample(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Indices (n,) of scenes drawn uniformly from all: 1 in 271 has one object.

    Examples:
        >>> sample(3).shape
        torch.Size([3])
    """
    require_count("n", n, least=0)
    return torch.randint(COUNT, (n,), generator=generator)


def _require_scene(scene: Scene) -> None:
    sizes = dict(
        background=len(BACKGROUNDS), shape=len(SHAPES), colour=len(COLOURS), size=len(SIZES), cell=SIDE**2
    )
    n = len(scene.background)
    for name, values in scene._asdict().items():
        wanted = (n,) if name == "background" else (n, 2)
        if values.dtype != torch.int64 or values.shape != wanted:
            raise ValueError(f"{name} must be int64 {wanted}; got {values.dtype} {tuple(values.shape)}")
    missing = scene.cell == -1
    missing[:, 0] = False
    for name, values in scene._asdict().items():
        absent = torch.zeros_like(missing[:, 0]) if name == "background" else missing
        fits = torch.where(absent, values == -1, (values >= 0) & (values < sizes[name]))
        if not fits.all():
            raise ValueError(f"{name} must be in range, or −1 for a second object that is not there")
    if (scene.cell[:, 0] == scene.cell[:, 1]).any():
        raise ValueError("cell must differ between the two objects of a scene")
