r"""The contestants: each family of the course, made to fit a budget of parameters and of seconds.

A `Family` is built for a `Field`, trains until its `Clock` has run out, and then has samplers by name and,
where the family has one, a log-density. The losses, loops and samplers are those of the chapters.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.arena.field import Field
from course_lib.book.profiles import Run
from course_lib.mixture import em
from course_lib.training import TrainConfig, average, train

STEPS = 10**9  # for a loop that a clock ends


class Clock:
    """Counts the seconds of training, and not those of looking at the model in between.

    On a processor the seconds are the process's own: waiting for other work does not count. A GPU works on
    while the program runs ahead of it: there a step ends when the GPU has done all that it was given.
    """

    def __init__(self, limit: float, device: torch.device) -> None:
        self.limit, self.spent = limit, 0.0
        self.now = time.process_time if device.type == "cpu" else functools.partial(when_done, device)

    def take(self, steps: Iterator) -> Iterator[float]:
        """Take training steps until the time is spent; yields the seconds spent after each."""
        going = True
        while going and self.spent < self.limit:
            begin = self.now()
            going = next(steps, self) is not self
            self.spent += self.now() - begin
            yield self.spent

    def past(self, share: float) -> bool:
        """Whether that share of the time is spent."""
        return self.spent >= share * self.limit


def when_done(device: torch.device) -> float:
    """The time, in seconds, when a GPU is idle."""
    torch.accelerator.synchronize(device)
    return time.perf_counter()


class Sampler(NamedTuple):
    """How many evaluations of the network a sample takes, and what draws n samples (n, C, H, W)."""

    evaluations: int
    draw: Callable[[int, torch.Generator], Tensor]


class Family:
    """What all contestants share.

    Args:
        field: the data.
        run: profile, device and seed.
        parameters: the budget, for families whose size is free.

    `density` says what `log_density` is: ``"exact"``, ``"bound"`` or ``""`` for none.
    """

    density = ""

    def __init__(self, field: Field, run: Run, parameters: int) -> None:
        self.field, self.run, self.budget = field, run, parameters
        self.build()

    def build(self) -> None:
        """Make the networks, which takes no training time."""

    def training(self, clock: Clock) -> Iterator:
        """Training steps, without an end of their own where the family can use all the time."""
        raise NotImplementedError

    def parameters(self) -> int:
        """How many numbers training has set."""
        return sum(p.numel() for net in self.networks() for p in net.parameters())

    def networks(self) -> list[nn.Module]:
        """What is trained."""
        raise NotImplementedError

    def samplers(self) -> dict[str, Sampler]:
        """By name, the one to look at during training first."""
        raise NotImplementedError

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Of images (B, C, H, W), in nats, (B,); or a bound on it from below."""
        raise NotImplementedError

    def on_device(self, generator: torch.Generator) -> torch.Generator:
        """A generator on this run's device whose seed the given one draws: two streams, not one twice."""
        seed = torch.randint(2**62, (), generator=generator).item()
        return torch.Generator(self.run.device).manual_seed(seed)

    def fit(self, model: nn.Module, loss: Callable, tensors: list[Tensor], **options) -> tuple:
        """The averaged model, and the course's training loop for it with this run's settings."""
        decay = self.run.pick(smoke=0.9, book=0.99, full=0.999)
        smooth = average(model, decay)
        config = TrainConfig(STEPS, seed=self.run.seed, **{"batch_size": 128, "warmup": 20, **options})
        return smooth, train(model, loss, tensors, config, ema=smooth)


def sized(build: Callable[[int], list[nn.Module]], budget: int, *, multiple: int = 1) -> list[nn.Module]:
    """The networks of the width whose number of parameters is nearest to the budget; a width is a multiple.

    Raises:
        ValueError: none is within a fifth of it.
    """
    size = lambda nets: sum(p.numel() for net in nets for p in net.parameters())
    best, miss = 0, math.inf
    for width in range(8, 4096, multiple):
        with torch.device("meta"):
            count = size(build(width))
        if abs(count / budget - 1) < miss:
            best, miss = width, abs(count / budget - 1)
        elif count > budget:
            break
    if miss > 0.2:
        raise ValueError(
            f"parameters: no width comes within a fifth of {budget}; the nearest misses by {miss:.0%}"
        )
    return build(best)


class FactorizedGaussian(Family):
    """The floor: every value normal, with its own mean and deviation, and independent of the others."""

    density = "exact"

    def training(self, clock: Clock) -> Iterator:
        rows = self.field.train
        self.law = torch.distributions.Normal(rows.mean(0), rows.std(0))
        yield

    def parameters(self) -> int:
        return 2 * self.field.dims

    def samplers(self) -> dict[str, Sampler]:
        noise = lambda n, g: torch.randn(n, *self.field.shape, generator=g)
        return {"exact": Sampler(0, lambda n, g: self.law.mean + self.law.stddev * noise(n, g))}

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.law.log_prob(x).flatten(1).sum(1)


class TrainingSet(Family):
    """The ceiling: training data, drawn without replacement. Its density is the truth's, if that is known."""

    def __init__(self, field: Field, run: Run, parameters: int) -> None:
        super().__init__(field, run, parameters)
        self.density = "exact" if field.truth else ""

    def training(self, clock: Clock) -> Iterator:
        yield from ()

    def parameters(self) -> int:
        return 0

    def samplers(self) -> dict[str, Sampler]:
        train = self.field.train
        return {"drawn": Sampler(0, lambda n, g: train[torch.randperm(len(train), generator=g)[:n]])}

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.field.truth.log_prob(x.flatten(1))


class Mixture(Family):
    r"""Gaussians with full covariances, as many as BIC prefers, in the space of the first PCs.

    The other directions get one variance, as in probabilistic PCA, so that images have a density.
    """

    density = "exact"
    components = 24  # principal components at most

    def training(self, clock: Clock) -> Iterator:
        x = self.field.train.flatten(1).double()  # (N, D)
        self.mean = x.mean(0)
        _, s, axes = torch.linalg.svd(x - self.mean, full_matrices=False)
        d = min(self.components, self.field.dims)
        self.axes, rest = axes[:d], s[d:].square() / len(x)
        self.rest = rest.mean().sqrt() if len(rest) else torch.tensor(0.0).double()
        y, generator = (x - self.mean) @ self.axes.T, torch.Generator().manual_seed(self.run.seed)
        self.found, best = None, math.inf
        for k in (5, 10, 20, 40):
            found = em.fit(y, k, reg=1e-4, generator=generator)
            if found.bic(len(y)) < best:
                self.found, best = found, found.bic(len(y))
            yield

    def parameters(self) -> int:
        d, dims = self.axes.shape
        return self.found.n_parameters + (0 if d == dims else dims + d * dims + 1)

    def samplers(self) -> dict[str, Sampler]:
        def draw(n: int, generator: torch.Generator) -> Tensor:
            y = self.found.mixture.sample(n, generator=generator)[0]
            noise = self.rest * torch.randn(n, self.field.dims, generator=generator).double()
            noise = noise - noise @ self.axes.T @ self.axes  # in the other directions only
            return (self.mean + y @ self.axes + noise).float().view(n, *self.field.shape)

        return {"exact": Sampler(0, draw)}

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        apart = x.flatten(1).double() - self.mean
        y = apart @ self.axes.T
        log_p, others = self.found.mixture.log_prob(y), self.field.dims - len(self.axes)
        if others:
            left = apart.square().sum(1) - y.square().sum(1)
            log_p = log_p - left / (2 * self.rest**2) - others * (self.rest.log() + math.log(2 * math.pi) / 2)
        return log_p
