r"""Style as second moments of features: Gram matrices, the losses that compare them, and AdaIN.

A loss is called at each step of an optimizer, so it reads nothing back from the device: what is not finite
stays so, and `course_lib.style.pixels.optimize` stops there.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.require import require_sizes, require_weight

Features = Mapping[str, Tensor]


def gram(features: Tensor) -> Tensor:
    r"""The Gram matrix :math:`F F^\top / (C H W)` of features (N, C, H, W): (N, C, C).

    Divided by the positions it is a mean, which does not know how large the image is; divided by the
    channels too, its entries are smaller the more of them there are (Johnson and others, 2016).

    Examples:
        >>> gram(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
        tensor([[[ 0.5000, -0.5000],
                 [-0.5000,  0.5000]]])
    """
    require_sizes("features", features, "N", "C", "H", "W")
    flat = features.flatten(2)  # (N, C, H*W)
    return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def style_loss(features: Features, targets: Features) -> Tensor:
    r"""How far features are from a style's Gram matrices, relative to these.

    The mean over layers and images of :math:`\lVert \Gamma - \Gamma' \rVert^2 / \lVert \Gamma' \rVert^2`. It
    is 0 where they agree and 1 where all features vanish.

    Args:
        features: the image's features (N, C, H, W) by layer.
        targets: the style's Gram matrices (N, C, C) or (1, C, C); the layers named here count. None may
            vanish.

    Examples:
        >>> f = torch.ones(1, 2, 4, 4)
        >>> style_loss({"p": 2 * f}, {"p": gram(f)})  # a Gram matrix 4 times too large
        tensor(9.)
    """
    return _relative(features, targets, gram)


def content_loss(features: Features, targets: Features) -> Tensor:
    r"""How far features are from those of an image, place by place, relative to these.

    The mean over the layers of `targets`, and over images, of :math:`\lVert F - F' \rVert^2 / \lVert F'
    \rVert^2`. Features and targets are (N, C, H, W); one image's targets (1, C, H, W) serve all images.

    Examples:
        >>> f = torch.ones(1, 2, 4, 4)
        >>> content_loss({"p": 2 * f}, {"p": f})
        tensor(1.)
    """
    return _relative(features, targets, lambda f: f)


def total_variation(x: Tensor, *, rounding: float = 1e-3) -> Tensor:
    r"""The mean over pixels of the length of the brightness's slope, for images (N, C, H, W).

    :math:`\sqrt{\delta_x^2 + \delta_y^2 + r^2} - r` with the differences to the next pixel on the right
    and below, which are 0 at the last column and row. The `rounding` r makes it smooth at 0
    (Rudin, Osher and Fatemi, 1992, have r = 0, where the gradient of a flat image is NaN).

    Examples:
        >>> total_variation(torch.zeros(1, 3, 4, 4))
        tensor(0.)
    """
    right = F.pad(x.diff(dim=3), (0, 1))
    below = F.pad(x.diff(dim=2), (0, 0, 0, 1))
    return ((right**2 + below**2 + rounding**2).sqrt() - rounding).mean()


def adain(features: Tensor, style: Tensor, *, eps: float = 1e-5) -> Tensor:
    r"""Give every channel of an image's features the mean and the standard deviation of a style's.

    :math:`\sigma' (F - \mu) / \sqrt{\sigma^2 + \epsilon} + \mu'` (Huang and Belongie, 2017, equation 8), with
    the moments over positions: the shortest way to move one Gaussian onto the other, channel by channel.
    Features (N, C, H, W), style (N, C, H', W') or (1, C, H', W'). `eps` keeps constant channels finite.

    Examples:
        >>> f = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
        >>> adain(f, 10 * f + 5, eps=0.0).flatten()
        tensor([ 5., 25.])
    """
    require_sizes("style", style, "N", features.shape[1], "H", "W")
    require_weight("eps", eps)
    mean = lambda f: f.mean((2, 3), keepdim=True)
    var = lambda f: f.var((2, 3), correction=0, keepdim=True)
    unit = (features - mean(features)) / (var(features) + eps).sqrt()
    return var(style).sqrt() * unit + mean(style)


def _relative(features: Features, targets: Features, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The squared distance of `of(features)` to a target, relative to it: mean over layers and images."""
    each = []
    for name, want in targets.items():
        got = of(features[name])
        if got.shape[1:] != want.shape[1:] or len(want) not in (1, len(got)):  # they would broadcast
            raise ValueError(f"targets must have shape {tuple(got.shape)} in {name}; got {tuple(want.shape)}")
        size = want.square().flatten(1).sum(1)
        each.append((got - want).square().flatten(1).sum(1) / size)
    return torch.stack(each).mean()
