"""Convolutional networks: shapes, what sees what, and the refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_lib.nets.convolutional import ConvDecoder, ConvEncoder
from course_lib.nets.pixelcnn import MaskedConv2d, pixelcnn


@pytest.mark.parametrize("levels, size", [(1, (8, 6)), (2, (28, 28)), (3, (16, 24))])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoder_mirrors_encoder(channels, levels, size):
    encoder = ConvEncoder(channels, 5, width=8, levels=levels)
    decoder = ConvDecoder(channels, 5, width=8, levels=levels)
    x = torch.randn(2, channels, *size)
    z = encoder(x)
    assert z.shape == (2, 5, size[0] // 2**levels, size[1] // 2**levels)
    assert decoder(z).shape == x.shape


def test_every_pixel_has_a_part_in_it():
    encoder, decoder = ConvEncoder(1, 3, width=8), ConvDecoder(1, 3, width=8)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(decoder(encoder(x)).square().sum(), x)
    assert (slope != 0).all()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ConvEncoder(1, 4)(torch.zeros(2, 1, 6, 8)), "divisible by 4; got 6×8"),
        (lambda: ConvEncoder(1, 4)(torch.zeros(2, 1, 8, 0)), "divisible by 4; got 8×0"),
        (lambda: ConvEncoder(1, 4)(torch.zeros(2, 3, 8, 8)), r"\(B, 1, H, W\); got \(2, 3, 8, 8\)"),
        (lambda: ConvEncoder(1, 4)(torch.zeros(8, 8)), r"got \(8, 8\)"),
        (lambda: ConvDecoder(1, 4)(torch.zeros(2, 3, 2, 2)), r"\(B, 4, H', W'\); got \(2, 3, 2, 2\)"),
        (lambda: ConvEncoder(0, 4), "channels must be"),
        (lambda: ConvEncoder(1, 0), "dim must be"),
        (lambda: ConvDecoder(1, 4, width=0), "width must be"),
        (lambda: ConvDecoder(1, 4, levels=0), "levels must be"),
        (lambda: pixelcnn(0, 3), "n_codes must be"),
        (lambda: pixelcnn(4, 0), "side must be"),
        (lambda: pixelcnn(4, 3, width=0), "width must be"),
        (lambda: pixelcnn(4, 3, layers=0), "layers must be"),
        (lambda: MaskedConv2d(1, 1, 4, own=True), "kernel must be an odd positive integer"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("own", [True, False])
def test_a_masked_convolution_is_one_with_zeros_in_the_kernel(own):
    conv, x = MaskedConv2d(2, 3, 5, own=own), torch.randn(1, 2, 6, 7)
    weight = conv.weight.detach().clone()
    for row in range(5):
        for column in range(5):
            if (row, column) > (2, 2) or ((row, column) == (2, 2) and not own):
                weight[:, :, row, column] = 0
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, conv.bias, padding=2))


@pytest.mark.parametrize("H, W", [(4, 4), (3, 5), (5, 2), (1, 4), (1, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_pixelcnn_sees_all_earlier_places_and_no_other(H, W, seed):
    torch.manual_seed(seed)
    net = pixelcnn(3, max(H, W), width=10).double()
    x = F.one_hot(torch.randint(3, (1, H, W)), 3).permute(0, 3, 1, 2).double()
    slope = torch.autograd.functional.jacobian(net, x)[0, :, :, :, 0]  # (K, H, W, K, H, W)
    seen = slope.permute(1, 2, 4, 5, 0, 3).reshape(H * W, H * W, -1).abs().amax(2) > 0
    assert np.array_equal(seen, np.tri(H * W, k=-1, dtype=bool))
