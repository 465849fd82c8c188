"""Time a step of `train` beside the same step in a plain PyTorch loop.

A step takes a batch of rows, computes a squared error of a small U-Net and its gradients, shortens them to
norm 1, and lets fused AdamW take a step; the last rows have an average of the weights too, with PyTorch's own
`AveragedModel` in the plain loop. The plain loop reads nothing, neither losses nor whether they are finite.
`train` looks at that every ten steps, and keeps all that a checkpoint needs. Both run in turn on one thread;
what is counted is the processor's time, so that other work does not matter. Prints a Markdown table.
"""

import copy
import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from course_lib.nets.unet import UNet
from course_lib.training import TrainConfig, average, train

ROWS = [  # batch, channels, side, width, levels
    (128, 1, 8, 32, (1, 1, 2)),
    (32, 3, 32, 32, (1, 2, 4)),
]
STEPS, ROUNDS, WARM_UP = 10, 12, 2  # steps at a time, for `train` looks at its losses every ten


def squares(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    return (net(x, t) - x).square().mean()


def plain(net: nn.Module, data: tuple[Tensor, ...], batch_size: int, smooth: bool) -> Iterator[None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999)) if smooth else None
    while True:
        for rows in torch.randperm(len(data[0])).split(batch_size):
            squares(net, *(t[rows] for t in data)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if smooth:
                ema.update_parameters(net)
            yield


def ours(net: nn.Module, data: tuple[Tensor, ...], batch_size: int, smooth: bool) -> Iterator[None]:
    config = TrainConfig(10**9, batch_size, lr=1e-4)
    yield from train(
        net, lambda x, t: squares(net, x, t), data, config, ema=average(net, 0.999) if smooth else ()
    )


def clock(steps: Iterator) -> float:
    """Milliseconds of a step."""
    begin = time.process_time()
    for _ in itertools.islice(steps, STEPS):
        pass
    return (time.process_time() - begin) / STEPS * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, 1 PyTorch thread; torch {torch.__version__}; ", end=""
    )
    print(f"load {os.getloadavg()[0]:.2f}; float32\n")
    print("| input | average | plain loop: best ms, median | `train`: best ms, median | overhead |")
    print("|:--|:--|--:|--:|--:|", flush=True)
    for (batch, channels, side, width, levels), smooth in itertools.product(ROWS, (False, True)):
        torch.manual_seed(0)
        data = torch.randn(4 * batch, channels, side, side), torch.rand(4 * batch)
        net = UNet(channels, width=width, levels=levels)
        loops = [loop(copy.deepcopy(net), data, batch, smooth) for loop in (plain, ours)]
        found = [[clock(loop) for loop in loops] for _ in range(ROUNDS)][WARM_UP:]
        times = list(zip(*found, strict=True))
        best, median = [min(t) for t in times], [statistics.median(t) for t in times]
        print(f"| {batch}×{channels}×{side}×{side} | {'yes' if smooth else 'no'} ", end="")
        print("".join(f"| {b:.2f}, {m:.2f} " for b, m in zip(best, median, strict=True)), end="")
        print(f"| {best[1] / best[0] - 1:+.1%}, {median[1] / median[0] - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
