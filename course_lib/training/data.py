"""Datasets, in one convention: images are float32 (N, C, H, W) in [-1, 1], labels int64 (N,).

What `load_dataset` loads fits in memory. `train` takes other data too: a `DataLoader` of an `image_folder`,
or of a `Dataset` of your own around an array in a file, which is then read a batch at a time:

>>> import tempfile
>>> import numpy as np
>>> path = tempfile.mktemp()
>>> np.memmap(path, "float32", "w+", shape=(100, 3)).flush()  # as large as the disk has room for
>>> rows = torch.from_numpy(np.memmap(path, "float32", "r+", shape=(100, 3)))
>>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=32, shuffle=True)
>>> [tuple(batch.shape) for (batch,) in loader][0]
(32, 3)
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from course_lib import scenes
from course_lib.require import require_count

BUNDLED = ("digits", "patches", "shapes32")
DOWNLOADED = {  # torchvision's class, and the bundled dataset that is most like it
    "mnist": ("MNIST", "digits"),
    "fashion-mnist": ("FashionMNIST", "digits"),
    "cifar10": ("CIFAR10", "patches"),
}
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

    `levels` is the number of levels of a pixel's value, which are equally spaced from -1 to 1.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    levels: int


def load_dataset(name: str, *, root: str | Path = "data") -> Images:
    """Load a dataset by name.

    Args:
        name: one of

            - ``"digits"``, bundled with scikit-learn: 1797 handwritten digits of 8×8 pixels, a fifth of each
              class held out;
            - ``"patches"`` (3×32×32), cut from photographs bundled with scikit-image, at full resolution and
              at random places: 1000 of each, and 100 for the test from its rightmost fifth, where no
              patch for training is. Labels are places in `PHOTOS`;
            - ``"shapes32"`` (3×32×32): 20 000 scenes of `course_lib.scenes`, and 2000 others for the test,
              drawn without replacement. A label is the scene's index, which says all that is in it;
            - ``"mnist"``, ``"fashion-mnist"`` (28×28) or ``"cifar10"`` (3×32×32), downloaded by torchvision,
              which verifies their hashes.
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
    bundled = {"digits": digits, "patches": _patches, "shapes32": _shapes32}
    return bundled[name]() if name in bundled else _downloaded(name, root)


def image_folder(root: str | Path, size: int) -> Dataset:
    """A folder's images, each read from its file when it is asked for, so that any number fits.

    Args:
        root: a folder that has a folder of images for each class.
        size: the side of the square, in pixels, that is cut from the middle of an image after its shorter
            side was brought to this length, smoothly.

    Returns:
        torchvision's `ImageFolder`, for a `DataLoader`: pairs of an image (3, size, size), float32 in
        [-1, 1], and a label. ``classes`` has the folders' names, in the order of labels.

    Raises:
        ValueError: `size` is not a positive integer.
        FileNotFoundError: there is no such folder, or a class without an image.

    >>> import tempfile, torchvision
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     torchvision.utils.save_image(torch.rand(3, 30, 40), root / name / "1.png")
    >>> folder = image_folder(root, 16)
    >>> image, label = folder[1]
    >>> len(folder), tuple(image.shape), folder.classes[label]
    (2, (3, 16, 16), 'dog')
    """
    from torchvision import datasets, transforms

    require_count("size", size)
    steps = transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()
    return datasets.ImageFolder(root, transforms.Compose([*steps, transforms.Normalize(0.5, 0.5)]))


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
    if name not in PHOTOS:
        raise ValueError(f"name must be one of {', '.join(PHOTOS)}; got {name!r}")
    pixels = _pixels(name)
    shorter = min(pixels.shape[1:])
    crop = shorter if crop is None else crop
    if not 1 <= size <= crop <= shorter:
        raise ValueError(
            f"size and crop must satisfy 1 <= size <= crop <= {shorter}; got size {size}, crop {crop}"
        )
    top, left = ((side - crop) // 2 for side in pixels.shape[1:])
    square = pixels[None, :, top : top + crop, left : left + crop].float()  # (1, 3, crop, crop)
    small = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(0, 255) / 127.5 - 1


def digits() -> Images:
    """The bundled digits, for what should not depend on the code of the other datasets."""
    from sklearn.datasets import load_digits  # slow to import, and not needed to train
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1  # grey 0..16
    parts = train_test_split(x, torch.tensor(y), test_size=0.2, stratify=y, random_state=0)
    return Images(parts[0], parts[2], parts[1], parts[3], levels=17)


def _patches(size: int = 32) -> Images:
    places = torch.Generator().manual_seed(0)
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for pixels in map(_pixels, PHOTOS):
        edge = pixels.shape[2] * 4 // 5  # left of it training, from there on test
        for part, side, n in zip(parts, (pixels[..., :edge], pixels[..., edge:]), (1000, 100), strict=True):
            high, wide = (length - size + 1 for length in side.shape[1:])
            at = torch.randint(high * wide, (n,), generator=places).tolist()
            corners = [divmod(place, wide) for place in at]
            part += [side[:, top : top + size, left : left + size] for top, left in corners]
    train, test = (_scaled(torch.stack(part)) for part in parts)
    labels = torch.arange(len(PHOTOS))
    return Images(train, labels.repeat_interleave(1000), test, labels.repeat_interleave(100), levels=256)


def _shapes32() -> Images:
    order = torch.randperm(scenes.COUNT, generator=torch.Generator().manual_seed(0))
    train, test = order[:20_000], order[20_000:22_000]
    return Images(scenes.draw(train), train, scenes.draw(test), test, levels=256)


def _downloaded(name: str, root: str | Path) -> Images:
    from torchvision import datasets

    kind, instead = DOWNLOADED[name]
    try:
        parts = [getattr(datasets, kind)(root, train=part, download=True) for part in (True, False)]
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"dataset {name!r} could not be downloaded to {Path(root).resolve()} ({error}); "
            f"the bundled alternative is dataset {instead!r}"
        ) from error
    pixels = [torch.as_tensor(part.data) for part in parts]  # (N, H, W), or (N, H, W, 3)
    train, test = (_scaled(x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)) for x in pixels)
    labels = (torch.as_tensor(part.targets).long() for part in parts)
    return Images(train, next(labels), test, next(labels), levels=256)


def _scaled(pixels: Tensor) -> Tensor:
    """Levels 0..255 brought to [-1, 1]; in place, since these are the largest tensors here."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def _pixels(name: str) -> Tensor:
    """A photograph (3, H, W), uint8; a grey one gets three equal colours."""
    from skimage import data as photographs  # of the extra `notebook`: nothing else here needs it

    pixels = torch.tensor(getattr(photographs, name)())
    return pixels.expand(3, *pixels.shape) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
