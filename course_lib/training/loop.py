"""The one training loop of the course: a generator that takes a step and says how it went.

It runs on a processor, on a GPU, and under `accelerate launch` on several. It knows no model and
no loss: both are handed in. A checkpoint holds all that the next step depends on.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from course_lib.training.checkpoint import batch_rows, load, make_accelerator, save
from course_lib.require import require_count


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. All but `steps` and `save_every` must be the same when a run is resumed.

    `batch_size` counts the points of a step over all processes together. `lr` rises linearly over
    `warmup` steps, then stays. Gradients longer than `clip` (a norm) are shortened to it; ``None``
    leaves them. `save_every` counts steps between checkpoints, and 0 saves at the end only.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float | None = 1.0
    save_every: int = 0
    channels_last: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 1, "warmup": 0, "save_every": 0, "seed": 0}.items():
            require_count(name, getattr(self, name), least)
        if not 0 < self.lr < float("inf") or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"lr must be positive and weight_decay at least 0; got {self.lr}, {self.weight_decay}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be a positive norm or None; got {self.clip!r}")


class Step(NamedTuple):
    """A step that was taken: its number from 1, its loss, and seconds since training began."""

    step: int
    loss: float
    seconds: float


def average(model: nn.Module, decay: float) -> AveragedModel:
    r"""An exponential moving average of a model's weights, to be handed to `train`.

    After each step :math:`\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta`; the first step
    copies the weights, and buffers are copied always. The averaged model is its ``module``.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay!r}")
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def train(
    model: nn.Module,
    loss: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    config: TrainConfig,
    *,
    ema: AveragedModel | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Iterator[Step]:
    """Train a model in place with AdamW; yields a `Step` after each step.

    Nothing happens until the result is iterated over.

    Args:
        model: the network.
        loss: ``loss(model, *batch)``, the mean loss of a batch. It calls ``model(…)``, never a
            method of it, since several processes exchange gradients there.
        tensors: the data, each (N, …). A batch is the same rows of each. Every epoch goes through
            the rows in a new order, and leaves out the rest that fills no batch.
        config: how to train.
        ema: see `average`; updated in place.
        checkpoint: a file to write to, and to resume from where it exists.
        progress: show a bar on standard output.

    Raises:
        ValueError: the data are empty, shapes or sizes do not fit, or the checkpoint cannot be
            read or belongs to another model or configuration; the file is left as it was.
        FloatingPointError: a loss or a gradient is not finite. Neither the weights nor the
            checkpoint take it up.
    """
    accelerator = make_accelerator()
    rows = batch_rows(tensors, config, accelerator)
    memory = torch.channels_last if config.channels_last else torch.preserve_format
    model.to(accelerator.device, memory_format=memory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if ema is not None:
        ema.to(accelerator.device)
    state = {"model": model, "optimizer": optimizer} | ({} if ema is None else {"ema": ema})
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        done = load(Path(checkpoint), state, config, accelerator)
    wrapped, prepared = accelerator.prepare(torch.compile(model) if config.compile else model, optimizer)
    wrapped.train()
    begin = time.perf_counter()
    bar = tqdm(
        total=config.steps,
        initial=done,
        disable=not (progress and accelerator.is_main_process),
        file=sys.stdout,
    )
    for step in range(done + 1, config.steps + 1):
        batch = tuple(t[rows(step)].to(accelerator.device) for t in tensors)
        if config.channels_last:
            batch = tuple(t.contiguous(memory_format=memory) if t.ndim == 4 else t for t in batch)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, step / max(1, config.warmup))
        with accelerator.autocast():
            value = loss(wrapped, *batch)
        mean = accelerator.reduce(value.detach().float(), reduction="mean").item()
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} at step {step}, which was not taken")
        accelerator.backward(value)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip or float("inf"))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {step}, which was not taken")
        prepared.step()
        prepared.zero_grad()
        if ema is not None:
            ema.update_parameters(model)
        last = step == config.steps
        if checkpoint is not None and (last or (config.save_every and step % config.save_every == 0)):
            save(Path(checkpoint), state, config, step, accelerator)
        bar.set_postfix(loss=f"{mean:.4g}", refresh=False)
        bar.update()
        yield Step(step, mean, time.perf_counter() - begin)
    bar.close()
