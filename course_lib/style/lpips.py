r"""LPIPS: a distance of images by the directions of their features (Zhang and others, 2018)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib.require import require_sizes

SHORTEST = 1e-4  # below it a length may be rounding: filters without mean see a patch of one colour as 0


def unit(features: Tensor) -> Tensor:
    """Each position's vector of features, divided by its length, or by 1e-4 if that is shorter: (N, C, H, W).

    So a zero vector stays, and one that is only rounding stays short. Lengths are float32 at least.

    Examples:
        >>> unit(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    squared = wide.square().sum(1, keepdim=True)
    return (wide / squared.clamp(min=SHORTEST**2).sqrt()).to(features.dtype)


def differences(features: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[Tensor]:
    r"""What LPIPS weighs: for each layer, (N, C), the mean over positions of the squared differences of
    the unit vectors.

    Examples:
        >>> one, other = (torch.eye(2)[i].view(1, 2, 1, 1) for i in (0, 1))  # orthogonal features
        >>> differences({"layer": one}, {"layer": other})
        [tensor([[1., 1.]])]
    """
    return [(unit(f) - unit(others[name])).square().mean((2, 3)) for name, f in features.items()]


class LPIPS(nn.Module):
    r"""The distance :math:`\sum_\ell \frac{1}{M_\ell} \sum_p \sum_c w_{\ell c} (\hat f_{pc} - \hat g_{pc})^2`

    The sums go over layers, the layer's M positions and its features; :math:`\hat f_p`, :math:`\hat g_p`
    are the two images' features there, divided by their lengths; see `unit`.

    This is equation 1 of the paper, with :math:`w` in place of its :math:`w^2`, as in the authors' code.
    Images are (N, 3, H, W) in [-1, 1].

    Args:
        features: from images to feature maps by layer; see `course_lib.style.features`.
        weights: for each layer (C,), not negative; ``None`` weighs all channels by 1, so that a layer's
            distance is twice the mean of 1 - cosine.

    Examples:
        >>> from course_lib.style.features import RandomFeatures
        >>> distance = LPIPS(RandomFeatures(generator=torch.Generator().manual_seed(0)))
        >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        >>> distance(x, x)
        tensor([0., 0.])
    """

    def __init__(
        self, features: Callable[[Tensor], Mapping[str, Tensor]], weights: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__()
        self.features = features
        if not all((w >= 0).all() for w in weights or ()):
            raise ValueError("weights must be at least 0, all of them")
        self.weights = None if weights is None else nn.ParameterList([w.clone() for w in weights])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y: (N, 3, H, W) in [-1, 1]. Returns (N,)."""
        require_sizes("x", x, "N", 3, "H", "W")
        require_sizes("y", y, *x.shape)
        layers = differences(self.features(x), self.features(y))
        weights = [torch.ones_like(d[0]) for d in layers] if self.weights is None else self.weights
        return sum(d @ w.to(d.dtype) for d, w in zip(layers, weights, strict=True))


def read_weights(path: str | Path) -> list[Tensor]:
    r"""The channel weights in a file of the authors' ``lpips`` package, such as ``weights/v0.1/alex.pth``.

    Examples:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, file.name)
        ...     read_weights(file.name)
        [tensor([1., 1., 1.])]
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(state))]  # (1, C, 1, 1) to (C,)
