"""The two-optimizer loop: against a loop by hand, resumed, with frozen layers, host reads, and divergence.

What it does in two processes is tested with `train`'s, in `training/test_processes.py`.
"""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from course_lib.gan.loop import GANConfig, train_gan
from course_lib.gan.losses import HINGE, LEAST_SQUARES, NON_SATURATING, WASSERSTEIN, gradient_penalty, r1
from course_lib.nets.mlp import mlp
from course_lib.training.ema import average

CONFIG = GANConfig(steps=5, latent=3, batch_size=16, lr_generator=1e-2, lr_discriminator=2e-2)


def points(count=64):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(3))


def pair():
    torch.manual_seed(2)
    return mlp(3, 8, 2), mlp(2, 8, 1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("loss", [NON_SATURATING, WASSERSTEIN])
def test_the_same_as_a_loop_by_hand(loss):
    config = replace(CONFIG, discriminator_steps=2, betas=(0.3, 0.9), seed=4)
    G, D = pair()
    steps = list(train_gan(G, D, (points(),), config, loss=loss, penalty=functools.partial(r1, weight=0.5)))
    other_g, other_d = pair()
    adam_g = torch.optim.Adam(other_g.parameters(), 1e-2, (0.3, 0.9))
    adam_d = torch.optim.Adam(other_d.parameters(), 2e-2, (0.3, 0.9))
    turn = 0
    for step in steps:
        numbers = torch.Generator().manual_seed(4 * 1_000_003 + step.step)
        z = [torch.randn(16, 3, generator=numbers) for _ in range(3)]
        for k in range(2):
            epoch, batch = divmod(turn, 4)
            turn += 1
            order = torch.randperm(64, generator=torch.Generator().manual_seed(4 * 1_000_003 + epoch))
            real = points()[order[16 * batch : 16 * batch + 16]].requires_grad_()
            logits = other_d(real)
            value = loss.discriminator(logits, other_d(other_g(z[k]).detach()))
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            adam_d.zero_grad()
            (value + 0.25 * slope.square().sum(1).mean()).backward()
            adam_d.step()
        cheat = loss.generator(other_d(other_g(z[2])))
        adam_g.zero_grad()
        cheat.backward()
        adam_g.step()
        assert (step.discriminator, step.generator) == pytest.approx((value.item(), cheat.item()), abs=1e-5)
    for net, other in ((G, other_g), (D, other_d)):
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_line_of_points_is_learned(seed):
    """The generator's mean and spread come near those of the data, N((1, -1), 0.5²)."""
    torch.manual_seed(seed)
    data = torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(1024, 2)
    G, D = mlp(2, 16, 2), mlp(2, 32, 1)
    config = GANConfig(400, 2, batch_size=128, lr_generator=5e-3, lr_discriminator=5e-3, seed=seed)
    smooth = average(G, 0.97)
    for _ in train_gan(G, D, (data,), config, penalty=functools.partial(r1, weight=0.3), ema=smooth):
        pass
    made = smooth.module(torch.randn(2000, 2))
    assert (made.mean(0) - data.mean(0)).abs().max() < 0.3
    assert 0.25 < made.std() / data.std() < 1.75


@pytest.mark.parametrize("loader", [False, True])
def test_a_broken_run_ends_with_the_same_bits(tmp_path, loader):
    """With labels, two averages, and a penalty that draws random numbers."""

    class Conditional(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.shift = net, nn.Embedding(3, 2)

        def forward(self, x, y):
            return self.net(x + self.shift(y)) if x.shape[1] == 2 else self.net(x) + self.shift(y)

    def start(steps, file):
        G, D = map(Conditional, pair())
        data = (points(), torch.arange(64) % 3)
        data = DataLoader(TensorDataset(*data), 16, shuffle=True) if loader else data
        config = replace(CONFIG, steps=9, discriminator_steps=2, save_every=3)
        averages = [average(G, 0.9), average(G, 0.5)]
        penalty = functools.partial(gradient_penalty, weight=1.0)
        torch.manual_seed(5)
        steps = itertools.islice(
            train_gan(G, D, data, config, loss=HINGE, penalty=penalty, ema=averages, checkpoint=file), steps
        )
        return [(s.step, s.discriminator, s.generator) for s in steps], G, D, *averages

    losses, *whole = start(None, tmp_path / "whole.pt")
    start(4, tmp_path / "broken.pt")
    rest, *broken = start(None, tmp_path / "broken.pt")
    assert rest == losses[3:] and all(equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_frozen_and_unused_layers_stay_and_modes_are_put_back():
    G, D = pair()
    D.unused, D[0].bias.requires_grad = nn.Linear(1, 1), False
    G.append(nn.BatchNorm1d(2).eval())
    before = D.unused.weight.clone(), D[0].bias.clone()
    used = nn.Sequential(*list(D)[:-1])
    D.forward = lambda x: used(x)
    for _ in train_gan(G, D, (points(),), CONFIG):
        G.eval()
    assert torch.equal(D.unused.weight, before[0]) and torch.equal(D[0].bias, before[1])
    assert G.training and not G[-1].training and torch.equal(G[-1].running_mean, torch.zeros(2))


@pytest.mark.parametrize("precision, wanted", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_float32_unless_told(precision, wanted):
    AcceleratorState._reset_state(reset_partial_state=True)
    G, D = pair()
    seen = set()
    D[0].register_forward_hook(lambda module, x, y: seen.add(y.dtype))
    config = replace(CONFIG, steps=1, precision=precision)
    list(train_gan(G, D, (points(),), config, accelerator=Accelerator(mixed_precision="bf16")))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == {wanted}


class Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_two_numbers_in_ten_steps_are_read():
    """One of each network."""
    G, D = pair()
    steps = train_gan(G, D, (points(),), replace(CONFIG, steps=100), ema=average(G, 0.9))
    next(steps)
    with Reads() as reads:
        for _ in range(60):
            step = next(steps)
        assert reads.count <= 12
        assert step.generator > 0 and reads.count <= 13


class Breaks(nn.Module):
    """A network whose output is no number in its n-th call."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call, self.calls = net, call, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (torch.nan if self.calls == self.call else 1)


@pytest.mark.parametrize("call, who", [(10, "discriminator"), (12, "generator")])  # three calls a step
def test_divergence_says_where_and_spares_weights_and_checkpoint(tmp_path, call, who):
    G, D = pair()
    broken, file = Breaks(D, call), tmp_path / "c.pt"
    with pytest.raises(
        FloatingPointError, match=f"the {who}'s loss is nan .* at step 4; that step was not taken"
    ):
        list(train_gan(G, broken, (points(),), replace(CONFIG, save_every=3), checkpoint=file))
    assert all(w.isfinite().all() for net in (G, D) for w in net.parameters())
    assert torch.load(file, weights_only=True)["step"] == 3


def test_steps_that_are_far_too_large_diverge_with_a_message():
    wild = replace(CONFIG, steps=200, lr_generator=1e6, lr_discriminator=1e6)
    with pytest.raises(FloatingPointError, match="at step"):
        list(train_gan(*pair(), (points(),), wild, loss=LEAST_SQUARES))


@pytest.mark.parametrize("change, said", [
    ({"loss": HINGE}, "loss=.*non_saturating.*, not .*hinge"),
    ({"penalty": functools.partial(r1, weight=2.0)}, r"penalty='r1\(weight=1.0\)', not 'r1\(weight=2.0\)'"),
    ({"config": replace(CONFIG, latent=4)}, "latent=3, not 4"),
    ({"generator": mlp(3, 9, 2)}, "another generator"),
    ({"ema": average(pair()[0], 0.9)}, r"decays of ema=\[\], not \[0.9\]"),
    ({"data": (points() + 1,)}, "tensor 0="),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, said):
    G, D = pair()
    options = {"generator": G, "discriminator": D, "data": (points(),), "config": CONFIG}
    options |= {"penalty": functools.partial(r1, weight=1.0), "checkpoint": tmp_path / "c.pt"}
    list(train_gan(**options))
    kept = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(ValueError, match=said):
        list(train_gan(**options | change))
    assert (tmp_path / "c.pt").read_bytes() == kept


@pytest.mark.parametrize("change", [
    {"steps": 0}, {"latent": 0}, {"discriminator_steps": 0}, {"save_every": -1}, {"seed": True},
    {"lr_generator": -1.0}, {"lr_discriminator": float("nan")}, {"precision": None},
])  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)
