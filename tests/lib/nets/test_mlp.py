"""Fully connected networks."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.nets.mlp import TimeMLP, mlp


def test_mlp_in_numpy():
    net, x = mlp(5, 7, 3).double(), torch.randn(4, 5).double()
    w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
    h = x.numpy() @ w1.T + b1
    np.testing.assert_allclose(net(x).detach(), (h / (1 + np.exp(-h))) @ w2.T + b2, rtol=1e-10)


def test_mlp_of_two_sizes_is_linear():
    net, x, y = mlp(4, 2), torch.randn(3, 4), torch.randn(3, 4)
    assert_close(net(x) + net(y), net(x + y) + net(torch.zeros(3, 4)))


@pytest.mark.parametrize("dim, hidden, layers, waves", [(2, 16, 1, 0), (3, 8, 3, 4), (1, 4, 2, 1)])
def test_time_mlp(dim, hidden, layers, waves):
    net = TimeMLP(dim, hidden=hidden, layers=layers, waves=waves)
    assert net(torch.randn(5, dim), torch.rand(5)).shape == (5, dim)
    sizes = [dim * (1 + 2 * waves) + 64, *[hidden] * layers, dim]
    want = sum(a * b + b for a, b in itertools.pairwise(sizes))
    assert sum(p.numel() for p in net.parameters()) == want


def test_time_mlp_sees_coordinates_waves_and_time():
    """One linear map of them all, in NumPy; the wavelengths are 2, 1, 1/2."""
    net, x, t = TimeMLP(2, layers=0, waves=3).double(), torch.randn(4, 2).double(), torch.rand(4).double()
    w, b = (p.detach().numpy() for p in net.parameters())
    flat = (2 * np.pi * x.numpy()[:, :, None] / [2, 1, 0.5]).reshape(4, 6)
    times = net.features(t, torch.float64).numpy()
    seen = np.hstack([x.numpy(), np.sin(flat), np.cos(flat), times])
    np.testing.assert_allclose(net(x, t).detach(), seen @ w.T + b, rtol=1e-5, atol=1e-5)


def test_waves_of_a_bfloat16_network_are_those_of_its_rounded_points():
    """In bfloat16 π is 3.1406 and eight times it off by 0.03."""
    x = torch.linspace(-3, 3, 61).bfloat16()[:, None]
    net = TimeMLP(1, waves=4)
    want, got = net.waves(x.float()), net.bfloat16().waves(x, torch.bfloat16)
    assert_close(got.float(), want, atol=2**-8, rtol=0)
