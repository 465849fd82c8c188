"""Trains a small network with dropout and writes its weights and losses; `test_train` runs and kills it."""

import sys
from pathlib import Path

import torch
from torch import nn

from course_lib.training.loop import TrainConfig, average, train


def problem(width: int = 16) -> tuple[nn.Module, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)
    )
    return model, [x, x.sum(1, keepdim=True).sin()]


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (model(x) - y).square().mean()


if __name__ == "__main__":
    folder, steps, width, random = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4] == "random",
    )
    model, tensors = problem(width)
    if not random:  # layers that see their own part of a batch only would differ between 1 and 2 processes
        model = nn.Sequential(model[0], model[2], model[4])
    ema = average(model, 0.9)
    config = TrainConfig(steps=steps, batch_size=32, lr=1e-2, warmup=5, save_every=3)
    losses = [
        step.loss for step in train(model, loss, tensors, config, ema=ema, checkpoint=folder / "run.pt")
    ]
    torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "losses": losses}, folder / "end.pt")
