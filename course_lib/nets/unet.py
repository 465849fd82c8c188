r"""A U-Net ``net(x, t, y, context)``: an image to one of its size, given a time and maybe a class or a text.

Down: at each level residual blocks, then half the size. Up: as many blocks, each with what its partner on the
way down gave added to its input, then twice the size. The time, and the class, scale and shift the channels
in every block. Four blocks are in the middle: there the image is smallest, and a weight costs the least time.
Attention is in the middle, and in the blocks of the levels that ask for it; where there is a text, each
self-attention is followed by a cross-attention, which reads it.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.nets.embeddings import LabelEmbedding, TimeEmbedding

GROUPS = 8  # of the group norms


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights and bias 0, so that what it ends adds nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Self-attention over all places, around a skip.

    Source: Ho and others (2020, appendix B); heads by their dimension: Dhariwal and Nichol (2021, section 3).

    >>> import torch
    >>> x = torch.randn(2, 16, 4, 4)
    >>> torch.equal(Attention(16, 8)(x), x)  # at first it passes its input on
    True
    """

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), and the same out."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, -1, self.head_dim, H * W)  # (B, 3, heads, d, H*W)
        q, k, v = qkv.transpose(3, 4).contiguous().unbind(1)  # (B, heads, H*W, d) each, as fast kernels want
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(B, C, H, W)
        return x + self.out(mixed)


class CrossAttention(nn.Module):
    """Every place reads a sequence, around a skip: queries from the image, keys and values from the sequence.

    A sequence of zeros, of any length, gives the same at every place: that is "no text".
    Source: Rombach and others (2022, section 3.3).

    >>> import torch
    >>> x, words = torch.randn(2, 16, 4, 4), torch.randn(2, 7, 12)
    >>> torch.equal(CrossAttention(16, 8, 12)(x, words), x)  # at first it passes its input on
    True
    """

    def __init__(self, channels: int, head_dim: int, context: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm, self.q = nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, channels, 1)
        self.kv = nn.Linear(context, 2 * channels, bias=False)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W), context: (B, L, context). Returns (B, C, H, W)."""
        B, C, H, W = x.shape
        q = self.q(self.norm(x)).view(B, -1, self.head_dim, H * W)  # (B, heads, d, H*W)
        q = q.transpose(2, 3).contiguous()  # (B, heads, H*W, d)
        kv = self.kv(context).view(B, context.shape[1], 2, -1, self.head_dim)  # (B, L, 2, heads, d)
        k, v = kv.transpose(1, 3).unbind(2)  # (B, heads, L, d) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(B, C, H, W)
        return x + self.out(mixed)


class Block(nn.Module):
    """Two 3×3 convolutions around a skip; between them the embedding scales and shifts the channels.

    With `head_dim` attention follows, and with `context` cross-attention. Dropout is before the last
    convolution, as in Ho and others (2020); scale and shift: Dhariwal and Nichol (2021, section 3.1).

    >>> import torch
    >>> Block(8, 16, 32)(torch.randn(2, 8, 4, 4), torch.randn(2, 32)).shape
    torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self,
        before: int,
        after: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        head_dim: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, after), zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.modulate, self.dropout = nn.Linear(embedding, 2 * after), nn.Dropout(dropout)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attend = Attention(after, head_dim) if head_dim else None
        self.read = CrossAttention(after, head_dim, context) if head_dim and context else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, before, H, W), embedding: (B, E), context: (B, L, context). Returns (B, after, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)  # (B, after, 1, 1) each
        h = self.conv2(self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift)))
        x = self.skip(x) + h
        if self.attend is not None:
            x = self.attend(x)
        return x if self.read is None else self.read(x, context)


