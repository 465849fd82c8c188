"""The networks of a small DCGAN."""

import pytest
import torch
from torch import nn

from course_lib.nets.dcgan import DCDiscriminator, DCGenerator


@pytest.mark.parametrize("channels, size, levels", [(1, 8, 2), (1, 28, 2), (3, 32, 3), (2, 6, 1)])
def test_shapes_and_range(channels, size, levels):
    options = {"width": 4, "levels": levels}
    x = DCGenerator(channels, size, latent=5, **options)(torch.randn(3, 5))
    assert x.shape == (3, channels, size, size) and x.abs().max() <= 1
    assert DCDiscriminator(channels, size, **options)(x).shape == (3,)


def test_hidden_layers_of_the_generator_are_normalized_and_without_a_checkerboard():
    net, seen = DCGenerator(1, 16, latent=5, width=4, levels=3), []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_hook(lambda m, x, y: seen.append(y))
        if isinstance(module, nn.ConvTranspose2d):
            assert all(k % s == 0 for k, s in zip(module.kernel_size, module.stride, strict=True))
    net(torch.randn(400, 5))
    assert len(seen) == 3  # all but the last layer
    for y in seen:
        y = y.transpose(0, 1).flatten(1)
        torch.testing.assert_close(y.mean(1), torch.zeros(len(y)), atol=1e-4, rtol=0)
        torch.testing.assert_close(y.var(1), torch.ones(len(y)), atol=0.02, rtol=0)


def test_projection_is_what_it_says():
    net, x, y = DCDiscriminator(1, 8, width=4, classes=3), torch.randn(9, 1, 8, 8), torch.arange(9) % 3
    features = net.layers(x)
    want = features @ net.last.weight[0] + net.last.bias + (features @ net.embed.weight.T)[range(9), y]
    torch.testing.assert_close(net(x, y), want)


def test_an_image_is_judged_by_itself_and_the_judge_bends():
    net = DCDiscriminator(1, 8, width=4)
    x, move = torch.randn(2, 6, 1, 8, 8)
    torch.testing.assert_close(net(x)[:2], net(x[:2]), rtol=1e-5, atol=1e-6)
    assert ((net(x + move) + net(x - move) - 2 * net(x)).abs() > 1e-5).all()


def test_labels_reach_both_networks():
    z, x, y = torch.randn(6, 4), torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    generator = DCGenerator(1, 8, latent=4, width=4, classes=3).eval()
    discriminator = DCDiscriminator(1, 8, width=4, classes=3)
    for net, given in ((generator, z), (discriminator, x)):
        assert not torch.allclose(net(given, y), net(given, (y + 1) % 3))


def test_what_would_be_left_out_in_silence_is_refused():
    y = torch.zeros(2, dtype=torch.int64)
    for net, given in (
        (DCGenerator(1, 8, latent=4), torch.randn(2, 4)),
        (DCDiscriminator(1, 8), torch.randn(2, 1, 8, 8)),
    ):
        with pytest.raises(ValueError, match="y must be left out"):
            net(given, y)
    with pytest.raises(ValueError, match="size must be divisible by 4 for 2 levels; got 10"):
        DCGenerator(1, 10, latent=4)
