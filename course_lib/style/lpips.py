r"""LPIPS: a distance of images by the directions of their features (Zhang and others, 2018)."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib.require import require_images, require_values

SHORTEST = 1e-4  # below it a length may be rounding: filters without mean see a patch of one colour as 0


def unit(features: Tensor) -> Tensor:
    """Each position's vector of features, divided by its length, or by 1e-4 if that is shorter: (N, C, H, W).

    So a zero vector stays, and one that is only rounding stays short.
    """
    squared = features.square().sum(1, keepdim=True)
    return features / squared.clamp(min=SHORTEST**2).sqrt()


def differences(features: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[Tensor]:
    r"""What LPIPS weighs: for each layer, (N, C), the mean over positions of the squared differences of
    the unit vectors."""
    if {name: f.shape for name, f in features.items()} != {name: f.shape for name, f in others.items()}:
        raise ValueError("features and others must have the same layers, of the same shapes")
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
    """

    def __init__(
        self, features: Callable[[Tensor], Mapping[str, Tensor]], weights: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__()
        self.features = features
        for w in () if weights is None else weights:
            require_values("weights", w, "C")
            if (w < 0).any():
                raise ValueError(f"weights must be at least 0; got {w.min():g}")
        self.weights = None if weights is None else nn.ParameterList([w.clone() for w in weights])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y: (N, 3, H, W) in [-1, 1]. Returns (N,)."""
        require_images("x", x, (3, "H", "W"))
        require_images("y", y, x.shape)
        layers = differences(self.features(x), self.features(y))
        weights = [torch.ones_like(d[0]) for d in layers] if self.weights is None else self.weights
        if [len(w) for w in weights] != [d.shape[1] for d in layers]:
            raise ValueError(
                f"weights must have lengths {[d.shape[1] for d in layers]}; got {[len(w) for w in weights]}"
            )
        return sum(d @ w.to(d.dtype) for d, w in zip(layers, weights, strict=True))


def read_weights(path: str | Path) -> list[Tensor]:
    r"""The channel weights in a file of the authors' ``lpips`` package, such as ``weights/v0.1/alex.pth``.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must be a file that torch.save wrote; it cannot be read: {error}"
        ) from error
    names = [f"lin{i}.model.1.weight" for i in range(len(state))] if isinstance(state, dict) else []
    if not names or set(state) != set(names):
        got = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} must hold lin0.model.1.weight and so on, none left out; got {got}")
    return [state[name].flatten() for name in names]  # (1, C, 1, 1) to (C,)
