r"""Variational autoencoders: networks and a likelihood of pixels, put together.

- `normal`: diagonal Gaussians: their densities, their divergence from the prior, the reparameterized draw.
- `pixels`: likelihoods of pixels (`Bernoulli`, `ContinuousBernoulli`, `Gaussian`), dequantization, bits.
- `models`: `VAE`, `ConditionalVAE`, `HierarchicalVAE`, and the importance-weighted bound.
"""

from course_lib.vae.models import VAE, ConditionalVAE, Elbo, HierarchicalVAE, importance_bound
from course_lib.vae.normal import kl_to_standard_normal, log_normal, log_standard_normal, reparameterize
from course_lib.vae.pixels import Bernoulli, ContinuousBernoulli, Gaussian, bits_per_dim, dequantize

__all__ = [
    "VAE",
    "Bernoulli",
    "ConditionalVAE",
    "ContinuousBernoulli",
    "Elbo",
    "Gaussian",
    "HierarchicalVAE",
    "bits_per_dim",
    "dequantize",
    "importance_bound",
    "kl_to_standard_normal",
    "log_normal",
    "log_standard_normal",
    "reparameterize",
]
