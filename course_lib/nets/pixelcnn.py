"""Masked convolutions: at each place the output depends on earlier places only, row by row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.require import require_count


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees places before its own in reading order, and its own if `own`.

    (van den Oord and others 2016, section 3.4: mask A without its own place, mask B with it.)
    """

    def __init__(self, channels: int, out: int, kernel: int, *, own: bool) -> None:
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd positive integer; got {kernel!r}")
        super().__init__(channels, out, kernel, padding=kernel // 2)
        place = torch.arange(kernel**2).view(kernel, kernel)  # in reading order; the middle is our own
        self.register_buffer("mask", place < kernel**2 // 2 + own)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W). Returns (B, out, H, W)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class MaskedResidual(nn.Module):
    """x + f(x), where f sees a place and those before it: shape (B, C, H, W) stays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            MaskedConv2d(width, width, 3, own=True),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return x + self.body(x)


def pixelcnn(n_codes: int, side: int, *, width: int = 64, layers: int = 2) -> nn.Sequential:
    """One-hot codes (B, K, H', W') to logits of the same shape, each from the codes before its place.

    Args:
        n_codes: K.
        side: the larger of H' and W'. The first kernel reaches over the whole grid, so no earlier
            place is out of sight; stacks of small masked kernels have a blind spot.
        width: channels between.
        layers: residual blocks.
    """
    for name, value in {"n_codes": n_codes, "side": side, "width": width, "layers": layers}.items():
        require_count(name, value)
    first = MaskedConv2d(n_codes, width, 2 * side - 1, own=False)
    blocks = [MaskedResidual(width) for _ in range(layers)]
    return nn.Sequential(first, *blocks, nn.SiLU(), nn.Conv2d(width, n_codes, 1))
