"""A convolutional encoder and its mirror image, for images whose sides are divisible by 2**levels."""

from torch import Tensor, nn

from course_lib.require import require_count


class Residual(nn.Module):
    """x + f(x) with two 3×3 convolutions: shape (B, C, H, W) stays."""

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
    """

    def __init__(self, channels: int, dim: int, *, width: int = 64, levels: int = 2) -> None:
        super().__init__()
        for name, value in {"channels": channels, "dim": dim, "width": width, "levels": levels}.items():
            require_count(name, value)
        self.channels, self.factor = channels, 2**levels
        layers: list[nn.Module] = []
        for before in [channels] + [width] * (levels - 1):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.SiLU()]  # halves the sides
        self.layers = nn.Sequential(*layers[:-1], Residual(width), nn.SiLU(), nn.Conv2d(width, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Encode x (B, C, H, W); `ValueError` if it has other channels or sides that do not halve."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W); got {tuple(x.shape)}")
        if any(side == 0 or side % self.factor for side in x.shape[2:]):
            raise ValueError(
                f"x must have height and width divisible by {self.factor}; got {x.shape[2]}×{x.shape[3]}"
            )
        return self.layers(x)


class ConvDecoder(nn.Module):
    """The way back: (B, D, H', W') to (B, C, H, W). Arguments as `ConvEncoder`'s."""

    def __init__(self, channels: int, dim: int, *, width: int = 64, levels: int = 2) -> None:
        super().__init__()
        for name, value in {"channels": channels, "dim": dim, "width": width, "levels": levels}.items():
            require_count(name, value)
        self.dim = dim
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1), Residual(width)]
        for after in [width] * (levels - 1) + [channels]:
            layers += [nn.SiLU(), nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)]  # doubles
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Decode z (B, D, H', W'); `ValueError` if it has another number of channels."""
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ValueError(f"z must have shape (B, {self.dim}, H', W'); got {tuple(z.shape)}")
        return self.layers(z)
