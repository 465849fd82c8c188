r"""Splits that hold out combinations, to see whether a model puts together what it has seen apart.

A scene is held out if one of the captions of the split is true of it. So training never shows a red circle,
of either size, but circles of all other colours and red squares and triangles.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.scenes.captions import holds
from course_lib.scenes.scene import COUNT

HELD_OUT = {
    "pairs": ("a red circle", "a green square", "a blue triangle"),
    "relations": ("a triangle left of a circle", "a square above a triangle"),
}


class Split(NamedTuple):
    """Indices of scenes for training and for the test, in rising order: together all, each once."""

    train: Tensor
    test: Tensor


def split(name: str) -> Split:
    """All scenes, those that hold none of a split's combinations for training, all others for the test.

    Args:
        name: ``"pairs"`` of colour and shape, or directions of ``"relations"`` between shapes; see
            `HELD_OUT`.

    Raises:
        ValueError: the name is unknown.

    Examples:
        >>> pairs = split("pairs")
        >>> len(pairs.train), len(pairs.test)
        (433920, 190464)
        >>> batch = pairs.train[torch.randint(len(pairs.train), (64,))]
    """
    if name not in HELD_OUT:
        raise ValueError(f"split must be one of {', '.join(HELD_OUT)}; got {name!r}")
    index = torch.arange(COUNT)
    out = torch.stack([holds(said, index) for said in HELD_OUT[name]]).any(0)
    return Split(index[~out], index[out])
