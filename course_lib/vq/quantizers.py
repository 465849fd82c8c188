r"""Vector quantization: the nearest code of a learned codebook, trained by gradients or by averages.

A quantizer takes the encoder's output (B, D, H', W') and gives a `Quantized`. Its value is the
nearest code at each place; its derivative is the identity (straight-through).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.mixture.kmeans import nearest
from course_lib.require import require_count, require_weight


class Quantized(NamedTuple):
    """What every quantizer returns.

    `quantized` (B, D, H', W') goes to the decoder, `indices` (B, H', W') are the codes' numbers,
    `loss` is what the quantizer adds to the training loss, and `perplexity` says how many codes
    this batch uses, from 1 to K.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class VectorQuantizer(nn.Module):
    r"""A codebook trained by gradients (van den Oord and others 2017, equation 3).

    Its loss is :math:`\operatorname{mean}(\operatorname{sg}[z_e] - e)^2 + \beta
    \operatorname{mean}(z_e - \operatorname{sg}[e])^2`, means over all B·D·H'·W' entries: the first
    term moves the codes, the second the encoder.

    Args:
        n_codes: K.
        dim: D, the channels of the encoder's output.
        commitment: :math:`\beta`; the paper's is 0.25.

    Raises:
        ValueError: a number is out of range; in `forward`, z is no batch (B, D, H', W') or not
            finite; in `codes`, an index is not one of 0 ... K − 1.
    """

    def __init__(self, n_codes: int, dim: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.codebook = nn.Parameter(first_codes(n_codes, dim))  # (K, D)
        self.n_codes, self.commitment = n_codes, require_weight("commitment", commitment)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W')."""
        z = require_latents(z, self.codebook.shape[1])
        with torch.autocast(z.device.type, enabled=False):
            flat = rows(z)
            index = nearest(flat.detach(), self.codebook.detach())
            e = F.embedding(index, self.codebook)  # (N, D)
            loss = F.mse_loss(e, flat.detach()) + self.commitment * F.mse_loss(flat, e.detach())
            return quantized(z, e, index, require_finite(loss), self.n_codes)

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W')."""
        return look_up(indices, self.codebook)


class VectorQuantizerEMA(nn.Module):
    r"""A codebook of moving averages (van den Oord and others 2017, appendix A.1).

    With :math:`n_k` vectors in a batch nearest to code k, and :math:`s_k` their sum,

    .. math::
        N_k \leftarrow \rho N_k + (1 - \rho)\, n_k, \quad
        m_k \leftarrow \rho m_k + (1 - \rho)\, s_k, \quad
        e_k = m_k \Big/ \frac{(N_k + \epsilon)\, n}{n + K \epsilon},

    where :math:`n = \sum_k N_k`. The averages begin at one vector a code, the code itself. They move
    in training mode only, after the batch has been quantized. With several processes the counts and
    sums are those of all together. The loss is the commitment term alone.

    Args:
        n_codes: K.
        dim: D, the channels of the encoder's output.
        commitment: :math:`\beta`, as in `VectorQuantizer`.
        decay: :math:`\rho`, in [0, 1).
        eps: the smoothing of the counts, positive.

    Raises:
        ValueError: as `VectorQuantizer`.
    """

    def __init__(
        self,
        n_codes: int,
        dim: int,
        *,
        commitment: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1); got {decay!r}")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps must be positive; got {eps!r}")
        self.n_codes, self.commitment = n_codes, require_weight("commitment", commitment)
        self.decay, self.eps = decay, eps
        self.register_buffer("codebook", first_codes(n_codes, dim))  # e, (K, D)
        self.register_buffer("counts", torch.ones(n_codes))  # N, (K,)
        self.register_buffer("sums", self.codebook.clone())  # m, (K, D)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W'); in training mode, move the averages afterwards."""
        z = require_latents(z, self.codebook.shape[1])
        with torch.autocast(z.device.type, enabled=False):
            flat = rows(z)
            index = nearest(flat.detach(), self.codebook)
            e = F.embedding(index, self.codebook)  # (N, D)
            loss = require_finite(self.commitment * F.mse_loss(flat, e))
            if self.training:
                self.update(flat, index)
            return quantized(z, e, index, loss, self.n_codes)

    @torch.no_grad()
    def update(self, flat: Tensor, index: Tensor) -> None:
        """One step of the averages, from vectors (N, D) and their codes' numbers (N,)."""
        counts = torch.bincount(index, minlength=self.n_codes).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat.to(self.sums))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.refresh()

    def refresh(self) -> None:
        """Make the codebook from the averages."""
        n = self.counts.sum()
        smooth = (self.counts + self.eps) / (n + self.n_codes * self.eps) * n
        self.codebook.copy_(self.sums / smooth[:, None])

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W')."""
        return look_up(indices, self.codebook)


