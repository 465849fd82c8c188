"""The contestants that make a sample in one go from a latent: VAE, VQ-VAE with its prior, GAN."""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from course_lib.arena.families import STEPS, Clock, Family, Sampler, sized
from course_lib.gan.loop import GANConfig, train_gan
from course_lib.gan.losses import HINGE, r1
from course_lib.nets.convolutional import ConvDecoder, ConvEncoder
from course_lib.nets.dcgan import DCDiscriminator, DCGenerator
from course_lib.nets.mlp import mlp
from course_lib.nets.pixelcnn import pixelcnn
from course_lib.training import average, evaluating
from course_lib.vae.models import VAE, importance_bound
from course_lib.vae.pixels import Gaussian
from course_lib.vq import VQVAE, CodePrior
from course_lib.vq.quantizers import VectorQuantizerEMA, restart_dead_codes


def to_images(net: nn.Module, shape: tuple[int, ...]) -> nn.Sequential:
    """A network from rows to rows, made one from anything (B, …) to images of that shape."""
    return nn.Sequential(nn.Flatten(), net, nn.Unflatten(1, shape))


class Autoencoder(Family):
    """A VAE, convolutional for images, whose likelihood is normal with a variance a value."""

    density = "bound"

    def networks(self) -> list[nn.Module]:
        return [self.model]

    def build(self) -> None:
        dims, (channels, height, width) = self.field.dims, self.field.shape
        latent = 2 if self.field.flat else self.run.pick(smoke=8, book=16, full=32)

        def build(wide: int) -> list[nn.Module]:
            if self.field.flat:
                encoder = nn.Sequential(nn.Flatten(), mlp(dims, wide, wide, 2 * latent))
                return [encoder, to_images(mlp(latent, wide, wide, dims), self.field.shape)]
            small = (wide, height // 4, width // 4)
            inside = math.prod(small)
            before = [ConvEncoder(channels, wide, width=wide), nn.Flatten(), nn.Linear(inside, 2 * latent)]
            after = [
                nn.Linear(latent, inside),
                nn.Unflatten(1, small),
                ConvDecoder(channels, wide, width=wide),
            ]
            return [nn.Sequential(*before), nn.Sequential(*after)]

        # Where the decoder's noise begins as wide as the data, two latents of points stay unused for good.
        noise = Gaussian((0.3 if self.field.flat else 1.0) * self.field.train.std(0))
        self.model = VAE(*sized(build, self.budget), noise, latent_dim=latent)

    def training(self, clock: Clock) -> Iterator:
        self.smooth, steps = self.fit(self.model, self.model.loss, [self.field.train], lr=3e-3)
        yield from steps

    def samplers(self) -> dict[str, Sampler]:
        model = self.smooth.module

        @torch.no_grad()
        def draw(n: int, generator: torch.Generator, noisy: bool = True) -> Tensor:
            z = torch.randn(n, model.latent_dim, generator=generator)
            params = model.decode(z.to(self.run.device)).cpu()
            if not noisy:
                return params
            sigma = model.likelihood.log_sigma.detach().exp().cpu()
            return params + sigma * torch.randn(params.shape, generator=generator)

        return {"with noise": Sampler(1, draw), "means": Sampler(1, functools.partial(draw, noisy=False))}

    @torch.no_grad()
    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        on = self.on_device(generator)
        return importance_bound(self.smooth.module, x.to(self.run.device), draws=50, generator=on).cpu()


class VectorQuantized(Family):
    """A VQ-VAE for two thirds of the time, then its prior over the codes."""

    density = "bound"
    codes, dim, share = 64, 8, 2 / 3

    def networks(self) -> list[nn.Module]:
        return [self.model, self.prior]

    def parameters(self) -> int:
        return super().parameters() + self.codes * self.dim  # the codebook's averages are buffers

    def build(self) -> None:
        flat, (channels, height, width) = self.field.flat, self.field.shape
        self.grid = (1, 2) if flat else (height // 4, width // 4)

        def build(wide: int) -> list[nn.Module]:
            prior = pixelcnn(self.codes, max(self.grid), width=wide)
            if not flat:
                ends = [net(channels, self.dim, width=wide) for net in (ConvEncoder, ConvDecoder)]
                return [*ends, prior]
            inside = (self.dim, *self.grid)
            encoder = to_images(mlp(self.field.dims, wide, wide, math.prod(inside)), inside)
            return [
                encoder,
                to_images(mlp(math.prod(inside), wide, wide, self.field.dims), self.field.shape),
                prior,
            ]

        encoder, decoder, net = sized(build, self.budget)
        quantizer = VectorQuantizerEMA(self.codes, self.dim, decay=0.9)
        self.model = VQVAE(encoder, quantizer, decoder)
        self.prior = CodePrior(net, self.codes, self.grid).to(self.run.device)
        self.deviation = self.field.train.std()

    def training(self, clock: Clock) -> Iterator:
        yield from self._autoencode(clock)
        self.model.eval()
        indices = torch.cat([self.model.encode(x.to(self.run.device)) for x in self.field.train.split(1024)])
        self.deviation = self._deviation(indices)
        self.smooth, steps = self.fit(self.prior, self.prior.loss, [indices.cpu()], lr=2e-3)
        for step in steps:
            self.sampled = self.smooth.module
            yield step

    def _autoencode(self, clock: Clock) -> Iterator:
        self.sampled = self.prior
        _, steps = self.fit(self.model, self.model.loss, [self.field.train], lr=3e-3)
        pick = torch.Generator().manual_seed(self.run.seed)
        for step in steps:
            if step.step % 20 == 0 and not clock.past(0.8 * self.share):
                rows = torch.randperm(len(self.field.train), generator=pick)[:256]
                with torch.no_grad():
                    z = self.model.encoder(self.field.train[rows].to(self.run.device))
                    restart_dead_codes(self.model.quantizer, z)
            yield step
            if clock.past(self.share):
                return

    @torch.no_grad()
    def _deviation(self, indices: Tensor) -> Tensor:
        """Of the training data about their reconstructions: that of a normal likelihood."""
        parts = zip(self.field.train.split(1024), indices.split(1024), strict=True)
        return torch.cat([x - self.model.decode(k).cpu() for x, k in parts]).square().mean().sqrt()

    def samplers(self) -> dict[str, Sampler]:
        evaluations = math.prod(self.grid) + 1  # the prior for each code, the decoder once

        @torch.no_grad()
        def draw(n: int, generator: torch.Generator, noisy: bool = True) -> Tensor:
            codes = self.sampled.sample(n, generator=self.on_device(generator))
            with evaluating(self.model):
                x = self.model.decode(codes).cpu()
            return x + self.deviation * torch.randn(x.shape, generator=generator) if noisy else x

        means = functools.partial(draw, noisy=False)
        return {"with noise": Sampler(evaluations, draw), "means": Sampler(evaluations, means)}

    @torch.no_grad()
    def log_density(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r""":math:`\log p(k) + \log p(x \mid k)` for the code k of x: one term of the sum over all codes."""
        k = self.model.encode(x.to(self.run.device))
        scaled = ((x - self.model.decode(k).cpu()) / self.deviation).flatten(1)
        constant = self.deviation.log() + math.log(2 * math.pi) / 2
        return self.sampled.log_prob(k).cpu() - (scaled**2 / 2 + constant).sum(1)


class Adversarial(Family):
    """A DCGAN, or for points fully connected networks and R1; the hinge loss."""

    def networks(self) -> list[nn.Module]:
        return self.pair

    def build(self) -> None:
        flat, (channels, height, _) = self.field.flat, self.field.shape
        latent = 2 if flat else self.run.pick(smoke=16, book=16, full=64)

        def build(width: int) -> list[nn.Module]:
            if flat:
                judge = nn.Sequential(
                    nn.Flatten(), mlp(self.field.dims, width, width, width, 1), nn.Flatten(0)
                )
                return [to_images(mlp(latent, width, width, width, self.field.dims), self.field.shape), judge]
            generator = DCGenerator(channels, height, latent=latent, width=width)
            return [generator, DCDiscriminator(channels, height, width=width)]

        self.latent, self.pair = latent, sized(build, self.budget)

    def training(self, clock: Clock) -> Iterator:
        self.smooth = average(self.pair[0], self.run.pick(smoke=0.9, book=0.99, full=0.999))
        if self.field.flat:
            speed = dict(lr_generator=3e-3, lr_discriminator=3e-3, betas=(0.5, 0.9), batch_size=128)
        else:
            speed = dict(lr_generator=2e-3, lr_discriminator=2e-3, betas=(0.5, 0.99), batch_size=64)
        config = GANConfig(STEPS, self.latent, seed=self.run.seed, **speed)
        penalty = functools.partial(r1, weight=0.02) if self.field.flat else None
        yield from train_gan(
            *self.pair, [self.field.train], config, loss=HINGE, penalty=penalty, ema=self.smooth
        )

    def samplers(self) -> dict[str, Sampler]:
        @torch.no_grad()
        def draw(n: int, generator: torch.Generator) -> Tensor:
            z = torch.randn(n, self.latent, generator=generator)
            return self.smooth.module(z.to(self.run.device)).cpu()

        return {"generator": Sampler(1, draw)}
