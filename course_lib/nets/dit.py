r"""A diffusion transformer ``net(x, t, y)``: patches of an image are tokens, time and label steer each block.

Source: Peebles and Xie (2023), *Scalable diffusion models with transformers*, with adaLN-Zero (section 3.2):
in each block the normalized tokens are scaled and shifted, and what it adds is multiplied by a gate. These
numbers are a linear map of the embedding of time and label, which begins at zero: so each block begins as the
identity.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.nets.embeddings import LabelEmbedding, TimeEmbedding, grid_positions
from course_lib.nets.unet import zeroed


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens x (B, T, D), normalized, then scaled by 1 + scale and shifted; both (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Self-attention, then two linear maps for each token, each around a skip with a gate that begins at 0.

    >>> import torch
    >>> x, embedding = torch.randn(2, 9, 16), torch.randn(2, 16)
    >>> torch.equal(DiTBlock(16, 8)(x, embedding), x)
    True
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        for linear in (self.qkv, self.out, self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        zeroed(self.modulate)

    def attention(self, x: Tensor) -> Tensor:
        """x: (B, T, D). Returns (B, T, D)."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, -1, self.head_dim)  # (B, T, 3, heads, D / heads)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, heads, T, D / heads) each
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Tokens x: (B, T, D), embedding: (B, D). Returns (B, T, D)."""
        six = self.modulate(embedding)[:, None].chunk(6, 2)  # (B, 1, D) each
        shift, scale, gate = six[:3]
        x = x + gate * self.attention(modulated(x, shift, scale))
        shift, scale, gate = six[3:]
        return x + gate * self.mlp(modulated(x, shift, scale))


class DiT(nn.Module):
    """Images (B, C, size, size) and times (B,) in [0, 1] to (B, C, size, size).

    The defaults are the paper's DiT-S/2 (Table 1): 12 blocks of width 384 with 6 heads; it has 33 million
    parameters. B: width 768 and depth 12, L: 1024 and 24, XL: 1152, 28 and head_dim 72. The paper's networks
    also predict a variance, which ours leave out: 2 C channels, where these have C.

    Args:
        channels: C.
        size: side of the images, divisible by `patch`.
        patch: side of the patches; (size / patch)² tokens.
        width: D, numbers of a token; divisible by 4, and by `head_dim`.
        depth: blocks.
        head_dim: numbers of a token that one head of the attention sees.
        classes: 0, or how many labels y the network takes. Label ``classes`` means "no label", for guidance.

    Raises:
        ValueError: y is given to a network that was made without classes.

    >>> import torch
    >>> net = DiT(3, 16, patch=4, width=32, depth=2, head_dim=16, classes=10)
    >>> x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    >>> net(x, t, torch.tensor([3, 10])).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        head_dim: int = 64,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, size // patch
        self.tokens = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", grid_positions(self.side, width))
        self.time = TimeEmbedding(256, width)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(DiTBlock(width, head_dim) for _ in range(depth))
        self.modulate = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, channels * patch**2))

        nn.init.xavier_uniform_(self.tokens.weight.view(width, -1))  # as the linear map that it is
        for layer in (self.time[1], self.time[3]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict from x (B, C, size, size), t (B,) and labels y (B,); without y no sample has a label."""
        if self.label is None and y is not None:
            raise ValueError("y must be left out: this network was made without classes")
        embedding = self.time(t, x.dtype)
        if self.label is not None:
            embedding = embedding + self.label(y)
        embedding = F.silu(embedding)  # (B, D)
        x = self.tokens(x).flatten(2).transpose(1, 2) + self.positions  # (B, T, D)
        for block in self.blocks:
            x = block(x, embedding)
        shift, scale = self.modulate(embedding)[:, None].chunk(2, 2)  # (B, 1, D) each
        x = self.last(modulated(x, shift, scale)).transpose(1, 2)  # (B, C patch², T)
        return F.pixel_shuffle(x.unflatten(2, (self.side, self.side)), self.patch)  # (B, C, size, size)
