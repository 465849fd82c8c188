"""A multilayer perceptron: linear maps with a smooth nonlinearity between them."""

import itertools

from torch import nn


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
