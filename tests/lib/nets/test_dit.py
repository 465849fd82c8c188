"""The diffusion transformer: a block in NumPy, its patches, and its published sizes."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.nets.dit import DiT, DiTBlock


def moved(net, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def test_a_block_against_numpy():
    """Peebles and Xie (2023), figure 3, for one sample and loops over heads."""
    block = moved(DiTBlock(8, 4).double())
    x, embedding = torch.randn(3, 8).double(), torch.randn(8).double()
    p = {name: value.detach().numpy() for name, value in block.named_parameters()}
    linear = lambda name, h: h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    norm = lambda h: (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
    gelu = lambda h: h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear("modulate", embedding.numpy()), 6)

    h = x.numpy()
    q, k, v = np.split(linear("qkv", norm(h) * (1 + scale1) + shift1), 3, axis=1)  # (3, 8) each
    mixed = np.zeros((3, 8))
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(4))
        mixed[:, head] = weights / weights.sum(1, keepdims=True) @ v[:, head]
    h = h + gate1 * linear("out", mixed)
    h = h + gate2 * linear("mlp.2", gelu(linear("mlp.0", norm(h) * (1 + scale2) + shift2)))
    np.testing.assert_allclose(block(x[None], embedding[None])[0].detach(), h, rtol=1e-10)


def test_with_its_gates_closed_a_block_is_the_identity():
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 9, 16), torch.randn(2, 16)
    assert torch.equal(DiTBlock(16, 8)(x, embedding), x)
    assert not torch.allclose(moved(DiTBlock(16, 8))(x, embedding), x)


def patches(x, order, patch=2):
    """The image with its patches in another order, by loops."""
    out, side = torch.empty_like(x), x.shape[3] // patch
    for new, old in enumerate(order):
        a, b = divmod(new, side)
        c, d = divmod(old, side)
        out[:, :, a * patch : (a + 1) * patch, b * patch : (b + 1) * patch] = x[
            :, :, c * patch : (c + 1) * patch, d * patch : (d + 1) * patch
        ]
    return out


def test_only_the_positions_tell_patches_apart():
    net = moved(DiT(3, 8, width=16, depth=2, head_dim=8)).double()
    x, t = torch.randn(2, 3, 8, 8).double(), torch.rand(2).double()
    order = torch.randperm(16).tolist()
    assert not torch.allclose(net(patches(x, order), t), patches(net(x, t), order))
    net.positions.zero_()
    assert_close(net(patches(x, order), t), patches(net(x, t), order))


def test_without_blocks_a_patch_is_made_of_itself_and_with_them_of_all():
    for depth in (0, 1):
        net = moved(DiT(1, 6, patch=3, width=16, depth=depth, head_dim=8))
        x = torch.randn(1, 1, 6, 6, requires_grad=True)
        (slope,) = torch.autograd.grad(net(x, torch.rand(1))[0, 0, 3:, :3].square().sum(), x)
        reached = slope[0, 0] != 0
        assert reached[3:, :3].all() and reached.all() == depth


@pytest.mark.parametrize("options, millions", [
    ({}, 33), ({"width": 768}, 130), ({"width": 1024, "depth": 24}, 458),
    ({"width": 1152, "depth": 28, "head_dim": 72}, 675),
])  # fmt: skip
def test_published_numbers_of_parameters(options, millions):
    """S/2 to XL/2 on latents 32×32×4 of 1,000 classes: Peebles and Xie (2023, appendix, table 4)."""
    with torch.device("meta"):
        net = DiT(4, 32, classes=1000, **options)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions
