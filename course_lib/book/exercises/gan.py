"""Exercises of the chapter on generative adversarial networks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.book.exercises import Exercise, normal


def _bound(real: Tensor, fake: Tensor) -> Tensor:
    """By the library's binary cross-entropy with labels."""
    loss = F.binary_cross_entropy_with_logits
    value = -loss(real, torch.ones_like(real)) - loss(fake, torch.zeros_like(fake))
    return math.log(2) + value / 2


def _naive_bound(real: Tensor, fake: Tensor) -> Tensor:
    value = torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()
    return math.log(2) + value / 2


def _jacobian_penalty(logit: Callable[[Tensor], Tensor], x: Tensor, gamma: float) -> Tensor:
    """Point by point, from the whole Jacobian."""
    bend = torch.autograd.functional.jacobian(logit, x, create_graph=True)  # (B, B, D)
    own = torch.stack([bend[i, i] for i in range(len(x))])
    return gamma / 2 * own.square().sum() / len(x)


def _slope(logit: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(logit(x).sum(), x)[0]


_weights = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)  # that the penalty trains


def _curve(x: Tensor) -> Tensor:
    return _weights[0] * torch.sin(x).sum(1) * x[:, 0]


def _wave(x: Tensor) -> Tensor:
    return torch.exp(-x.square().sum(1)) + _weights[1] * x[:, 1]


def _transposed(y: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv_transpose1d(y[None, None], kernel[None, None], stride=stride, padding=padding)[0, 0]


EXERCISES = {
    "gan-bound": Exercise(
        reference=_bound,
        cases=lambda: [
            (normal(20) + 1, normal(30, seed=1) - 1),
            (torch.tensor([1000.0, -3.0]), torch.tensor([-1000.0, 800.0, 2.0])),
        ],
        mistakes={
            "taken the logarithm of a probability that rounds to zero": _naive_bound,
            "forgotten to add log 2": lambda real, fake: _bound(real, fake) - math.log(2),
            "forgotten to halve the value": lambda real, fake: 2 * _bound(real, fake) - math.log(2),
            "exchanged real and generated points": lambda real, fake: _bound(fake, real),
            "turned the sign of the value": lambda real, fake: 2 * math.log(2) - _bound(real, fake),
        },
    ),
    "gan-r1": Exercise(
        reference=_jacobian_penalty,
        cases=lambda: [(_curve, normal(6, 3), 2.0), (_wave, normal(4, 2, seed=1), 0.3)],
        mistakes={
            "forgotten the factor one half": lambda f, x, g: g * _slope(f, x).square().sum(1).mean(),
            "averaged over the coordinates, too": lambda f, x, g: g / 2 * _slope(f, x).square().mean(),
            "taken the norm without squaring it": lambda f, x, g: g / 2 * _slope(f, x).norm(dim=1).mean(),
            "differentiated the mean of the logits, and not their sum": lambda f, x, g: (
                g / 2 * (_slope(f, x) / len(x)).square().sum(1).mean()
            ),
            "left out `create_graph=True`": lambda f, x, g: g / 2 * _slope(f, x).square().sum(1).mean(),
            "pulled the slope towards 1, as the gradient penalty does": lambda f, x, g: (
                g / 2 * (_slope(f, x).norm(dim=1) - 1).square().mean()
            ),
        },
    ),
    "gan-transpose": Exercise(
        reference=_transposed,
        cases=lambda: [(normal(4), normal(3, seed=1), 2, 1), (normal(5, seed=2), normal(5), 3, 0)],
        mistakes={
            "turned the kernel around": lambda y, k, s, p: _transposed(y, k.flip(0), s, p),
            "forgotten to crop the padding": lambda y, k, s, p: _transposed(y, k, s, 0),
            "cropped one end only": lambda y, k, s, p: _transposed(y, k, s, 0)[2 * p :],
            "let a later input overwrite an earlier one": lambda y, k, s, p: _overwritten(y, k, s, p),
        },
    ),
}


def _overwritten(y: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    out = y.new_zeros((len(y) - 1) * stride + len(kernel))
    for i, value in enumerate(y):
        out[i * stride : i * stride + len(kernel)] = value * kernel
    return out[padding : len(out) - padding]
