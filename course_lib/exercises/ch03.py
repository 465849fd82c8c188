"""Exercises of chapter 03, variational autoencoders."""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from course_lib.exercises import Exercise
from course_lib.likelihoods import ContinuousBernoulli


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _gaussian(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def _kl(m0: Tensor, v0: Tensor, m1: Tensor, v1: Tensor) -> Tensor:
    return kl_divergence(_gaussian(m0, v0), _gaussian(m1, v1))


def _missing(logit: Tensor) -> Tensor:
    """The continuous Bernoulli's log-density of black, less BCE's value there; black is x = -1."""
    pixel = logit.reshape(-1, 1, 1, 1)
    density = ContinuousBernoulli().log_prob(pixel, -torch.ones_like(pixel)) + math.log(2)  # of y
    return density.view(logit.shape) + torch.nn.functional.softplus(logit)


EXERCISES = {
    "03-kl": Exercise(
        reference=_kl,
        cases=lambda: [tuple(_random(5, d, seed=10 * d + i) for i in range(4)) for d in (1, 3)],
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
    "03-bound": Exercise(
        reference=lambda a: (
            a.exp().mean(0).log() if a.max() > -100 else (a + 1000).exp().mean(0).log() - 1000
        ),
        cases=lambda: [(_random(7, 3),), (_random(4, 5, seed=1) * 3 - 1000,)],
        mistakes={
            "averaged the logarithms: that estimates the ELBO": lambda a: a.mean(0),
            "forgotten to divide by K": lambda a: torch.logsumexp(a, 0),
            "averaged over the images instead of the draws": lambda a: (
                torch.logsumexp(a, 1) - math.log(a.shape[1])
            ),
            "exponentiated before taking the largest out: log 0 is minus infinity": lambda a: (
                a.exp().mean(0).log()
            ),
            "taken the largest weight alone": lambda a: a.amax(0) - math.log(len(a)),
        },
    ),
    "03-constant": Exercise(
        reference=_missing,
        cases=lambda: [
            (_random(4, 3, seed=2) * 5,),
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
