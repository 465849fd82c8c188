"""The contestants that walk from noise to data: DDPM, the score's SDE and ODE, flow matching three ways."""

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.arena.families import Clock, Family, Sampler, sized
from course_lib.diffusion.coupling import optimal
from course_lib.diffusion.denoiser import BaseDenoiser, Denoiser
from course_lib.diffusion.guidance import Clipped
from course_lib.diffusion.likelihood import log_likelihood
from course_lib.diffusion.loss import logit_normal
from course_lib.diffusion.path import VP, GaussianPath, Linear
from course_lib.diffusion.samplers import ancestral, ddim, grid, heun, in_batches, reverse_sde, strided
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.variational import variational_bound
from course_lib.nets.mlp import TimeMLP
from course_lib.nets.unet import UNet


class PointNet(nn.Module):
    """`TimeMLP` for points that are images of one pixel."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.net = TimeMLP(dims, hidden=width, waves=4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, C, H, W), t: (B,). Returns the shape of x."""
        return self.net(x.flatten(1), t).view_as(x)


class Walk(Family):
    """What these share: a denoiser, and samplers that begin with noise."""

    path: GaussianPath
    target: str

    def networks(self) -> list[nn.Module]:
        return [self.model]

    def build(self) -> None:
        def build(width: int) -> list[nn.Module]:
            if self.field.flat:
                return [PointNet(self.field.dims, width)]
            return [UNet(self.field.shape[0], width=width, levels=(1, 1, 2))]

        (net,) = sized(build, self.budget, multiple=8)  # of the U-Net's group norms
        self.model = Denoiser(net, self.path, self.target)

    def loss(self) -> Callable[..., Tensor]:
        """What the denoiser is trained on."""
        return self.model.loss

    def training(self, clock: Clock) -> Iterator:
        yield from self.learn(self.loss(), [self.field.train])

    def learn(self, loss: Callable[..., Tensor], tensors: list[Tensor]) -> Iterator:
        options = dict(lr=5e-3, batch_size=256) if self.field.flat else dict(lr=3e-3)
        self.smooth, steps = self.fit(self.model, loss, tensors, **options)
        yield from steps

    def trained(self) -> BaseDenoiser:
        return self.smooth.module

    def walk(self, evaluations: int, sampler: Callable, times: Tensor) -> Sampler:
        """A sampler of the diffusion package along a grid, 256 samples at a time."""

        def draw(n: int, generator: torch.Generator) -> Tensor:
            start = torch.randn(n, *self.field.shape, generator=generator)
            random = sampler in (ancestral, reverse_sde)
            options = dict(generator=self.on_device(generator)) if random else {}
            return in_batches(sampler, self.trained(), start, times, batch_size=256, **options)

        return Sampler(evaluations, draw)


class DDPM(Walk):
    """DDPM with a table of 200 steps, sampled by ancestral sampling and by DDIM."""

    density = "bound"
    T, cells = 200, 4096
    path, target = Tabulated.schedule("linear", T), "eps"

    def trained(self) -> BaseDenoiser:
        return Clipped(self.smooth.module, 1.0)

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (10, 5, 20, 50):
            found[f"DDIM, {steps}"] = self.walk(steps, ddim, self.subset(steps))
        for steps in (10, 50, self.T):
            found[f"ancestral, {steps}"] = self.walk(steps, ancestral, self.subset(steps))
        return found

    def subset(self, steps: int) -> Tensor:
        """Times of the table; few of them get closer towards the data: DDIM's quadratic spacing."""
        if steps > 20:  # else two would fall on one place of the table
            return strided(self.T, steps)
        return (grid(steps, power=2) * self.T).round() / self.T

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The bound on the mass of a small cell about x, over the cell's volume."""
        dims, on = self.field.dims, self.on_device(generator)
        edge = 1 - 2 / (self.cells - 1)
        x = x.clamp(-edge, edge)  # the outermost cells have no volume: they reach to infinity
        model = self.smooth.module
        found = variational_bound(model, x.to(self.run.device), levels=self.cells, generator=on)
        return -dims * (math.log(2) * found.total.cpu() + math.log(2 / (self.cells - 1)))


class ScoreSDE(Walk):
    """Noise predicted along the VP path; the reverse SDE and the probability-flow ODE."""

    density = "exact"
    path, target = VP(), "eps"
    start, stop = 1e-4, 1e-3  # of the density's flow; of samplers, whose last step is poor near data

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (5, 2, 10, 25):
            found[f"ODE, {2 * steps}"] = self.walk(2 * steps, heun, grid(steps, stop=self.stop, power=2))
        for steps in (20, 50, 100):
            found[f"SDE, {steps}"] = self.walk(steps, reverse_sde, grid(steps, stop=self.stop, power=2))
        return found

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Of the ODE: for points the divergence is exact; for images one random sign estimates it."""
        on = self.on_device(generator)
        loose = {} if self.field.flat else dict(rtol=1e-3, atol=1e-3, hutchinson=1, generator=on)
        return log_likelihood(self.trained(), x.to(self.run.device), start=self.start, **loose).cpu()


class Flow(ScoreSDE):
    """Flow matching: the velocity of the linear path, between independent data and noise."""

    path, target, start = Linear(), "velocity", 1e-5
    couple: Callable | None = None

    def loss(self) -> Callable[..., Tensor]:
        return functools.partial(self.model.loss, times=logit_normal, couple=self.couple)

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (5, 1, 2, 3, 10, 25):  # the last step of Heun's method takes one evaluation
            count = 2 * steps - 1
            found[f"Heun, {count}"] = self.walk(count, heun, grid(steps, power=1.25))
        return found


class CoupledFlow(Flow):
    """The same, with the noise of a batch in the order that makes the way to its data shortest."""

    couple = staticmethod(optimal)


class Reflow(Flow):
    """The same for two thirds of the time; then from that flow's own pairs of noise and sample.

    As many pairs as there are data, or as can be made until four fifths of the time are over.
    """

    share, made_by = 2 / 3, 0.8

    def training(self, clock: Clock) -> Iterator:
        for step in super().training(clock):
            yield step
            if clock.past(self.share):
                break
        noise = torch.randn(len(self.field.train), *self.field.shape)
        teacher, made = self.trained(), []
        for x in noise.split(256):
            made.append(heun(teacher, x.to(self.run.device), grid(10, power=1.25)).cpu())
            yield
            if clock.past(self.made_by):
                break
        data = torch.cat(made)
        self.model.load_state_dict(teacher.state_dict())
        again = lambda x0, eps: self.model.loss(x0, eps=eps, times=logit_normal)
        yield from self.learn(again, [data, noise[: len(data)]])
