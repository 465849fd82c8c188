"""The program of "How to run the book" that trains on a folder of images, on images written here."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "book" / "running.md"


def program() -> str:
    text = PAGE.read_text("utf8").split("## Train on your own images")[1]
    return re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1]


def test_it_is_short() -> None:
    lines = [line for line in program().splitlines() if line.strip()]
    assert len(lines) <= 16


def small(text: str, steps: int) -> str:
    """The same program with a small network, small batches, few steps, and no further processes."""
    for old, new in {
        "width=64": "width=8",
        "batch_size=64, shuffle": "batch_size=4, shuffle",
        "num_workers=2": "num_workers=0",
        "TrainConfig(100_000, save_every=1000)": f"TrainConfig({steps}, save_every=2, lr=1e-3)",
        "grid(20)": "grid(1)",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("blue", "red", "green"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            save_image(torch.rand(3, 70 + i, 90), tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_trains_resumes_and_draws(photos: Path) -> None:
    torch.manual_seed(0)
    whole: dict = {}
    exec(small(program(), 3), whole)
    assert whole["step"].step == 3 and whole["x"].shape == (3, 3, 64, 64)
    assert (photos / "samples.png").stat().st_size > 1000
    weights = {name: value.clone() for name, value in whole["model"].net.state_dict().items()}

    (photos / "photos.pt").unlink()
    torch.manual_seed(0)
    exec(small(program(), 2), {})  # the first part, in a life of its own
    again: dict = {}
    torch.manual_seed(7)  # what the second life begins with does not matter
    exec(small(program(), 3), again)
    assert again["step"].step == 3
    for name, value in again["model"].net.state_dict().items():
        assert torch.equal(value, weights[name]), name
