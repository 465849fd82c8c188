r"""Training two networks against each other: a generator that takes a step of each and says how it went.

The networks are handed in, and so is the game (see `losses`). Device, precision, batches, averages and
checkpoints are those of `course_lib.training`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from course_lib.gan.losses import NON_SATURATING, GANLoss
from course_lib.require import require_count, require_weight
from course_lib.training import modes
from course_lib.training.batches import batches_of
from course_lib.training.checkpoint import Checkpoint, name_of
from course_lib.training.device import autocast, make_accelerator, seed_processes
from course_lib.training.ema import EMA, as_list
from course_lib.training.finite import EVERY, Finiteness, take_step

Penalty = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """How to train.

    A step trains the discriminator on `discriminator_steps` batches, then the generator once. `latent` is the
    number of standard normal numbers that the generator gets. Both networks have an Adam optimizer of their
    own, with `betas` for both. Other than `train`, all is in float32 unless `precision` is ``"bf16"``, since
    penalties differentiate twice. `batch_size`, `save_every` and `seed` are as in `TrainConfig`.

    >>> GANConfig(steps=100, latent=16).betas
    (0.5, 0.999)
    """

    steps: int
    latent: int
    batch_size: int = 64
    lr_generator: float = 2e-4
    lr_discriminator: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    discriminator_steps: int = 1
    precision: Literal["no", "bf16"] = "no"
    save_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "latent", "batch_size", "discriminator_steps"):
            require_count(name, getattr(self, name))
        for name in ("save_every", "seed"):
            require_count(name, getattr(self, name), 0)
        for name in ("lr_generator", "lr_discriminator"):
            require_weight(name, getattr(self, name))
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision must be 'no' or 'bf16'; got {self.precision!r}")


class GANStep(NamedTuple):
    """A step that was taken: its number from 1, and seconds since training began.

    `values` are both losses, without penalty and as means over all processes, on the device. `discriminator`
    and `generator` read them, for which the processor has to wait.
    """

    step: int
    seconds: float
    values: tuple[Tensor, Tensor]

    @property
    def discriminator(self) -> float:
        return self.values[0].item()

    @property
    def generator(self) -> float:
        return self.values[1].item()


def discriminator_losses(
    discriminator: nn.Module,
    loss: GANLoss,
    real: Tensor,
    fake: Tensor,
    *given: Tensor,
    penalty: Penalty | None,
) -> tuple[Tensor, Tensor]:
    """The discriminator's loss on a batch, and the same with its penalty, which is to be made small."""
    value = loss.discriminator(discriminator(real, *given), discriminator(fake, *given))
    extra = 0.0 if penalty is None else penalty(discriminator, real, fake, *given)
    return value, value + extra


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    data: Sequence[Tensor] | Iterable,
    config: GANConfig,
    *,
    loss: GANLoss = NON_SATURATING,
    penalty: Penalty | None = None,
    ema: EMA | Sequence[EMA] = (),
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[GANStep]:
    """Train both networks in place; yields a `GANStep` after each step.

    Nothing happens until the result is iterated over. A step's noise is a function of seed and number.

    Args:
        generator: ``generator(z, *given)``, noise (B, latent) to points like the data's.
        discriminator: ``discriminator(x, *given)``, points to logits, one for each or one for each patch.
        data: as for `train`: the points (N, …), then what both networks are given with them, such as labels
            (N,). Generated points take what a batch of real ones has.
        config: how to train.
        loss: the game, such as `HINGE`.
        penalty: ``penalty(discriminator, real, fake, *given)``, added to the discriminator's loss: `r1` or
            `gradient_penalty`, with its weight bound by `functools.partial`.
        ema: averages of the generator, made by `average`; updated in place.
        checkpoint: a file to write to, and to resume from where it exists, with the same bits.
        accelerator: a ready one; ``None`` makes one.

    Raises:
        ValueError, FloatingPointError, OSError: as `train`.

    >>> G, D = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> config = GANConfig(steps=3, latent=1, batch_size=8)
    >>> [step.step for step in train_gan(G, D, (torch.randn(32, 1),), config)]
    [1, 2, 3]
    """
    accelerator, averages = accelerator or make_accelerator(), as_list(ema)
    seed_processes(config.seed, accelerator)
    networks = {"generator": generator, "discriminator": discriminator}
    optimizers = {}
    for (name, network), lr in zip(
        networks.items(), (config.lr_generator, config.lr_discriminator), strict=True
    ):
        trained = [p for p in network.to(accelerator.device).parameters() if p.requires_grad]
        optimizers[name] = torch.optim.Adam(trained, lr=lr, betas=config.betas, fused=True)
    batches, draws = batches_of(data, config, accelerator), config.discriminator_steps
    parts = networks | {f"{name}'s optimizer": optimizer for name, optimizer in optimizers.items()}
    parts |= {f"ema {i}" if i > 1 else "ema": e.to(accelerator.device) for i, e in enumerate(averages, 1)}
    about = {"loss": [name_of(f) for f in loss], "penalty": name_of(penalty)}
    about["decays of ema"] = [average.decay for average in averages]
    file = Checkpoint(checkpoint, parts, config, about, batches, accelerator, per_step=draws)
    done = file.restore()
    for tensor in (*generator.parameters(), *discriminator.parameters()):
        tensor.data.copy_(broadcast(tensor.data))  # all processes begin with the first one's weights
    before = modes.flags(generator) + modes.flags(discriminator)
    during = modes.training_flags(generator) + modes.training_flags(discriminator)
    watches = {name: Finiteness(f"the {name}'s loss") for name in networks}
    descend = lambda name, step, value: _descend(optimizers[name], value, watches[name], step, accelerator)
    begin = time.perf_counter()
    try:
        for step in range(done + 1, config.steps + 1):
            modes.apply(during)  # the caller may have sampled since the last step
            numbers = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            for _ in range(draws):
                batch = next(batches)
                real, *given = [batch] if isinstance(batch, Tensor) else batch
                z = _noise(len(real), config.latent, numbers, accelerator)
                with autocast(accelerator.device, config.precision):
                    with torch.no_grad():
                        fake = generator(z, *given)
                    value, whole = discriminator_losses(
                        discriminator, loss, real, fake, *given, penalty=penalty
                    )
                descend("discriminator", step, whole)
            z = _noise(len(real), config.latent, numbers, accelerator)
            with autocast(accelerator.device, config.precision):
                cheat = loss.generator(discriminator(generator(z, *given), *given))
            descend("generator", step, cheat)
            for average in averages:
                average.update(generator)
            if step % EVERY == 0 or step == config.steps or file.due(step):
                for watch in watches.values():
                    watch.check()
            if file.due(step):
                file.save(step)
            values = tuple(_mean(v.detach(), accelerator) for v in (value, cheat))
            yield GANStep(step, time.perf_counter() - begin, values)
    finally:
        modes.apply(before)


