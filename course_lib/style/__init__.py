"""Style transfer: images with the second moments of another's features.

- `features`: what is compared: random filters, layers of VGG-19 and AlexNet
- `losses`: Gram matrices, the losses of style and content, AdaIN
- `pixels`: `optimize` and `transfer`, which move pixels
- `colour`: moments of colours, and maps between them
- `lpips`: a distance of images by their features
"""

from course_lib.style.colour import colour_map, luminance, match_colours, moments, root, with_luminance
from course_lib.style.features import (
    GATYS_CONTENT,
    GATYS_STYLE,
    NetworkFeatures,
    RandomFeatures,
    VGGFeatures,
    halve,
    lpips_backbone,
    vgg_places,
)
from course_lib.style.losses import adain, content_loss, gram, style_loss, total_variation
from course_lib.style.lpips import LPIPS, differences, read_weights, unit
from course_lib.style.pixels import Iteration, optimize, transfer

__all__ = [
    "GATYS_CONTENT",
    "GATYS_STYLE",
    "LPIPS",
    "Iteration",
    "NetworkFeatures",
    "RandomFeatures",
    "VGGFeatures",
    "adain",
    "colour_map",
    "content_loss",
    "differences",
    "gram",
    "halve",
    "lpips_backbone",
    "luminance",
    "match_colours",
    "moments",
    "optimize",
    "read_weights",
    "root",
    "style_loss",
    "total_variation",
    "transfer",
    "unit",
    "vgg_places",
    "with_luminance",
]
