r"""Feature maps of images: random filters on a pyramid, and layers of trained networks.

A feature extractor is a function from images (N, 3, H, W) in :math:`[-1, 1]` to a dictionary from a
layer's name to its feature map (N, C, H', W'). It has no opinion on what the features are for. The range
is not checked, because an optimizer may leave it for a while.
"""

import copy
from collections.abc import Sequence
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, VGG16_Weights, VGG19_Weights, alexnet
from torchvision.models.vgg import cfgs, make_layers

from course_lib.require import require_sizes

# Luminance and two opponent colours, orthogonal. Photographs vary most in luminance, so the filters
# would hardly see colour if the opponents did not count twice.
OPPONENT = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]])
OPPONENT /= OPPONENT.norm(dim=1, keepdim=True)
OPPONENT[1:] *= 2

# ImageNet's means and standard deviations, moved from [0, 1] to [-1, 1].
MEAN = 2 * torch.tensor([0.485, 0.456, 0.406]) - 1
STD = 2 * torch.tensor([0.229, 0.224, 0.225])

# Gatys and others (2016): five layers of VGG-19 for the style, one more for the content.
GATYS_STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
GATYS_CONTENT = ("relu4_2",)


def halve(x: Tensor, factor: int = 2) -> Tensor:
    """Images a whole `factor` smaller, smoothed before they are thinned out: (N, C, H, W).

    Examples:
        >>> halve(torch.ones(1, 3, 9, 8)).shape
        torch.Size([1, 3, 4, 4])
    """
    size = (x.shape[2] // factor, x.shape[3] // factor)
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


class RandomFeatures(nn.Module):
    r"""Random filters, rectified, on each level of a pyramid. Nothing is trained, nothing downloaded.

    The first layer, ``"colour"``, holds the three opponent colours of each pixel and the constant 1,
    so that its Gram matrix holds the colours' means and second moments. Then the same `filters` filters
    see the image at its full size, ``"1/1"``, at half of it, ``"1/2"``, and so on, as long as
    the shorter side has at least `coarsest` pixels: a filter of 5 pixels at ``"1/8"`` spans 40.
    Each filter is drawn from a normal distribution, loses its mean in every colour, and gets length 1.

    After Ustyuzhaninov and others (2016), whose random filters of several sizes are all at full size.

    Args:
        filters: the number of filters, C of every layer but the first.
        size: side of a filter in pixels, odd.
        coarsest: the shortest side of the last level, at least `size` and 2, as it is halved once more.
        rectify: set negative responses to 0. Without it the features are linear in the image.
        generator: where the filters come from.

    Examples:
        >>> extract = RandomFeatures(8, generator=torch.Generator().manual_seed(0))
        >>> {layer: tuple(f.shape) for layer, f in extract(torch.zeros(1, 3, 32, 32)).items()}
        {'colour': (1, 4, 32, 32), '1/1': (1, 8, 32, 32), '1/2': (1, 8, 16, 16)}
    """

    def __init__(
        self,
        filters: int = 48,
        size: int = 5,
        *,
        coarsest: int = 16,
        rectify: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size must be odd; got {size}")
        weight = torch.randn(filters, 3, size, size, generator=generator)
        if size > 1:
            weight -= weight.mean((2, 3), keepdim=True)
        weight /= weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.register_buffer("weight", weight)
        self.register_buffer("opponent", OPPONENT.clone())
        self.coarsest, self.rectify = coarsest, rectify

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, 3, H, W) to "colour", (N, 4, H, W), and "1/s", (N, C, H // s, W // s)."""
        require_sizes("x", x, "N", 3, "H", "W")
        if min(x.shape[2:]) < self.coarsest:  # no filter would see it
            raise ValueError(f"x must have sides of at least {self.coarsest}; got {tuple(x.shape[2:])}")
        x = torch.einsum("ij,njhw->nihw", self.opponent.to(x.dtype), x)
        found = {"colour": torch.cat([x, torch.ones_like(x[:, :1])], 1)}
        edge, scale = self.weight.shape[-1] // 2, 1
        while min(x.shape[2:]) >= self.coarsest:
            padded = F.pad(x, (edge,) * 4, mode="reflect") if edge else x
            seen = F.conv2d(padded, self.weight.to(x.dtype))
            found[f"1/{scale}"] = F.relu(seen) if self.rectify else seen
            x, scale = halve(x), 2 * scale
        return found


class NetworkFeatures(nn.Module):
    r"""The outputs of some layers of a trained chain of layers, for images in :math:`[-1, 1]`.

    Args:
        net: takes images normalized by ImageNet's means and standard deviations. It is copied; the copy is
            frozen, and stays in evaluation mode.
        layers: the names of the wanted layers and their places in `net`, from 0.

    Examples:
        >>> extract = NetworkFeatures(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"relu1": 1})
        >>> extract(torch.zeros(1, 3, 8, 8))["relu1"].shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(self, net: nn.Sequential, layers: dict[str, int]) -> None:
        super().__init__()
        self.net = copy.deepcopy(net[: max(layers.values()) + 1]).eval().requires_grad_(False)
        for part in self.net.modules():
            if getattr(part, "inplace", False):
                part.inplace = False  # else it would overwrite the layer before it
        self.layers = layers
        self.register_buffer("mean", MEAN.view(1, 3, 1, 1))
        self.register_buffer("std", STD.view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> "NetworkFeatures":
        """Whatever contains it: it stays in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, 3, H, W), of the network's precision, to a layer's (N, C, H', W') for each name."""
        require_sizes("x", x, "N", 3, "H", "W")
        x, found = (x - self.mean) / self.std, {}
        for place, part in enumerate(self.net):
            x = part(x)
            found |= {name: x for name, at in self.layers.items() if at == place}
        return {name: found[name] for name in self.layers}


def vgg_places(depth: int) -> dict[str, int]:
    """Names such as "relu4_2" (after Simonyan and Zisserman's conv4_2) and their places in torchvision's.

    >>> vgg_places(19)["relu4_2"]
    22
    """
    places, block, nth, place = {}, 1, 0, 0
    for width in cfgs[{16: "D", 19: "E"}[depth]]:
        if width == "M":
            block, nth, place = block + 1, 0, place + 1
        else:
            nth, place = nth + 1, place + 2
            places[f"relu{block}_{nth}"] = place - 1
    return places


class VGGFeatures(NetworkFeatures):
    r"""Layers of VGG-19, trained on ImageNet, as in Gatys and others (2016).

    Args:
        layers: such as ``"relu4_2"``, the second convolution of the fourth block, rectified. The paper
            calls it conv4_2. By default those of the paper, for style and content.
        pretrained: load torchvision's weights (about 550 MB, downloaded once). Without it the network is
            random.
        average_pool: average where the network was trained to take the maximum, as the paper suggests.

    Raises:
        RuntimeError: the weights are not there and could not be downloaded.

    Examples:
        >>> extract = VGGFeatures(("relu1_1", "relu2_1"), pretrained=False)
        >>> extract(torch.zeros(1, 3, 16, 16))["relu2_1"].shape
        torch.Size([1, 128, 8, 8])
    """

    def __init__(
        self,
        layers: Sequence[str] = (*GATYS_STYLE, *GATYS_CONTENT),
        *,
        pretrained: bool = True,
        average_pool: bool = False,
    ) -> None:
        known = vgg_places(19)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they were
            net = make_layers(cfgs["E"])
        if pretrained:
            net.load_state_dict(_weights("VGG-19", VGG19_Weights.IMAGENET1K_V1))
        if average_pool:
            net = nn.Sequential(*(nn.AvgPool2d(2, 2) if isinstance(p, nn.MaxPool2d) else p for p in net))
        super().__init__(net, {name: known[name] for name in layers})


def lpips_backbone(name: str, *, pretrained: bool = True) -> NetworkFeatures:
    """The layers that LPIPS compares: of AlexNet, ``"alex"``, or of VGG-16, ``"vgg"``.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the weights are not there and could not be downloaded.

    Examples:
        >>> seen = lpips_backbone("alex", pretrained=False)(torch.zeros(1, 3, 64, 64))
        >>> [tuple(layer.shape[1:]) for layer in seen.values()][:2]
        [(64, 15, 15), (192, 7, 7)]
    """
    if name not in ("alex", "vgg"):
        raise ValueError(f"name must be alex or vgg; got {name!r}")
    if name == "alex":
        make, weights = lambda: alexnet().features, AlexNet_Weights.IMAGENET1K_V1
        layers = {f"relu{i}": place for i, place in enumerate((1, 4, 7, 9, 11), start=1)}
    else:
        make, weights = lambda: make_layers(cfgs["D"]), VGG16_Weights.IMAGENET1K_V1
        layers = {n: vgg_places(16)[n] for n in ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")}
    with torch.random.fork_rng(devices=[]):
        net = make()
    if pretrained:
        net.load_state_dict(_weights({"alex": "AlexNet", "vgg": "VGG-16"}[name], weights))
    return NetworkFeatures(net, layers)


def _weights(name: str, weights: AlexNet_Weights | VGG16_Weights | VGG19_Weights) -> dict[str, Tensor]:
    """Torchvision's weights of the convolutions, from its cache or its server."""
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, URLError) as error:
        raise RuntimeError(
            f"the weights of {name} could not be downloaded ({error}); "
            "the bundled alternative is RandomFeatures, which needs none"
        ) from error
    return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
