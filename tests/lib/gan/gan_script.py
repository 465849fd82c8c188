"""Trains a small GAN and writes its weights; `test_gan` runs it whole, and killed and resumed."""

import functools
import sys
from pathlib import Path

import torch

from course_lib.gan.loop import GANConfig, train_gan
from course_lib.gan.losses import gradient_penalty
from course_lib.nets.dcgan import DCDiscriminator, DCGenerator
from course_lib.training.loop import average


def problem(classes: int = 0) -> tuple[DCGenerator, DCDiscriminator, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(48, 1, 8, 8, generator=generator) - 1
    labels = [torch.randint(classes, (48,), generator=generator)] if classes else []
    torch.manual_seed(1)
    nets = (
        DCGenerator(1, 8, latent=4, width=4, classes=classes),
        DCDiscriminator(1, 8, width=4, classes=classes),
    )
    return *nets, [images, *labels]


if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    generator, discriminator, tensors = problem(classes=3)
    ema = average(generator, 0.9)
    config = GANConfig(steps=steps, latent=4, batch_size=16, discriminator_steps=2, save_every=3)
    penalty = functools.partial(gradient_penalty, weight=1.0)  # draws random numbers: they must go on, too
    options = {"penalty": penalty, "ema": ema, "checkpoint": folder / "run.pt"}
    losses = [s[1:3] for s in train_gan(generator, discriminator, tensors, config, **options)]
    nets = {"generator": generator, "discriminator": discriminator, "ema": ema}
    torch.save({name: net.state_dict() for name, net in nets.items()} | {"losses": losses}, folder / "end.pt")
