r"""A small U-Net ``net(x, t, y)``: an image to an image of the same size, given a time and maybe a class.

Down: at each level residual blocks, then half the size. Up: as many blocks, each with what its partner on the
way down gave added to its input, then twice the size. The time, and the class, scale and shift the channels
in every block. Four blocks are in the middle: there the image is smallest, and a weight costs the least time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.nets.embeddings import TimeFeatures
from course_lib.require import require_count

GROUPS = 8  # of the group norms


class Block(nn.Module):
    """Two 3×3 convolutions around a skip; between them the embedding scales and shifts the channels."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # at first a block passes its input on
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, before, H, W), embedding: (B, E). Returns (B, after, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over all places, around a skip."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), and the same out."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(3, 4).unbind(1)  # (B, heads, H*W, C / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(B, C, H, W)
        return x + self.out(mixed)


class UNet(nn.Module):
    """Images (B, C, H, W) and times (B,) in [0, 1] to (B, C, H, W).

    Args:
        channels: C.
        width: channels, a multiple of 8 (16 is faster); a level has `width` times its entry of `levels`.
        levels: one entry a level; each but the first has half the size of the one before.
        blocks: residual blocks a level on the way down, and as many on the way up.
        classes: 0, or how many labels y the network takes. Label ``classes`` means "no label", for guidance.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        levels: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        require_count("channels", channels)
        require_count("blocks", blocks)
        require_count("classes", classes, 0)
        if type(width) is not int or width < 8 or width % 8:
            raise ValueError(f"width must be a positive multiple of 8; got {width!r}")
        if len(levels) < 1 or any(type(m) is not int or m < 1 for m in levels):
            raise ValueError(f"levels must hold a positive integer a level; got {levels!r}")
        self.channels, self.classes, self.factor = channels, classes, 2 ** (len(levels) - 1)
        size = 4 * width
        self.time = nn.Sequential(
            TimeFeatures(width), nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size)
        )
        self.label = nn.Embedding(classes + 1, size) if classes else None
        self.first = nn.Conv2d(channels, width, 3, padding=1)

        widths = [width * m for m in levels]
        self.down, self.up, now = nn.ModuleList(), nn.ModuleList(), width
        for level, wide in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))  # half the size
            for _ in range(blocks):
                self.down.append(Block(now, wide, size))
                now = wide
        middle = [Block(now, now, size) for _ in range(4)]
        self.middle = nn.ModuleList([*middle[:2], Attention(now), *middle[2:]])
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.up.append(Block(wide, wide, size))
            if level:  # twice the size; after it the convolution would cost four times as much
                narrow = nn.Conv2d(wide, widths[level - 1], 3, padding=1)
                self.up.append(nn.Sequential(narrow, nn.Upsample(scale_factor=2)))
        self.last = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)
        )
        nn.init.zeros_(self.last[-1].weight)
        nn.init.zeros_(self.last[-1].bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict from x (B, C, H, W), t (B,) and, with classes, y (B,), for all without a label if None."""
        self._require(x, t, y)
        embedding = F.silu(self.time(t.to(x.dtype)) if self.label is None else self._with_label(t, x, y))
        x, known = self.first(x), []
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            if isinstance(layer, Block):
                known.append(x)
        for layer in self.middle:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
        for layer in self.up:
            x = layer(x + known.pop(), embedding) if isinstance(layer, Block) else layer(x)
        return self.last(x)

    def _with_label(self, t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            y = torch.full((len(x),), self.classes, device=x.device)
        return self.time(t.to(x.dtype)) + self.label(y)

    def _require(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W); got {tuple(x.shape)}")
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"x must have sides divisible by {self.factor}; got {tuple(x.shape[2:])}")
        if t.shape != (len(x),):
            raise ValueError(f"t must have shape ({len(x)},); got {tuple(t.shape)}")
        if y is not None:
            if self.label is None:
                raise ValueError("y must be left out: this network was made without classes")
            if y.shape != (len(x),) or y.dtype != torch.int64 or y.min() < 0 or y.max() > self.classes:
                raise ValueError(f"y must be int64 labels ({len(x)},) in 0 to {self.classes}")
