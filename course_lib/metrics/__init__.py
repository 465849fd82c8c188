"""How far samples are from data, and images from images.

- `samples`: distances between two sets of features: Fréchet (FID), kernel (KID, MMD), W₂; inception score
- `coverage`: precision and recall, known modes
- `images`: RMSE, PSNR, SSIM of pairs of images
- `inception`: features of photographs, with the weights of the published FID or torchvision's
- `classifier`: features of the bundled digits
"""

from course_lib.metrics.classifier import DigitClassifier, accuracy, digit_classifier
from course_lib.metrics.coverage import ModeCoverage, PrecisionRecall, mode_coverage, precision_recall
from course_lib.metrics.images import psnr, rmse, ssim
from course_lib.metrics.inception import FIDFeatures, InceptionFeatures
from course_lib.metrics.samples import (
    cubic,
    extract,
    frechet,
    frechet_distance,
    inception_score,
    kid,
    kid_subsets,
    mmd,
    rbf,
    wasserstein,
)

__all__ = [
    "DigitClassifier",
    "FIDFeatures",
    "InceptionFeatures",
    "ModeCoverage",
    "PrecisionRecall",
    "accuracy",
    "cubic",
    "digit_classifier",
    "extract",
    "frechet",
    "frechet_distance",
    "inception_score",
    "kid",
    "kid_subsets",
    "mmd",
    "mode_coverage",
    "precision_recall",
    "psnr",
    "rbf",
    "rmse",
    "ssim",
    "wasserstein",
]
