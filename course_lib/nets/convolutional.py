"""A convolutional encoder and its mirror image, for images whose sides are divisible by 2**levels."""

from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x) with two 3×3 convolutions: shape (B, C, H, W) stays.

    >>> import torch
    >>> Residual(4)(torch.zeros(2, 4, 3, 5)).shape
    torch.Size([2, 4, 3, 5])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return x + self.body(x)


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) to a grid of vectors (B, D, H', W'), H' = H / 2**levels.

    Strided convolutions, then a residual block, as in van den Oord and others (2017, section 4.1).

    Args:
        channels: C of the images.
        dim: D of the vectors.
        width: channels between.
        levels: how often the sides are halved.

    Raises:
        ValueError: the images' sides are not divisible by 2**levels.

    >>> import torch
    >>> ConvEncoder(3, 8, levels=2)(torch.zeros(5, 3, 32, 24)).shape
    torch.Size([5, 8, 8, 6])
    """

    def __init__(self, channels: int, dim: int, *, width: int = 64, levels: int = 2) -> None:
        super().__init__()
        self.factor = 2**levels
        layers: list[nn.Module] = []
        for before in [channels] + [width] * (levels - 1):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.SiLU()]  # halves the sides
        self.layers = nn.Sequential(*layers[:-1], Residual(width), nn.SiLU(), nn.Conv2d(width, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, D, H', W')."""
        if any(side % self.factor for side in x.shape[2:]):  # a strided convolution would cut the rest off
            raise ValueError(f"x must have sides divisible by {self.factor}; got {tuple(x.shape[2:])}")
        return self.layers(x)


class ConvDecoder(nn.Module):
    """The way back: (B, D, H', W') to (B, C, H, W). Arguments as `ConvEncoder`'s.

    >>> import torch
    >>> ConvDecoder(3, 8, levels=2)(torch.zeros(5, 8, 8, 6)).shape
    torch.Size([5, 3, 32, 24])
    """

    def __init__(self, channels: int, dim: int, *, width: int = 64, levels: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1), Residual(width)]
        for after in [width] * (levels - 1) + [channels]:
            layers += [nn.SiLU(), nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)]  # doubles
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, D, H', W'). Returns (B, C, H, W)."""
        return self.layers(z)
