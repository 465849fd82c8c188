"""The contestants that walk from noise to data: DDPM, the score's SDE and ODE, flow matching three ways."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.arena.families import Clock, Family, Sampler, sized
from course_lib.diffusion.coupling import optimal
from course_lib.diffusion.likelihood import log_likelihood
from course_lib.diffusion.loss import logit_normal, paired, regression, table_steps, variational_bound
from course_lib.diffusion.path import VP, Linear, Tabulated
from course_lib.diffusion.sample import ancestral, ddim, grid, strided
from course_lib.diffusion.solve import heun, reverse_sde
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
    """What these share: one network ``net(x, t)`` for a path, and samplers that begin with noise."""

    def networks(self) -> list[nn.Module]:
        return [self.net]

    def loss(self) -> Callable:
        """What the network is trained on."""
        raise NotImplementedError

    def build(self) -> None:
        def build(width: int) -> list[nn.Module]:
            if self.field.flat:
                return [PointNet(self.field.dims, width)]
            return [UNet(self.field.shape[0], width=width, levels=(1, 1, 2))]

        (self.net,) = sized(build, self.budget, multiple=8)  # of the U-Net's group norms

    def training(self, clock: Clock) -> Iterator:
        yield from self.learn(self.net, self.loss(), [self.field.train])

    def learn(self, net: nn.Module, loss: Callable, tensors: list[Tensor]) -> Iterator:
        options = dict(lr=5e-3, batch_size=256) if self.field.flat else dict(lr=3e-3)
        self.smooth, steps = self.fit(net, loss, tensors, **options)
        yield from steps

    def walk(self, evaluations: int, sampler: Callable, times: Tensor, **options) -> Sampler:
        """A sampler of the diffusion package along a grid, 256 samples at a time."""

        def draw(n: int, generator: torch.Generator) -> Tensor:
            net, device = self.smooth.module.eval(), self.run.device
            start = torch.randn(n, *self.field.shape, generator=generator)
            if sampler in (ancestral, reverse_sde):
                options["generator"] = self.on_device(generator)
            parts = [sampler(net, self.path, x.to(device), times, **options).cpu() for x in start.split(256)]
            return torch.cat(parts)

        return Sampler(evaluations, draw)


class Denoising(Walk):
    """Chapter 06: DDPM with a table of 200 steps, sampled by ancestral sampling and by DDIM."""

    density = "bound"
    T, cells = 200, 4096

    def loss(self) -> Callable:
        self.path = Tabulated.from_betas("linear", self.T)
        return regression(self.path, target="eps", times=table_steps(self.T))

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (10, 5, 20, 50):
            found[f"DDIM, {steps}"] = self.walk(steps, ddim, self.subset(steps), clip=1.0)
        for steps in (10, 50, self.T):
            found[f"ancestral, {steps}"] = self.walk(steps, ancestral, self.subset(steps), clip=1.0)
        return found

    def subset(self, steps: int) -> Tensor:
        """Times of the table; few of them get closer towards the data: DDIM's quadratic spacing."""
        if steps > 20:  # else two would fall on one place of the table
            return strided(self.T, steps)
        return (grid(steps, power=2) * self.T).round() / self.T

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The bound on the mass of a small cell about x, over the cell's volume."""
        net, dims = self.smooth.module.eval(), self.field.dims
        on = self.on_device(generator)
        edge = 1 - 2 / (self.cells - 1)
        x = x.clamp(-edge, edge)  # the outermost cells have no volume: they reach to infinity
        found = variational_bound(net, self.path, x.to(self.run.device), levels=self.cells, generator=on)
        return -dims * (math.log(2) * found.total.cpu() + math.log(2 / (self.cells - 1)))


class Score(Walk):
    """Chapter 07: noise predicted along the VP path; the reverse SDE and the probability-flow ODE."""

    density = "exact"
    end, stop = 1e-4, 1e-3  # of training and of samplers, whose last step is poor where scores are large

    def loss(self) -> Callable:
        self.path = VP()
        return regression(self.path, target="eps", end=self.end)

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (5, 2, 10, 25):
            times = grid(steps, end=self.stop, power=2)
            found[f"ODE, {2 * steps}"] = self.walk(2 * steps, heun, times, target="eps")
        for steps in (20, 50, 100):
            times = grid(steps, end=self.stop, power=2)
            found[f"SDE, {steps}"] = self.walk(steps, reverse_sde, times, target="eps")
        return found

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.by_flow(x, generator, target="eps", start=self.end)

    def by_flow(self, x: Tensor, generator: torch.Generator, **options) -> Tensor:
        """Of the ODE: for points the divergence is exact; for images one random sign estimates it."""
        on = self.on_device(generator)
        loose = {} if self.field.flat else dict(rtol=1e-3, atol=1e-3, hutchinson=1, generator=on)
        net = self.smooth.module.eval()
        return log_likelihood(net, self.path, x.to(self.run.device), **loose, **options).cpu()


class Flow(Score):
    """Chapter 08: the velocity of the linear path, between independent data and noise."""

    couple: Callable | None = None

    def loss(self) -> Callable:
        self.path = Linear()
        return regression(self.path, target="velocity", times=logit_normal, couple=self.couple)

    def samplers(self) -> dict[str, Sampler]:
        found = {}
        for steps in (5, 1, 2, 3, 10, 25):  # the last step of Heun's method takes one evaluation
            count = 2 * steps - 1
            found[f"Heun, {count}"] = self.walk(count, heun, grid(steps, power=1.25))
        return found

    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.by_flow(x, generator, start=1e-5)


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
        teacher, made = self.smooth.module.eval(), []
        for x in noise.split(256):
            made.append(heun(teacher, self.path, x.to(self.run.device), grid(10, power=1.25)).cpu())
            yield
            if clock.past(self.made_by):
                break
        data = torch.cat(made)
        self.net.load_state_dict(teacher.state_dict())
        again = paired(self.path, times=logit_normal)
        yield from self.learn(self.net, again, [data, noise[: len(data)]])
