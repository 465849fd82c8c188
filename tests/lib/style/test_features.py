"""Feature extractors, against convolution written as loops, torchvision's own networks, and bad input."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from course_lib.style import features
from course_lib.style.features import (
    GATYS_CONTENT,
    GATYS_STYLE,
    NetworkFeatures,
    RandomFeatures,
    VGGFeatures,
    halve,
    lpips_backbone,
    vgg_places,
)


def images(n=1, side=32, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, 3, side, side, generator=g, dtype=dtype) - 1


def test_random_features_are_convolutions_of_opponent_colours():
    extract = RandomFeatures(4, 3, coarsest=8, generator=torch.Generator().manual_seed(1))
    x = images(side=8, dtype=torch.float64)
    seen = extract(x)
    r, g, b = x[0].numpy()
    opponent = np.stack([(r + g + b) / 3**0.5, 2 * (r - g) / 2**0.5, 2 * (r + g - 2 * b) / 6**0.5])
    np.testing.assert_allclose(seen["colour"][0, :3], opponent, atol=1e-6)
    assert (seen["colour"][0, 3] == 1).all()
    padded = np.pad(opponent, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    weight = extract.weight.double().numpy()
    for i, h, w in np.ndindex(4, 8, 8):
        response = (weight[i] * padded[:, h : h + 3, w : w + 3]).sum()
        assert abs(seen["1/1"][0, i, h, w].item() - max(0, response)) < 1e-6


def test_filters_have_no_mean_and_unit_length():
    weight = RandomFeatures(10, 5, generator=torch.Generator().manual_seed(0)).weight
    assert weight.mean((2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.ones(10))


def test_each_level_sees_the_halved_image():
    extract = RandomFeatures(6, coarsest=8, generator=torch.Generator().manual_seed(0))
    x = images(2, 32)
    seen = extract(x)
    assert {k: tuple(f.shape) for k, f in seen.items()} == {
        "colour": (2, 4, 32, 32),
        "1/1": (2, 6, 32, 32),
        "1/2": (2, 6, 16, 16),
        "1/4": (2, 6, 8, 8),
    }
    torch.testing.assert_close(seen["1/2"], extract(halve(x))["1/1"], atol=1e-5, rtol=1e-5)


def test_without_rectification_features_are_linear():
    extract = RandomFeatures(6, rectify=False, generator=torch.Generator().manual_seed(0))
    x, y = images(seed=1, dtype=torch.float64), images(seed=2, dtype=torch.float64)
    both, apart = extract(0.5 * x - 0.2 * y), (extract(x), extract(y))
    for name in ("1/1", "1/2"):
        torch.testing.assert_close(both[name], 0.5 * apart[0][name] - 0.2 * apart[1][name])
    assert (both["1/1"] < 0).any() and (RandomFeatures(6)(x)["1/1"] >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_filters_follow_the_generator(seed):
    make = lambda: RandomFeatures(3, generator=torch.Generator().manual_seed(seed)).weight
    assert torch.equal(make(), make())
    assert not torch.equal(make(), RandomFeatures(3, generator=torch.Generator().manual_seed(9)).weight)


def test_the_smallest_filters_and_levels_work():
    assert list(RandomFeatures(4, 1, coarsest=2)(images(side=5))) == ["colour", "1/1", "1/2"]


def test_what_would_be_silently_wrong_is_refused():
    with pytest.raises(ValueError, match="size must be odd; got 4"):  # maps would be a pixel larger
        RandomFeatures(size=4)
    with pytest.raises(ValueError, match="x must have sides of at least 16"):  # no filter would see it
        RandomFeatures(2)(torch.zeros(1, 3, 32, 15))
    for extract in (RandomFeatures(2), VGGFeatures(["relu1_1"], pretrained=False)):
        with pytest.raises(ValueError, match="x must be"):  # grey would be taken for three colours
            extract(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="alex or vgg; got 'resnet'"):
        lpips_backbone("resnet")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardtanh])
def test_activations_in_place_do_not_overwrite_the_layer_before(activation):
    conv, x = nn.Conv2d(3, 4, 3), images(side=8)
    net = nn.Sequential(conv, nn.Sequential(activation(inplace=True)))
    seen = NetworkFeatures(net, {"before": 0, "after": 1})(x)
    torch.testing.assert_close(seen["before"], reference(net, x, 0))
    torch.testing.assert_close(seen["after"], reference(net, x, 1))
    assert net[1][0].inplace and conv.weight.requires_grad and net.training  # the network given is as it was


def test_training_mode_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    extract, x = NetworkFeatures(net, {"last": 2}), images(side=8)
    want = extract(x)["last"]
    assert torch.equal(nn.Sequential(extract).train()[0](x)["last"], want)


@pytest.mark.parametrize("make", [
    lambda: VGGFeatures(["relu1_1"], pretrained=False),
    lambda: lpips_backbone("alex", pretrained=False),
    lambda: lpips_backbone("vgg", pretrained=False),
])  # fmt: skip
def test_making_networks_leaves_random_numbers_alone(make):
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def reference(net: nn.Sequential, x: torch.Tensor, place: int) -> torch.Tensor:
    """The published preprocessing of images in [0, 1], then the layers one by one."""
    x = torchvision.transforms.functional.normalize(
        (x + 1) / 2, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    return net[: place + 1](x)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub's, and no network."""

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def write_weights(cache: Path, weights, net: nn.Sequential) -> dict[str, torch.Tensor]:
    """A file in torchvision's format: convolutions under "features.", and a classifier that is left out."""
    g = torch.Generator().manual_seed(5)
    state = {}
    for name, value in net.state_dict().items():  # a factor and a small tensor repeated: a small file
        small = torch.randn(1, *value.shape[1:], generator=g) / value[0].numel() ** 0.5 + 0.01
        state[f"features.{name}"] = small.expand(value.shape)
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, cache / weights.url.rsplit("/", 1)[1])
    return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}


