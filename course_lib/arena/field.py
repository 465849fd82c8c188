r"""What the families are compared on: training data, data held out, and a space in which to measure.

All data are images (N, C, H, W) in [-1, 1]. A point of the plane is an image of one pixel with two channels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.metrics import classifier
from course_lib.metrics.inception import InceptionFeatures
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.mixture.kmeans import seeds
from course_lib.points import nearest
from course_lib.training import data
from course_lib.vae.pixels import dequantize

FIELDS = ("points", *data.NAMES)


class Field(NamedTuple):
    """A dataset with its yardstick.

    `features` maps images to rows (N, D). `centres` (K, D) are places there that samples should reach, to
    within `radius`: the modes of a known density, else cells of the training set. `truth` is the density of
    images as rows, where it is known; `levels` are the grey levels images had before they were dequantized.
    """

    name: str
    train: Tensor
    test: Tensor
    features: Callable[[Tensor], Tensor]
    centres: Tensor
    radius: float
    truth: GaussianMixture | None
    levels: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def flat(self) -> bool:
        """Whether these are points and not images."""
        return self.levels is None

    @property
    def dims(self) -> int:
        """C·H·W."""
        return math.prod(self.shape)


def field(name: str) -> Field:
    """The field of that name: ``"points"``, or an image dataset of `course_lib.training.data`."""
    return _points() if name == "points" else _images(name)


def islands() -> GaussianMixture:
    """Eight ellipses on a ring and a narrow disc in its middle, none as likely as its neighbour."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    out = torch.stack([angle.cos(), angle.sin()], 1)  # (8, 2)
    along = torch.stack([-angle.sin(), angle.cos()], 1)
    ring = 0.03**2 * out[:, :, None] * out[:, None] + 0.06**2 * along[:, :, None] * along[:, None]
    middle = 0.03**2 * torch.eye(2, dtype=torch.float64)
    weights = torch.tensor([4.0, 1, 3, 2, 4, 1, 3, 2, 5], dtype=torch.float64) / 25
    means = torch.cat([0.7 * out, torch.zeros(1, 2, dtype=torch.float64)])
    return GaussianMixture(weights, means, torch.cat([ring, middle[None]]))


def _points() -> Field:
    truth, generator = islands().to(torch.float32), torch.Generator().manual_seed(0)
    draw = lambda n: truth.sample(n, generator=generator)[0].view(n, 2, 1, 1)
    rows = lambda x: x.flatten(1)
    # three standard deviations of an ellipse along the ring
    return Field("points", draw(2000), draw(4000), rows, truth.means, 0.18, truth, None)


def _inception() -> Callable[[Tensor], Tensor]:
    """Inception's features, by the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = InceptionFeatures().to(device)
    return lambda x: torch.cat([net(part.to(device)).cpu() for part in x.split(256)])


def _images(name: str) -> Field:
    images, generator = data.load_dataset(name), torch.Generator().manual_seed(0)
    train, test = (dequantize(x, images.levels, generator=generator) for x in (images.train, images.test))
    features = classifier.digit_classifier().features if name == "digits" else _inception()
    known = features(train[:2000])
    centres = seeds(known, 50, init="k-means", generator=generator)
    far = torch.linalg.vector_norm(known - centres[nearest(known, centres)], dim=1)
    return Field(name, train, test, features, centres, far.quantile(0.95).item(), None, images.levels)
