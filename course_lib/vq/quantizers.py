r"""Vector quantization: the nearest code of a learned codebook, trained by gradients or by averages.

A quantizer takes the encoder's output (B, D, H', W') and gives a `Quantized`. Its value is the
nearest code at each place; its derivative is the identity (straight-through). Distances, losses and
averages are computed in float32 at least, also under autocast and in half-precision modules, and in
training nothing is read back from a GPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.points import nearest


class Quantized(NamedTuple):
    """What every quantizer returns.

    `quantized` (B, D, H', W') goes to the decoder, in the type of the encoder's output, `indices`
    (B, H', W') are the codes' numbers, and `loss` is what the quantizer adds to the training loss.

    Examples:
        >>> out = VectorQuantizer(16, 3)(torch.randn(2, 3, 4, 4))
        >>> out.quantized.shape, out.indices.shape, out.loss.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 4, 4]), torch.Size([]))
        >>> 1 <= out.perplexity <= 16
        tensor(True)
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor

    @property
    def perplexity(self) -> Tensor:
        """How many codes this batch uses, from 1 to K; computed when it is asked for."""
        return perplexity(self.indices)


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
        ValueError: in `forward`, z is no batch (B, D, H', W').

    Examples:
        >>> quantizer = VectorQuantizer(2, 1)
        >>> quantizer.codebook.data = torch.tensor([[-1.0], [1.0]])
        >>> quantizer(torch.tensor([-0.3, 0.2]).view(1, 1, 1, 2)).quantized.flatten().tolist()
        [-1.0, 1.0]
    """

    def __init__(self, n_codes: int, dim: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.codebook = nn.Parameter(first_codes(n_codes, dim))  # (K, D)
        self.n_codes, self.commitment = n_codes, commitment

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W')."""
        with torch.autocast(z.device.type, enabled=False):
            flat, codebook = in_one_type(rows(z, self.codebook.shape[1]), self.codebook)
            index = nearest(flat.detach(), codebook.detach(), read=False)
            e = F.embedding(index, codebook)  # (N, D)
            loss = F.mse_loss(e, flat.detach()) + self.commitment * F.mse_loss(flat, e.detach())
            return quantized(z, e, index, loss)

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W')."""
        return F.embedding(indices, self.codebook).permute(0, 3, 1, 2)


