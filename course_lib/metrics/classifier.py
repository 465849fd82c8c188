r"""A small classifier of the digits: its last hidden layer is the feature space in which digits are compared.

`digit_classifier` returns the network as the course trained it, from weights that come with the package. It
knows 358 of the 360 test digits (99.4%, with a standard error of 0.4%); other seeds lead to 358 or 359. This
command trains it again from its seed, about 10 seconds on one core, writes the weights and says how many it
knows:

    make classifier

On one machine with one set of versions the weights come out the same to the bit; elsewhere rounding differs,
and a few answers with it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.require import require_images
from course_lib.training import TrainConfig, average, load_dataset, train

WEIGHTS = Path(__file__).parents[1] / "stored" / "digit_classifier.pt"
CONFIG = TrainConfig(steps=1500, batch_size=128, lr=2e-3, warmup=50, weight_decay=0.05, seed=0)


class DigitClassifier(nn.Module):
    """Three convolutions, a layer of 64 features, ten logits; for images (B, 1, side, side).

    It has 40,394 weights at the 8 pixels of the digits.

    Examples:
        >>> DigitClassifier()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.side, small = side, -(-side // 4)  # halved twice, rounded up
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),  # (B, 64*small*small)
            nn.Dropout(0.2),
            nn.Linear(64 * small**2, 64),
            nn.LayerNorm(64, elementwise_affine=False),  # a scale that training does not choose
        )
        self.head = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, 64), of images in [-1, 1]; a row has mean 0, variance 1."""
        require_images("x", x, (1, self.side, self.side))
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits, (B, 10)."""
        return self.head(self.features(x))


def digit_classifier() -> DigitClassifier:
    """The trained classifier, for evaluation only: its method `features` is a feature extractor.

    Examples:
        >>> model = digit_classifier()
        >>> model(torch.zeros(2, 1, 8, 8)).shape, model.features(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
    """
    with torch.device("meta"):  # no weights are drawn: the caller's random numbers stay what they were
        model = DigitClassifier()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True), assign=True)
    return model.eval().requires_grad_(False)


def fit(config: TrainConfig = CONFIG) -> DigitClassifier:
    """Train a classifier on the digits' training part, from the configuration's seed; weights averaged."""
    digits = load_dataset("digits")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = DigitClassifier()
        smooth = average(model, 0.99)
        loss = lambda x, labels: F.cross_entropy(model(_moved(x)), labels)  # in nats
        for _ in train(model, loss, (digits.train, digits.train_labels), config, ema=smooth):
            pass
    return smooth.module.cpu().eval().requires_grad_(False)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    r"""The share of N images whose label has the largest logit; its standard error is
    :math:`\sqrt{p (1 - p) / N}`. Labels are integers (N,).

    Examples:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 2]))
        0.75
    """
    if labels.shape != (len(images),):  # a column would be compared with every image
        raise ValueError(f"labels must have shape ({len(images)},); got {tuple(labels.shape)}")
    return (model(images).argmax(1) == labels).count_nonzero().item() / len(images)


def _moved(x: Tensor) -> Tensor:
    """A batch moved by at most a pixel each way."""
    down, right = torch.randint(3, (2,)).tolist()
    return F.pad(x, (1, 1, 1, 1), value=-1.0)[:, :, down : down + 8, right : right + 8]


def main() -> None:
    """Train again, write the weights, and say how many digits are known."""
    torch.set_num_threads(1)  # sums in one order
    trained, digits = fit(), load_dataset("digits")
    torch.save(trained.state_dict(), WEIGHTS)
    share = accuracy(trained, digits.test, digits.test_labels)
    print(f"Wrote {WEIGHTS.name}: {share:.1%} of the {len(digits.test)} test digits are known.")


if __name__ == "__main__":
    main()
