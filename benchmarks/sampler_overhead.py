"""Compare a sampler's step with its network alone: what the loop, the denoiser and the path cost.

Heun's method and DDIM take 20 steps with the U-Net of the digits' benchmark on 64 images; beside it the same
network is called as often on the same images, without anything else. Both in turns, one thread; a row is the
median of the ratios. Prints a Markdown table.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from course_lib.diffusion import Denoiser, Linear, ddim, grid, heun
from course_lib.nets.unet import UNet

STEPS, ROUNDS = 20, 7


def seconds(act: Callable[[], object]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    net = UNet(1, width=32, levels=(1, 1, 2)).eval()
    model, times = Denoiser(net, Linear(), "velocity"), grid(STEPS)
    print(
        f"{platform.machine()}, 1 PyTorch thread, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}\n"
    )
    print("| sampler | images | evaluations | time over the network's alone |")
    print("|:--|:--|--:|--:|")
    for sampler, evaluations in ((heun, 2 * STEPS - 1), (ddim, STEPS)):
        for side in (8, 16):
            x, t = torch.randn(64, 1, side, side), torch.full((64,), 0.5)
            alone = lambda x=x, t=t, n=evaluations: [net(x, t) for _ in range(n)]
            whole = lambda x=x, s=sampler: s(model, x, times)
            ratios = [seconds(whole) / seconds(alone) for _ in range(ROUNDS)]
            cells = f"64 of {x.shape[2]}×{x.shape[3]} | {evaluations} | {statistics.median(ratios):.3f}"
            print(f"| {sampler.__name__} | {cells} |")


if __name__ == "__main__":
    main()
