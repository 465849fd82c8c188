"""LPIPS, against the authors' package with the same networks, NumPy loops, and bad input."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lpips as theirs

from course_lib.style.features import RandomFeatures, lpips_backbone
from course_lib.style.lpips import LPIPS, differences, read_weights, unit


def images(n=3, side=64, seed=0):
    return 2 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def published(name: str) -> Path:
    """The authors' channel weights, which come with their package."""
    return Path(theirs.__file__).parent / "weights" / "v0.1" / f"{name}.pth"


@pytest.fixture(params=["alex", "vgg"])
def pair(request):
    """The package's distance on a random network with its learned weights, and ours on the same network."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds torchvision's networks in an old way
        package = theirs.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    backbone = lpips_backbone(request.param, pretrained=False)
    wanted = {}
    for name in ("slice1", "slice2", "slice3", "slice4", "slice5"):
        part = getattr(package.net, name)
        wanted |= {k: v for k, v in part.state_dict().items()}  # numbered as in torchvision's chain
    backbone.net.load_state_dict(wanted)
    return package, LPIPS(backbone, read_weights(published(request.param)))


def test_agrees_with_the_authors_package(pair):
    package, ours = pair
    x, y = images(), (images() + 0.3 * torch.randn(3, 3, 64, 64)).clamp(-1, 1)
    with torch.no_grad():
        want = package(x, y).flatten()
        got = ours(x, y)
    assert want.min() > 0 and want.std() > 0
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.mean().item())


def test_gradients_agree_with_the_authors_package(pair):
    slopes = []
    for distance in pair:
        x = images(1).requires_grad_()
        distance(x, images(1, seed=1)).sum().backward()
        slopes.append(x.grad)
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-5 * slopes[0].abs().max().item())


def test_the_distance_is_the_formula_written_as_loops():
    extract = RandomFeatures(4, 3, coarsest=8, generator=torch.Generator().manual_seed(0))
    x, y = images(2, 8).double(), images(2, 8, seed=1).double()
    weights = [torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)]
    want = np.zeros(2)
    for (f, g), w in zip(zip(extract(x).values(), extract(y).values(), strict=True), weights, strict=True):
        for n, i, j in np.ndindex(2, 8, 8):
            a, b = f[n, :, i, j].numpy(), g[n, :, i, j].numpy()
            a, b = (v / np.linalg.norm(v) if v.any() else v for v in (a, b))
            want[n] += w.numpy() @ (a - b) ** 2 / 64
    with torch.no_grad():
        np.testing.assert_allclose(LPIPS(extract, weights)(x, y), want, rtol=1e-8)
        np.testing.assert_allclose(LPIPS(extract)(x, x), 0, atol=1e-15)


def test_weights_are_parameters_and_learn():
    extract = RandomFeatures(4, coarsest=16)
    measure = LPIPS(extract, [torch.ones(4), torch.ones(4)])
    measure(images(side=16), images(side=16, seed=1)).sum().backward()
    parts = differences(extract(images(side=16)), extract(images(side=16, seed=1)))
    for weight, part in zip(measure.weights, parts, strict=True):
        torch.testing.assert_close(weight.grad, part.sum(0))  # the distance is linear in them


def test_zero_features_have_no_direction_and_a_finite_gradient():
    f = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit(f).sum().backward()
    assert (unit(f) == 0).all() and torch.isfinite(f.grad).all()
    torch.testing.assert_close(unit(torch.randn(1, 5, 4, 4)).norm(dim=1), torch.ones(1, 4, 4))


@pytest.mark.parametrize("length, want", [(5e-4, 1.0), (2e-4, 1.0), (5e-5, 0.5), (0.0, 0.0)])
def test_vectors_down_to_1e_4_get_length_1_and_shorter_ones_are_divided_by_it(length, want):
    f = length * torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)
    assert unit(f).norm().item() == pytest.approx(want, rel=1e-5)


def test_rounding_in_patches_of_one_colour_has_no_direction():
    extract = RandomFeatures(48, generator=torch.Generator().manual_seed(0))
    for value in (1.0, -1.0, 0.3):
        f = extract(torch.full((1, 3, 32, 32), value))["1/1"]
        assert unit(f).norm(dim=1).max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Zeros stay zeros, and squares neither vanish nor overflow."""
    assert (unit(torch.zeros(1, 3, 2, 2, dtype=dtype)) == 0).all()
    for length in (2e-4, 1.0, 3e4):
        f = length * torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)
        torch.testing.assert_close(unit(f.to(dtype)).float().norm(), torch.tensor(1.0), rtol=2e-2, atol=0)


def test_images_and_weights_that_do_not_fit_are_refused():
    extract, x = RandomFeatures(4), images(1, 16)
    for y in (images(3, 16), images(1, 16)[:, :1], images(1, 32)):
        with pytest.raises(ValueError, match=r"y must be floating-point \(1, 3, 16, 16\)"):
            LPIPS(extract)(x, y)
    with pytest.raises(ValueError, match="weights must be at least 0"):
        LPIPS(extract, [torch.ones(4), -torch.ones(4)])


def weights_file(path: Path, *layers: int) -> Path:
    """A file in the authors' format, whose layer i has i + 1 channels of weight i."""
    state = {f"lin{i}.model.1.weight": torch.full((1, i + 1, 1, 1), float(i)) for i in layers}
    torch.save(state, path)
    return path


def test_weights_are_read_by_their_numbers(tmp_path):
    for layers in ((0, 1, 2), (2, 0, 1)):
        found = read_weights(weights_file(tmp_path / "w.pth", *layers))
        assert [w.tolist() for w in found] == [[0], [1, 1], [2, 2, 2]]


def test_weights_of_another_precision_weigh_the_same():
    extract, x, y = RandomFeatures(4), images(1, 16), images(1, 16, seed=1)
    weights = [torch.rand(4), torch.rand(4)]
    torch.testing.assert_close(
        LPIPS(extract, [w.double() for w in weights])(x, y), LPIPS(extract, weights)(x, y)
    )


@pytest.mark.parametrize(
    "name, widths", [("alex", [64, 192, 384, 256, 256]), ("vgg", [64, 128, 256, 512, 512])]
)
def test_published_weights_are_read(name, widths):
    weights = read_weights(published(name))
    assert [len(w) for w in weights] == widths and all((w >= 0).all() for w in weights)
