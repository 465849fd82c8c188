r"""Models that the course has trained once, with their weights: they run without a network and a GPU.

- `mnist_classifier`: a classifier of MNIST's digits, by which drawn digits are judged.
- `mnist_flow`: draws digits of 28×28 pixels, of a class that is asked for or of any.

Each is a module with three functions: `build` makes the network, `fit` trains it from its seed, and `measure`
says how good it is. ``make weights NAME=mnist_flow DATA=folder`` calls them and writes the weights, in half
precision, with what was measured and where (`about`).
"""

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

STORED = Path(__file__).parents[1] / "stored"
NAMES = ("mnist_classifier", "mnist_flow")


def module(name: str) -> ModuleType:
    """The module that builds, trains and measures a model."""
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    return importlib.import_module(f"course_lib.pretrained.{name}")


def load(name: str) -> nn.Module:
    """A trained model, on the processor in float32, for evaluation only.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: there is no model of this name.

    >>> model = load("mnist_flow")
    >>> x0 = model(torch.randn(2, 1, 28, 28), 0.9, y=torch.tensor([3, 10]))  # a three; any digit
    >>> x0.shape
    torch.Size([2, 1, 28, 28])
    """
    with torch.random.fork_rng():  # the caller's random numbers stay what they were
        model = module(name).build()
    model.load_state_dict(_read(name)["weights"])  # float16 becomes float32 here
    return model.eval().requires_grad_(False)


def about(name: str) -> dict:
    """What was measured of a trained model, and where and how it was trained, as plain values.

    >>> about("mnist_classifier")["training images"]
    8500
    """
    module(name)
    return _read(name)["about"]


def store(name: str, model: nn.Module, about: dict) -> Path:
    """Write a model's weights in half precision, and what is to be said of them; returns the file."""
    half = lambda value: value.half() if torch.is_tensor(value) and value.is_floating_point() else value
    path = STORED / f"{name}.pt"
    torch.save({"weights": {key: half(v) for key, v in model.state_dict().items()}, "about": about}, path)
    return path


def _read(name: str) -> dict:
    return torch.load(STORED / f"{name}.pt", map_location="cpu", weights_only=True)
