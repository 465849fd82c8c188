r"""Quantizers without a codebook to learn: each coordinate is rounded by itself.

`FiniteScalarQuantizer` rounds coordinate i to one of :math:`L_i` levels, `LookupFreeQuantizer` to its
sign. The code's number is the coordinates' digits read as one number, so nothing is searched.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.vq.quantizers import Quantized, onto_grid, quantized, rows

EPS = 1e-3  # of the paper: keeps the bounded value inside the outermost rounding cells


class FiniteScalarQuantizer(nn.Module):
    r"""Round each coordinate to finitely many levels (Mentzer and others 2024, section 3).

    Coordinate i is bounded, then rounded: with :math:`h = (L - 1)(1 - 10^{-3})/2`, and o = 0 for odd L
    and ½ for even L,

    .. math:: b(z) = h \tanh(z + \operatorname{artanh}(o/h)) - o, \qquad \hat z = \operatorname{round}(b(z)).

    It returns :math:`\hat z / \lfloor L/2 \rfloor`, in [-1, 1], and no loss: 0, or NaN where z is not finite,
    which the bounded value would hide. (The listing in the paper's appendix has tan for artanh, which moves
    b(0) away from 0 by little; b(0) = 0 is what the shift is for.)

    Args:
        levels: :math:`L_1, \dots, L_D`, each from 3 to 1000; for two levels see `LookupFreeQuantizer`. There
            are :math:`K = \prod_i L_i` codes, less than :math:`2^{63}`.

    Raises:
        ValueError: levels are others, with which some codes cannot be reached or numbered; z is no batch
            (B, D, H', W'); in `codes`, an index is not one of 0 ... K − 1.

    Examples:
        >>> quantizer = FiniteScalarQuantizer([8, 5, 5, 5])
        >>> quantizer.n_codes
        1000
        >>> out = quantizer(torch.randn(2, 4, 3, 3))
        >>> torch.equal(quantizer.codes(out.indices), out.quantized)
        True
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.n_codes = math.prod(levels)
        if not all(3 <= n <= 1000 for n in levels) or self.n_codes >= 2**63:
            raise ValueError(f"levels must be from 3 to 1000, with a product below 2**63; got {levels!r}")
        count = torch.tensor(levels)
        self.register_buffer("levels", count)  # (D,)
        self.register_buffer("basis", torch.cat([torch.ones(1, dtype=torch.long), count[:-1].cumprod(0)]))

    def bound(self, flat: Tensor) -> Tensor:
        """The function b above, coordinate by coordinate. flat: (N, D)."""
        h = (self.levels - 1).to(flat) * (1 - EPS) / 2
        o = 0.5 * (self.levels % 2 == 0)
        return h * torch.tanh(flat + torch.atanh(o / h)) - o

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W'). The derivative is that of the bounded value."""
        with torch.autocast(z.device.type, enabled=False):
            flat = rows(z, len(self.levels))
            bounded = self.bound(flat)
            digits = bounded.detach().round().long() + self.levels // 2  # 0 ... L - 1
            index = (digits * self.basis).sum(1)
            scaled = onto_grid(bounded / (self.levels // 2), z).to(z.dtype)
            return quantized(scaled, self._values(digits, flat.dtype), index, (0 * flat.detach()).sum())

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.levels // 2
        return (digits - half).to(dtype) / half

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W'), float32."""
        digits = _require_codes(indices, self.n_codes)[..., None] // self.basis % self.levels
        return self._values(digits, torch.float32).permute(0, 3, 1, 2)


class LookupFreeQuantizer(nn.Module):
    r"""Round each coordinate to its sign (Yu and others 2024, section 3.1).

    The codes are the corners :math:`\{-1, 1\}^D`, numbered in binary: bit i is 1 where :math:`z_i > 0`.
    With :math:`q(k \mid z) \propto \exp(-\lVert z - e_k \rVert^2 / \tau)` the loss is

    .. math:: w \bigl(\mathbb E[\operatorname H(q(k \mid z))] - \operatorname H(\mathbb E[q(k \mid z)])\bigr)
        + \beta \operatorname{mean}(z - \operatorname{sign} z)^2 ,

    means over the vectors of the batch. Both entropies are exact, in nats; the second takes memory for all
    codes.

    Args:
        dim: D; there are :math:`K = 2^D` codes.
        commitment: :math:`\beta`.
        entropy: w, the weight of the entropy terms.
        temperature: :math:`\tau`, positive. The three defaults are ours.

    Raises:
        ValueError: z is no batch (B, D, H', W'); in `codes`, an index is not one of 0 ... K − 1.

    Examples:
        >>> quantizer = LookupFreeQuantizer(3)
        >>> out = quantizer(torch.tensor([0.4, -2.0, 1.0]).view(1, 3, 1, 1))
        >>> out.quantized.flatten().tolist(), out.indices.item()  # 1·1 + 0·2 + 1·4
        ([1.0, -1.0, 1.0], 5)
    """

    def __init__(
        self, dim: int, *, commitment: float = 0.25, entropy: float = 0.1, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.n_codes, self.temperature = 2**dim, temperature
        self.commitment, self.entropy = commitment, entropy
        self.register_buffer("basis", 2 ** torch.arange(dim))

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, H', W')."""
        with torch.autocast(z.device.type, enabled=False):
            flat = rows(z, len(self.basis))
            bits = flat.detach() > 0
            index = (bits * self.basis).sum(1)
            e = 2 * bits.to(flat) - 1
            each, used = self.entropies(flat)
            loss = self.entropy * (each - used) + self.commitment * F.mse_loss(flat, e)
            return quantized(z, e, index, loss)

    def entropies(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The mean entropy of q(k | z), and the entropy of the mean of q(k | z). flat: (N, D)."""
        logit = 4 * flat / self.temperature  # the bits are independent given z
        on, off = torch.sigmoid(logit), torch.sigmoid(-logit)
        each = (on * F.softplus(-logit) + off * F.softplus(logit)).sum(1).mean()
        # q(k | z) is a product over the bits, so its mean is a product of two matrices of half the bits:
        # no (N, K) array is made
        half = (flat.shape[1] + 1) // 2
        high, low = (_product(on[:, part], off[:, part]) for part in (slice(half, None), slice(half)))
        mean = high.T @ low / len(flat)  # (2**(D-half), 2**half)
        return each, -(mean * mean.clamp_min(1e-30).log()).sum()

    def codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, H', W'). Returns (B, D, H', W'), float32."""
        bits = _require_codes(indices, self.n_codes)[..., None] // self.basis % 2
        return (2.0 * bits - 1).permute(0, 3, 1, 2)


def _require_codes(indices: Tensor, n_codes: int) -> Tensor:
    """Refuse numbers of no code: their digits would be those of some other code."""
    if indices.min() < 0 or indices.max() >= n_codes:
        raise ValueError(f"indices must lie in 0 ... {n_codes - 1}; got {indices.min()} to {indices.max()}")
    return indices


def _product(on: Tensor, off: Tensor) -> Tensor:
    """Probabilities (N, 2**m) of all patterns of m independent bits, from those of each, (N, m)."""
    table = on.new_ones(len(on), 1)
    for one, zero in zip(on.T, off.T, strict=True):
        table = torch.cat([table * zero[:, None], table * one[:, None]], 1)
    return table