def test_vgg_reads_torchvision_s_file_and_gives_its_layers(cache):
    net = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    net.load_state_dict(write_weights(cache, torchvision.models.VGG19_Weights.IMAGENET1K_V1, net))
    for part in net:
        part.inplace = False
    extract, x = VGGFeatures(), images(2)
    seen = extract(x)
    assert tuple(seen) == (*GATYS_STYLE, *GATYS_CONTENT)
    places = {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 20, "relu4_2": 22, "relu5_1": 29}
    for name, place in places.items():  # counted in torchvision's printed network
        torch.testing.assert_close(seen[name], reference(net, x, place), rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in extract.parameters())


def test_average_pooling_replaces_every_maximum(cache):
    net = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    net.load_state_dict(write_weights(cache, torchvision.models.VGG19_Weights.IMAGENET1K_V1, net))
    x = images()
    averaged = VGGFeatures(["relu2_1"], average_pool=True)(x)["relu2_1"]
    for i, part in enumerate(net):
        if isinstance(part, nn.MaxPool2d):
            net[i] = nn.AvgPool2d(2)
        part.inplace = False
    torch.testing.assert_close(averaged, reference(net, x, 6), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(averaged, VGGFeatures(["relu2_1"])(x)["relu2_1"])


@pytest.mark.parametrize("make, name", [
    (VGGFeatures, "VGG-19"),
    (lambda: lpips_backbone("alex"), "AlexNet"),
    (lambda: lpips_backbone("vgg"), "VGG-16"),
])  # fmt: skip
def test_missing_weights_name_the_bundled_default(cache, make, name):
    with pytest.raises(RuntimeError, match=f"the weights of {name} could not.*RandomFeatures"):
        make()


def test_a_gradient_reaches_the_pixels():
    x = images().requires_grad_()
    VGGFeatures(["relu3_1"], pretrained=False)(x)["relu3_1"].sum().backward()
    assert x.grad.abs().sum() > 0


def test_names_follow_the_published_architecture():
    assert len(vgg_places(19)) == 16 and len(vgg_places(16)) == 13
    assert list(vgg_places(19))[-1] == "relu5_4" and list(vgg_places(16))[-1] == "relu5_3"


def test_halve_averages_with_weights_that_sum_to_one():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    assert halve(x).shape == (1, 1, 4, 4) and halve(x, 4).shape == (1, 1, 2, 2)
    torch.testing.assert_close(halve(torch.full((1, 3, 8, 8), 0.3)), torch.full((1, 3, 4, 4), 0.3))
    assert features.halve(x, 1).equal(x)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_halve_weighs_pixels_by_a_triangle_as_wide_as_two_new_ones(factor):
    """Written as loops; so it removes what is too fine for the small image, such as a checkerboard."""
    x = images(side=12, dtype=torch.float64)
    weights = np.zeros((12 // factor, 12))
    for i, j in np.ndindex(*weights.shape):
        weights[i, j] = max(0, 1 - abs((j + 0.5) - (i + 0.5) * factor) / factor)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(halve(x, factor), weights @ x.numpy() @ weights.T, atol=1e-6)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)[None, None]
    assert halve(board, 4)[..., 1:-1, 1:-1].abs().max() < 1e-6
