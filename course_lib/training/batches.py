r"""The batches of a run: epoch after epoch, on the device, and with a state from which a run goes on.

Two kinds of data have one interface here. Tensors in memory are cut into batches of rows; the order is a
function of the seed and the step alone. Anything else is an iterable of batches, such as a `DataLoader`. Its
place in the middle of an epoch is found again by its own `state_dict` where it has one (torchdata's
`StatefulDataLoader`, whose state has no random numbers of workers), else by reading the epoch's first batches
again, from the random states at its beginning. That takes time, but gives the same random numbers in workers
too (unless they live on from epoch to epoch).
"""

import functools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from course_lib.training.device import random_states, set_random_states

SAMPLE_ROWS, SAMPLE_BYTES = 1024, 2**24  # of a tensor, to know it by


def batches_of(
    data: Sequence[Tensor] | Iterable, config: Any, accelerator: Accelerator, *, parts: int = 1
) -> "Rows | Epochs":
    """The batches of `data`, on the accelerator's device, for this process.

    Args:
        data: a tuple or list of tensors (N, …), of which a batch takes the same rows, or an iterable that
            yields batches (tensors, or tuples, lists and dicts of them) each time it is iterated over.
        config: has a `batch_size`, of all processes together, and a `seed`; both are for tensors only.
        accelerator: says which process this is.
        parts: into how many batches to divide the `batch_size` rows of tensors.

    Raises:
        ValueError: the data are rows, but not in tensors; or tensors differ in length, hold no batch, or a
            batch cannot be shared evenly.
    """
    several = isinstance(data, list | tuple)
    if several and data and all(isinstance(member, Tensor) for member in data):
        return Rows(data, config, accelerator, parts)
    rows = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    if rows or any(isinstance(member, Tensor | np.ndarray) for member in (data if several else [data])):
        raise ValueError(  # iterated over, these would give single rows
            "data must be a tuple of tensors, or an iterable of batches: put a tensor into a tuple, a "
            f"Dataset into a DataLoader, an array into torch.from_numpy; got {type(data).__name__}"
        )
    return Epochs(data, accelerator)


