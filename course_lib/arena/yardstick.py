r"""The yardstick: one run of a family, from nothing to its rows in the table."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib import metrics
from course_lib.arena.families import Clock, FactorizedGaussian, Family, Mixture, TrainingSet
from course_lib.arena.field import Field, field
from course_lib.arena.latent import Adversarial, Autoencoder, VectorQuantized
from course_lib.arena.walks import DDPM, CoupledFlow, Flow, Reflow, ScoreSDE
from course_lib.book import profiles
from course_lib.points import nearest
from course_lib.vae.pixels import bits_per_dim

FAMILIES = {
    "factorized Gaussian": FactorizedGaussian,
    "mixture": Mixture,
    "VAE": Autoencoder,
    "VQ-VAE": VectorQuantized,
    "GAN": Adversarial,
    "DDPM": DDPM,
    "score": ScoreSDE,
    "flow": Flow,
    "flow, OT": CoupledFlow,
    "reflow": Reflow,
    "training set": TrainingSet,
}
MARKS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the training time at which a family is looked at


class Budget(NamedTuple):
    """What every family gets: parameters and seconds of training; and how much is measured."""

    parameters: int
    seconds: float
    samples: int
    draws: int  # of so many samples each, whose distances W₂ are averaged
    held: int  # test data whose density is asked for


class Looks(NamedTuple):
    """How good the first sampler was after so many seconds of training."""

    seconds: list[float]
    quality: list[float]
    shares: list[float]  # of the time: the mark that each look belongs to


def budget(place: Field, run: profiles.Run) -> Budget:
    """The same for all families on a field."""
    if place.flat:
        return run.pick(
            smoke=Budget(12_000, 0.25, 150, 2, 50),
            book=Budget(40_000, 7.0, 1000, 4, 1000),
            full=Budget(40_000, 5.0, 1000, 4, 1000),
        )
    return run.pick(
        smoke=Budget(50_000, 0.25, 60, 1, 4),
        book=Budget(180_000, 18.0, 360, 1, 100),
        full=Budget(2_800_000, 14.0, 1000, 1, 100),
    )


def enter(family: str, place: str, run: profiles.Run) -> Family:
    """The contestant of that name on the field of that name."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}")
    ground = field(place)
    return FAMILIES[family](ground, run, budget(ground, run).parameters)


def learn(model: Family) -> Looks:
    """Train until the time is spent, and look at the samples now and then: that time does not count."""
    looks, limit = Looks([], [], []), budget(model.field, model.run).seconds
    clock, left = Clock(limit, model.run.device), list(MARKS)

    def look() -> None:
        looks.seconds.append(clock.spent)
        looks.quality.append(quality(model))

    for _ in clock.take(model.training(clock)):
        if past := [mark for mark in left if clock.past(mark)]:
            left = left[len(past) :]
            looks.shares.append(past[-1])
            look()
    if left:  # it ended before its time
        looks.shares.append(1.0)
        look()
    return looks


def quality(model: Family) -> float:
    """Of the first sampler: the distance W₂ of points, the Fréchet distance of images; less is better."""
    place, count = model.field, budget(model.field, model.run).samples
    x = draw(model, next(iter(model.samplers())), count)
    if place.flat:
        return metrics.wasserstein(x, place.test[:count])
    return metrics.frechet(place.features(x), place.features(place.test[:count]))


def draw(model: Family, sampler: str, count: int, turn: int = 0) -> Tensor:
    """Samples, images in the range of the data; what they begin with is the same for all families."""
    generator = torch.Generator().manual_seed(10_000 * (turn + 1) + model.run.seed)
    x = model.samplers()[sampler].draw(count, generator)
    return x if model.field.flat else x.clamp(-1, 1)


def rows(model: Family, looks: Looks) -> Iterator[dict]:
    """A row for each sampler of a trained family."""
    place, run = model.field, model.run
    allowed, now = budget(place, run), Clock(1.0, run.device).now
    density = log_density(model)
    for name, sampler in model.samplers().items():
        begin = now()
        x = draw(model, name, allowed.samples)
        seconds = now() - begin
        figures = measure(place, x)
        again = list(distances(model, name))
        yield {
            "sampler": name,
            "evaluations": sampler.evaluations,
            "parameters": model.parameters(),
            "train_seconds": round(looks.seconds[-1], 3),
            "sample_ms": 1000 * seconds / allowed.samples,
            **density,
            **figures,
            "w2": (figures["w2"] + sum(again)) / allowed.draws,
        }


def distances(model: Family, sampler: str) -> Iterator[float]:
    """Exact distances W₂ of more draws than the first, each from test data of its own."""
    allowed = budget(model.field, model.run)
    parts = model.field.test.split(allowed.samples)
    for turn in range(1, allowed.draws):
        yield metrics.wasserstein(draw(model, sampler, allowed.samples, turn), parts[turn])


def log_density(model: Family) -> dict:
    """Minus the mean log-density of test data: nats for points, bits a value for images."""
    if not model.density:
        return {"nll": math.nan, "nll_error": math.nan, "nll_kind": ""}
    place = model.field
    x = place.test[: budget(place, model.run).held]
    log_p = model.log_density(x, torch.Generator().manual_seed(model.run.seed)).double()
    nll = bits_per_dim(log_p, place.dims, place.levels) if place.levels else -log_p
    return {
        "nll": nll.mean().item(),
        "nll_error": (nll.std() / len(nll) ** 0.5).item(),
        "nll_kind": model.density,
    }


def measure(place: Field, x: Tensor) -> dict:
    """How far samples are from as many test data, and what they cover."""
    test = place.test[: len(x)]
    near, own = (to_nearest(v, place.train) for v in (x, test))
    f_x, f_test = place.features(x), place.features(test)
    width = torch.cdist(test.flatten(1), test.flatten(1)).median().item()
    shares = metrics.precision_recall(f_test, f_x)
    reached = metrics.mode_coverage(f_x, place.centres, place.radius)
    return {
        "w2": metrics.wasserstein(x, test),
        "mmd": metrics.mmd(x.flatten(1), test.flatten(1), metrics.rbf(width)),
        "frechet": metrics.frechet(f_x, f_test) if not place.flat else math.nan,
        "kid": metrics.kid(f_x, f_test) if not place.flat else math.nan,
        "precision": shares.precision,
        "recall": shares.recall,
        "modes": reached.covered / len(place.centres),
        "near_modes": reached.quality,
        "nearest": (near.median() / own.median()).item(),
        "copies": (near < own.quantile(0.01)).double().mean().item(),
    }


def to_nearest(x: Tensor, train: Tensor) -> Tensor:
    """The distance from each x to its nearest training datum, (N,), in float64: 0 for a copy."""
    x, train = (v.flatten(1).double() for v in (x, train))
    return torch.linalg.vector_norm(x - train[nearest(x, train)], dim=1)
