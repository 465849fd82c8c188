"""What two processes do, written to a folder by each; `test_processes` starts and reads it."""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from train_script import problem

from course_lib.gan.loop import GANConfig, train_gan
from course_lib.training.loop import TrainConfig, train

CONFIG = TrainConfig(steps=9, batch_size=32, lr=1e-2, accumulate=2)


def plain(seed: int = 1) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Without layers that see their own part of a batch only."""
    torch.manual_seed(seed)
    model, data = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)), problem()[1]
    return model, data


class Numbers(Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((5,), float(i)) + 0.01 * torch.rand(5)


class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.full((5,), float(i)) for i in range(24))


def losses() -> list[float]:
    """A method of no model, closed over: gradients are averaged all the same."""
    model, data = plain()
    return [s.loss for s in train(model, lambda x, y: (model(x) - y).square().mean(), data, CONFIG)]


def gan_losses() -> list[list[float]]:
    torch.manual_seed(2)
    G, D = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    return [[s.discriminator, s.generator] for s in train_gan(G, D, problem()[1][:1], GANConfig(6, 3, 32))]


def rows_seen(data, steps: int, checkpoint: Path | None = None) -> tuple[list, torch.Tensor]:
    """Rows and noise that a process got, and the weights in the end."""
    model, seen = plain()[0], []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0].tolist())
        return (model(x) + 0.1 * torch.randn(len(x), 1)).square().mean()

    for _ in train(model, loss, data, TrainConfig(steps, lr=1e-3, save_every=4), checkpoint=checkpoint):
        pass
    return seen, model[0].weight.detach()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank = Accelerator().process_index
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # as a script does, in all processes alike
    found, (model, data) = {"losses": losses(), "gan": gan_losses()}, plain(seed=rank)
    drawn = []

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dropped = torch.nn.functional.dropout(torch.ones(20), 0.5).tolist()
        drawn.append((torch.rand(3).tolist(), dropped, random.random(), np.random.rand()))
        return (model(x) - y).square().mean()

    list(train(model, loss, data, TrainConfig(2, 32)))
    found |= {"drawn": drawn, "weights": model[0].weight.detach()}  # from different beginnings
    shuffled = lambda: DataLoader(Numbers(), 4, shuffle=True)
    found["shuffled"], whole = rows_seen(shuffled(), 6)
    rows_seen(shuffled(), 4, folder / "c.pt")  # in the middle of the second epoch of three steps
    torch.manual_seed(9)
    _, broken = rows_seen(shuffled(), 6, folder / "c.pt")
    found |= {"resumed": torch.equal(whole, broken), "stream": rows_seen(DataLoader(Stream(), 4), 3)[0]}
    torch.save(found, folder / f"{rank}.pt")