@torch.no_grad()
def restart_dead_codes(
    quantizer: VectorQuantizerEMA,
    z: Tensor,
    *,
    threshold: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """Put codes that are hardly used onto vectors of a batch (Dhariwal and others 2020, section 3).

    A code whose moving count is below `threshold` vectors a batch moves to a random vector of z, with
    a count of `threshold`: if it is not used from now on, it is below again at the next batch. So call
    this every few dozen steps. With several processes `DistributedDataParallel` sends the first
    process's codebook to the others.

    Args:
        quantizer: changed in place.
        z: a batch of the encoder's outputs, (B, D, H', W').
        threshold: positive.
        generator: randomness, on z's device.

    Returns:
        How many codes were moved; at most as many as z holds vectors.
    """
    flat = rows(require_latents(z, quantizer.codebook.shape[1]))
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be positive; got {threshold!r}")
    require_finite(flat.square().mean())
    dead = (quantizer.counts < threshold).nonzero()[:, 0][: len(flat)]
    chosen = torch.randperm(len(flat), generator=generator, device=flat.device)[: len(dead)]
    quantizer.counts[dead] = threshold
    quantizer.sums[dead] = threshold * flat[chosen].to(quantizer.sums)
    quantizer.codebook[dead] = flat[chosen].to(quantizer.codebook)
    return len(dead)


# What all quantizers share


def first_codes(n_codes: int, dim: int) -> Tensor:
    """A codebook to start from: entries uniform within 1/K of zero, a common choice."""
    require_count("n_codes", n_codes)
    require_count("dim", dim)
    return torch.empty(n_codes, dim).uniform_(-1 / n_codes, 1 / n_codes)


def rows(z: Tensor) -> Tensor:
    """Vectors (N, D), one a place, of z (B, D, H', W')."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # N = B*H'*W'


def grid(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`: (N, D) to (B, D, H', W')."""
    B, _, H, W = like.shape
    return flat.view(B, H, W, -1).permute(0, 3, 1, 2)


def quantized(z: Tensor, e: Tensor, index: Tensor, loss: Tensor, n_codes: int) -> Quantized:
    """Pack codes e (N, D) and their numbers (N,), with the straight-through derivative."""
    # value e, derivative 1 by z; the papers' z + sg[e - z] has the same two, up to rounding
    through = grid(e.detach(), z) + (z - z.detach())
    return Quantized(through, index.view(len(z), *z.shape[2:]), loss, perplexity(index, n_codes))


def perplexity(indices: Tensor, n_codes: int) -> Tensor:
    r""":math:`e^{\operatorname H}` of the indices' frequencies: how many codes are in use, from 1 to K."""
    frequency = torch.bincount(indices.flatten(), minlength=n_codes) / indices.numel()
    return torch.special.entr(frequency).sum().exp()


def look_up(indices: Tensor, codebook: Tensor) -> Tensor:
    """Codes (B, D, H', W') of indices (B, H', W')."""
    return F.embedding(require_indices(indices, len(codebook)), codebook).permute(0, 3, 1, 2)


def require_indices(indices: Tensor, n_codes: int) -> Tensor:
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 3:
        got = f"{indices.dtype} of {tuple(indices.shape)}" if isinstance(indices, Tensor) else type(indices)
        raise ValueError(f"indices must be int64 of shape (B, H', W'); got {got}")
    if indices.numel() == 0 or indices.min() < 0 or indices.max() >= n_codes:
        said = "none" if indices.numel() == 0 else f"{indices.min().item()} to {indices.max().item()}"
        raise ValueError(f"indices must lie in 0 ... {n_codes - 1}; got {said}")
    return indices


def require_latents(z: Tensor, dim: int) -> Tensor:
    """Refuse what is not a batch (B, dim, H', W'). Returns it in float32 at least."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise ValueError(f"z must be a floating-point tensor; got {getattr(z, 'dtype', type(z))}")
    if z.ndim != 4 or z.shape[1] != dim or 0 in z.shape:
        raise ValueError(f"z must have shape (B, {dim}, H', W'), none of them 0; got {tuple(z.shape)}")
    return z.to(torch.promote_types(z.dtype, torch.float32))


def require_finite(loss: Tensor) -> Tensor:
    """Any NaN in the vectors is in their mean squared error too: one number tells."""
    if not torch.isfinite(loss):
        raise ValueError(f"z and the codes must be finite; their quantization error is {loss.item()}")
    return loss
