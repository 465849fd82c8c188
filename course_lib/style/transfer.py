r"""Style as second moments of features, and images made to have them.

Only this file of the chapter touches an optimizer: `optimize` moves pixels, one iteration of L-BFGS
at a time, and yields what it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.style.features import halve
from course_lib.require import require_count, require_images, require_sizes, require_values, require_weight

Features = Mapping[str, Tensor]
Extractor = Callable[[Tensor], Features]

FAINTEST = 1e-5  # features of a smaller root mean square may be rounding: filters without mean see one colour


def gram(features: Tensor) -> Tensor:
    r"""The Gram matrix :math:`F F^\top / (C H W)` of features (N, C, H, W): (N, C, C).

    Divided by the positions it is a mean, which does not know how large the image is; divided by the
    channels too, its entries are smaller the more of them there are (Johnson and others, 2016).

    Raises:
        ValueError: features are not a floating-point tensor (N, C, H, W), or a product is not finite.
    """
    require_sizes("features", features, "N", "C", "H", "W")
    flat = features.flatten(2)  # (N, C, H*W)
    found = flat @ flat.mT / (flat.shape[1] * flat.shape[2])
    if not torch.isfinite(found).all():  # as any NaN makes it; there is less to look at here
        raise ValueError("features must be finite, and so must sums of their products")
    return found


def style_loss(features: Features, targets: Features) -> Tensor:
    r"""How far features are from a style's Gram matrices, relative to these.

    The mean over layers and images of :math:`\lVert \Gamma - \Gamma' \rVert^2 / \lVert \Gamma' \rVert^2`. It
    is 0 where they agree and 1 where all features vanish.

    Args:
        features: the image's features (N, C, H, W) by layer.
        targets: the style's Gram matrices (N, C, C) or (1, C, C); the layers named here count.

    Raises:
        ValueError: a layer is unknown, shapes do not fit, a value is not finite, or a Gram matrix is as small
            as rounding makes it where filters without mean see an image of one colour.
    """
    return _relative(features, targets, gram, FAINTEST**4)


def content_loss(features: Features, targets: Features) -> Tensor:
    r"""How far features are from those of an image, place by place, relative to these.

    The mean over the layers of `targets`, and over images, of :math:`\lVert F - F' \rVert^2 / \lVert F'
    \rVert^2`. Features and targets are (N, C, H, W); one image's targets (1, C, H, W) serve all images.

    Raises:
        ValueError: as in `style_loss`.
    """
    return _relative(features, targets, lambda f: f, FAINTEST**2)


def total_variation(x: Tensor, *, rounding: float = 1e-3) -> Tensor:
    r"""The mean over pixels of the length of the brightness's slope, for images (N, C, H, W).

    :math:`\sqrt{\delta_x^2 + \delta_y^2 + r^2} - r` with the differences to the next pixel on the right
    and below, which are 0 at the last column and row. The `rounding` r makes it smooth at 0
    (Rudin, Osher and Fatemi, 1992, have r = 0). It must be positive: without it the gradient of a flat image
    is NaN.
    """
    require_values("x", x, "N", "C", "H", "W")
    if not require_weight("rounding", rounding) > 0:
        raise ValueError("rounding must be positive; got 0")
    right = F.pad(x.diff(dim=3), (0, 1))
    below = F.pad(x.diff(dim=2), (0, 0, 0, 1))
    return ((right**2 + below**2 + rounding**2).sqrt() - rounding).mean()


class Iteration(NamedTuple):
    """An iteration that was done: its number from 1, the loss after it, and the images (N, 3, H, W)."""

    step: int
    loss: float
    image: Tensor


def optimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, *, history: int = 20
) -> Iterator[Iteration]:
    r"""Make a loss of pixels small by L-BFGS (Liu and Nocedal, 1989); yields after each iteration.

    Nothing happens until the result is iterated over. `start` is not changed.

    Args:
        loss: from pixels to a number.
        start: the first pixels.
        steps: iterations. Each tries one step length as a rule, more where it fails Wolfe's conditions.
        history: how many earlier iterations tell about the curvature.

    Raises:
        ValueError: a count is not positive, `start` is no floating-point tensor, or the loss is no number.
        FloatingPointError: the loss is not finite.
    """
    require_count("steps", steps)
    require_count("history", history)
    if not isinstance(start, Tensor) or not start.is_floating_point() or start.numel() == 0:
        got = f"{getattr(start, 'dtype', type(start).__name__)} {tuple(getattr(start, 'shape', ()))}"
        raise ValueError(f"start must be a floating-point tensor with entries; got {got}")
    x = start.detach().clone().requires_grad_()
    # max_eval bounds the line search. tolerances of 0: the number of steps decides when to stop.
    solver = torch.optim.LBFGS(
        [x],
        max_iter=1,
        max_eval=26,
        history_size=history,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    at, value, slope = None, None, None

    def closure() -> Tensor:
        """The loss, times the number of pixels: PyTorch ignores curvatures below 1e-10."""
        nonlocal at, value, slope
        if at is None or not torch.equal(at, x):  # the first evaluation repeats the last line search's
            solver.zero_grad()
            value = loss(x)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(
                    f"loss must return a tensor of one number; got {getattr(value, 'shape', value)}"
                )
            value = value * x.numel()
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()}")
            value.backward()
            at, value, slope = x.detach().clone(), value.detach(), x.grad.clone()
        x.grad = slope.clone()
        return value

    for step in range(1, steps + 1):
        solver.step(closure)
        yield Iteration(step, closure().item() / x.numel(), x.detach().clone())


def transfer(
    features: Extractor,
    style: Tensor,
    *,
    content: Tensor | None = None,
    style_layers: Sequence[str] | None = None,
    content_layers: Sequence[str] = ("1/4",),
    content_weight: float = 0.1,
    tv_weight: float = 0.0,
    stages: int = 1,
    steps: int = 50,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Iteration]:
    r"""Give an image the Gram matrices of `style`, and keep the layout of `content` where there is one.

    Nothing happens until the result is iterated over. The loss is `style_loss` + `content_weight` ·
    `content_loss` + `tv_weight` · `total_variation`, plus the mean squared excess of pixels over
    :math:`[-1, 1]`. The images that are yielded are cut there.

    Args:
        features: an extractor; see `course_lib.style.features`.
        style: (1, 3, H, W) in [-1, 1], or one for each content.
        content: (N, 3, H', W') in [-1, 1], or ``None`` to synthesize a texture.
        style_layers: layers whose Gram matrices count; ``None`` takes all that the extractor yields.
        content_layers: layers that the content loss compares.
        content_weight: the weight of the content.
        tv_weight: the weight of the total variation.
        stages: 1 works at full size. 3 works at a quarter, then at half, then at full size, and begins
            each with the result of the last, enlarged: large shapes are cheap in small images.
        steps: iterations in each stage.
        start: (N, 3, H', W'), the first image, at full size; ``None`` takes the content, else the style's
            mean colour with a little noise.
        generator: where the noise comes from.

    Raises:
        ValueError: an image's shape or range is wrong, numbers or sizes of images do not fit, a size is no
            multiple of ``2**(stages - 1)``, a layer is unknown, a weight or a count is out of range, or a
            layer that counts sees nothing in an image, as filters without mean in one of one colour.
    """
    require_weight("content_weight", content_weight)
    require_weight("tv_weight", tv_weight)
    require_count("stages", stages)
    require_count("steps", steps)
    x = content if start is None else start
    for name, image in {"style": style, "content": content, "start": start}.items():
        if image is not None or name == "style":
            require_images(name, image, (3, "H", "W"))
            if any(side % 2 ** (stages - 1) for side in image.shape[2:]):
                wanted = f"sides that are multiples of {2 ** (stages - 1)}"
                raise ValueError(f"{name} must have {wanted}; got {tuple(image.shape[2:])}")
    if content is not None and x.shape != content.shape:
        raise ValueError(f"start must have content's shape, {tuple(content.shape)}; got {tuple(x.shape)}")
    if x is not None and len(style) not in (1, len(x)):
        raise ValueError(f"style must hold one image, or one for each of {len(x)}; got {len(style)}")
    if x is None:
        noise = torch.randn(style.shape, generator=generator).to(style)
        x = (style.mean((2, 3), keepdim=True) + 0.1 * noise).clamp(-1, 1)
    x = halve(x, 2 ** (stages - 1))
    for stage in range(stages):
        factor = 2 ** (stages - 1 - stage)
        small = None if content is None else halve(content, factor)
        loss = _objective(
            features, halve(style, factor), small, style_layers, content_layers, (content_weight, tv_weight)
        )
        for step, value, image in optimize(loss, x, steps):
            yield Iteration(stage * steps + step, value, image.clamp(-1, 1))
        if factor > 1:
            x = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)


def _objective(
    features: Extractor,
    style: Tensor,
    content: Tensor | None,
    style_layers: Sequence[str] | None,
    content_layers: Sequence[str],
    weights: tuple[float, float],
) -> Callable[[Tensor], Tensor]:
    """The loss of one stage, with what it compares to computed once. `weights`: content and variation."""
    with torch.no_grad():
        there = features(style)
        grams = _pick("style_layers", {name: gram(f) for name, f in there.items()}, style_layers)
        kept = {} if content is None else _pick("content_layers", features(content), content_layers)

    def loss(x: Tensor) -> Tensor:
        seen = features(x)
        total = style_loss(seen, grams) + (x.abs() - 1).relu().square().mean()
        if kept:
            total = total + weights[0] * content_loss(seen, kept)
        return total + weights[1] * total_variation(x)

    return loss


def adain(features: Tensor, style: Tensor, *, eps: float = 1e-5) -> Tensor:
    r"""Give every channel of an image's features the mean and the standard deviation of a style's.

    :math:`\sigma' (F - \mu) / \sqrt{\sigma^2 + \epsilon} + \mu'` (Huang and Belongie, 2017, equation 8), with
    the moments over positions: the shortest way to move one Gaussian onto the other, channel by channel.
    Features (N, C, H, W), style (N, C, H', W') or (1, C, H', W'). `eps` keeps constant channels finite.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or `eps` is negative, or is 0 and a channel of
            the features is constant.
    """
    require_values("features", features, "N", "C", "H", "W")
    require_values("style", style, "N", features.shape[1], "H", "W")
    if len(style) not in (1, len(features)):
        raise ValueError(f"style must hold one image, or one for each of {len(features)}; got {len(style)}")
    if require_weight("eps", eps) == 0 and (features.amax((2, 3)) == features.amin((2, 3))).any():
        raise ValueError("eps must be positive where a channel of the features is constant; got 0")
    mean = lambda f: f.mean((2, 3), keepdim=True)
    var = lambda f: f.var((2, 3), correction=0, keepdim=True)
    unit = (features - mean(features)) / (var(features) + eps).sqrt()
    return var(style).sqrt() * unit + mean(style)


def _pick(name: str, there: Features, wanted: Sequence[str] | None) -> dict[str, Tensor]:
    """The wanted layers of those that are there; ``None`` wants all."""
    wanted = list(there) if wanted is None else wanted
    if not wanted or any(layer not in there for layer in wanted):
        raise ValueError(f"{name} must be among {', '.join(there)}; got {', '.join(wanted) or 'none'}")
    return {layer: there[layer] for layer in wanted}


def _relative(features: Features, targets: Features, of: Callable[[Tensor], Tensor], least: float) -> Tensor:
    """The squared distance of `of(features)` to a target, relative to it: mean over layers and images.

    `least` is what the mean of a target's squares must exceed.
    """
    found = _pick("targets", features, list(targets))
    each = []
    for name, want in targets.items():
        got = of(found[name])
        if got.shape[1:] != want.shape[1:] or len(want) not in (1, len(got)):
            fits = f"{tuple(got.shape)}, or 1 in place of {len(got)}"
            raise ValueError(f"targets must have shape {fits}, in layer {name}; got {tuple(want.shape)}")
        size = want.square().flatten(1).sum(1)
        if not torch.isfinite(size).all():
            raise ValueError(f"targets must be finite, and so must their squares, in layer {name}")
        if not (size > least * want[0].numel()).all():
            raise ValueError(f"targets must not vanish, or be mere rounding, as they are in layer {name}")
        each.append((got - want).square().flatten(1).sum(1) / size)
    total = torch.stack(each).mean()
    if not torch.isfinite(total):
        raise ValueError("features must be finite, and so must squared differences from the targets")
    return total
