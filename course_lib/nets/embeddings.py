r"""Time as features: sines and cosines of many frequencies."""

import math

import torch
from torch import Tensor, nn


class TimeFeatures(nn.Module):
    r"""Times (B,) in [0, 1] to sines and cosines of :math:`1000\, \omega_i t`, (B, dim).

    The frequencies :math:`\omega_i` fall from 1 to 1/10000, as in the transformer (Vaswani et al., 2017,
    section 3.5), and 1000 is DDPM's number of steps.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if type(dim) is not int or dim < 2 or dim % 2:
            raise ValueError(f"dim must be an even integer of at least 2; got {dim!r}")
        frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2) / (dim // 2))
        self.register_buffer("frequencies", 1000 * frequencies)

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,). Returns (B, dim)."""
        if t.ndim != 1 or not t.is_floating_point():
            raise ValueError(f"t must be floating-point times (B,); got {t.dtype} of shape {tuple(t.shape)}")
        angles = t[:, None].to(self.frequencies) * self.frequencies  # (B, dim / 2)
        return torch.cat([angles.sin(), angles.cos()], 1)
