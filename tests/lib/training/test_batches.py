"""Batches: every row once an epoch; a run broken off in the middle of an epoch ends with the same bits."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from course_lib.training.batches import batches_of
from course_lib.training.ema import average
from course_lib.training.loop import TrainConfig, train

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Noisy(Dataset):
    """Rows that come with new random numbers each time, of all three kinds."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return {"x": ROWS[i] + 0.1 * torch.randn(3) + 0.1 * float(np.random.rand())}


class Plain(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return {"x": ROWS[i]}


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(40):
            yield {"x": torch.randn(3)}


class Epoch:
    """An iterable of batches that is no loader, and has another order in each of its epochs."""

    def __iter__(self):
        for i in torch.randperm(40).split(8):
            yield {"x": ROWS[i] + 0.1 * torch.randn(3)}


def own(seed=3):
    return torch.Generator().manual_seed(seed)


def stateful(workers, dataset=Noisy):
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    return torchdata.StatefulDataLoader(dataset(), 8, shuffle=True, num_workers=workers)


DATA = {
    "tensors": lambda: (ROWS,),
    "shuffled": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "its own generator": lambda: DataLoader(Noisy(), 8, shuffle=True, generator=own()),
    "a sampler's generator": lambda: DataLoader(
        Noisy(), 8, sampler=RandomSampler(Noisy(), True, generator=own())
    ),
    "weighted": lambda: DataLoader(Noisy(), 8, sampler=WeightedRandomSampler(torch.ones(40), 36)),
    "workers": lambda: DataLoader(Noisy(), 8, shuffle=True, num_workers=2),
    "a stream": lambda: DataLoader(Stream(), 8),
    "an iterable": Epoch,
    "prepared by Accelerate": lambda: Accelerator().prepare(
        DataLoader(Noisy(), 8, shuffle=True, generator=own())
    ),
    "torchdata": lambda: stateful(0),
    "torchdata with workers": lambda: stateful(
        2, Plain
    ),  # random numbers in workers are no part of its state
}


@pytest.mark.parametrize("stop", [8, 10])  # in the middle of an epoch of 5 batches, and at its end
@pytest.mark.parametrize("name", DATA)
def test_a_broken_run_ends_with_the_same_bits(tmp_path, name, stop):
    if "workers" in name and stop == 10:
        pytest.skip("slow, and as without workers")

    def start(steps, checkpoint):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        data, smooth = DATA[name](), average(model, 0.9)
        config = TrainConfig(13, 8, lr=0.1, save_every=stop)
        torch.manual_seed(2), np.random.seed(2)
        taken = train(
            model, lambda x: model(x).square().mean(), data, config, ema=smooth, checkpoint=checkpoint
        )
        return model, smooth, [s.loss for s in itertools.islice(taken, steps)]

    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    model, smooth, losses = start(None, whole)
    start(stop, broken)
    torch.rand(7), np.random.rand(7)
    other, other_smooth, rest = start(None, broken)
    assert losses[stop:] == rest and len(rest) == 13 - stop
    for a, b in ((model, other), (smooth, other_smooth)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_every_row_of_tensors_comes_once_an_epoch_in_a_new_order(seed):
    config = TrainConfig(steps=1, batch_size=4, seed=seed)
    batches = batches_of([torch.arange(8.0)], config, Accelerator())
    epochs = [torch.cat([next(batches)[0] for _ in range(2)]).tolist() for _ in range(4)]
    assert all(sorted(e) == list(range(8)) for e in epochs) and len({tuple(e) for e in epochs}) > 1


def test_a_memory_mapped_file_is_not_read_whole(tmp_path):
    """The tensor around it is sliced and indexed, never computed with; what is taken of it is small."""
    np.memmap(tmp_path / "rows", "float32", "w+", shape=(2**16, 64)).flush()
    rows = torch.from_numpy(np.memmap(tmp_path / "rows", "float32", "r+", shape=(2**16, 64)))
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() == rows.numel():
                seen.add(func.__name__)
            if isinstance(out, torch.Tensor) and out.is_floating_point() and out.numel() < rows.numel():
                assert out.nbytes <= 1024 * 64 * 4
            return out

    model = nn.Linear(64, 1)
    with Watch():
        config = TrainConfig(3, batch_size=8)
        list(train(model, lambda x: model(x).square().mean(), (rows,), config, checkpoint=tmp_path / "c.pt"))
    assert seen <= {"detach.default", "slice.Tensor", "index.Tensor"} and "index.Tensor" in seen


def test_epochs_are_told_their_number():
    class Sampler(RandomSampler):
        def set_epoch(self, epoch):
            told.append(epoch)

    told = []
    batches = batches_of(DataLoader(ROWS, 20, sampler=Sampler(ROWS)), TrainConfig(1), Accelerator())
    for _ in range(6):
        next(batches)
    assert told == [0, 1, 2]


@pytest.mark.parametrize("data, said", [
    (ROWS, "put a tensor into a tuple"),
    (ROWS.numpy(), "an array into torch.from_numpy"),
    ([ROWS.numpy(), ROWS], "an array into torch.from_numpy"),
    (Noisy(), "a Dataset into a DataLoader.* got Noisy"),
    ((ROWS, ROWS[1:]), r"equal lengths; got \[40, 39\]"),
    ((ROWS[:7],), "at least one batch of 8; got 7 rows"),
    ([], "yielded none in epoch 1"),
    (iter([ROWS]), "yielded none in epoch 2"),
])  # fmt: skip
def test_what_is_no_data_is_refused(data, said):
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=said):
        list(train(model, lambda x: model(x).square().mean(), data, TrainConfig(2, 8)))


def test_rows_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 parts"):
        batches_of((ROWS,), TrainConfig(1, 8), Accelerator(), parts=3)