class Rows:
    """Batches of rows of tensors. An epoch has a new order, and leaves out the rest that fills no batch."""

    def __init__(self, tensors: Sequence[Tensor], config: Any, accelerator: Accelerator, parts: int) -> None:
        rows, size, shares = len(tensors[0]), config.batch_size, accelerator.num_processes * parts
        if any(len(t) != rows for t in tensors):
            raise ValueError(f"data must be tensors of equal lengths; got {[len(t) for t in tensors]}")
        if rows < size:
            raise ValueError(f"data must hold at least one batch of {size}; got {rows} rows")
        if size % shares:
            raise ValueError(
                f"batch_size must be a multiple of the {shares} parts (processes × accumulate); got {size}"
            )
        self.tensors, self.size, self.parts, self.shares = tensors, size, parts, shares
        self.first, self.device, self.taken = accelerator.process_index * parts, accelerator.device, 0

        @functools.lru_cache(maxsize=1)
        def order(epoch: int) -> Tensor:
            return torch.randperm(
                rows, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            )

        self.order = order

    def __next__(self) -> tuple[Tensor, ...]:
        step, part = divmod(self.taken, self.parts)
        epoch, place = divmod(step, len(self.tensors[0]) // self.size)
        rows = self.order(epoch)[place * self.size : (place + 1) * self.size][
            self.first + part :: self.shares
        ]
        self.taken += 1
        return tuple(t[rows].to(self.device) for t in self.tensors)

    def resume(self, taken: int, state: None) -> None:
        """Go on after so many batches."""
        self.taken = taken

    def state_dict(self) -> None:
        """The number of batches says all."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint compares: shapes, types, and a checksum of some rows."""
        each = [f"{tuple(t.shape)} {t.dtype} {_checksum(t):08x}" for t in self.tensors]
        return {"data": f"{len(each)} tensors"} | {f"tensor {i}": text for i, text in enumerate(each)}


class Epochs:
    """Batches of an iterable, which is iterated over again and again.

    With several processes a `DataLoader` is prepared by Accelerate, which gives each process its share, in
    batches of the loader's size. Any other iterable must yield this process's share by itself.
    """

    def __init__(self, data: Iterable, accelerator: Accelerator) -> None:
        prepared = hasattr(data, "base_dataloader")
        if isinstance(data, DataLoader) and accelerator.num_processes > 1 and not prepared:
            data, prepared = accelerator.prepare_data_loader(data), True
        self.data, self.device, self.prepared = data, accelerator.device, prepared
        self.stateful = hasattr(getattr(data, "base_dataloader", data), "state_dict")
        self.epoch = self.taken = 0
        self.iterator = self.begun = self.before = None

    def __next__(self) -> Any:
        if self.iterator is None:
            self._begin()
        if self.prepared:  # what Accelerate has prepared fetches one batch ahead
            self.before = random_states()
        batch = next(self.iterator, self)
        if batch is self:  # the epoch is over
            self.epoch, self.taken = self.epoch + (self.taken > 0), 0
            self._begin()
            batch = next(self.iterator, self)
        if batch is self:
            raise ValueError(
                "data must yield batches each time it is iterated over; "
                f"it yielded none in epoch {self.epoch + 1}"
            )
        self.taken += 1
        return send_to_device(batch, self.device, non_blocking=self.device.type == "cuda")

    def _begin(self) -> None:
        for part in (self.data, getattr(self.data, "sampler", None), getattr(self.data, "dataset", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.epoch)
                break  # a loader that Accelerate has prepared tells its parts
        self.begun = self._random_states()
        self.iterator = iter(self.data)

    def _random_states(self) -> dict[str, Any]:
        own = [generator.get_state() for generator in _generators(self.data)]
        return random_states() | {"own": own}

    def _set_random_states(self, states: dict[str, Any]) -> None:
        set_random_states(states)
        for generator, state in zip(_generators(self.data), states["own"], strict=True):
            generator.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and the random states at its beginning and now."""
        state = {"epoch": self.epoch, "taken": self.taken, "begun": self.begun, "before": self.before}
        state["now"] = self._random_states()
        return state | ({"data": self.data.state_dict()} if self.stateful else {})

    def resume(self, taken: int, state: dict[str, Any] | None) -> None:
        """Go on from a state; without one, from the beginning of an epoch."""
        if state is None:
            return
        self.epoch, self.taken = state["epoch"], state["taken"]
        self._set_random_states(state["begun"])
        if self.stateful:
            self.data.load_state_dict(state["data"])
        self._begin()
        for batch in range(0 if self.stateful else self.taken):
            if self.prepared and batch == self.taken - 1:
                set_random_states(state["before"])
            next(self.iterator)
        self._set_random_states(state["now"])

    def describe(self) -> dict[str, Any]:
        """What a checkpoint compares. The data themselves are not looked at: they may be large."""
        dataset, kind = getattr(self.data, "dataset", None), getattr(self.data, "base_dataloader", self.data)
        if dataset is None:
            return {"data": f"{type(kind).__name__} {_length(kind)}"}
        return {
            "data": f"{type(kind).__name__} of batches of {getattr(kind, 'batch_size', None)}",
            "dataset": f"{type(dataset).__name__} {_length(dataset)}",
        }


def _generators(data: Iterable) -> list[torch.Generator]:
    """The generators that a loader and its parts have of their own."""
    holders = [data, getattr(data, "sampler", None), getattr(data, "dataset", None)]
    found = [getattr(data, "synchronized_generator", None), *(getattr(h, "generator", None) for h in holders)]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _length(data: Any) -> str:
    """The number of members, where there is one."""
    try:
        return f"of length {len(data)}"
    except (TypeError, NotImplementedError):
        return "of no known length"


def _checksum(tensor: Tensor) -> int:
    """Of rows spread over a tensor, few enough that a memory-mapped one is not read whole."""
    size = max(1, tensor[:1].nbytes)
    rows = max(1, min(len(tensor), SAMPLE_ROWS, SAMPLE_BYTES // size))
    sample = tensor.detach()[:: -(-len(tensor) // rows)].cpu().contiguous()
    return zlib.crc32(sample.reshape(-1).view(torch.uint8).numpy())
