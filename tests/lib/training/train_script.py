"""A small problem, and a run that ends itself with SIGKILL while it writes its second checkpoint."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from course_lib.training.loop import TrainConfig, train

CONFIG = TrainConfig(steps=12, batch_size=32, lr=1e-2, warmup=5, save_every=3)


def problem(width: int = 16) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network with all that has a state, dropout and batch normalization, and 96 rows of data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)
    )
    return model, (x, x.sum(1, keepdim=True).sin())


def squares(model: nn.Module):
    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (model(x) - y).square().mean()

    return loss


if __name__ == "__main__":
    model, data = problem()
    write, count = os.fsync, 0

    def die_at_the_second(file: int) -> None:
        global count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(file)

    os.fsync = die_at_the_second
    torch.manual_seed(5)
    list(train(model, squares(model), data, CONFIG, checkpoint=Path(sys.argv[1]) / "run.pt"))
