r"""Times, places and labels as vectors: sines and cosines of fixed frequencies, and tables that are learned.

Sines are taken in float32 at least, whatever the network's dtype: 1000 t needs more digits than bfloat16 has.
"""

import math

import torch
from torch import Tensor, nn


def falling(count: int) -> Tensor:
    r"""The frequencies :math:`10000^{-i/n}` for i = 0 … n-1, as in the transformer.

    Source: Vaswani and others (2017, section 3.5).

    >>> falling(4)
    tensor([1.0000e+00, 1.0000e-01, 1.0000e-02, 1.0000e-03])
    """
    return torch.exp(-math.log(10_000) * torch.arange(count, device="cpu") / count)


class Sinusoids(nn.Module):
    r"""Numbers x to :math:`\sin(\omega_i x)` for all frequencies, then :math:`\cos(\omega_i x)`.

    Args:
        frequencies: (n,), in radians. They stay float32 when the module is cast to a shorter type.

    >>> waves = Sinusoids(torch.tensor([1.0, 2.0])).bfloat16()
    >>> waves(torch.tensor([0.0, 0.5]))
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.4794, 0.8415, 0.8776, 0.5403]])
    """

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.exact = frequencies.tolist()
        self.register_buffer("frequencies", torch.tensor(self.exact), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)  # moves the frequencies, and may round them
        self.frequencies = torch.tensor(self.exact, device=self.frequencies.device)
        return self

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x: (B,) or (B, D), and the dtype of the result (B, 2 n) or (B, 2 D n)."""
        wide = torch.promote_types(dtype, torch.float32)
        angles = (x[..., None].to(wide) * self.frequencies.to(wide)).flatten(1)  # (B, n) or (B, D n)
        return torch.cat([angles.sin(), angles.cos()], 1).to(dtype)


class TimeFeatures(Sinusoids):
    r"""Times (B,) in [0, 1] to sines and cosines of :math:`1000\, \omega_i t`, (B, dim).

    The frequencies :math:`\omega_i` fall from 1 to 1/10000 (`falling`), and 1000 is the number of steps of
    DDPM, whose network sees them so (Ho and others, 2020, appendix B). Times in [0, 1] are not looked for:
    a denoiser may scale them.

    Args:
        dim: even; half of it frequencies.

    Raises:
        ValueError: times are integers, which are a step's number and no time.

    >>> TimeFeatures(4)(torch.tensor([0.0, 0.001]))
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.8415, 0.0100, 0.5403, 0.9999]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__(1000 * falling(dim // 2))

    def forward(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """t: (B,), and the dtype of the result (B, dim)."""
        if not t.is_floating_point():
            raise ValueError(f"t must be floating-point times in [0, 1]; got {t.dtype}")
        return super().forward(t, dtype)


class TimeEmbedding(nn.Sequential):
    """Times (B,) to vectors (B, size): `TimeFeatures`, and two linear maps with a SiLU between.

    >>> TimeEmbedding(8, 32)(torch.rand(3), torch.float32).shape
    torch.Size([3, 32])
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__(TimeFeatures(dim), nn.Linear(dim, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: (B,), and the dtype of the linear maps."""
        features, first, bend, second = self
        return second(bend(first(features(t, dtype))))


class LabelEmbedding(nn.Embedding):
    """Labels (B,) to vectors (B, size). Label `classes` means "no label", as y=None does for all samples.

    Training with some labels replaced by `classes` is what guidance without a classifier needs
    (Ho and Salimans, 2022, algorithm 1).

    >>> table = LabelEmbedding(3, 5)
    >>> table(torch.tensor([0, 2])).shape
    torch.Size([2, 5])
    >>> torch.equal(table(None)[0], table(torch.tensor([3]))[0])
    True
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__(classes + 1, size)

    def forward(self, y: Tensor | None) -> Tensor:
        """y: (B,) in 0 … classes, or None, for which the result is (1, size)."""
        return self.weight[-1:] if y is None else super().forward(y)


def grid_positions(side: int, dim: int) -> Tensor:
    """The places of a grid in reading order as vectors (side², dim): half for the column, half for the row.

    Source: the "ViT frequency-based" positions of Peebles and Xie (2023, section 3.2), as in their code.

    Args:
        side: of the grid.
        dim: divisible by 4.

    >>> grid_positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0000, 1.0000],
            [0.0000, 1.0000, 0.8415, 0.5403],
            [0.8415, 0.5403, 0.8415, 0.5403]])
    """
    line = Sinusoids(falling(dim // 4))(torch.arange(side))  # (side, dim / 2)
    columns, rows = line.expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1)  # (side², dim)
