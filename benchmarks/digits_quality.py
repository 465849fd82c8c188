"""Compare sample quality after equal training time on the digits: ours, and three libraries' models.

Each network, of equally many parameters (within 5%), trains for 60 s of processor time, one thread, on the
training digits: AdamW, batches of 128, gradients clipped at 1, a learning rate that rises over 50 steps and
falls with a cosine to 0 at the end of the time, and an average of the weights with decay 0.99. The clock is
the process's, and all train in turns of 20 steps: other work on the machine disturbs all alike.

- ours: `UNet`, the velocity on the `Linear` path, logit-normal times, data and noise coupled by `optimal`.
- diffusers: `UNet2DModel` and `DDPMScheduler` as in their tutorial: noise predicted, 1000 steps.
- denoising-diffusion-pytorch: `Unet` and `GaussianDiffusion` as it comes: v predicted, sigmoid table.
- torchcfm: `ExactOptimalTransportConditionalFlowMatcher` with diffusers' `UNet2DModel`, logit-normal times
  too, since they help it. It has no sampler for images, so it gets ours, with the same choice of grids.

One trained network serves for all numbers of evaluations; Heun's method takes 9 for 10 and 49 for 50.
``--tune 30`` trains each for 30 s at a seed that is used for nothing else, with each of four learning rates,
and prints the distances of 500 samples by every sampler. RATES are the best there at 10 evaluations (ours
without coupling). CHOSEN are the best samplers at each number; for the two flows after 60 s, of 1000 samples.

The distance is Fréchet's, of 1000 samples, clamped to [-1, 1], to all 1797 digits; features are the last
hidden layer (64 values) of a classifier that learned from the training digits before. The last row is that of
1000 real digits to the other 797: a scale and no bound, since its reference is smaller, and the models
have learned from most of theirs. Prints a Markdown table.
"""

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ["TQDM_DISABLE"] = "1"  # a library's sampler shows bars

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.diffusion import Denoiser, Linear, euler, grid, heun, logit_normal, optimal
from course_lib.diffusion.loss import Times
from course_lib.metrics import frechet
from course_lib.nets.unet import UNet
from course_lib.training import Images, average, load_dataset

try:
    import diffusers
    from denoising_diffusion_pytorch import GaussianDiffusion
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
except ImportError as error:
    sys.exit(
        f"This benchmark compares with packages that the course does not need otherwise ({error}).\n"
        "To install them: pip install -r benchmarks/requirements.txt"
    )
from unet_step import of_diffusers, of_lucidrains, size

SECONDS, TURN, BATCH, WARMUP, DECAY = 60.0, 20, 128, 50, 0.99
SAMPLES, EVALUATIONS, SEEDS = 1000, (5, 10, 50), (0, 1, 2)
TUNING_SEED, TUNING_SAMPLES, TUNING_RATES = 100, 500, (1e-3, 2e-3, 4e-3, 8e-3)

Sampler = Callable[[nn.Module, Tensor, int], Tensor]  # of a network, noise, and the evaluations allowed


class System(NamedTuple):
    """A network, its loss, and ways to sample, by name."""

    net: nn.Module
    loss: Callable[[nn.Module, Tensor], Tensor]
    samplers: dict[str, Sampler]


class Trained(NamedTuple):
    """The averaged network, and how many steps it took."""

    net: nn.Module
    steps: int


def along(solver: Callable, power: float = 1.0, *, turned: bool = False) -> Sampler:
    """A solver of ours. `turned` is for a network whose time runs from noise at 0 to data at 1."""

    def sample(net: nn.Module, x: Tensor, evaluations: int) -> Tensor:
        steps = evaluations if solver is euler else (evaluations + 1) // 2  # Heun's last takes one evaluation
        model = Denoiser(lambda x, t: -net(x, 1 - t), Linear(), "velocity") if turned else net
        return solver(model, x, grid(steps, power=power))

    return sample


def flow_samplers(*, turned: bool) -> dict[str, Sampler]:
    return {
        f"{solver.__name__.capitalize()}, grid of power {power:g}": along(solver, power, turned=turned)
        for solver in (euler, heun)
        for power in (1.0, 1.25, 1.5, 2.0)
    }


def ours(times: Times | None = logit_normal, couple: Callable | None = optimal) -> System:
    model = Denoiser(UNet(1, width=32, levels=(1, 1, 2)), Linear(), "velocity")
    loss = lambda model, x0: model.loss(x0, times=times, couple=couple)
    return System(model, loss, flow_samplers(turned=False))


