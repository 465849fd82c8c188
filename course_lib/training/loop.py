r"""The one training loop of the course: a generator that takes a step and says how it went.

It knows no model and no loss; both are handed in. The same lines run on a processor, on a GPU, and under
``accelerate launch`` on several.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, recursively_apply
from torch import Tensor, nn
from tqdm import tqdm

from course_lib.require import require_count, require_weight
from course_lib.training import modes
from course_lib.training.batches import batches_of
from course_lib.training.checkpoint import Checkpoint, describe_optimizer, name_of
from course_lib.training.device import autocast, make_accelerator, prepared, seed_processes
from course_lib.training.ema import EMA, as_list
from course_lib.training.finite import EVERY, Finiteness, take_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: how many steps to take.
        batch_size: rows of a step, over all processes together, where the data are tensors. A loader has its
            own batch size, which is each process's.
        lr: AdamW's learning rate; with an optimizer of your own, each group has its own.
        weight_decay: AdamW's.
        schedule: what the learning rate does after the warm-up: stay, or fall to zero over the steps along a
            half cosine or a line.
        warmup: steps over which the learning rate first rises linearly.
        clip: gradients of a larger norm are shortened to it; ``None`` leaves them.
        accumulate: batches in a step, whose gradients are averaged as if they were one batch; tensors'
            `batch_size` rows are divided into as many.
        precision: ``"no"``, ``"bf16"``, or ``None``: that of the Accelerator, which without one is bfloat16
            on a GPU that has it. For float16 hand in an Accelerator that was made with it.
        save_every: steps between checkpoints; 0 saves at the end only.
        compile: compile the loss with the model.
        channels_last: how images lie in memory.
        seed: of the order of tensors' rows, and with several processes of all random numbers.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    clip: float | None = 1.0
    accumulate: int = 1
    precision: Literal["no", "bf16"] | None = None
    save_every: int = 0
    compile: bool = False
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            require_count(name, getattr(self, name))
        for name in ("warmup", "save_every", "seed"):
            require_count(name, getattr(self, name), 0)
        for name in ("lr", "weight_decay"):
            require_weight(name, getattr(self, name))
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be a positive norm or None; got {self.clip!r}")
        for name, among in {
            "schedule": ("constant", "cosine", "linear"),
            "precision": (None, "no", "bf16"),
        }.items():
            if getattr(self, name) not in among:
                raise ValueError(f"{name} must be one of {among}; got {getattr(self, name)!r}")

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, counted from 1.

        >>> [TrainConfig(steps=6, warmup=2, schedule="linear").factor(s) for s in range(1, 7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step <= self.warmup or self.schedule == "constant":
            return min(1.0, step / max(1, self.warmup))
        done = (step - 1 - self.warmup) / (self.steps - self.warmup)
        return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


class Step(NamedTuple):
    """A step that was taken: its number from 1, and seconds since training began.

    `value` is the loss, the mean over all processes, on the device; `loss` reads it, for which the processor
    has to wait.
    """

    step: int
    seconds: float
    value: Tensor

    @property
    def loss(self) -> float:
        return self.value.item()


class Objective(nn.Module):
    """The loss as a module around the model: what is prepared, wrapped and compiled, and not the model."""

    def __init__(
        self, model: nn.Module, loss: Callable[..., Tensor], device: torch.device, precision: str | None
    ) -> None:
        super().__init__()
        self.model, self.loss, self.device, self.precision = model, loss, device, precision

    def forward(self, batch: Any) -> Tensor:
        with autocast(self.device, self.precision):
            if isinstance(batch, dict):
                return self.loss(**batch)
            return self.loss(*batch) if isinstance(batch, list | tuple) else self.loss(batch)


def train(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor] | Iterable,
    config: TrainConfig,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    accelerator: Accelerator | None = None,
    ema: EMA | Sequence[EMA] = (),
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Iterator[Step]:
    r"""Train a model in place; yields a `Step` after each step.

    Nothing happens until the result is iterated over. A model in evaluation mode trains as a whole; in one in
    training mode, submodules in evaluation mode stay so, and parameters without a gradient stay as they are.
    When the iteration ends, every submodule is in the mode it was in.

    Args:
        model: what to train. It is moved to the Accelerator's device.
        loss: the mean loss of a batch, a scalar. It closes over the model: a method of it, or a function that
            calls it. A batch that is a tuple or list comes as arguments, ``loss(*batch)``, a dict as
            ``loss(**batch)``, a tensor as ``loss(batch)``.
        data: a tuple of tensors (N, …), of which a batch takes the same rows, in a new order each epoch and
            without the rest that fills no batch; or an iterable of batches, such as a `DataLoader`. An array
            that is larger than the memory: ``(torch.from_numpy(np.memmap(…)),)``, or a `Dataset` of your own.
        config: how to train.
        optimizer: of parameters of the model; ``None`` makes AdamW. Its learning rates follow the schedule.
        accelerator: a ready one; ``None`` makes one.
        ema: averages of the model, made by `average`; updated in place.
        checkpoint: a file to write to, and to resume from where it exists, with the same bits.
        progress: show a bar on standard output.

    Raises:
        ValueError: the data are no batches, or the checkpoint belongs to another run or cannot be read; the
            file is left as it was.
        FloatingPointError: a loss or a gradient is not finite. It is noticed every ten steps and before each
            checkpoint; the message names the first such step. PyTorch's fused optimizers, such as the one
            that is made here, do not take it; no optimizer's damage gets into a checkpoint.
        OSError: a checkpoint cannot be written; the last one stays.

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> def loss(x, y):
    ...     return (model(x) - y).square().mean()
    >>> for step in train(model, loss, (x, 3 * x + 1), TrainConfig(steps=300, batch_size=32, lr=0.05)):
    ...     pass
    >>> step.step, round(model.weight.item(), 2), round(model.bias.item(), 2)
    (300, 3.0, 1.0)
    """
    accelerator, averages = accelerator or make_accelerator(), as_list(ema)
    seed_processes(config.seed, accelerator)
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    for module in (model, *averages):
        module.to(accelerator.device, memory_format=layout)
    if optimizer is None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = batches_of(data, config, accelerator, parts=config.accumulate)
    parts = {"model": model, "optimizer": optimizer}
    parts |= {f"ema {i}" if i > 1 else "ema": average for i, average in enumerate(averages, 1)}
    about = {"loss": name_of(loss), "decays of ema": [a.decay for a in averages]}
    about |= describe_optimizer(optimizer)
    file = Checkpoint(checkpoint, parts, config, about, batches, accelerator, per_step=config.accumulate)
    objective = Objective(model, loss, accelerator.device, config.precision)
    if config.compile:
        objective = torch.compile(objective)
    done = file.restore()
    optimizer.zero_grad()  # of what the caller has computed before
    before, during = modes.flags(model), modes.training_flags(model)
    watch, begin, show = Finiteness("the loss"), time.perf_counter(), progress and accelerator.is_main_process
    try:
        with (
            prepared(accelerator, objective, optimizer) as (wrapped, stepper),
            tqdm(total=config.steps, initial=done, disable=not show, file=sys.stdout) as bar,
        ):
            float16 = accelerator.scaler is not None
            stepper = stepper if float16 else optimizer  # the wrapper is of no other use, and slow
            for step in range(done + 1, config.steps + 1):
                modes.apply(during)  # the caller may have sampled since the last step
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.factor(step)
                taken = [_laid(next(batches), layout) for _ in range(config.accumulate)]
                value = _gradients(wrapped, taken, accelerator)
                norm = accelerator.clip_grad_norm_(weights, config.clip or math.inf)
                norm = torch.zeros_like(norm) if float16 else norm  # infinite ones are its scaler's affair
                take_step(stepper, watch.note(step, value, norm))
                stepper.zero_grad()
                for average in averages:
                    average.update(model)
                if step % EVERY == 0 or step == config.steps or file.due(step):
                    watch.check()
                    if show:
                        bar.set_postfix(loss=f"{value.item():.4g}", refresh=False)
                if file.due(step):
                    file.save(step)
                bar.update()
                yield Step(step, time.perf_counter() - begin, value)
    finally:
        modes.apply(before)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _gradients(objective: nn.Module, batches: list, accelerator: Accelerator) -> Tensor:
    """Gradients of the mean loss of some batches, as of one; returns the loss, the mean over processes."""
    sizes = [find_batch_size(batch) for batch in batches] if len(batches) > 1 else [1]
    total = 0.0
    for i, (batch, size) in enumerate(zip(batches, sizes, strict=True), 1):
        with contextlib.nullcontext() if i == len(batches) else accelerator.no_sync(objective):
            value, share = objective(batch), size / sum(sizes)
            accelerator.backward(
                value * (share * accelerator.gradient_accumulation_steps)
            )  # it divides by these
        total = total + value.detach().float() * share
    return accelerator.reduce(total, "mean") if accelerator.num_processes > 1 else total


def _laid(batch: Any, layout: torch.memory_format) -> Any:
    """Images (B, C, H, W) in a batch, laid out in memory as the network's weights."""
    if layout is torch.preserve_format:
        return batch
    return recursively_apply(lambda t: t.contiguous(memory_format=layout) if t.ndim == 4 else t, batch)
