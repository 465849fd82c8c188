"""Networks of a time: their shapes, what they are at the start, and what they refuse."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.nets.embeddings import TimeFeatures
from course_lib.nets.mlp import TimeMLP
from course_lib.nets.unet import Attention, Block, UNet

SEEDS = range(5)


def made(seed=0, channels=1, trained=True, **options):
    """A small U-Net; `trained` moves every parameter away from its start."""
    torch.manual_seed(seed)
    net = UNet(channels, **{"width": 8, **options})
    if trained:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return net


def batch(B=3, channels=1, size=(8, 8), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, channels, *size, generator=g), torch.rand(B, generator=g)


# Time


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_time_features_are_sines_and_cosines(dim):
    """Of 1000 t · 10000^(-2i/dim), as in the transformer, in NumPy."""
    t = torch.tensor([0.0, 0.001, 0.1234, 0.5, 1.0])
    got = TimeFeatures(dim)(t)
    assert got.shape == (5, dim)
    for i in range(dim // 2):
        angles = 1000 * t.double().numpy() / 10_000 ** (2 * i / dim)
        np.testing.assert_allclose(got[:, i], np.sin(angles), atol=5e-4)
        np.testing.assert_allclose(got[:, i + dim // 2], np.cos(angles), atol=5e-4)


def test_time_features_tell_a_thousand_steps_apart():
    features = TimeFeatures(32)(torch.arange(1001) / 1000)
    distances = torch.cdist(features, features) + 10 * torch.eye(1001)
    assert distances.min() > 0.1


def test_time_features_have_no_parameters_and_follow_their_module():
    features = TimeFeatures(8)
    assert not list(features.parameters())
    assert features(torch.rand(3, dtype=torch.float64)).dtype == torch.float32
    assert features.double()(torch.rand(3)).dtype == torch.float64


@pytest.mark.parametrize("dim", [0, 1, 3, -2, 4.0, True])
def test_bad_dim(dim):
    with pytest.raises(ValueError, match="dim must be an even integer of at least 2"):
        TimeFeatures(dim)


@pytest.mark.parametrize(
    "t", [torch.tensor(0.5), torch.rand(3, 1), torch.tensor([1, 2]), torch.tensor([True])]
)
def test_bad_times_of_features(t):
    with pytest.raises(ValueError, match=r"t must be floating-point times \(B,\); got torch"):
        TimeFeatures(4)(t)


# Points


@pytest.mark.parametrize("dim, hidden, layers", [(2, 16, 1), (3, 8, 3), (1, 4, 2)])
def test_time_mlp(dim, hidden, layers):
    net = TimeMLP(dim, hidden=hidden, layers=layers)
    assert net(torch.randn(5, dim), torch.rand(5)).shape == (5, dim)
    sizes = [dim + 64, *[hidden] * layers, dim]
    want = sum(a * b + b for a, b in itertools.pairwise(sizes))
    assert sum(p.numel() for p in net.parameters()) == want


def test_time_mlp_is_affine_between_features_and_a_silu():
    """One hidden layer, in NumPy."""
    net, x, t = TimeMLP(2, hidden=5, layers=1).double(), torch.randn(4, 2).double(), torch.rand(4).double()
    (w1, b1, w2, b2) = (p.detach().numpy() for p in net.parameters())
    h = np.hstack([x.numpy(), net.features(t).numpy()]) @ w1.T + b1
    np.testing.assert_allclose(net(x, t).detach(), (h / (1 + np.exp(-h))) @ w2.T + b2, rtol=1e-10)


def test_time_mlp_depends_on_both_and_on_each_sample_alone():
    torch.manual_seed(0)
    net, x, t = TimeMLP(2), torch.randn(6, 2), torch.rand(6)
    out, order = net(x, t), torch.tensor([3, 0, 5, 1, 4, 2])
    assert_close(net(x[order], t[order]), out[order])
    assert not torch.allclose(net(x, 1 - t), out) and not torch.allclose(net(-x, t), out)


def test_time_mlp_keeps_float64():
    assert TimeMLP(2).double()(torch.randn(3, 2).double(), torch.rand(3).double()).dtype == torch.float64


@pytest.mark.parametrize("layers", [0, -1, 2.0, True])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="layers must be an integer of at least 1"):
        TimeMLP(2, layers=layers)


@pytest.mark.parametrize("given", [{"dim": 0}, {"dim": 2, "hidden": 0}, {"dim": 2, "hidden": 2.5}])
def test_bad_sizes(given):
    with pytest.raises(ValueError, match=r"sizes must be|dim must be|hidden must be"):
        TimeMLP(**given)


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.rand(3, 1), torch.tensor([1, 2, 3])])
def test_bad_times_of_points(t):
    with pytest.raises(ValueError, match="t must"):
        TimeMLP(2)(torch.randn(3, 2), t)


# Images


@pytest.mark.parametrize("options", [
    {}, {"levels": (1,)}, {"levels": (1, 2, 2)}, {"levels": (2, 1, 3, 1)}, {"blocks": 2},
    {"blocks": 3, "levels": (1, 1)},
    {"channels": 3}, {"width": 24}, {"classes": 4},
])  # fmt: skip
@pytest.mark.parametrize("size", [(8, 8), (16, 8), (24, 24)])
def test_shapes(options, size):
    net = made(**options)
    x, t = batch(channels=options.get("channels", 1), size=size)
    assert net(x, t).shape == x.shape


@pytest.mark.parametrize(
    "levels, size", [((1,), (1, 1)), ((1,), (5, 7)), ((1, 2), (2, 2)), ((1, 1, 1), (12, 4))]
)
def test_sides_need_only_be_divisible(levels, size):
    net = made(levels=levels)
    x, t = batch(size=size)
    assert net(x, t).shape == x.shape


@pytest.mark.parametrize("options", [{}, {"classes": 4}, {"channels": 3, "levels": (1, 2, 2)}])
def test_at_the_start_the_output_is_zero(options):
    x, t = batch(channels=options.get("channels", 1))
    assert not made(trained=False, **options)(x, t).any()


def test_at_the_start_a_block_and_attention_pass_their_input_on():
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 32)
    assert torch.equal(Block(16, 16, 32)(x, embedding), x)
    assert torch.equal(Attention(16)(x), x)
    block = Block(16, 8, 32)
    assert torch.equal(block(x, embedding), block.skip(x))


def test_attention_against_loops():
    """Softmax of the products over the root of a head's channels, in NumPy."""
    torch.manual_seed(0)
    layer, x = Attention(8, heads=2).double(), torch.randn(2, 8, 2, 3).double()
    nn.init.normal_(layer.out.weight)
    norm = layer.norm(x).detach().numpy().reshape(2, 8, 6)
    w, bias = layer.qkv.weight.detach().numpy()[:, :, 0, 0], layer.qkv.bias.detach().numpy()
    mixed = np.zeros((2, 8, 6))
    for n in range(2):
        q, k, v = np.split(w @ norm[n] + bias[:, None], 3)  # (8, 6) each
        for head in (slice(0, 4), slice(4, 8)):
            logits = q[head].T @ k[head] / math.sqrt(4)
            weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            mixed[n, head] = v[head] @ weights.T
    out = layer.out.weight.detach().numpy()[:, :, 0, 0] @ mixed
    np.testing.assert_allclose(layer(x).detach(), x.numpy() + out.reshape(x.shape), rtol=1e-8, atol=1e-10)


