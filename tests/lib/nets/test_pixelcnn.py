"""Masked convolutions: what sees what, by autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_lib.nets.pixelcnn import MaskedConv2d, pixelcnn


@pytest.mark.parametrize("own", [True, False])
def test_a_masked_convolution_is_one_with_zeros_in_the_kernel(own):
    conv, x = MaskedConv2d(2, 3, 5, own=own), torch.randn(1, 2, 6, 7)
    weight = conv.weight.detach().clone()
    for row in range(5):
        for column in range(5):
            if (row, column) > (2, 2) or ((row, column) == (2, 2) and not own):
                weight[:, :, row, column] = 0
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, conv.bias, padding=2))


def one_hot(K, H, W):
    return F.one_hot(torch.randint(K, (1, H, W)), K).permute(0, 3, 1, 2).double()


@pytest.mark.parametrize("H, W, K", [(4, 4, 3), (3, 5, 20), (5, 2, 3), (1, 4, 3), (1, 1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_pixelcnn_sees_all_earlier_places_and_no_other(H, W, K, seed):
    torch.manual_seed(seed)
    net = pixelcnn(K, max(H, W), width=10).double()
    slope = torch.autograd.functional.jacobian(net, one_hot(K, H, W))[0, :, :, :, 0]  # (K, H, W, K, H, W)
    seen = slope.permute(1, 2, 4, 5, 0, 3).reshape(H * W, H * W, -1).abs().amax(2) > 0
    assert np.array_equal(seen, np.tri(H * W, k=-1, dtype=bool))


def test_on_a_large_grid_the_last_place_still_sees_the_first():
    torch.manual_seed(0)
    net, x = pixelcnn(2, 32, width=8).double(), one_hot(2, 32, 32).requires_grad_()
    out = net(x)
    for row, column in [(31, 31), (31, 0), (16, 20), (0, 31)]:
        (slope,) = torch.autograd.grad(out[0, :, row, column].sum(), x, retain_graph=True)
        seen = slope[0].abs().amax(0).flatten() > 0
        assert seen.nonzero().flatten().tolist() == list(range(32 * row + column))


def test_many_codes_on_a_large_grid_take_a_few_million_parameters():
    """A kernel of side 63 on the codes themselves would take 130 million."""
    assert sum(p.numel() for p in pixelcnn(512, 32).parameters()) < 5e6


def test_an_even_kernel():
    with pytest.raises(ValueError, match="kernel must be odd; got 4"):
        MaskedConv2d(1, 1, 4, own=True)