class UNet(nn.Module):
    """Images (B, C, H, W) and times (B,) in [0, 1] to (B, C, H, W).

    The network of Ronneberger and others (2015) in the form that Ho and others (2020) gave it, with blocks,
    attention and conditions as in the works that its parts name.

    Args:
        channels: C.
        width: channels, a multiple of 8 (16 is faster); a level has `width` times its entry of `levels`.
        levels: one entry a level; each but the first has half the size of the one before.
        blocks: residual blocks a level on the way down, and as many on the way up.
        classes: 0, or how many labels y the network takes. Label ``classes`` means "no label", for guidance.
        attention: the levels with attention in their blocks, each by the factor by which its images are
            smaller: 1 is the first level, 2 the second, 4 the third. The middle always has one.
        head_dim: channels of an attention's head, which divide those of the levels where it is; by default a
            quarter of them, which is four heads.
        dropout: the share of a block's values that are dropped in training.
        context: 0, or how many numbers each element of a sequence has (of a text: its words' vectors).

    Raises:
        ValueError: attention names a factor that no level has, x has sides that do
            not halve, or y or context is given to a network that was made without.

    >>> import torch
    >>> net = UNet(3, width=16, levels=(1, 2, 2), classes=10, attention=(2, 4), head_dim=8, context=12)
    >>> x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    >>> net(x, t, torch.tensor([3, 10]), torch.randn(2, 7, 12)).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        levels: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        classes: int = 0,
        attention: tuple[int, ...] = (),
        head_dim: int | None = None,
        dropout: float = 0.0,
        context: int = 0,
    ) -> None:
        super().__init__()
        factors = [2**level for level in range(len(levels))]
        if not set(attention) <= set(factors):
            raise ValueError(f"attention must name factors of the levels, {factors}; got {attention}")
        self.factor, self.context = factors[-1], context
        size = 4 * width
        self.time = TimeEmbedding(width, size)
        self.label = LabelEmbedding(classes, size) if classes else None
        self.first = nn.Conv2d(channels, width, 3, padding=1)

        widths = [width * m for m in levels]

        def block(before: int, level: int, attend: bool) -> Block:
            after = widths[level]
            heads = {"head_dim": head_dim or after // 4, "context": context} if attend else {}
            return Block(before, after, size, dropout=dropout, **heads)

        self.down, self.up, now = nn.ModuleList(), nn.ModuleList(), width
        for level, wide in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))  # half the size
            for _ in range(blocks):
                self.down.append(block(now, level, factors[level] in attention))
                now = wide
        middle = [block(now, -1, False) for _ in range(4)]
        heads = [Attention(now, head_dim or now // 4)]
        if context:
            heads.append(CrossAttention(now, head_dim or now // 4, context))
        self.middle = nn.ModuleList([*middle[:2], *heads, *middle[2:]])
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.up.append(block(wide, level, factors[level] in attention))
            if level:  # twice the size; after it the convolution would cost four times as much
                narrow = nn.Conv2d(wide, widths[level - 1], 3, padding=1)
                self.up.append(nn.Sequential(narrow, nn.Upsample(scale_factor=2)))
        self.last = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Predict from x (B, C, H, W), t (B,), labels y (B,) and a sequence context (B, L, context).

        Without y no sample has a label; without context all sequences are zeros, which means "no text". So
        texts are dropped in training, for guidance, by replacing theirs with zeros.
        """
        if any(side % self.factor for side in x.shape[2:]):
            raise ValueError(f"x must have sides divisible by {self.factor}; got {tuple(x.shape[2:])}")
        if self.label is None and y is not None:
            raise ValueError("y must be left out: this network was made without classes")
        if not self.context and context is not None:
            raise ValueError("context must be left out: this network was made without it")
        embedding = self.time(t, x.dtype)
        if self.label is not None:
            embedding = embedding + self.label(y)
        if self.context:
            nothing = x.new_zeros(len(x), 1, self.context)
            context = nothing if context is None else context.to(x.dtype)
        given = F.silu(embedding), context

        x, known = self.first(x), []
        for layer in self.down:
            x = applied(layer, x, *given)
            if isinstance(layer, Block):
                known.append(x)
        for layer in self.middle:
            x = applied(layer, x, *given)
        for layer in self.up:
            x = applied(layer, x + known.pop() if isinstance(layer, Block) else x, *given)
        return self.last(x)


def applied(layer: nn.Module, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
    """The layer's output, from x and what of the conditions it takes."""
    if isinstance(layer, Block):
        return layer(x, embedding, context)
    return layer(x, context) if isinstance(layer, CrossAttention) else layer(x)
