r"""Generative adversarial networks.

- `losses`: games as pairs of functions of logits (`HINGE` and others), penalties, spectral normalization
- `loop`: `train_gan`, which trains two networks against each other; `GANConfig`, `GANStep`

The networks of DCGAN are in `course_lib.nets`.
"""

from course_lib.gan.loop import GANConfig, GANStep, train_gan
from course_lib.gan.losses import (
    HINGE,
    LEAST_SQUARES,
    NON_SATURATING,
    SATURATING,
    WASSERSTEIN,
    GANLoss,
    gradient_penalty,
    r1,
    slopes,
    spectral,
)

__all__ = [
    "HINGE",
    "LEAST_SQUARES",
    "NON_SATURATING",
    "SATURATING",
    "WASSERSTEIN",
    "GANConfig",
    "GANLoss",
    "GANStep",
    "gradient_penalty",
    "r1",
    "slopes",
    "spectral",
    "train_gan",
]
