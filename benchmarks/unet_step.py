"""Time our U-Net's training step against two others', and what the sampler costs outside the network.

A step is forward, backward and AdamW's, of a squared error. All have equally many parameters (within 5%),
equal inputs, equally many levels, four attention heads, and take times scaled to 1000 steps.

- Ours: one residual block a level each way, four in the middle around the one attention.
- diffusers: one block a level (and the one more that it always has on the way up), attention in the middle
  only, scale and shift by the time, 8 groups. Its channels are multiples of 16, which are fastest, and as
  near to ours as the number of parameters lets them be: it has more blocks outside the middle.
- denoising-diffusion-pytorch: full attention at the smallest level only, heads of 8 channels. Its two blocks
  a level, 7×7 first convolution and attention on the way down and up (a linear one above the smallest level)
  have no option. So the row after it is the same network with all attentions but the middle's cut out.
- Our DiT: patches 2×2, depth 6, its width chosen for the number of parameters. Its weights meet every token,
  where most of a U-Net's meet a small image: many more multiply-adds.

The multiply-adds, counted by PyTorch in the forward pass, say how much of a ratio is due to their number.
Sampling is 50 steps of DDIM with our U-Net: the share of its time that is not spent within the network's
calls, and how much longer it takes than 50 bare calls. Prints Markdown tables.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from course_lib.diffusion import Cosine, Denoiser, ddim, grid
from course_lib.nets.dit import DiT
from course_lib.nets.unet import UNet

try:
    import diffusers
    from denoising_diffusion_pytorch import Unet
    from diffusers import UNet2DModel
except ImportError as error:
    sys.exit(
        f"This benchmark compares with two packages that the course does not need otherwise ({error}).\n"
        "To install them: pip install diffusers==0.42.1 denoising-diffusion-pytorch==2.3.4"
    )

ROWS = [  # batch, channels, side, ours, channels of the 2nd, dim and levels of the 3rd, DiT's width
    (128, 1, 8, 32, (1, 1, 2), (32, 48, 48), 24, (1, 2, 2), 80),
    (32, 3, 32, 32, (1, 2, 4), (32, 48, 128), 32, (1, 2, 4), 144),
]
REPEATS, STEPS = 15, 50


class Adapter(nn.Module):
    """Another library's network as ours is called: times in [0, 1], a tensor out."""

    def __init__(self, net: nn.Module, out: Callable = lambda found: found) -> None:
        super().__init__()
        self.net, self.out = net, out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.net(x, 1000 * t))


class Nothing(nn.Module):
    """In place of an attention, whose output is added to its input."""

    def forward(self, x: Tensor) -> float:
        return 0.0


def of_diffusers(channels: int, side: int, widths: tuple[int, ...]) -> nn.Module:
    net = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        norm_num_groups=8,
        attn_norm_num_groups=8,
        attention_head_dim=widths[-1] // 4,
        resnet_time_scale_shift="scale_shift",
    )
    return Adapter(net, lambda found: found.sample)


def of_lucidrains(channels: int, dim: int, levels: tuple[int, ...], *, bare: bool = False) -> nn.Module:
    net = Unet(dim, dim_mults=levels, channels=channels, attn_dim_head=8)
    if bare:
        for part in (*net.downs, *net.ups):
            part[2] = Nothing()
    return Adapter(net)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net: nn.Module, x: Tensor, t: Tensor) -> float:
    """Millions an image, in the forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1], t[:1])
    return counter.get_total_flops() / 2e6


def clock(call: Callable[[], object]) -> float:
    """Milliseconds."""
    time.sleep(0.1)  # until the idle threads of the run before no longer spin
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def steps(nets: dict[str, nn.Module], x: Tensor, t: Tensor, want: Tensor) -> dict[str, list[float]]:
    """Milliseconds of the steps of each, interleaved; two rounds before them are a warm-up."""
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-4) for name, net in nets.items()}

    def step(name: str) -> None:
        (nets[name](x, t) - want).square().mean().backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    rounds = [{name: clock(lambda name=name: step(name)) for name in nets} for _ in range(REPEATS + 2)]
    return {name: [found[name] for found in rounds[2:]] for name in nets}


def sampling(net: nn.Module, x: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of the sampler, of its calls of the network, and of as many bare calls, interleaved."""
    net.eval()
    times = grid(STEPS)
    within = 0.0

    def timed(x: Tensor, t: Tensor) -> Tensor:
        nonlocal within
        begin = time.perf_counter()
        out = net(x, t)
        within += (time.perf_counter() - begin) * 1e3
        return out

    model = Denoiser(timed, Cosine(), "v")

    @torch.no_grad()
    def bare() -> None:
        for t in times[:-1].to(x.dtype):
            net(x, t.expand(len(x)))

    whole, inside, calls = [], [], []
    for _ in range(6):  # the first is a warm-up
        within = 0.0
        whole.append(clock(lambda: ddim(model, x, times)))
        inside.append(within)
        calls.append(clock(bare))
    return whole[1:], inside[1:], calls[1:]


def main() -> None:
    torch.set_num_threads(2)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} PyTorch threads; ", end="")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}; ", end="")
    print(f"load {os.getloadavg()[0]:.2f}; float32\n")
    print(
        "| input | network | parameters, M | multiply-adds, M | best ms | median ms | ratio of best, median |"
    )
    print("|:--|:--|--:|--:|--:|--:|--:|", flush=True)
    overheads = []
    for batch, channels, side, width, levels, theirs, dim, other, wide in ROWS:
        torch.manual_seed(0)
        x, want, t = *torch.randn(2, batch, channels, side, side), torch.rand(batch)
        nets = {
            "ours": UNet(channels, width=width, levels=levels),
            "diffusers": of_diffusers(channels, side, theirs),
            "denoising-diffusion-pytorch": of_lucidrains(channels, dim, other),
            "the same, attention in the middle only": of_lucidrains(channels, dim, other, bare=True),
            "our DiT": DiT(channels, side, width=wide, depth=6, head_dim=wide // 4),
        }
        for name, net in nets.items():
            assert abs(size(net) / size(nets["ours"]) - 1) < 0.05, f"{name}: {size(net)} parameters"
        found = steps(nets, x, t, want)
        best, median = min(found["ours"]), statistics.median(found["ours"])
        for name, net in nets.items():
            ratio = f"{min(found[name]) / best:.2f}, {statistics.median(found[name]) / median:.2f}"
            print(f"| {batch}×{channels}×{side}×{side} | {name} | {size(net) / 1e6:.3f} ", end="")
            print(f"| {multiply_adds(net, x, t):.1f} | {min(found[name]):.1f} ", end="")
            print(f"| {statistics.median(found[name]):.1f} | {ratio} |", flush=True)
        overheads.append((f"{batch}×{channels}×{side}×{side}", *sampling(nets["ours"], x)))
    print(f"\n| {STEPS} steps of DDIM | best ms | outside the network | beyond {STEPS} bare calls |")
    print("|:--|--:|--:|--:|")
    for name, whole, inside, calls in overheads:
        share = statistics.median(1 - i / w for w, i in zip(whole, inside, strict=True))
        print(f"| {name} | {min(whole):.0f} | {share:.1%} | {min(whole) / min(calls) - 1:.1%} |")


if __name__ == "__main__":
    main()
