"""The convolutional encoder and its mirror image."""

import pytest
import torch

from course_lib.nets.convolutional import ConvDecoder, ConvEncoder


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


def test_nothing_is_cut_off():
    with pytest.raises(ValueError, match=r"x must have sides divisible by 4; got \(6, 8\)"):
        ConvEncoder(1, 4)(torch.zeros(2, 1, 6, 8))
