r"""Checkpoints: all that the next step depends on, in one file, and what run it belongs to.

Weights, optimizers, averages, the place in the data, and the states of all random generators: a resumed run
goes on with the same bits. The file also says what its run was made of, so that another one is refused.
"""

import dataclasses
import functools
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from course_lib.training.batches import Epochs, Rows
from course_lib.training.device import random_states, seed_processes, set_random_states

FORMAT = "course_lib checkpoint 1"
FREE = ("steps", "save_every", "compile", "channels_last")  # settings that a resumed run may change


@dataclasses.dataclass
class Checkpoint:
    """The file of a run, and what goes into it.

    Attributes:
        path: where it is; ``None`` for a run that keeps nothing.
        parts: by name, what has a state dict.
        config: the run's dataclass.
        about: by name, what else the run is made of; ``None`` where that cannot be said.
        batches: the run's batches.
        accelerator: says which process this is.
        per_step: how many batches a step takes.
    """

    path: str | Path | None
    parts: dict[str, Any]
    config: Any
    about: dict[str, Any]
    batches: Rows | Epochs
    accelerator: Accelerator
    per_step: int = 1

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        every = self.config.save_every
        return self.path is not None and (step == self.config.steps or (every > 0 and step % every == 0))

    def save(self, step: int) -> None:
        """Write the file beside the old one, then put it in its place: at no moment there is none.

        Raises:
            OSError: it cannot be written, for instance since the disk is full; the old file stays.
        """
        own = {"random": random_states(), "batches": self.batches.state_dict()}
        each = gather_object([own])
        if self.accelerator.is_main_process:
            whole = {name: part.state_dict() for name, part in self.parts.items()}
            whole |= {"format": FORMAT, "config": dataclasses.asdict(self.config), "step": step}
            whole |= {"about": self.about | self.batches.describe()}
            whole |= {key: [e[key] for e in each] for key in own}
            _write(Path(self.path).resolve(), whole, step)  # where a symbolic link leads
        self.accelerator.wait_for_everyone()

    def restore(self) -> int:
        """Put the file, where there is one, into the parts. Returns the number of steps it had taken.

        Raises:
            ValueError: the file cannot be read, or belongs to another run; it is left as it was.
        """
        if self.path is None or not Path(self.path).exists():
            return 0
        whole = self._read()
        self._compare(whole)
        for name, part in self.parts.items():
            if isinstance(part, torch.optim.Optimizer):  # how a step is computed is this run's affair
                for theirs, own in zip(whole[name]["param_groups"], part.param_groups, strict=False):
                    theirs["fused"] = own.get("fused")
            try:
                part.load_state_dict(whole[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(f"checkpoint {self.path} belongs to another {name}: {error}") from error
        step, randoms, states = whole["step"], whole["random"], whole.get("batches")
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        if len(randoms) == processes:
            self.batches.resume(step * self.per_step, states and states[index])
            set_random_states(randoms[index])
            return step
        self.batches.resume(step * self.per_step, None)
        seed_processes(self.config.seed, self.accelerator, salt=step)
        rows = "the order of the rows goes on" if isinstance(self.batches, Rows) else "an epoch begins"
        warnings.warn(
            f"checkpoint {self.path} was made by {len(randoms)} processes and goes on with {processes}: "
            f"{rows}, but noise, times and dropout are others than they would have been",
            stacklevel=3,
        )
        return step

    def _read(self) -> dict[str, Any]:
        try:
            whole = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            raise ValueError(
                f"checkpoint {self.path} cannot be read: truncated, or no checkpoint ({error})"
            ) from error
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ValueError(f"checkpoint {self.path} was not written by this course's training loop")
        return whole

    def _compare(self, whole: dict[str, Any]) -> None:
        """Refuse a file of another run. What an older file does not say is not compared."""
        config, about = dataclasses.asdict(self.config), whole.get("about", {})
        if whole["step"] > config["steps"]:
            raise ValueError(
                f"steps must be at least {whole['step']}, which checkpoint {self.path} has taken"
            )
        fixed = [name for name in config if name not in FREE]
        if config.get("schedule", "constant") != "constant":
            fixed.append("steps")  # over which the learning rate falls to zero
        pairs = {name: (whole["config"].get(name, config[name]), config[name]) for name in fixed}
        wanted = {k: want for k, want in (self.about | self.batches.describe()).items() if want is not None}
        pairs |= {k: (about[k], want) for k, want in wanted.items() if about.get(k) is not None}
        for name, (got, want) in pairs.items():
            if got != want:
                raise ValueError(f"checkpoint {self.path} was made with {name}={got!r}, not {want!r}")
        missing = set(self.parts) ^ (set(whole) - {"format", "config", "step", "about", "random", "batches"})
        if missing:
            raise ValueError(f"checkpoint {self.path} and this run differ in {', '.join(sorted(missing))}")


def name_of(function: Callable | None) -> str | None:
    """By which a checkpoint knows a function: its name, and what was bound to it; ``None`` where it has none.

    >>> name_of(functools.partial(sorted, key=len, reverse=True))
    'sorted(key=len, reverse=True)'
    """
    if isinstance(function, functools.partial):
        plain = (bool, int, float, str, type(None))
        bound = [(k, repr(v) if isinstance(v, plain) else name_of(v)) for k, v in function.keywords.items()]
        return f"{name_of(function.func)}({', '.join(f'{k}={v}' for k, v in bound)})"
    return getattr(function, "__qualname__", None)


def describe_optimizer(optimizer: torch.optim.Optimizer, name: str = "optimizer") -> dict[str, Any]:
    """Its kind and its settings, but for those that only say how it computes."""
    hidden = ("params", "fused", "foreach", "capturable", "initial_lr")
    groups = optimizer.param_groups
    options = {k: [group[k] for group in groups] for k in groups[0] if k not in hidden}
    return {name: type(optimizer).__name__} | {f"{name}'s {k}": values for k, values in options.items()}


def _write(path: Path, whole: dict[str, Any], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # what a kill leaves is overwritten next time
    try:
        with part.open("wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer hides the system's error in its own
        part.unlink(missing_ok=True)
        left = "the last one is as it was" if path.exists() else "there is none yet"
        raise OSError(
            f"checkpoint {path} of step {step} cannot be written, perhaps since the disk is full; {left} "
            f"({error})"
        ) from error
