r"""Features of photographs, from two Inception-v3 networks trained on ImageNet.

`FIDFeatures` is the network of the published FID. `InceptionFeatures` needs nothing beyond torchvision;
distances of its features compare models with each other, and with no published figure.
"""

import importlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from course_lib.require import require_images


class Frozen(nn.Module):
    """A network that stays in evaluation mode whatever contains it is put into."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class InceptionFeatures(Frozen):
    """Inception-v3 up to its last pooling, with torchvision's weights (Szegedy et al., 2016).

    Called with images (B, C, H, W) in [-1, 1], grey or in three channels, it returns features (B, 2048).
    Images of any size are resized to 299×299, bilinearly, and smoothed where they shrink (Parmar et al.,
    2022). Published figures rest on other weights of this network and other resizing; see `FIDFeatures`.

    Raises:
        RuntimeError: the weights are not at hand and cannot be downloaded (104 MB).

    Examples:
        >>> InceptionFeatures()(torch.zeros(2, 3, 32, 32)).shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
                self.net = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1, progress=False)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(_missing("Inception-v3's weights", error)) from error
        self.net.transform_input = False  # its channels were in [-1, 1] in training, as ours are
        self.classes, self.net.fc = self.net.fc, nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images in [-1, 1]."""
        require_images("x", x)
        x = F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True, align_corners=False)
        return self.net(x.expand(-1, 3, -1, -1))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of ImageNet's classes, (B, 1000), for the inception score."""
        return self.classes(self(x))


class FIDFeatures(Frozen):
    """The features of the published FID (Heusel et al., 2017): the original Inception, from 2015.

    Its weights, and its resizing, which does not smooth, are those of torch-fidelity, which took them from
    TensorFlow. Called with images (B, C, H, W) in [-1, 1], grey or in three channels, it rounds them to bytes
    and returns features (B, 2048). `frechet` of these features is the figure that papers give, most often of
    50,000 samples beside all training images; say which images and how many.

    Args:
        weights: the file of weights; ``None`` takes torch-fidelity's, downloaded once (91 MB).

    Raises:
        ImportError: torch-fidelity is not installed.
        RuntimeError: the weights are not at hand and cannot be downloaded.

    Examples:
        >>> FIDFeatures()(torch.zeros(2, 3, 32, 32)).shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            extractors = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise ImportError("FIDFeatures needs torch-fidelity: pip install 'course-lib[fid]'") from error
        try:
            with torch.random.fork_rng(devices=[]):
                self.net = extractors.FeatureExtractorInceptionV3("inception", ["2048"], weights)
        except OSError as error:
            raise RuntimeError(_missing("the original Inception's weights", error)) from error

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images in [-1, 1]."""
        require_images("x", x)
        (found,) = self.net(((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1))
        return found


def _missing(what: str, error: Exception) -> str:
    return (
        f"{what} are not in {torch.hub.get_dir()} and could not be downloaded ({error}); the bundled "
        "alternative, for digits, is course_lib.metrics.digit_classifier().features"
    )
