"""Networks: shapes, and the refusals."""

import pytest
import torch

from course_lib.nets.mlp import mlp


def test_mlp_has_the_sizes_it_was_given():
    net = mlp(5, 7, 3)
    assert net(torch.randn(2, 5)).shape == (2, 3)
    assert sum(p.numel() for p in net.parameters()) == (5 * 7 + 7) + (7 * 3 + 3)


def test_mlp_of_two_sizes_is_linear():
    net, x, y = mlp(4, 2), torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(net(x) + net(y), net(x + y) + net(torch.zeros(3, 4)))


def test_mlp_bends_between_its_layers():
    net, x = mlp(4, 8, 2), torch.randn(3, 4)
    assert not torch.allclose(net(x) + net(-x), 2 * net(torch.zeros(3, 4)), atol=1e-3)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, 2.0)])
def test_mlp_refuses(sizes):
    with pytest.raises(ValueError, match="sizes must be at least two positive integers"):
        mlp(*sizes)
