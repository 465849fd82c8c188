r"""Checkpoints that a run resumes from with the same bits, and the rows of each step's batch.

A checkpoint holds all that the next step depends on: weights, optimizers, and the states of all random
generators. The two training loops, `train` and `gan`, share it.
"""

import dataclasses
import functools
import os
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

FORMAT = "course_lib checkpoint 1"


def precision() -> str:
    """What Accelerate is asked for: bfloat16 where the GPU has it."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def make_accelerator() -> Accelerator:
    """What both loops run on. Accelerate admits one precision a process, so both ask for the same.

    It is used under `Accelerator.autocast` only; elsewhere all stays in float32.
    """
    return Accelerator(mixed_precision=precision())


def batch_rows(tensors: Sequence[Tensor], config: Any, accelerator: Accelerator) -> Callable[[int], Tensor]:
    """This process's rows of a step: a function of the step alone, so that a run can resume anywhere.

    `config` has a `batch_size`, of all processes together, and a `seed`. Every epoch goes through the rows
    in a new order, and leaves out the rest that fills no batch.

    Raises:
        ValueError: the tensors differ in length, hold no batch, are not finite, or the processes cannot share
            a batch evenly.
    """
    if not isinstance(tensors, list | tuple) or not tensors:
        raise ValueError(f"tensors must be a list of one tensor at least; got {type(tensors).__name__}")
    if any(len(t) != len(tensors[0]) for t in tensors):
        raise ValueError(f"tensors must have equal lengths; got {[len(t) for t in tensors]}")
    if not all(torch.isfinite(t).all() for t in tensors):
        raise ValueError("tensors must be finite; got NaN or infinity")
    n, size, parts = len(tensors[0]), config.batch_size, accelerator.num_processes
    if n < size:
        raise ValueError(f"tensors must hold at least one batch of {size}; got {n} rows")
    if size % parts:
        raise ValueError(f"batch_size must be a multiple of the {parts} processes; got {size}")

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))

    def rows(step: int) -> Tensor:
        epoch, batch = divmod(step - 1, n // size)
        return order(epoch)[batch * size : (batch + 1) * size][accelerator.process_index :: parts]

    return rows


def _random_states() -> dict[str, Any]:
    """The states of all random generators, in types that a safe load admits."""
    name, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
    states["torch"] = torch.get_rng_state()
    states["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in states["cuda"]])


def save(path: Path, state: dict[str, Any], config: Any, step: int, accelerator: Accelerator) -> None:
    """Write a checkpoint beside the old one, then put it in its place: no moment has none.

    `state` maps names to what has a state dict; `config` is the run's dataclass.
    """
    randoms = gather_object([_random_states()])
    if accelerator.is_main_process:
        whole = {name: part.state_dict() for name, part in state.items()}
        whole |= {"format": FORMAT, "config": dataclasses.asdict(config), "step": step, "random": randoms}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # what a kill leaves is overwritten next time
        with part.open("wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    accelerator.wait_for_everyone()


def load(path: Path, state: dict[str, Any], config: Any, accelerator: Accelerator) -> int:
    """Put a checkpoint into the parts of a run. Returns the number of steps it had taken.

    Raises:
        ValueError: the file cannot be read, or belongs to other parts or another configuration (but for
            `steps` and `save_every`); it is left as it was.
    """
    try:
        whole = torch.load(path, map_location=accelerator.device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: truncated, or no checkpoint ({error})"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by this course's training loop")
    if whole["step"] > config.steps:
        raise ValueError(f"steps must be at least {whole['step']}, which checkpoint {path} has taken")
    for name, want in dataclasses.asdict(config).items():
        got = whole["config"].get(name)
        if name not in ("steps", "save_every") and got != want:
            raise ValueError(f"checkpoint {path} was made with {name}={got!r}, not {want!r}")
    missing = set(state) ^ (set(whole) - {"format", "config", "step", "random"})
    if missing:
        raise ValueError(f"checkpoint {path} and this run differ in {', '.join(sorted(missing))}")
    if len(whole["random"]) != accelerator.num_processes:
        raise ValueError(
            f"checkpoint {path} was made by {len(whole['random'])} processes, not {accelerator.num_processes}"
        )
    try:
        for name, part in state.items():
            part.load_state_dict(whole[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {path} belongs to another {name}: {error}") from error
    _set_random_states(whole["random"][accelerator.process_index])
    return whole["step"]