def of_tutorial() -> System:
    """diffusers: https://huggingface.co/docs/diffusers/tutorials/basic_training"""
    table = DDPMScheduler(num_train_timesteps=1000)

    def loss(net: nn.Module, x0: Tensor) -> Tensor:
        eps, n = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        return F.mse_loss(net(table.add_noise(x0, eps, n), n).sample, eps)

    def by(kind: type, **options: object) -> Sampler:
        def sample(net: nn.Module, x: Tensor, evaluations: int) -> Tensor:
            scheduler = kind.from_config(table.config, **options)
            scheduler.set_timesteps(evaluations)
            for n in scheduler.timesteps:
                x = scheduler.step(net(x, n).sample, n, x).prev_sample
            return x

        return sample

    samplers = {
        "DDIM": by(DDIMScheduler),
        "DDIM, trailing": by(DDIMScheduler, timestep_spacing="trailing"),
        "DPM-Solver++": by(DPMSolverMultistepScheduler),
        "DPM-Solver++, trailing": by(DPMSolverMultistepScheduler, timestep_spacing="trailing"),
        "DPM-Solver++, log-SNR grid": by(DPMSolverMultistepScheduler, use_lu_lambdas=True),
        "DPM-Solver++, Karras": by(DPMSolverMultistepScheduler, use_karras_sigmas=True),
    }
    return System(of_diffusers(1, 8, (32, 48, 48)).net, loss, samplers)


def of_process() -> System:
    """denoising-diffusion-pytorch, as in its readme."""
    net = of_lucidrains(1, 24, (1, 2, 2)).net
    process = GaussianDiffusion(net, image_size=8, auto_normalize=False)

    def sample(net: nn.Module, x: Tensor, evaluations: int) -> Tensor:  # it draws the noise itself
        own = GaussianDiffusion(net, image_size=8, auto_normalize=False, sampling_timesteps=evaluations)
        return own.sample(len(x))

    return System(net, lambda net, x0: process(x0), {"DDIM": sample})


def of_torchcfm(times: Times | None = logit_normal) -> System:
    """torchcfm: noise is its x0, data its x1."""
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def loss(net: nn.Module, data: Tensor) -> Tensor:
        u = torch.rand(len(data))
        t = u if times is None else times(Linear(), u)
        t, xt, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(data), data, t)
        return F.mse_loss(net(xt, t), velocity)

    return System(of_diffusers(1, 8, (32, 48, 48)), loss, flow_samplers(turned=True))


MAKE = {
    "ours": ours,
    "diffusers": of_tutorial,
    "denoising-diffusion-pytorch": of_process,
    "torchcfm": of_torchcfm,
}
RATES = {"ours": 8e-3, "diffusers": 4e-3, "denoising-diffusion-pytorch": 8e-3, "torchcfm": 8e-3}
CHOSEN = {  # at 5, 10 and 50 evaluations
    "ours": ("Heun, grid of power 1.25", "Heun, grid of power 1.5", "Heun, grid of power 1"),
    "diffusers": ("DPM-Solver++", "DPM-Solver++, Karras", "DPM-Solver++"),
    "denoising-diffusion-pytorch": ("DDIM",) * 3,
    "torchcfm": ("Heun, grid of power 1", "Heun, grid of power 1.5", "Heun, grid of power 1"),
}


