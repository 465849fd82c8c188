r"""Where a program computes, in which precision, and from which seed."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else Apple's MPS, else the processor.

    >>> pick_device().type in ("cuda", "mps", "cpu")
    True
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (all devices), with an integer in [0, 2³²).

    >>> seed_everything(7)
    >>> first = torch.rand(3)
    >>> seed_everything(7)
    >>> torch.equal(first, torch.rand(3))
    True
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def default_precision(device: torch.device) -> str:
    """``"bf16"`` on a GPU that computes in it natively, else ``"no"``. A T4 only emulates it, slowly."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "no"


def make_accelerator() -> Accelerator:
    """What a loop runs on where its caller names nothing.

    The process's own comes first: an Accelerator that was made before settles the precision of all later
    ones; then ``ACCELERATE_MIXED_PRECISION``, which ``accelerate launch`` sets; then `default_precision`.
    """
    if is_initialized() or "ACCELERATE_MIXED_PRECISION" in os.environ:
        return Accelerator()
    return Accelerator(mixed_precision=default_precision(PartialState().device))


def autocast(device: torch.device, precision: str | None) -> contextlib.AbstractContextManager:
    """Compute in bfloat16 (``"bf16"``) or not (``"no"``) in this block; ``None`` leaves all as it is."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def prepared(accelerator: Accelerator, *things: Any) -> Iterator[Any]:
    """What `Accelerator.prepare` makes of models and optimizers, for this block.

    An Accelerator keeps what it has prepared for good, and all that this holds. Here it forgets it again.
    """
    kept = (accelerator._models, accelerator._optimizers)
    before = {id(thing) for things in kept for thing in things}
    made = accelerator.prepare(*things)
    added = {id(thing) for things in kept for thing in things} - before
    try:
        yield made
    finally:
        for things in kept:
            things[:] = [thing for thing in things if id(thing) not in added]


def seed_processes(seed: int, accelerator: Accelerator, *, salt: int = 0) -> None:
    """With several processes, give each random numbers of its own; with one, leave the caller's as they are.

    A script seeds all its processes alike. They would draw the same times, noise and dropout.
    """
    if accelerator.num_processes > 1:
        seed_everything((seed + accelerator.process_index + 1_000_003 * salt) % 2**32)


def random_states() -> dict[str, Any]:
    """The states of all global generators, in types that a safe load admits."""
    name, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
    states["torch"] = torch.get_rng_state()
    if torch.accelerator.is_available():
        states["device"] = torch.get_device_module().get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`; states of a kind of device that is not here are left out."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.accelerator.is_available() and "device" in states:
        torch.get_device_module().set_rng_state(states["device"])
