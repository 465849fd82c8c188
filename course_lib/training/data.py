"""Datasets, in one convention: images are float32 (N, C, H, W) in [-1, 1], labels int64 (N,).

What is here fits in memory. `train` takes other data too: a `DataLoader` of torchvision's `ImageFolder`, or
of a `Dataset` of your own around an array in a file, which is then read a batch at a time:

>>> import tempfile
>>> path = tempfile.mktemp()
>>> np.memmap(path, "float32", "w+", shape=(100, 3)).flush()  # as large as the disk has room for
>>> rows = torch.from_numpy(np.memmap(path, "float32", "r+", shape=(100, 3)))
>>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=32, shuffle=True)
>>> [tuple(batch.shape) for (batch,) in loader][0]
(32, 3)
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BUNDLED = ("digits",)
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # torchvision's classes
NAMES = (*BUNDLED, *DOWNLOADED)
# What scikit-image carries in its package, without a download. The last three are grey.
PHOTOS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "brick",
    "grass",
    "gravel",
)


class Images(NamedTuple):
    """Training and test images (N, C, H, W) in [-1, 1], with labels (N,).

    `levels` is the number of grey levels, which are equally spaced from -1 to 1.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    levels: int


def load_dataset(name: str, *, root: str | Path = "data") -> Images:
    """Load a dataset by name.

    Args:
        name: ``"digits"`` (bundled with scikit-learn: 1797 handwritten digits of 8×8 pixels, a
            fifth of each class held out), ``"mnist"`` or ``"fashion-mnist"`` (28×28, downloaded
            by torchvision, which verifies their hashes).
        root: folder for downloads, made if need be; files already there are used.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the download failed; nothing is put in its place.

    >>> digits = load_dataset("digits")
    >>> tuple(digits.train.shape), digits.levels
    ((1437, 1, 8, 8), 17)
    """
    if name not in NAMES:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)}; got {name!r}")
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import, and not needed to train
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1  # grey 0..16
        parts = train_test_split(x, torch.tensor(y), test_size=0.2, stratify=y, random_state=0)
        return Images(parts[0], parts[2], parts[1], parts[3], levels=17)
    from torchvision import datasets

    try:
        train, test = (
            getattr(datasets, DOWNLOADED[name])(root, train=part, download=True) for part in (True, False)
        )
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"dataset {name!r} could not be downloaded to {Path(root).resolve()} ({error}); "
            f"the bundled alternative is dataset 'digits'"
        ) from error
    scale = lambda part: part.data[:, None].float() / 127.5 - 1  # grey 0..255
    return Images(scale(train), train.targets.long(), scale(test), test.targets.long(), levels=256)


def photo(name: str, size: int, *, crop: int | None = None) -> Tensor:
    """A photograph of scikit-image's, bundled with it: (1, 3, size, size), float32 in [-1, 1].

    Args:
        name: such as ``"astronaut"``, ``"chelsea"`` (a cat) or ``"hubble_deep_field"``; see `PHOTOS`. A
            grey one gets three equal colours.
        size: the side of the result in pixels.
        crop: the side of the square that is cut from the middle, in the photograph's own pixels;
            ``None`` takes the largest. It is then reduced, smoothly, to `size`.

    Raises:
        ValueError: the name is unknown, or not 1 <= `size` <= `crop` <= the photograph's shorter side.

    >>> tuple(photo("astronaut", 64).shape)
    (1, 3, 64, 64)
    """
    from skimage import data as photographs  # of the extra `book`: nothing else here needs it

    if name not in PHOTOS:
        raise ValueError(f"name must be one of {', '.join(PHOTOS)}; got {name!r}")
    pixels = getattr(photographs, name)()
    pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    shorter = min(pixels.shape[:2])
    crop = shorter if crop is None else crop
    if not 1 <= size <= crop <= shorter:
        raise ValueError(
            f"size and crop must satisfy 1 <= size <= crop <= {shorter}; got size {size}, crop {crop}"
        )
    top, left = ((side - crop) // 2 for side in pixels.shape[:2])
    square = torch.tensor(pixels[top : top + crop, left : left + crop], dtype=torch.float32)
    square = square.permute(2, 0, 1)[None]  # (1, 3, crop, crop)
    small = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(0, 255) / 127.5 - 1
