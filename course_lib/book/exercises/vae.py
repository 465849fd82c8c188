"""Exercises of the chapter on variational autoencoders."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from course_lib.book.exercises import Exercise, normal
from course_lib.vae.pixels import ContinuousBernoulli


def _gaussian(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def _kl(m0: Tensor, v0: Tensor, m1: Tensor, v1: Tensor) -> Tensor:
    return kl_divergence(_gaussian(m0, v0), _gaussian(m1, v1))


def _missing(logit: Tensor) -> Tensor:
    """The continuous Bernoulli's log-density of black, less BCE's value there; black is x = -1."""
    pixel = logit.reshape(-1, 1, 1, 1)
    density = ContinuousBernoulli().log_prob(pixel, -torch.ones_like(pixel)) + math.log(2)  # of y
    return density.view(logit.shape) + torch.nn.functional.softplus(logit)


def _pixels(logits: Tensor, y: Tensor) -> Tensor:
    return Independent(Bernoulli(logits=logits), 1).log_prob(y)


def _naive(logits: Tensor, y: Tensor) -> Tensor:
    lam = torch.sigmoid(logits)
    return (y * lam.log() + (1 - y) * (1 - lam).log()).sum(1)


def _one_draw(mean: Tensor, log_var: Tensor, eps: Tensor, decoder: Callable, y: Tensor) -> Tensor:
    prior = torch.zeros_like(mean)
    logits = decoder(mean + torch.exp(0.5 * log_var) * eps)
    return _pixels(logits, y) - _kl(mean, log_var, prior, prior)


def _one_draw_cases() -> list[tuple]:
    """Mild logits, and then some near 200 on either side."""
    cases = []
    for seed, scale in ((1, 1.0), (2, 200.0)):
        weight = scale * normal(2, 5, seed=seed)
        y = (normal(4, 5, seed=seed + 20) > 0).double()
        inputs = [normal(4, 2, seed=seed + k) for k in (30, 40, 50)]
        cases.append((*inputs, lambda z, weight=weight: z @ weight, y))
    return cases


EXERCISES = {
    "vae-kl": Exercise(
        reference=_kl,
        cases=lambda: [tuple(normal(5, d, seed=10 * d + i) for i in range(4)) for d in (1, 3)],
        mistakes={
            "exchanged the two distributions": lambda m0, v0, m1, v1: _kl(m1, v1, m0, v0),
            "taken the log-variances for logarithms of standard deviations": lambda m0, v0, m1, v1: _kl(
                m0, 2 * v0, m1, 2 * v1
            ),
            "left out the distance between the means": lambda m0, v0, m1, v1: _kl(m0, v0, m0, v1),
            "compared with the standard normal instead of the second Gaussian": lambda m0, v0, m1, v1: _kl(
                m0, v0, torch.zeros_like(m1), torch.zeros_like(v1)
            ),
            "averaged over the coordinates instead of adding them up": lambda m0, v0, m1, v1: (
                _kl(m0, v0, m1, v1) / m0.shape[1]
            ),
            "forgotten the factor one half": lambda m0, v0, m1, v1: 2 * _kl(m0, v0, m1, v1),
        },
    ),
    "vae-elbo": Exercise(
        reference=_one_draw,
        cases=_one_draw_cases,
        mistakes={
            "added the divergence instead of subtracting it": lambda m, v, eps, decoder, y: (
                _one_draw(m, v, eps, decoder, y) + 2 * _kl(m, v, torch.zeros_like(m), torch.zeros_like(v))
            ),
            "forgotten the divergence": lambda m, v, eps, decoder, y: (
                _one_draw(m, v, eps, decoder, y) + _kl(m, v, torch.zeros_like(m), torch.zeros_like(v))
            ),
            "multiplied the noise by the variance, not by the standard deviation": lambda m, v, eps, *rest: (
                _one_draw(m, v, eps * torch.exp(0.5 * v), *rest)
            ),
            "decoded the mean and left the noise out": lambda m, v, eps, *rest: _one_draw(
                m, v, torch.zeros_like(eps), *rest
            ),
            "taken the logarithm of a rounded zero; use logsigmoid": lambda m, v, eps, decoder, y: (
                _naive(decoder(m + torch.exp(0.5 * v) * eps), y)
                - _kl(m, v, torch.zeros_like(m), torch.zeros_like(v))
            ),
            "averaged over the pixels instead of adding them up": lambda m, v, eps, decoder, y: (
                _pixels(decoder(m + torch.exp(0.5 * v) * eps), y) / y.shape[1]
                - _kl(m, v, torch.zeros_like(m), torch.zeros_like(v))
            ),
        },
    ),
    "vae-constant": Exercise(
        reference=_missing,
        cases=lambda: [
            (normal(4, 3, seed=2) * 5,),
            (torch.tensor([300.0, -300.0, 800.0], dtype=torch.float64),),
            (torch.tensor([0.0, 1e-9, -1e-4], dtype=torch.float64),),
        ],
        mistakes={
            "turned the sign": lambda a: -_missing(a),
            "used the formula at zero, where it is 0/0": lambda a: -(torch.tanh(a / 2) / a).log(),
            "used exponentials that overflow": lambda a: (
                -((torch.exp(a) - 1) / (torch.exp(a) + 1) / torch.where(a == 0, 1.0, a)).log()
            ),
            "taken tanh of the logit, not of its half": lambda a: -(torch.tanh(a) / a).log(),
            "counted log 2, the least there can be, at every pixel": lambda a: torch.full_like(
                a, math.log(2)
            ),
        },
    ),
}
