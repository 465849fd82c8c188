"""Inception's features, with a file of weights in the real format, whose values are random."""

import urllib.error
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import Inception_V3_Weights, inception_v3

from course_lib.metrics.inception import FIDFeatures, InceptionFeatures
from course_lib.metrics.samples import extract, frechet


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
    named = r"no network.*bundled.*course_lib\.metrics\.digit_classifier\(\)\.features"
    with pytest.raises(RuntimeError, match=named):
        InceptionFeatures()


def test_images_of_another_range_are_refused(features):
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]"):
        features(torch.full((1, 3, 8, 8), 2.0))


def test_training_mode_changes_nothing(features):
    x = torch.rand(2, 3, 75, 75, generator=torch.Generator().manual_seed(0)) * 2 - 1
    want = features(x)
    assert torch.equal(features.train()(x), want)
    assert torch.equal(nn.Sequential(features).train()(x), want)


def test_making_it_leaves_random_numbers_alone(hub, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    before = torch.get_rng_state()
    InceptionFeatures()
    assert torch.equal(torch.get_rng_state(), before)


# The published FID


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in the original network's format."""
    extractors = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(extractors, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        net = extractors.FeatureExtractorInceptionV3("inception", ["2048"])
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


def test_the_published_fid_is_torch_fidelity_s(original):
    """Its own pipeline, from bytes to the figure, beside our features of the same images and our distance."""
    import torch_fidelity

    k = torch.Generator().manual_seed(0)
    sets = [torch.randint(256, (6, 3, 20, 20), dtype=torch.uint8, generator=k) // n for n in (1, 2)]

    class Bytes(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(sets[0]), input2=Bytes(sets[1]), fid=True, cuda=False, verbose=False,
        cache=False, feature_extractor_weights_path=str(original), batch_size=12,
    )["frechet_inception_distance"]  # fmt: skip
    before = torch.get_rng_state()
    features = FIDFeatures(str(original))
    assert torch.equal(torch.get_rng_state(), before)
    ours = frechet(*(extract(features.train(), x / 127.5 - 1, batch=12) for x in sets))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"course-lib\[fid\]"):
        FIDFeatures()
