"""Gaussian mixtures, and how to find them: EM and k-means.

`gaussian` is the density with its samples and score; `em` fits it; `kmeans` says where EM starts.
"""

from course_lib.mixture.em import COVARIANCES, EStep, Fit, e_step, fit, m_step
from course_lib.mixture.gaussian import GaussianMixture
from course_lib.mixture.kmeans import INITS, k_means, seeds
from course_lib.points import nearest

__all__ = [
    "COVARIANCES",
    "INITS",
    "EStep",
    "Fit",
    "GaussianMixture",
    "e_step",
    "fit",
    "k_means",
    "m_step",
    "nearest",
    "seeds",
]