class VectorQuantizerEMA(nn.Module):
    r"""A codebook of moving averages (van den Oord and others 2017, appendix A.1).

    With :math:`n_k` vectors in a batch nearest to code k, and :math:`s_k` their sum,

    .. math::
        N_k \leftarrow \rho N_k + (1 - \rho)\, n_k, \quad
        m_k \leftarrow \rho m_k + (1 - \rho)\, s_k, \quad
        e_k = m_k \Big/ \frac{(N_k + \epsilon)\, n}{n + K \epsilon},

    where :math:`n = \sum_k N_k`. The averages begin at one vector a code, the code itself. They move
    in training mode only, after the batch has been quantized; a batch that is not finite moves nothing.
    With several processes the counts and sums are those of all together. The averages stay in float32
    when the module is turned into half precision, where a count stops at 256. The loss is the
    commitment term alone.

    Args:
        n_codes: K.
        dim: D, the channels of the encoder's output.
        commitment: :math:`\beta`, as in `VectorQuantizer`.
        decay: :math:`\rho`, in [0, 1).
        eps: the smoothing of the counts, positive.

    Raises:
        ValueError: as `VectorQuantizer`.

    Examples:
        >>> quantizer = VectorQuantizerEMA(1, 1, decay=0.5, eps=1e-9)
        >>> for _ in range(20):
        ...     out = quantizer(torch.tensor([2.0, 4.0]).view(1, 1, 1, 2))
        >>> torch.round(quantizer.codebook, decimals=3)  # the vectors' mean
        tensor([[3.]])
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
        self.n_codes, self.commitment, self.decay, self.eps = n_codes, commitment, decay, eps
        self.register_buffer("codebook", first_codes(n_codes, dim))  # e, (K, D)
        self.register_buffer("counts", torch.ones(n_codes))  # N, (K,)
        self.register_buffer("sums", self.codebook.clone())  # m, (K, D)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W'); in training mode, move the averages afterwards."""
        with torch.autocast(z.device.type, enabled=False):
            flat, codebook = in_one_type(rows(z, self.codebook.shape[1]), self.codebook)
            index = nearest(flat.detach(), codebook, read=False)
            e = F.embedding(index, codebook)  # (N, D)
            loss = self.commitment * F.mse_loss(flat, e)
            if self.training:
                self.update(flat, index)
            return quantized(z, e, index, loss)

    @torch.no_grad()
    def update(self, flat: Tensor, index: Tensor) -> None:
        """One step of the averages, from vectors (N, D) and their codes' numbers (N,)."""
        # counted in integers: in float32, 2**24 + 1 is 2**24
        ones = torch.ones_like(index, dtype=torch.int32)
        counts = ones.new_zeros(self.n_codes).index_add_(0, index, ones).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat.to(self.sums))
        if several_processes():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        sound = sums.isfinite().all()
        self.counts.lerp_(torch.where(sound, counts, self.counts), 1 - self.decay)
        self.sums.lerp_(torch.where(sound, sums, self.sums), 1 - self.decay)
        self.refresh()

    def refresh(self) -> None:
        """Make the codebook from the averages."""
        n = self.counts.sum()
        smooth = (self.counts + self.eps) / (n + self.n_codes * self.eps) * n
        self.codebook.copy_(self.sums / smooth[:, None])

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W')."""
        return F.embedding(indices, self.codebook).permute(0, 3, 1, 2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What `to`, `half` and `bfloat16` go through: averages take the device, and no half precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, now in self._buffers.items():
            if torch.finfo(now.dtype).bits < 32:
                self._buffers[name] = before[name].to(now.device)
        return self


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
    this every few dozen steps. With several processes, each must call it; all take the first one's codes.

    Args:
        quantizer: changed in place.
        z: a batch of the encoder's outputs, (B, D, H', W').
        threshold: positive.
        generator: randomness, on z's device.

    Returns:
        How many codes were moved; at most as many as z holds vectors.

    Examples:
        >>> quantizer = VectorQuantizerEMA(16, 2)
        >>> quantizer.counts[4:] = 0
        >>> restart_dead_codes(quantizer, torch.randn(1, 2, 4, 4))
        12
    """
    flat = rows(z, quantizer.codebook.shape[1]).to(quantizer.codebook)
    dead = (quantizer.counts < threshold).nonzero()[:, 0][: len(flat)]
    chosen = torch.randperm(len(flat), generator=generator, device=flat.device)[: len(dead)]
    quantizer.counts[dead] = threshold
    quantizer.sums[dead] = threshold * flat[chosen]
    quantizer.codebook[dead] = flat[chosen]
    if several_processes():
        for average in quantizer.buffers():
            torch.distributed.broadcast(average, 0)
    return len(dead)


# What all quantizers share


def first_codes(n_codes: int, dim: int) -> Tensor:
    """A codebook to start from: entries uniform within 1/K of zero, a common choice."""
    return torch.empty(n_codes, dim).uniform_(-1 / n_codes, 1 / n_codes)


def rows(z: Tensor, dim: int) -> Tensor:
    """Vectors (N, D), one a place, of z (B, D, H', W'), in float32 at least. Refuses another D."""
    if z.ndim != 4 or z.shape[1] != dim:
        raise ValueError(f"z must have shape (B, {dim}, H', W'); got {tuple(z.shape)}")
    flat = z.permute(0, 2, 3, 1).reshape(-1, dim)  # N = B*H'*W'
    return flat.to(torch.promote_types(z.dtype, torch.float32))


def onto_grid(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`: (N, D) to (B, D, H', W')."""
    B, _, H, W = like.shape
    return flat.view(B, H, W, -1).permute(0, 3, 1, 2)


def in_one_type(flat: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type that has room for either."""
    dtype = torch.promote_types(flat.dtype, codebook.dtype)
    return flat.to(dtype), codebook.to(dtype)


def quantized(z: Tensor, e: Tensor, index: Tensor, loss: Tensor) -> Quantized:
    """Pack codes e (N, D) and their numbers (N,), with the straight-through derivative."""
    # value e, derivative 1 by z; the papers' z + sg[e - z] has the same two, up to rounding
    through = onto_grid(e.detach(), z).to(z.dtype) + (z - z.detach())
    return Quantized(through, index.view(len(z), *z.shape[2:]), loss)


def perplexity(indices: Tensor) -> Tensor:
    r""":math:`e^{\operatorname H}` of the indices' frequencies: how many codes are in use, from 1 to K.

    Examples:
        >>> perplexity(torch.tensor([3, 3, 7, 7]))
        tensor(2.)
    """
    frequency = indices.unique(return_counts=True)[1] / indices.numel()
    return torch.special.entr(frequency).sum().exp()


def several_processes() -> bool:
    """Whether this process was started together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
