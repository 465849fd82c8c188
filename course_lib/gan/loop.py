r"""Training two networks against each other: a generator that takes a step of each and says how it went.

The networks are handed in, and so are the losses (see `gan_losses`). As `train`, it runs on a processor, on a
GPU and under `accelerate launch`. A step's data and noise are functions of its number, and a checkpoint holds
the rest, the state of PyTorch's random numbers too, so that a run can be killed and resumed at any step.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from course_lib.training.checkpoint import batch_rows, load, make_accelerator, save
from course_lib.gan.losses import GANLoss, gan_loss
from course_lib.require import require_count, require_weight


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """How to train. All but `steps` and `save_every` must be the same when a run is resumed.

    So must the penalty and the average's decay, of which a checkpoint knows nothing. A step trains the
    discriminator on `discriminator_steps` batches, then the generator once. `latent` is the number of
    standard normal numbers that the generator gets. Both networks have an Adam optimizer of their own, with
    `betas` for both.
    """

    steps: int
    latent: int
    loss: str = "non-saturating"
    batch_size: int = 64
    lr_generator: float = 2e-4
    lr_discriminator: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    discriminator_steps: int = 1
    save_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        gan_loss(self.loss)
        for name in ("steps", "latent", "batch_size", "discriminator_steps"):
            require_count(name, getattr(self, name))
        require_count("save_every", self.save_every, 0)
        require_count("seed", self.seed, 0)
        for name in ("lr_generator", "lr_discriminator"):
            if not require_weight(name, getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive; got 0")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"betas must be a tuple of two numbers; got {self.betas!r}")
        if not all(require_weight("betas", beta) < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1); got {self.betas!r}")


class GANStep(NamedTuple):
    """A step that was taken: its number from 1, both losses (without penalty), seconds since the start."""

    step: int
    discriminator: float
    generator: float
    seconds: float


Penalty = Callable[..., Tensor]


def noise(config: GANConfig, step: int, count: int) -> list[Tensor]:
    """The noise of a step, `count` batches of (batch_size, latent): a function of seed and step alone."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    return [torch.randn(config.batch_size, config.latent, generator=generator) for _ in range(count)]


def discriminator_losses(
    discriminator: nn.Module,
    loss: GANLoss,
    real: Tensor,
    fake: Tensor,
    *given: Tensor,
    penalty: Penalty | None,
) -> tuple[Tensor, Tensor]:
    """The discriminator's loss on a batch, and the same with its penalty, which is to be made small."""
    value = loss.discriminator(_logits(discriminator, real, *given), _logits(discriminator, fake, *given))
    extra = 0.0 if penalty is None else penalty(discriminator, real, fake, *given)
    return value, value + extra


def _logits(discriminator: nn.Module, x: Tensor, *given: Tensor) -> Tensor:
    """One for each point, (B,) or (B, 1)."""
    logits = discriminator(x, *given)
    if logits.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"discriminator must return ({len(x)},) or ({len(x)}, 1); got {tuple(logits.shape)}")
    return logits


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    tensors: Sequence[Tensor],
    config: GANConfig,
    *,
    penalty: Penalty | None = None,
    ema: AveragedModel | None = None,
    checkpoint: str | Path | None = None,
) -> Iterator[GANStep]:
    """Train both networks in place; yields a `GANStep` after each step.

    Nothing happens until the result is iterated over. All is in float32, since penalties differentiate twice.

    Args:
        generator: ``generator(z, *given)``, noise (B, latent) to points like the data's.
        discriminator: ``discriminator(x, *given)``, points to logits (B,) or (B, 1).
        tensors: the data (N, …), then what both networks are given with it, such as labels (N,). Generated
            points take what a batch of real ones has.
        config: how to train.
        penalty: ``penalty(discriminator, real, fake, *given)``, added to the discriminator's loss: `r1` or
            `gradient_penalty`, with its weight bound by `functools.partial`.
        ema: an average of the generator's weights, made by `train.average`; updated in place.
        checkpoint: a file to write to, and to resume from where it exists.

    Raises:
        ValueError: the data are empty, shapes or sizes do not fit, or the checkpoint cannot be
            read or belongs to another model or configuration; the file is left as it was.
        FloatingPointError: training diverged: a loss or a gradient's norm is not finite. The message says at
            which step and in which network; that network and the checkpoint do not take it up.
    """
    accelerator = make_accelerator()
    rows = batch_rows(tensors, config, accelerator)
    loss, draws = gan_loss(config.loss), config.discriminator_steps
    part = slice(accelerator.process_index, None, accelerator.num_processes)
    here = lambda t: t.to(accelerator.device)
    optimizers = []
    for network, lr in ((generator, config.lr_generator), (discriminator, config.lr_discriminator)):
        network.to(accelerator.device).train()
        optimizers.append(torch.optim.Adam(network.parameters(), lr=lr, betas=config.betas, fused=True))
    state = {"generator": generator, "discriminator": discriminator}
    state |= {"generator's optimizer": optimizers[0], "discriminator's optimizer": optimizers[1]}
    if ema is not None:
        state["ema"] = ema.to(accelerator.device)
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        done = load(Path(checkpoint), state, config, accelerator)
    for tensor in (*generator.parameters(), *discriminator.parameters()):
        tensor.data.copy_(broadcast(tensor.data))  # all processes begin with the first one's weights
    weights = [list(network.parameters()) for network in (generator, discriminator)]
    # Gradients are averaged by hand: networks wrapped for several processes admit one backward pass a step.
    mean = lambda value: accelerator.reduce(value, "mean") if accelerator.num_processes > 1 else value
    begin = time.perf_counter()
    for step in range(done + 1, config.steps + 1):
        latents = [here(z[part]) for z in noise(config, step, draws + 1)]
        for turn in range(draws):
            real, *given = (here(t[rows((step - 1) * draws + turn + 1)]) for t in tensors)
            with torch.no_grad():
                fake = generator(latents[turn], *given)
            if (fake.shape, fake.dtype) != (real.shape, real.dtype):
                wanted, got = (f"{tuple(x.shape)} of {x.dtype}" for x in (real, fake))
                raise ValueError(f"generator must make points {wanted}, as the data; got {got}")
            value, whole = discriminator_losses(discriminator, loss, real, fake, *given, penalty=penalty)
            _descend("discriminator", weights[1], whole, optimizers[1], step, mean)
        cheat = loss.generator(_logits(discriminator, generator(latents[-1], *given), *given))
        _descend("generator", weights[0], cheat, optimizers[0], step, mean)
        if ema is not None:
            ema.update_parameters(generator)
        last = step == config.steps
        if checkpoint is not None and (last or (config.save_every and step % config.save_every == 0)):
            save(Path(checkpoint), state, config, step, accelerator)
        losses = [mean(v.detach()).item() for v in (value, cheat)]
        yield GANStep(step, *losses, time.perf_counter() - begin)


def _descend(
    name: str,
    weights: list[Tensor],
    value: Tensor,
    optimizer: torch.optim.Optimizer,
    step: int,
    mean: Callable[[Any], Any],
) -> None:
    """A step of one network down a loss. The other's weights get no gradient."""
    gradients = mean(torch.autograd.grad(value, weights))
    loss = mean(value.detach()).item()
    norm = nn.utils.get_total_norm(gradients).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(
            f"training diverged: at step {step} the {name}'s loss is {loss:g} and its gradient's norm "
            f"{norm:g}; its step was not taken"
        )
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
