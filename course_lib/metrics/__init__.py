"""How far samples are from data, and images from images."""

from course_lib.metrics.samples import (
    ModeCoverage,
    PrecisionRecall,
    cubic,
    extract,
    frechet,
    frechet_distance,
    inception_score,
    kid,
    kid_subsets,
    mmd,
    mode_coverage,
    precision_recall,
    rbf,
)

__all__ = [
    "ModeCoverage",
    "PrecisionRecall",
    "cubic",
    "extract",
    "frechet",
    "frechet_distance",
    "inception_score",
    "kid",
    "kid_subsets",
    "mmd",
    "mode_coverage",
    "precision_recall",
    "rbf",
]