def _noise(rows: int, latent: int, numbers: torch.Generator, accelerator: Accelerator) -> Tensor:
    """This process's rows (rows, latent) of noise that is drawn for all."""
    z = torch.randn(rows * accelerator.num_processes, latent, generator=numbers)
    return z[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)


def _mean(value: Tensor | list[Tensor], accelerator: Accelerator) -> Tensor | list[Tensor]:
    """Over processes. By hand, as networks wrapped for several of them admit one backward pass a step."""
    return accelerator.reduce(value, "mean") if accelerator.num_processes > 1 else value


def _descend(
    optimizer: torch.optim.Optimizer, value: Tensor, watch: Finiteness, step: int, accelerator: Accelerator
) -> None:
    """A step of one network down a loss. The other's weights, and those that have no part in it, get none."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    pairs = zip(weights, torch.autograd.grad(value, weights, allow_unused=True), strict=True)
    used = [(weight, gradient) for weight, gradient in pairs if gradient is not None]
    gradients = _mean([gradient for _, gradient in used], accelerator)
    for (weight, _), gradient in zip(used, gradients, strict=True):
        weight.grad = gradient
    norm = nn.utils.get_total_norm(gradients)
    take_step(optimizer, watch.note(step, _mean(value.detach().float(), accelerator), norm))
    optimizer.zero_grad()
