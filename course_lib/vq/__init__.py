r"""Vector quantization: autoencoders with a grid of discrete codes, and the prior over the codes.

- `quantizers`: a learned codebook, by gradients (`VectorQuantizer`) or by averages (`VectorQuantizerEMA`).
- `lookupfree`: no codebook (`FiniteScalarQuantizer`, `LookupFreeQuantizer`).
- `vqvae`: encoder, quantizer and decoder in a row.
- `prior`: `CodePrior`, a distribution over grids of codes.
"""

from course_lib.vq.lookupfree import FiniteScalarQuantizer, LookupFreeQuantizer
from course_lib.vq.prior import CodePrior
from course_lib.vq.quantizers import (
    Quantized,
    VectorQuantizer,
    VectorQuantizerEMA,
    perplexity,
    restart_dead_codes,
)
from course_lib.vq.vqvae import VQVAE, Reconstruction

__all__ = [
    "VQVAE",
    "CodePrior",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantized",
    "Reconstruction",
    "VectorQuantizer",
    "VectorQuantizerEMA",
    "perplexity",
    "restart_dead_codes",
]
