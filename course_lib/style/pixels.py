r"""Images made to have a style: `optimize` moves pixels, one iteration of L-BFGS at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.require import require_images, require_weight
from course_lib.style.features import halve
from course_lib.style.losses import Features, content_loss, gram, style_loss, total_variation

Extractor = Callable[[Tensor], Features]

FAINTEST = 1e-5  # features of a smaller root mean square may be rounding: filters without mean see one colour


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
        FloatingPointError: the loss is not finite.

    Examples:
        >>> *_, last = optimize(lambda x: (x - 3).square().sum(), torch.zeros(2), steps=5)
        >>> last.image
        tensor([3., 3.])
    """
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
            value = loss(x) * x.numel()
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
            multiple of ``2**(stages - 1)``, or a layer that counts sees nothing in an image, as filters
            without mean in one of one colour.

    Examples:
        >>> from course_lib.style.features import RandomFeatures
        >>> draw = torch.Generator().manual_seed(0)
        >>> style = torch.rand(1, 3, 32, 32, generator=draw) * 2 - 1
        >>> made = list(transfer(RandomFeatures(8, generator=draw), style, steps=5, generator=draw))
        >>> made[-1].loss < made[0].loss, made[-1].image.shape
        (True, torch.Size([1, 3, 32, 32]))
    """
    require_weight("content_weight", content_weight)
    require_weight("tv_weight", tv_weight)
    x = content if start is None else start
    for name, image in {"style": style, "content": content, "start": start}.items():
        if image is not None or name == "style":
            require_images(name, image, (3, "H", "W"))
            if any(side % 2 ** (stages - 1) for side in image.shape[2:]):
                raise ValueError(f"{name} must have sides that are multiples of {2 ** (stages - 1)}")
    if x is not None and len(style) not in (1, len(x)):
        raise ValueError(f"style must hold one image, or one for each of {len(x)}; got {len(style)}")
    if content is not None and x.shape != content.shape:
        raise ValueError(f"start must have content's shape, {tuple(content.shape)}; got {tuple(x.shape)}")
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
        grams = {name: gram(there[name]) for name in style_layers or there}
        _require_seen("style", grams, FAINTEST**4)
        there = {} if content is None else features(content)
        kept = {name: there[name] for name in content_layers if there}
        _require_seen("content", kept, FAINTEST**2)

    def loss(x: Tensor) -> Tensor:
        seen = features(x)
        total = style_loss(seen, grams) + (x.abs() - 1).relu().square().mean()
        if kept:
            total = total + weights[0] * content_loss(seen, kept)
        return total + weights[1] * total_variation(x)

    return loss


def _require_seen(name: str, targets: Features, least: float) -> None:
    """Refuse an image of which a layer sees nothing: relative to rounding everything is far."""
    for layer, value in targets.items():
        if not (value.square().flatten(1).mean(1) > least).all():
            raise ValueError(f"{name} must show something to layer {layer}, which sees mere rounding or NaN")
