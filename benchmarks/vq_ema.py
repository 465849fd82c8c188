"""Time the EMA quantizer's training step, forward and backward, against vector-quantize-pytorch.

Both start from the same codebook with the same settings (decay 0.99, eps 1e-5, commitment 0.25,
straight-through gradients, no k-means start, no restart) and must agree on indices, vectors, loss,
gradient and updated codebook. Prints a Markdown table. Peak memory is that of a process of its own
that takes steps of one kind, less what it held before them (from Linux's /proc).
"""

import copy
import os
import platform
import re
import statistics
import subprocess
import sys
import time

import torch

from course_lib.vq import VectorQuantizerEMA

try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError:
    sys.exit(
        "This benchmark compares with vector-quantize-pytorch, which the course does not need otherwise.\n"
        "`make bench` installs it, and so does: pip install vector-quantize-pytorch==1.32.0"
    )

N, K, D = 65_536, 1024, 64
REPEATS = 9


def problem() -> tuple[torch.Tensor, VectorQuantizerEMA, VectorQuantize]:
    """Vectors (64, D, 32, 32), and the two quantizers with one codebook, drawn from the same normal."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N // 1024, D, 32, 32, generator=generator)
    codebook = torch.randn(K, D, generator=generator)
    ours = VectorQuantizerEMA(K, D, commitment=0.25, decay=0.99, eps=1e-5)
    theirs = VectorQuantize(
        D,
        K,
        decay=0.99,
        eps=1e-5,
        commitment_weight=0.25,
        kmeans_init=False,
        threshold_ema_dead_code=0,
        rotation_trick=False,
        accept_image_fmap=True,
    )
    ours.codebook.copy_(codebook), ours.sums.copy_(codebook)
    theirs._codebook.embed.copy_(codebook), theirs._codebook.embed_avg.copy_(codebook)
    return z, ours.train(), theirs.train()


def step(quantizer: torch.nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Forward and backward, of a loss in which the output counts too."""
    z = z.detach().requires_grad_()
    out, indices, loss, *_ = quantizer(z)
    (out.square().mean() + loss).backward()
    return out.detach(), indices, loss.detach(), z.grad


def agree(z: torch.Tensor, ours: VectorQuantizerEMA, theirs: VectorQuantize) -> None:
    """Three steps give the same; a vector between two codes may go either way in float32."""
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    for _ in range(3):
        ours.codebook.copy_(theirs._codebook.embed[0])  # so that one tie does not spoil the next step
        ours.sums.copy_(theirs._codebook.embed_avg[0]), ours.counts.copy_(theirs._codebook.cluster_size[0])
        a, b = step(ours, z), step(theirs, z)
        same = a[1] == b[1]
        assert same.float().mean() > 0.9999, f"{(~same).sum()} of {N} indices differ"
        for x, y in ((a[0], b[0]), (a[3], b[3])):
            torch.testing.assert_close(x.movedim(1, -1)[same], y.movedim(1, -1)[same], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a[2], b[2].view_as(a[2]), atol=1e-6, rtol=1e-5)
        if same.all():
            torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0], atol=1e-5, rtol=1e-4)
    print(f"{(~same).sum()} of {N} indices differ in the last of three steps.\n")


def peak(which: str) -> float:
    """MiB that three steps of one quantizer add to a fresh process."""
    found = subprocess.run([sys.executable, __file__, which], check=True, capture_output=True, text=True)
    return float(found.stdout)


def resident(field: str) -> int:
    """This process's memory in KiB: VmRSS now, VmHWM at its highest."""
    with open("/proc/self/status") as status:
        return int(re.search(rf"{field}:\s+(\d+)", status.read())[1])


def measure(which: str) -> None:
    z, ours, theirs = problem()
    before = resident("VmRSS")
    for _ in range(3):
        step(ours if which == "ours" else theirs, z)
    print((resident("VmHWM") - before) / 1024)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} PyTorch threads; ", end="")
    print(f"torch {torch.__version__}; load {os.getloadavg()[0]:.2f}; N={N}, K={K}, D={D}, float32\n")
    z, ours, theirs = problem()
    agree(z, ours, theirs)
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(REPEATS + 1):  # interleaved; the first is a warm-up
        for name, quantizer in (("theirs", theirs), ("ours", ours)):
            time.sleep(0.2)  # until the idle threads of the run before no longer spin
            begin = time.perf_counter()
            step(quantizer, z)
            times[name].append((time.perf_counter() - begin) * 1e3)
    times = {name: values[1:] for name, values in times.items()}
    print("| forward and backward | best ms | median ms | peak memory, MiB |")
    print("|:--|--:|--:|--:|")
    memory = {name: peak(name) for name in times}
    for name, said in (("theirs", "vector-quantize-pytorch"), ("ours", "ours")):
        best, middle = min(times[name]), statistics.median(times[name])
        print(f"| {said} | {best:.0f} | {middle:.0f} | {memory[name]:.0f} |")
    ratio = lambda f: f(times["theirs"]) / f(times["ours"])
    print(f"| ratio | {ratio(min):.1f} | {ratio(statistics.median):.1f} ", end="")
    print(f"| {memory['theirs'] / memory['ours']:.1f} |")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
