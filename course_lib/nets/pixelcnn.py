"""Masked convolutions: at each place the output depends on earlier places only, row by row.

Source: van den Oord and others (2016), *Pixel recurrent neural networks*, section 3.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16  # numbers that stand for a code where the kernel is large


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees places before its own in reading order, and its own if `own`.

    The paper's mask A is without its own place, mask B with it.

    Args:
        channels, out: channels of the input and of the output.
        kernel: side of the kernel, odd.
        own: whether a place sees itself.

    Raises:
        ValueError: the kernel is even, and has no middle.

    >>> conv = MaskedConv2d(1, 1, 3, own=False)
    >>> conv.mask.int()
    tensor([[1, 1, 1],
            [1, 0, 0],
            [0, 0, 0]], dtype=torch.int32)
    """

    def __init__(self, channels: int, out: int, kernel: int, *, own: bool) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd; got {kernel}")
        super().__init__(channels, out, kernel, padding=kernel // 2)
        place = torch.arange(kernel**2).view(kernel, kernel)  # in reading order; the middle is our own
        self.register_buffer("mask", place < kernel**2 // 2 + own)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W). Returns (B, out, H, W)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class MaskedResidual(nn.Module):
    """x + f(x), where f sees a place and those before it: shape (B, C, H, W) stays.

    >>> MaskedResidual(4)(torch.zeros(2, 4, 3, 5)).shape
    torch.Size([2, 4, 3, 5])
    """

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

    A code becomes at most 16 numbers. Then the first kernel reaches over the whole grid, so no earlier place
    is out of sight; stacks of small masked kernels have a blind spot (van den Oord and others, 2016b,
    section 2.2).
    Its weights are (2 side - 1)² · 16 · width.

    Args:
        n_codes: K.
        side: the larger of H' and W'.
        width: channels between.
        layers: residual blocks.

    >>> net = pixelcnn(5, 3)
    >>> codes = torch.tensor([[[0, 1, 2], [3, 4, 0]]])  # (1, 2, 3)
    >>> net(F.one_hot(codes, 5).permute(0, 3, 1, 2).float()).shape
    torch.Size([1, 5, 2, 3])
    """
    narrow = min(n_codes, NARROW)
    embed = nn.Conv2d(n_codes, narrow, 1, bias=False)
    nn.init.normal_(embed.weight)  # as an `nn.Embedding`, which it is for one-hot codes
    first = MaskedConv2d(narrow, width, 2 * side - 1, own=False)
    blocks = [MaskedResidual(width) for _ in range(layers)]
    return nn.Sequential(embed, first, *blocks, nn.SiLU(), nn.Conv2d(width, n_codes, 1))
