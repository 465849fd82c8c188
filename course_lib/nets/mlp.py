"""A multilayer perceptron: linear maps with a smooth nonlinearity between them."""

import itertools
import math

import torch
from torch import Tensor, nn

from course_lib.nets.embeddings import Sinusoids, TimeFeatures


def mlp(*sizes: int) -> nn.Sequential:
    """A network from ``sizes[0]`` numbers to ``sizes[-1]``, with hidden layers between and SiLUs after them.

    >>> mlp(64, 256, 2)(torch.zeros(5, 64)).shape
    torch.Size([5, 2])
    >>> mlp(64, 2)  # one linear map
    Sequential(
      (0): Linear(in_features=64, out_features=2, bias=True)
    )
    """
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
            (Tancik and others, 2020, section 6).

    >>> TimeMLP(2, waves=4)(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, dim: int, *, hidden: int = 128, layers: int = 3, waves: int = 0) -> None:
        super().__init__()
        self.features = TimeFeatures(64)
        self.waves = Sinusoids(math.pi * 2.0 ** torch.arange(waves, device="cpu"))
        self.body = mlp(dim * (1 + 2 * waves) + 64, *[hidden] * layers, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, D), t: (B,). Returns (B, D)."""
        seen = [x, self.waves(x, x.dtype), self.features(t, x.dtype)]
        return self.body(torch.cat(seen, 1))
