"""Features of photographs: Inception-v3, trained on ImageNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from course_lib.require import require_images


class InceptionFeatures(nn.Module):
    """Inception-v3 up to its last pooling, with torchvision's weights (Szegedy et al., 2016).

    Called with images (B, C, H, W) in [-1, 1], grey or in three channels, it returns features (B, 2048).
    Images of any size are resized to 299×299, bilinearly, and smoothed where they shrink (Parmar et al.,
    2022). Published figures rest on other weights of this network and other resizing: do not compare them
    with figures of these features.

    Raises:
        RuntimeError: the weights are not at hand and cannot be downloaded (104 MB).
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self.net = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1, progress=False)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"Inception-v3's weights are not in {torch.hub.get_dir()} and could not be downloaded "
                f"({error}); the bundled alternative, for digits, is course_lib.metrics.classifier.load().features"
            ) from error
        self.net.transform_input = False  # its channels were in [-1, 1] in training, as ours are
        self.classes, self.net.fc = self.net.fc, nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images in [-1, 1]."""
        require_images("x", x)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"x must have 1 or 3 channels; got {x.shape[1]}")
        x = F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True, align_corners=False)
        return self.net(x.expand(-1, 3, -1, -1))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of ImageNet's classes, (B, 1000), for the inception score."""
        return self.classes(self(x))