def training(system: System, images: Tensor, rate: float, seconds: float) -> Iterator[Trained]:
    """Train within the time, a turn after the other."""
    optimizer = torch.optim.AdamW(system.net.parameters(), lr=rate)
    smooth, spent, step = average(system.net, DECAY), 0.0, 0
    while spent < seconds:
        begin = time.process_time()
        for _ in range(TURN):
            step += 1
            share = min(1.0, (spent + time.process_time() - begin) / seconds)
            falling = (1 + math.cos(math.pi * share)) / 2
            optimizer.param_groups[0]["lr"] = rate * min(1.0, step / WARMUP) * falling
            system.loss(system.net, images[torch.randint(len(images), (BATCH,))]).backward()
            nn.utils.clip_grad_norm_(system.net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            smooth.update(system.net)
        spent += time.process_time() - begin
        yield Trained(smooth.module, step)


def in_turns(runs: dict[str, Iterator[Trained]]) -> dict[str, Trained]:
    """Go on with all runs, a turn each, until all have ended."""
    found: dict[str, Trained] = {}
    going = dict(runs)
    while going:
        for name, run in list(going.items()):
            if (latest := next(run, None)) is None:
                del going[name]
            else:
                found[name] = latest
    return found


def classifier(digits: Images) -> tuple[Callable[[Tensor], Tensor], float]:
    """Features (N, 64) of images, from a network trained here, and its accuracy on the test digits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(40):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - epoch / 40)
        for rows in torch.randperm(len(digits.train)).split(64):
            F.cross_entropy(net(digits.train[rows]), digits.train_labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    net.eval()
    right = net(digits.test).argmax(1) == digits.test_labels
    return torch.no_grad()(net[:-2]), right.double().mean().item()


@torch.no_grad()
def distances(features: Callable, real: Tensor, net: nn.Module, samplers: list[Sampler], count: int) -> list:
    """For each number of evaluations that of so many samples, by the sampler in its place."""
    found = []
    for n, sampler in zip(EVALUATIONS, samplers, strict=True):
        samples = torch.cat([sampler(net, torch.randn(250, 1, 8, 8), n) for _ in range(count // 250)])
        found.append(frechet(features(samples.clamp(-1, 1)), real))
    return found


def tune(features: Callable, real: Tensor, images: Tensor, seconds: float) -> None:
    """Print what RATES and CHOSEN are chosen from."""
    make = {**MAKE, "ours, not coupled": lambda: ours(couple=None)}
    make["ours, not coupled, uniform times"] = lambda: ours(None, None)
    make["torchcfm, uniform times"] = lambda: of_torchcfm(None)
    for name, build in make.items():
        for rate in TUNING_RATES:
            torch.manual_seed(TUNING_SEED)
            system = build()
            *_, (net, steps) = training(system, images, rate, seconds)
            for label, sampler in system.samplers.items():
                found = distances(features, real, net, [sampler] * len(EVALUATIONS), TUNING_SAMPLES)
                print(f"{name}, {rate:g}, {steps} steps, {label}:", *(f"{d:.1f}" for d in found), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    digits = load_dataset("digits")
    images = torch.cat([digits.train, digits.test])
    features, accuracy = classifier(digits)
    real = features(images)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, 1 PyTorch thread; load {os.getloadavg()[0]:.2f}; ",
        end="",
    )
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}; ", end="")
    print(f"the classifier is right on {accuracy:.1%} of the test digits\n", flush=True)
    if sys.argv[1:2] == ["--tune"]:
        tune(features, real, digits.train, float(sys.argv[2]))
        return
    found: dict[str, list] = {name: [] for name in MAKE}
    for seed in SEEDS:
        torch.manual_seed(seed)
        systems = {name: build() for name, build in MAKE.items()}
        for name, system in systems.items():
            assert abs(size(system.net) / size(systems["ours"].net) - 1) < 0.05, f"{name}: {size(system.net)}"
        runs = in_turns({n: training(s, digits.train, RATES[n], SECONDS) for n, s in systems.items()})
        for name, (net, steps) in runs.items():
            samplers = [systems[name].samplers[label] for label in CHOSEN[name]]
            scores = distances(features, real, net, samplers, SAMPLES)
            found[name].append((steps, *scores))
            told = " ".join(f"{d:.1f}" for d in scores)
            print(f"seed {seed}, {name}, {steps} steps: {told}", file=sys.stderr, flush=True)
    shown = lambda values: f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    counts = " | ".join(f"{n} evaluations" for n in EVALUATIONS)
    print(f"| model | parameters, M | steps | {counts} | samplers |")
    print(f"|:--|--:|--:|{'--:|' * len(EVALUATIONS)}:--|")
    for name, rows in found.items():
        steps, *scores = zip(*rows, strict=True)
        cells = " | ".join(shown(s) for s in scores)
        about = f"{name} | {size(systems[name].net) / 1e6:.3f} | {statistics.mean(steps):.0f}"
        print(f"| {about} | {cells} | {'; '.join(CHOSEN[name])} |")
    rows = [torch.randperm(len(real)).split(SAMPLES) for _ in SEEDS]
    floor = shown([frechet(real[a], real[b]) for a, b in rows])
    print(f"| real digits | | | {' | '.join([floor] * len(EVALUATIONS))} | |")


if __name__ == "__main__":
    main()