def trained(net, *given, steps=3):
    """After a few steps towards a target that needs x, t and y; the gradients of the last are kept."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    target = (2 * given[0] - 1).roll(1, 3) * (1 + given[1])[:, None, None, None]
    for _ in range(steps):
        optimizer.zero_grad()
        (net(*given) - target).square().mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("options", [{}, {"blocks": 2, "levels": (1, 2, 1)}, {"classes": 3}])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_reaches_every_parameter(options, seed):
    """The zeros at the start hold it up in the first steps only: the last layer, then a block's, then all."""
    net = made(seed, trained=False, **options)
    x, t = batch(4)
    given = (x, t, torch.tensor([0, 1, 2, 3])) if "classes" in options else (x, t)
    trained(net, *given)
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("seed", SEEDS)
def test_time_and_label_matter_once_it_is_trained(seed):
    net = made(seed, trained=False, classes=3)
    x, t = batch(4)
    y = torch.tensor([0, 1, 2, 3])
    trained(net, x, t, y, steps=5)
    with torch.no_grad():
        out = net(x, t, y)
        assert not torch.equal(net(x, 1 - t, y), out)
        assert not torch.equal(net(x, t, y.flip(0)), out)
        assert not torch.equal(net(-x, t, y), out)


@pytest.mark.parametrize("classes", [0, 3])
def test_samples_do_not_mix(classes):
    net = made(classes=classes)
    x, t = batch(6)
    given = (x, t, torch.tensor([0, 1, 2, 3, 0, 1])) if classes else (x, t)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        out = net(*given)
        assert_close(net(*(v[order] for v in given)), out[order], rtol=1e-4, atol=1e-5)
        alone = torch.cat([net(*(v[n : n + 1] for v in given)) for n in range(6)])
    assert_close(alone, out, rtol=1e-4, atol=1e-5)


