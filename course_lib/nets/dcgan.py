"""A small DCGAN: images from noise by transposed convolutions, and their judge.

Source: Radford and others (2016, section 3).

Sides are divisible by 2**levels: 8×8 digits become 2×2 at two levels, 28×28 becomes 7×7, 32×32 8×8.
"""

import torch
from torch import Tensor, nn


class DCGenerator(nn.Module):
    """Noise (B, latent), and labels (B,) where there are classes, to images (B, C, size, size) in [-1, 1].

    Args:
        channels: C of the images.
        size: their side.
        latent: numbers of noise.
        width: channels of the last hidden layer; each level below has twice as many.
        levels: how often the side is doubled.
        classes: number of classes, whose learned vectors are put beside the noise; 0 for none.

    Raises:
        ValueError: size is not divisible by 2**levels, or labels are given where there are no classes.

    >>> net = DCGenerator(1, 28, latent=16, width=8, classes=10)
    >>> net(torch.randn(5, 16), torch.tensor([0, 1, 2, 3, 9])).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self, channels: int, size: int, *, latent: int, width: int = 64, levels: int = 2, classes: int = 0
    ) -> None:
        super().__init__()
        if size % 2**levels:
            raise ValueError(f"size must be divisible by {2**levels} for {levels} levels; got {size}")
        wide, side = width * 2 ** (levels - 1), size // 2**levels
        self.start = (wide, side, side)
        self.embed = nn.Embedding(classes, latent) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.2)  # or labels outweigh the noise: one image a class
        entries = latent * (2 if classes else 1)
        self.first = nn.Sequential(
            nn.Linear(entries, wide * side**2), nn.BatchNorm1d(wide * side**2), nn.ReLU()
        )
        layers: list[nn.Module] = []
        for _ in range(levels - 1):  # the kernel's 4 is divisible by the stride: no checkerboard
            layers += [nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1)]
            wide //= 2
            layers += [nn.BatchNorm2d(wide), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z: (B, latent); y: (B,) labels, exactly where there are classes. Returns (B, C, size, size)."""
        if self.embed is None and y is not None:
            raise ValueError("y must be left out: this network was made without classes")
        if self.embed is not None:
            z = torch.cat([z, self.embed(y)], 1)  # (B, 2 latent)
        x = self.first(z).view(-1, *self.start)  # (B, wide, side, side)
        return torch.tanh(self.layers(x))


class DCDiscriminator(nn.Module):
    r"""Images (B, C, size, size), and labels (B,) where there are classes, to logits (B,).

    With features h(x) the logit is :math:`w^\top h(x) + c + e_y^\top h(x)`, with a learned vector for each
    class: the projection discriminator (Miyato and Koyama, 2018, eq. 3). Without classes the last term
    is missing. No layer normalizes over the batch, so that an image's logit is its own. Arguments as
    `DCGenerator`'s.

    >>> net = DCDiscriminator(1, 28, width=8, classes=10)
    >>> net(torch.randn(5, 1, 28, 28), torch.tensor([0, 1, 2, 3, 9])).shape
    torch.Size([5])
    """

    def __init__(
        self, channels: int, size: int, *, width: int = 64, levels: int = 2, classes: int = 0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for level in range(levels):
            layers += [nn.Conv2d(before, width * 2**level, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            before = width * 2**level
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = before * (size // 2**levels) ** 2
        self.last = nn.Linear(features, 1)
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.02)  # at first hardly any class is preferred

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x: (B, C, size, size); y: (B,) labels, exactly where there are classes. Returns logits (B,)."""
        if self.embed is None and y is not None:
            raise ValueError("y must be left out: this network was made without classes")
        features = self.layers(x)  # (B, features)
        logits = self.last(features)[:, 0]
        return logits if self.embed is None else logits + (self.embed(y) * features).sum(1)
