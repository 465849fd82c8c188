"""The U-Net: its parts in NumPy, its levels, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.nets.unet import Attention, Block, CrossAttention, UNet


def softmax(logits):
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def heads_by_loops(q, k, v, head_dim):
    """(C, places) and twice (C, sequence): softmax of the products over the root of a head's dimension."""
    mixed = np.zeros_like(q)
    for start in range(0, len(q), head_dim):
        head = slice(start, start + head_dim)
        mixed[head] = v[head] @ softmax(q[head].T @ k[head] / math.sqrt(head_dim)).T
    return mixed


def numbers(layer):
    return {name: p.detach().numpy().squeeze() for name, p in layer.named_parameters()}


@pytest.mark.parametrize("head_dim", [2, 4, 8])
def test_attention_against_loops(head_dim):
    torch.manual_seed(0)
    layer, x = Attention(8, head_dim).double(), torch.randn(2, 8, 2, 3).double()
    nn.init.normal_(layer.out.weight)
    norm, p = layer.norm(x).detach().numpy().reshape(2, 8, 6), numbers(layer)
    for n in range(2):
        q, k, v = np.split(p["qkv.weight"] @ norm[n] + p["qkv.bias"][:, None], 3)  # (8, 6) each
        out = p["out.weight"] @ heads_by_loops(q, k, v, head_dim)
        np.testing.assert_allclose(
            layer(x)[n].detach().reshape(8, 6), x[n].numpy().reshape(8, 6) + out, rtol=1e-8
        )


@pytest.mark.parametrize("head_dim", [2, 8])
def test_cross_attention_against_loops(head_dim):
    torch.manual_seed(0)
    layer = CrossAttention(8, head_dim, 5).double()
    x, context = torch.randn(2, 8, 2, 3).double(), torch.randn(2, 4, 5).double()
    nn.init.normal_(layer.out.weight)
    norm, p = layer.norm(x).detach().numpy().reshape(2, 8, 6), numbers(layer)
    for n in range(2):
        q = p["q.weight"] @ norm[n] + p["q.bias"][:, None]  # (8, 6)
        k, v = np.split(p["kv.weight"] @ context[n].numpy().T, 2)  # (8, 4) each
        out = p["out.weight"] @ heads_by_loops(q, k, v, head_dim)
        got = layer(x, context)[n].detach().reshape(8, 6)
        np.testing.assert_allclose(got, x[n].numpy().reshape(8, 6) + out, rtol=1e-8)


def test_at_the_start_a_block_passes_its_input_on():
    torch.manual_seed(0)
    x, embedding, context = torch.randn(2, 16, 4, 4), torch.randn(2, 32), torch.randn(2, 3, 6)
    block = Block(16, 16, 32, dropout=0.5, head_dim=4, context=6)
    assert torch.equal(block(x, embedding, context), x)
    block = Block(16, 8, 32)
    assert torch.equal(block(x, embedding), block.skip(x))


def test_a_block_between_its_convolutions_by_hand():
    torch.manual_seed(0)
    block, x, embedding = Block(8, 16, 32), torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    nn.init.normal_(block.conv2.weight)
    silu = lambda h: h * torch.sigmoid(h)
    # 8 groups of one channel, then 8 groups of two
    h = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    h = block.conv1(silu(h)).view(2, 8, 2, 4, 4)
    h = (h - h.mean((2, 3, 4), keepdim=True)) / (h.var((2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()
    numbers = embedding @ block.modulate.weight.T + block.modulate.bias  # scales, then shifts
    h = h.view(2, 16, 4, 4) * (1 + numbers[:, :16, None, None]) + numbers[:, 16:, None, None]
    assert_close(block(x, embedding), block.skip(x) + block.conv2(silu(h)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [
    {"levels": (1,)}, {"levels": (2, 1, 3, 1)}, {"blocks": 3, "levels": (1, 1)}, {"width": 24},
    {"levels": (1, 2, 2), "attention": (2, 4), "head_dim": 4, "context": 3},
])  # fmt: skip
@pytest.mark.parametrize("size", [(8, 8), (24, 16)])
def test_shapes(options, size):
    net = UNet(2, **{"width": 8, **options})
    x = torch.randn(3, 2, *size)
    assert net(x, torch.rand(3)).shape == x.shape


def attended(net):
    """The size of the image and the number of heads at every self-attention, in order."""
    seen = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(
                lambda m, given, _: seen.append((given[0].shape[2], given[0].shape[1] // m.head_dim))
            )
    net(torch.randn(1, 1, 16, 16), torch.rand(1))
    return seen


def test_attention_is_where_it_is_asked_for():
    options = {"width": 8, "levels": (1, 2, 2), "blocks": 2}
    assert attended(UNet(1, **options)) == [(4, 4)]  # the middle, with four heads
    assert attended(UNet(1, attention=(2,), **options)) == [(8, 4)] * 2 + [(4, 4)] + [(8, 4)] * 2
    everywhere = [(16, 1)] * 2 + [(8, 2)] * 2 + [(4, 2)] * 5 + [(8, 2)] * 2 + [(16, 1)] * 2
    assert attended(UNet(1, attention=(1, 2, 4), head_dim=8, **options)) == everywhere


def test_no_text_is_zeros_of_any_length():
    torch.manual_seed(0)
    net = UNet(1, width=8, attention=(2,), context=6).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, t, text = torch.randn(3, 1, 8, 8), torch.rand(3), torch.randn(3, 4, 6)
    none = net(x, t)
    for length in (1, 7):
        assert_close(net(x, t, context=torch.zeros(3, length, 6)), none, rtol=1e-4, atol=1e-5)
    some = net(x, t, context=text * torch.tensor([1.0, 0.0, 1.0])[:, None, None])  # one text dropped
    assert_close(some[1], none[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(some[0], none[0]) and not torch.allclose(some[2], none[2])
    assert_close(net(x, t, context=text.flip(1)), net(x, t, context=text), rtol=1e-4, atol=1e-5)  # a set


def test_dropout_is_in_training_only():
    torch.manual_seed(0)
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    for dropout, same in ((0.0, True), (0.5, False)):
        net = UNet(1, width=8, dropout=dropout)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn_like(p))
        assert torch.equal(net.eval()(x, t), net.eval()(x, t))
        assert torch.equal(net.train()(x, t), net.eval()(x, t)) is same


@pytest.mark.parametrize("given, match", [
    ({"attention": (4,)}, r"attention must name factors of the levels, \[1, 2\]; got \(4,\)"),
])  # fmt: skip
def test_bad_options(given, match):
    with pytest.raises(ValueError, match=match):
        UNet(1, **given)


def test_a_side_that_does_not_halve():
    """Of one pixel the way back would make two, and the sum with its partner would go through."""
    net = UNet(1, width=8)
    for size in ((1, 8), (8, 7)):
        with pytest.raises(ValueError, match=r"x must have sides divisible by 2; got \("):
            net(torch.zeros(2, 1, *size), torch.rand(2))


def test_a_text_without_context():
    with pytest.raises(ValueError, match="context must be left out: this network was made without it"):
        UNet(1, width=8)(torch.zeros(2, 1, 8, 8), torch.rand(2), context=torch.zeros(2, 3, 4))
