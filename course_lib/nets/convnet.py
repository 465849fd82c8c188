"""A convolutional encoder and its mirror image, for images whose sides are divisible by 2**levels."""

from torch import Tensor, nn

from course_lib.gmm import require_count


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
        return x + self.body(x)


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) to a grid of vectors (B, D, H', W'), H' = H / 2**levels.

    Args:
        channels: C of the images.
        dim: D of the vectors.
        width: channels between.
        levels: how often the sides are halved.
    """

    def __init__(self, channels: int, dim: int, *, width: int = 64, levels: int = 2) -> None:
        super().__init__()
        _require(channels=channels, dim=dim, width=width, levels=levels)
        self.channels, self.factor = channels, 2**levels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for _ in range(levels):
            layers += [nn.SiLU(), nn.Conv2d(width, width, 4, stride=2, padding=1)]  # halves the sides
        layers += [Residual(width), nn.SiLU(), nn.Conv2d(width, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
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
        _require(channels=channels, dim=dim, width=width, levels=levels)
        self.dim = dim
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1), Residual(width)]
        for _ in range(levels):
            layers += [nn.SiLU(), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]  # doubles
        layers += [nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ValueError(f"z must have shape (B, {self.dim}, H', W'); got {tuple(z.shape)}")
        return self.layers(z)


def _require(*, levels: int, **counts: int) -> None:
    for name, value in counts.items():
        require_count(name, value)
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 0:
        raise ValueError(f"levels must be an integer of at least 0; got {levels!r}")
