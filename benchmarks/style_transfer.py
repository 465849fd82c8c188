"""Time texture synthesis: `RandomFeatures` on a pyramid, in stages, against a dense bank of large filters.

The other is the plain way to see large structures: 48 random filters each of 3, 5, 7, 11, 15, 23 and 37
pixels at full size, after Ustyuzhaninov and others (2016), one Gram matrix of all 336, dense convolutions,
80 iterations of L-BFGS at 128 x 128. Both make a texture of the same photograph from noise. After every
iteration both are judged by both measures, outside the clock: the relative error of the Gram matrices,
the square root of the loss, of the dense bank's features and of the pyramid's. Prints a Markdown table of
the seconds until an error is reached. One thread, unless OMP_NUM_THREADS says otherwise.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.style.features import RandomFeatures
from course_lib.style.losses import gram, style_loss
from course_lib.style.pixels import Iteration, optimize, transfer
from course_lib.training import photo

SIDE, STEPS = 128, 80
ERRORS = (0.5, 0.2, 0.1, 0.05, 0.03)
STYLES = (("immunohistochemistry", None), ("gravel", 300), ("hubble_deep_field", 400))


def dense_bank(generator: torch.Generator) -> Callable[[Tensor], dict[str, Tensor]]:
    """Random filters of seven sizes, rectified, all at full size: (N, 336, H, W)."""
    sizes = (3, 5, 7, 11, 15, 23, 37)
    weights = [torch.randn(48, 3, k, k, generator=generator) / (3 * k * k) ** 0.5 for k in sizes]
    return lambda x: {"all": torch.cat([F.relu(F.conv2d(x, w, padding=w.shape[2] // 2)) for w in weights], 1)}


def dense_transfer(extract: Callable, style: Tensor, start: Tensor) -> Iterator[Iteration]:
    with torch.no_grad():
        want = {name: gram(f) for name, f in extract(style).items()}
    return optimize(lambda x: style_loss(extract(x), want), start, STEPS)


def race(
    way: Iterator[Iteration], judges: list[Callable[[Tensor], float]]
) -> tuple[list[list[float]], float]:
    """Seconds after each iteration with all errors there, and the seconds of the whole."""
    found, spent = [], 0.0
    while True:
        begin = time.perf_counter()
        step = next(way, None)
        spent += time.perf_counter() - begin
        if step is None:
            return found, spent
        image = F.interpolate(step.image, size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        found.append([spent, *(judge(image) for judge in judges)])


def judge(extract: Callable, style: Tensor) -> Callable[[Tensor], float]:
    with torch.no_grad():
        want = {name: gram(f) for name, f in extract(style).items()}

    @torch.no_grad()
    def error(image: Tensor) -> float:
        return style_loss(extract(image), want).item() ** 0.5

    return error


def first(found: list[list[float]], column: int, error: float) -> str:
    return next((f"{row[0]:.2f}" for row in found if row[column] <= error), "never")


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} PyTorch threads; ", end="")
    print(f"torch {torch.__version__}; load {os.getloadavg()[0]:.2f}; {SIDE} x {SIDE}, seconds\n")
    print(
        "| texture | way | all iterations | error of | " + " | ".join(f"≤ {e}" for e in ERRORS) + " | last |"
    )
    print("|:--|:--|--:|:--|" + "--:|" * (len(ERRORS) + 1), flush=True)
    for name, crop in STYLES[: int(sys.argv[1]) if len(sys.argv) > 1 else None]:
        style, g = photo(name, SIDE, crop=crop), torch.Generator().manual_seed(0)
        dense, pyramid = dense_bank(g), RandomFeatures(generator=g)
        judges = [judge(dense, style), judge(pyramid, style)]
        start = (style.mean((2, 3), keepdim=True) + 0.1 * torch.randn(style.shape, generator=g)).clamp(-1, 1)
        ways = {
            "dense filters": dense_transfer(dense, style, start),
            "ours": transfer(pyramid, style, start=start, stages=3, steps=40),
        }
        for way, iterations in ways.items():
            found, spent = race(iterations, judges)
            for column, measure in ((1, "dense"), (2, "pyramid")):
                times = " | ".join(first(found, column, e) for e in ERRORS)
                print(
                    f"| {name} | {way} | {spent:.1f} | {measure} | {times} | {found[-1][column]:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
