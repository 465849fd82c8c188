"""A classifier of MNIST's digits: three convolutions, 64 features, ten logits. It judges drawn digits.

>>> from course_lib import pretrained
>>> judge = pretrained.load("mnist_classifier")
>>> judge.features(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 64])
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.metrics.classifier import DigitClassifier, accuracy
from course_lib.training import TrainConfig, average, load_dataset, train

CONFIG = TrainConfig(
    steps=2500, batch_size=128, lr=3e-3, schedule="cosine", warmup=50, weight_decay=0.05, precision="no"
)


def build() -> DigitClassifier:
    """The network, untrained."""
    return DigitClassifier(side=28)


def fit(
    data: str | Path, *, checkpoint: str | Path | None = None, config: TrainConfig = CONFIG
) -> DigitClassifier:
    """Train from the configuration's seed, on images moved by up to two pixels; the averaged weights."""
    mnist = load_dataset("mnist", root=data)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build()
        smooth = average(model, 0.99)
        loss = lambda x, labels: F.cross_entropy(model(_moved(x)), labels)  # in nats
        given = (mnist.train, mnist.train_labels)
        for _ in train(model, loss, given, config, ema=smooth, checkpoint=checkpoint, progress=True):
            pass
    return smooth.module.cpu()


@torch.no_grad()
def measure(model: DigitClassifier, data: str | Path) -> dict[str, float]:
    """The share of test images that it knows."""
    mnist = load_dataset("mnist", root=data)
    return {
        "training images": len(mnist.train),
        "test images": len(mnist.test),
        "share known": accuracy(model, mnist.test, mnist.test_labels),
    }


def _moved(x: Tensor) -> Tensor:
    """A batch moved by at most two pixels each way."""
    down, right = torch.randint(5, (2,)).tolist()
    return F.pad(x, (2, 2, 2, 2), value=-1.0)[:, :, down : down + 28, right : right + 28]