def test_no_label_is_the_last_label():
    net, (x, t) = made(classes=3), batch(4)
    with torch.no_grad():
        none = net(x, t)
        assert torch.equal(net(x, t, torch.full((4,), 3)), none)
        for label in range(3):
            assert not torch.allclose(net(x, t, torch.full((4,), label)), none)
        some = net(x, t, torch.tensor([0, 3, 1, 3]))  # labels dropped for two of them
    assert_close(some[[1, 3]], none[[1, 3]])
    assert not torch.allclose(some[[0, 2]], none[[0, 2]])


def test_the_same_call_gives_the_same_output_in_training_and_evaluation():
    net, (x, t) = made(), batch()
    with torch.no_grad():
        assert torch.equal(net.train()(x, t), net.eval()(x, t))


def test_float64_and_times_of_another_type():
    net, (x, t) = made().double(), batch()
    assert net(x.double(), t).dtype == torch.float64
    assert_close(net(x.double(), t.double()).float(), made()(x, t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given, match", [
    ({"channels": 0}, "channels must be an integer of at least 1; got 0"),
    ({"channels": 1.0}, "channels must be an integer of at least 1"),
    ({"channels": True}, "channels must be an integer of at least 1"),
    ({"blocks": 0}, "blocks must be an integer of at least 1; got 0"),
    ({"classes": -1}, "classes must be an integer of at least 0; got -1"),
    ({"classes": 2.0}, "classes must be an integer of at least 0"),
    ({"width": 0}, "width must be a positive multiple of 8; got 0"),
    ({"width": 12}, "width must be a positive multiple of 8; got 12"),
    ({"width": -8}, "width must be a positive multiple of 8"),
    ({"width": 8.0}, "width must be a positive multiple of 8"),
    ({"levels": ()}, r"levels must hold a positive integer a level; got \(\)"),
    ({"levels": (1, 0)}, "levels must hold a positive integer a level"),
    ({"levels": (1, 1.5)}, "levels must hold a positive integer a level"),
])  # fmt: skip
def test_bad_options(given, match):
    with pytest.raises(ValueError, match=match):
        UNet(**{"channels": 1, "width": 8, **given})


X, T = batch()
Y = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("x, t, y, match", [
    (X[0], T, None, r"x must have shape \(B, 1, H, W\); got \(1, 8, 8\)"),
    (X.expand(3, 2, 8, 8), T, None, r"x must have shape \(B, 1, H, W\); got \(3, 2, 8, 8\)"),
    (X[:, :, :7], T, None, r"x must have sides divisible by 2; got \(7, 8\)"),
    (X[:, :, :, :5], T, None, r"x must have sides divisible by 2; got \(8, 5\)"),
    (X, T[:2], None, r"t must have shape \(3,\); got \(2,\)"),
    (X, T[:, None], None, r"t must have shape \(3,\)"),
    (X, torch.tensor(0.5), None, r"t must have shape \(3,\)"),
    (X, T, Y[:2], r"y must be int64 labels \(3,\) in 0 to 3"),
    (X, T, Y + 2, r"y must be int64 labels \(3,\) in 0 to 3"),
    (X, T, Y - 1, r"y must be int64 labels \(3,\) in 0 to 3"),
    (X, T, Y.float(), r"y must be int64 labels"),
    (X, T, Y.int(), r"y must be int64 labels"),
])  # fmt: skip
def test_bad_inputs(x, t, y, match):
    with pytest.raises(ValueError, match=match):
        made(classes=3)(x, t, y)


def test_labels_without_classes():
    with pytest.raises(ValueError, match="y must be left out: this network was made without classes"):
        made()(X, T, Y)


def test_more_levels_want_more_twos():
    with pytest.raises(ValueError, match=r"x must have sides divisible by 4; got \(6, 8\)"):
        made(levels=(1, 1, 1))(X[:, :, :6], T)
