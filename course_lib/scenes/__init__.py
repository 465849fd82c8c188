r"""shapes32: captioned scenes of coloured shapes, 32×32 RGB, from a finite list, so that truth is exact.

- `scene`: the list of all scenes, and what is in each; `factors`, `index_of`, `sample`
- `drawing`: their images, and which pixels belong to which object; `draw`, `masks`
- `captions`: what is said of them, when it is true, and tokens; `caption`, `holds`, `encode`, `decode`
- `splits`: scenes that hold combinations which training never shows; `split`
- `reading`: the nearest of all scenes to an image; `read`

A model that draws scenes from captions is judged without another model: read its images, and ask whether the
captions hold.

Examples:
    >>> import torch
    >>> caption(torch.tensor([51]))
    ['a large yellow square on white']
    >>> index = sample(500)
    >>> said, images = caption(index, keep=0.7), draw(index)
    >>> bool(holds(said, read(images).index).all())
    True
"""

from course_lib.scenes.captions import LENGTH, WORDS, caption, decode, encode, holds
from course_lib.scenes.drawing import PALETTE, draw, masks
from course_lib.scenes.reading import Reading, read
from course_lib.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    COUNT,
    ENTROPY,
    SHAPES,
    SINGLES,
    SIZES,
    Scene,
    factors,
    index_of,
    sample,
)
from course_lib.scenes.splits import HELD_OUT, Split, split

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNT",
    "ENTROPY",
    "HELD_OUT",
    "LENGTH",
    "PALETTE",
    "SHAPES",
    "SINGLES",
    "SIZES",
    "WORDS",
    "Reading",
    "Scene",
    "Split",
    "caption",
    "decode",
    "draw",
    "encode",
    "factors",
    "holds",
    "index_of",
    "masks",
    "read",
    "sample",
    "split",
]
