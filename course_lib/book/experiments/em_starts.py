"""Where EM ends on the digits, by how it starts: for *Gaussian mixtures and EM*."""

import torch
from sklearn.decomposition import PCA

from course_lib.mixture import INITS, em
from course_lib.training.data import digits

SETTINGS = [{"init": init} for init in INITS]
SEEDS = range(20)


def run(seed: int, init: str) -> list[dict]:
    """Fit ten components to the first 20 principal components; the log-likelihood is in nats a digit."""
    pixels = digits().train.flatten(1)  # (N, 64)
    x = torch.from_numpy(PCA(20, random_state=0).fit_transform(pixels))
    generator = torch.Generator().manual_seed(seed)
    found = em.fit(x, 10, init=init, reg=0.03, tol=1e-4, generator=generator)
    return [{"log_likelihood": found.log_likelihood[-1], "rounds": len(found.log_likelihood) - 1}]
