"""Inception's features, with a file of weights in the real format, whose values are random."""

import urllib.error
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import Inception_V3_Weights, inception_v3

from course_lib.metrics.inception import InceptionFeatures
from course_lib.metrics.samples import extract


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as torch.hub keeps it, with a file of random weights under the name of the real one."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = inception_v3(weights=None, init_weights=False)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # else the image is lost on the way
        state = net.state_dict()
    name = Inception_V3_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(state, folder / "checkpoints" / name)
    return folder


@pytest.fixture
def features(hub: Path, monkeypatch: pytest.MonkeyPatch) -> InceptionFeatures:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    return InceptionFeatures()


def assert_same(got: Tensor, want: Tensor) -> None:
    """Equal beside how much one image's differ from another's."""
    assert got.shape == want.shape
    assert (got - want).abs().max() < 1e-3 * (want[0] - want[1]).std()


def test_as_torchvision_prepares_images(features):
    """Its own resizing and normalization, of images in [0, 1] by ImageNet's colours, and its own head."""
    k = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 330, 330, generator=k) * torch.tensor([2.0, 1.0]).view(2, 1, 1, 1) - 1
    theirs = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1).eval()
    prepare = Inception_V3_Weights.IMAGENET1K_V1.transforms(crop_size=299, resize_size=299)
    with torch.no_grad():
        want, got = theirs(prepare((x + 1) / 2)), features(x)
        assert got.shape == (2, 2048)
        assert_same(theirs.fc(got), want)
        assert_same(features.logits(x), want)


def test_grey_images_are_taken_in_three_equal_channels(features):
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert_same(extract(features, x, batch=2), features(x.repeat(1, 3, 1, 1)))


def test_it_is_for_evaluation_only(features):
    assert not any(module.training for module in features.modules())
    assert not any(p.requires_grad for p in features.parameters())


def test_without_weights_or_network_the_digit_classifier_is_named(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    named = r"no network.*bundled.*course_lib\.classifier\.load\(\)\.features"
    with pytest.raises(RuntimeError, match=named):
        InceptionFeatures()


@pytest.mark.parametrize("x, match", [
    (torch.zeros(1, 2, 8, 8), "x must have 1 or 3 channels; got 2"),
    (torch.zeros(3, 8, 8), r"x must have shape \(B, C, H, W\)"),
    (torch.full((1, 3, 8, 8), 2.0), r"x must lie in \[-1, 1\]"),
])  # fmt: skip
def test_bad_images(features, x, match):
    with pytest.raises(ValueError, match=match):
        features(x)
