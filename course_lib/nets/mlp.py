"""A multilayer perceptron: linear maps with a smooth nonlinearity between them."""

import itertools
import math

import torch
from torch import Tensor, nn

from course_lib.nets.embeddings import TimeFeatures
from course_lib.require import require_count


def mlp(*sizes: int) -> nn.Sequential:
    """A network from ``sizes[0]`` numbers to ``sizes[-1]``, with hidden layers between.

    ``mlp(64, 256, 2)`` maps (B, 64) to (B, 2) through 256 hidden units and a SiLU; ``mlp(64, 2)``
    is one linear map.
    """
    if len(sizes) < 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"sizes must be at least two positive integers; got {sizes}")
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])  # nothing after the last map


class TimeMLP(nn.Module):
    """A network ``net(x, t)`` for points: (B, D) and times (B,) in [0, 1] to (B, D).

    Args:
        dim: D.
        hidden: units in a layer.
        layers: hidden layers.
        waves: how many sines and cosines of each coordinate the network sees beside it, with the wavelengths
            2, 1, 1/2, …. A network of coordinates alone is slow to learn what varies within a short way
            (Tancik et al., 2020).
    """

    def __init__(self, dim: int, *, hidden: int = 128, layers: int = 3, waves: int = 0) -> None:
        super().__init__()
        require_count("layers", layers)
        require_count("waves", waves, 0)
        self.features = TimeFeatures(64)
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(waves))
        self.body = mlp(dim * (1 + 2 * waves) + 64, *[hidden] * layers, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, D), t: (B,). Returns (B, D)."""
        angles = (x[:, :, None] * self.frequencies.to(x.dtype)).flatten(1)  # (B, D waves)
        seen = [x, angles.sin(), angles.cos(), self.features(t).to(x.dtype)]
        return self.body(torch.cat(seen, 1))
