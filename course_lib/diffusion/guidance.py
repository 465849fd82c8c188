r"""Denoisers made of denoisers: guided, and cut to the range of the data."""

from typing import Any

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.target import Pair


class Guided(BaseDenoiser):
    r"""Classifier-free guidance (Ho and Salimans, 2022, eq. 6).

    :math:`\hat x_0 = \hat x_0(\varnothing) + \gamma\, (\hat x_0(y) - \hat x_0(\varnothing))`, and so for the
    noise, the score and the velocity. The scale :math:`\gamma` is 1 + w of the paper: 0 is the unconditional
    model, 1 the conditional one.

    Args:
        model: a denoiser; called without a condition it must be the unconditional model.
        scale: :math:`\gamma`.
        interval: times at which to guide (Kynkäänniemi et al., 2024); at others the model is the conditional
            one, and evaluated once.
        rescale: how far :math:`\hat x_0` gets the standard deviation, over its values, that it has without
            guidance, from 0 to 1 (Lin et al., 2024, section 3.4, there of the network's output).

    >>> from course_lib.diffusion import Denoiser, Linear
    >>> net = lambda x, t, y=None: torch.zeros_like(x) if y is None else y[:, None].float().expand_as(x)
    >>> model = Guided(Denoiser(net, Linear(), "x0"), scale=3.0)
    >>> model(torch.zeros(2, 1), 0.5, y=torch.tensor([1, 2])).flatten().tolist()
    [3.0, 6.0]
    """

    def __init__(
        self,
        model: BaseDenoiser,
        scale: float,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model.path)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1]; got {rescale!r}")
        self.model, self.scale, self.interval, self.rescale = model, scale, interval, rescale

    def predict(self, x: Tensor, t: Tensor | float, **condition: Any) -> Pair:
        if not condition:
            raise ValueError("condition must be given: without one there is nothing to guide to")
        given, (low, high) = self.model.predict(x, t, **condition), self.interval
        if not isinstance(t, Tensor) and not low <= t <= high:
            return given
        without, at = self.model.predict(x, t), self.path.expand(t, x)
        scale = torch.where((at >= low) & (at <= high), self.scale, 1.0).to(given.x0)
        guided = Pair(*(torch.lerp(p, q, scale) for p, q in zip(without, given, strict=True)))
        if not self.rescale:
            return guided
        ratio = _spread(given.x0) / _spread(guided.x0)
        return with_x0(self, x, at, guided, (1 + self.rescale * (ratio - 1)) * guided.x0)

    def velocity(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        if self.rescale or isinstance(t, Tensor) or not condition:
            return super().velocity(x, t, **condition)
        given, (low, high) = self.model.velocity(x, t, **condition), self.interval
        if not low <= t <= high:
            return given
        return torch.lerp(self.model.velocity(x, t), given, self.scale)

    def require(self, times: Tensor, *, velocity: bool = False) -> None:
        super().require(times, velocity=velocity and self.rescale > 0)
        self.model.require(times, velocity=velocity and not self.rescale)


class Clipped(BaseDenoiser):
    r"""A denoiser whose :math:`\hat x_0` is kept within ±bound, with the noise that is consistent with it.

    >>> from course_lib.diffusion import Denoiser, Linear
    >>> model = Clipped(Denoiser(lambda x, t: 7 * torch.ones_like(x), Linear(), "x0"), 1.0)
    >>> x0, eps = model.predict(torch.zeros(1, 1), 0.5)
    >>> x0.item(), eps.item()
    (1.0, -1.0)
    """

    def __init__(self, model: BaseDenoiser, bound: float) -> None:
        super().__init__(model.path)
        if not bound > 0:
            raise ValueError(f"bound must be positive; got {bound!r}")
        self.model, self.bound = model, bound

    def predict(self, x: Tensor, t: Tensor | float, **condition: Any) -> Pair:
        pair = self.model.predict(x, t, **condition)
        return with_x0(self, x, self.path.expand(t, x), pair, pair.x0.clamp(-self.bound, self.bound))

    def require(self, times: Tensor, *, velocity: bool = False) -> None:
        super().require(times, velocity=velocity)
        self.model.require(times)


def with_x0(model: BaseDenoiser, x: Tensor, at: Tensor, pair: Pair, x0: Tensor) -> Pair:
    """Another x0, with the noise that then is in x; where b = 0, x says nothing of the noise."""
    a, b = model.path.a(at), model.path.b(at)
    return Pair(x0, torch.where(b > 0, (x - a * x0) / torch.where(b > 0, b, 1.0), pair.eps))


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over each sample's values, (B, 1, …)."""
    return x.flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))


def drop_labels(y: Tensor, share: float, null: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Labels (B,), each replaced by `null` with the probability `share` (Ho and Salimans, 2022, algorithm 1).

    So one network learns the conditional and the unconditional model at once.

    >>> drop_labels(torch.tensor([3, 1, 2]), 1.0, null=10)
    tensor([10, 10, 10])
    """
    dropped = torch.rand(y.shape, generator=generator, device=y.device) < share
    return torch.where(dropped, null, y)
