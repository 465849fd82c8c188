"""Stored weights: what they say of themselves, what they draw, and that they can be made again."""

import struct

import numpy as np
import pytest
import torch

from course_lib import pretrained
from course_lib.diffusion import Guided, euler, grid
from course_lib.pretrained import mnist_classifier, mnist_flow
from course_lib.training import TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def mnist(tmp_path):
    """A folder with files as published, but of 64 training and 10 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 64), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 2051, n, 28, 28) + images.tobytes()
        )
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())
    return tmp_path


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_model_loads_for_evaluation_and_leaves_random_numbers_alone(name):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    model = pretrained.load(name)
    assert torch.equal(torch.rand(3), want)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    about = pretrained.about(name)
    assert {"commit", "date", "machine", "torch", "processor seconds", "training images"} <= about.keys()


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in pretrained.STORED.glob("*.pt")) < 8e6


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*mnist_flow.*; got 'gpt'"):
        pretrained.load("gpt")


@torch.no_grad()
def test_digits_are_drawn_as_asked():
    """The judge's share is that of the 1,000 samples that were judged, within five errors."""
    told = pretrained.about("mnist_flow")["guidance 2: share read as asked"]
    asked = torch.arange(60) % 10
    noise = torch.randn(60, 1, 28, 28)
    drawn = euler(Guided(pretrained.load("mnist_flow"), 2.0), noise, grid(12), y=asked).clamp(-1, 1)
    share = (pretrained.load("mnist_classifier")(drawn).argmax(1) == asked).double().mean()
    assert share > told - 5 * max(told * (1 - told), 0.02) ** 0.5 / 60**0.5 - 0.02
    assert noise.shape == drawn.shape


@pytest.mark.parametrize(
    "module", [mnist_classifier, mnist_flow], ids=lambda m: m.__name__.rpartition(".")[2]
)
def test_fit_stores_what_load_reads(module, mnist, tmp_path, monkeypatch):
    """Half precision is what is lost: 11 bits of each weight stay."""
    trained = module.fit(mnist, config=TrainConfig(steps=2, batch_size=16, precision="no"))
    monkeypatch.setattr(pretrained, "STORED", tmp_path)
    name = module.__name__.rpartition(".")[2]
    pretrained.store(name, trained, {"steps": 2})
    again = pretrained.load(name)
    for key, value in trained.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(again.state_dict()[key], value, rtol=2**-11, atol=1e-7)
    assert pretrained.about(name) == {"steps": 2}
