r"""A flow that draws handwritten digits of 28×28 pixels, of a class that is asked for, or of any.

Flow matching on the straight path with a U-Net of 1.3 million weights. A seventh of the labels are dropped in
training, so that the same network is the conditional and the unconditional model, and can be guided:

>>> from course_lib import pretrained
>>> from course_lib.diffusion import Guided, grid, heun
>>> model = Guided(pretrained.load("mnist_flow"), scale=2.0)
>>> heun(model, torch.randn(1, 1, 28, 28), grid(2), y=torch.tensor([7])).shape  # more steps draw better
torch.Size([1, 1, 28, 28])
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from course_lib.diffusion import (
    BaseDenoiser,
    Denoiser,
    Guided,
    Linear,
    drop_labels,
    grid,
    heun,
    in_batches,
    logit_normal,
)
from course_lib.metrics import extract, frechet, kid
from course_lib.nets.unet import UNet
from course_lib.training import TrainConfig, average, load_dataset, train

CLASSES = 10  # the label 10 stands for none
CONFIG = TrainConfig(
    steps=5000,
    batch_size=64,
    lr=1e-3,
    schedule="cosine",
    warmup=200,
    save_every=500,
    channels_last=True,
    precision="no",
    seed=0,
)


def build() -> Denoiser:
    """The network, untrained, bound to its path and target."""
    net = UNet(1, width=24, levels=(1, 2, 4), blocks=1, classes=CLASSES)
    return Denoiser(net, Linear(), "velocity")


def fit(data: str | Path, *, checkpoint: str | Path | None = None, config: TrainConfig = CONFIG) -> Denoiser:
    """Train from the configuration's seed; the averaged weights. It takes about 40 minutes on one core."""
    mnist = load_dataset("mnist", root=data)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build()
        smooth = average(model, 0.999)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return model.loss(x, times=logit_normal, y=drop_labels(y, 1 / 7, CLASSES))

        given = (mnist.train, mnist.train_labels)
        for _ in train(model, loss, given, config, ema=smooth, checkpoint=checkpoint, progress=True):
            pass
    return smooth.module.cpu()


@torch.no_grad()
def measure(model: Denoiser, data: str | Path, *, samples: int = 1000) -> dict[str, float]:
    """How often a drawn digit is read as what was asked for, and how far samples are from the test images.

    Ten steps of Heun. The judge is `mnist_classifier`; distances are of its features. The same of as many
    training images says what is as good as it gets.
    """
    from course_lib import pretrained

    mnist, judge = load_dataset("mnist", root=data), pretrained.load("mnist_classifier")
    asked = torch.arange(samples) % CLASSES
    features = functools.partial(extract, judge.features)
    test = features(mnist.test)
    few = torch.randperm(len(mnist.train), generator=torch.Generator().manual_seed(0))[:samples]
    found = {"training images": len(mnist.train), "samples": samples}

    def judged(name: str, images: Tensor, labels: Tensor) -> None:
        found[f"{name}: share read as asked"] = (judge(images).argmax(1) == labels).double().mean().item()
        found[f"{name}: Fréchet distance"] = frechet(features(images), test)
        found[f"{name}: KID"] = kid(features(images), test)

    judged("training images themselves", mnist.train[few], mnist.train_labels[few])
    for name, guided in {"no guidance": model, "guidance 2": Guided(model, 2.0)}.items():
        judged(name, draw(guided, asked, steps=10, seed=1), asked)
    return found


@torch.no_grad()
def draw(model: BaseDenoiser, labels: Tensor, *, steps: int = 20, seed: int = 0) -> Tensor:
    """Digits (N, 1, 28, 28) of these labels (N,), by Heun's method.

    >>> draw(build(), torch.tensor([1, 2]), steps=1).shape
    torch.Size([2, 1, 28, 28])
    """
    noise = torch.randn(len(labels), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return in_batches(heun, model, noise, grid(steps), batch_size=250, y=labels).clamp(-1, 1)
