"""GAN losses, penalties and the two-optimizer loop: against NumPy, a loop by hand, kills, and bad input."""

import functools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.gan.loop import GANConfig, noise, train_gan
from course_lib.gan.losses import LOSSES, gan_loss, gradient_penalty, r1, slopes, spectral
from course_lib.nets.dcgan import DCDiscriminator, DCGenerator
from course_lib.nets.mlp import mlp
from course_lib.training.loop import average
from tests.gan_script import problem

SCRIPT = Path(__file__).with_name("gan_script.py")
CONFIG = GANConfig(steps=5, latent=3, batch_size=16, lr_generator=1e-2, lr_discriminator=2e-2)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def points(count=64):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(3))


def pair():
    torch.manual_seed(2)
    return mlp(3, 8, 2), mlp(2, 8, 1)


# Losses, against NumPy in float64 from the definitions


def by_numpy(name, real, fake):
    """The two losses, from probabilities where the paper has probabilities."""
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    entropy = -(np.log(p).mean() + np.log(1 - q).mean())
    return {
        "saturating": (entropy, np.log(1 - q).mean()),
        "non-saturating": (entropy, -np.log(q).mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "hinge": (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(), -fake.mean()),
        "least-squares": (((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_definitions(name):
    rng = np.random.default_rng(0)
    real, fake = 2 * rng.standard_normal(7), 2 * rng.standard_normal(9)
    loss = gan_loss(name)
    got = loss.discriminator(torch.tensor(real), torch.tensor(fake)), loss.generator(torch.tensor(fake))
    np.testing.assert_allclose([v.item() for v in got], by_numpy(name, real, fake), rtol=1e-12)


@pytest.mark.parametrize("name", ["saturating", "non-saturating"])
def test_large_logits_stay_finite_and_keep_their_gradient(name):
    fake = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = gan_loss(name)
    value = loss.discriminator(torch.tensor([-1000.0, 1000.0]), fake)
    assert value.item() == pytest.approx(1000.0)
    (slope,) = torch.autograd.grad(loss.generator(fake), fake)
    wanted = [-0.0, -0.5] if name == "saturating" else [-0.5, 0.0]
    torch.testing.assert_close(slope, torch.tensor(wanted))


@pytest.mark.parametrize("name", LOSSES)
def test_every_generator_loss_pushes_fake_logits_up(name):
    fake = torch.tensor([-2.0, -0.5, 0.3], requires_grad=True)
    (slope,) = torch.autograd.grad(gan_loss(name).generator(fake), fake)
    assert (slope < 0).all()


@pytest.mark.parametrize("name", ["", "wgan", "Hinge", None, ["hinge"]])
def test_an_unknown_loss_is_refused(name):
    with pytest.raises(ValueError, match=r"loss must be one of saturating, .*; got"):
        gan_loss(name)
    with pytest.raises(ValueError, match="loss must be one of"):
        GANConfig(steps=1, latent=1, loss=name)


# Penalties


def test_slopes_and_r1_on_a_quadratic_by_hand():
    A = torch.randn(3, 3, dtype=torch.float64)
    quadratic = lambda x: ((x @ A) * x).sum(1)  # its gradient is (A + A') x
    x = torch.randn(5, 3, dtype=torch.float64)
    want = (x @ (A + A.T)).square().sum(1)
    torch.testing.assert_close(slopes(quadratic, x), want)
    torch.testing.assert_close(r1(quadratic, x, x, weight=0.6), 0.3 * want.mean())


def test_slopes_of_images_match_finite_differences():
    torch.manual_seed(0)
    net = DCDiscriminator(1, 8, width=4).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    squares = torch.zeros(2, dtype=torch.float64)
    for i in range(64):
        move = torch.zeros(64, dtype=torch.float64)
        move[i] = 1e-5
        squares += ((net(x + move.view(1, 8, 8)) - net(x - move.view(1, 8, 8))) / 2e-5).square().detach()
    torch.testing.assert_close(slopes(net, x).detach(), squares, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.5])
def test_gradient_penalty_of_a_linear_critic(slope):
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64) * slope
    critic = lambda x: x @ direction
    got = gradient_penalty(critic, points().double(), points().double() + 1, weight=3.0)
    assert got.item() == pytest.approx(3 * (slope - 1) ** 2, abs=1e-5)


def test_gradient_penalty_looks_between_the_points():
    """The critic x²/2 has the slope x: on the segment from 2 to 4 the mean of (x - 1)² is 13/3."""
    critic = lambda x: x.square().sum(1) / 2
    start, end = torch.full((200_000, 1), 2.0).double(), torch.full((200_000, 1), 4.0).double()
    torch.manual_seed(0)
    got = gradient_penalty(critic, start, end, weight=1.0).item()
    se = 2.4 / 200_000**0.5  # (x - 1)² runs from 1 to 9
    assert abs(got - 13 / 3) < 5 * se


def test_gradient_penalty_looks_on_the_segment_only():
    """The critic (x - y)²/2 is flat on the diagonal, and nowhere else in the square around it."""
    critic = lambda x: (x[:, 0] - x[:, 1]).square() / 2
    got = gradient_penalty(critic, torch.zeros(500, 2), torch.full((500, 2), 2.0), weight=1.0)
    assert got.item() == pytest.approx(1, abs=1e-4)


def test_penalties_know_the_labels():
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0, 2, 2, 1, 0])
    judge = lambda x, y: (x * rows[y]).sum(1)  # its slope at a point of class y is row y
    norms = np.linalg.norm(rows.numpy(), axis=1)[labels.numpy()]
    x = points(5).double()
    assert r1(judge, x, x + 1, labels, weight=0.6).item() == pytest.approx(0.3 * (norms**2).mean())
    got = gradient_penalty(judge, x, x + 1, labels, weight=3.0).item()
    assert got == pytest.approx(3 * ((norms - 1) ** 2).mean(), rel=1e-6)


def test_the_generator_says_where_the_gradient_penalty_looks():
    critic = lambda x: x.square().sum(1)
    there = lambda seed: gradient_penalty(
        critic, points(), points() + 1, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(there(0), there(0)) and not torch.equal(there(0), there(1))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "1"])
def test_a_weight_that_is_none_is_refused(weight):
    for penalty in (r1, gradient_penalty):
        with pytest.raises(ValueError, match="weight must be a number, at least 0 and finite"):
            penalty(mlp(2, 4, 1), points(), points(), weight=weight)


def test_points_between_sets_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"fake must have the shape of real, \(64, 2\); got \(1, 2\)"):
        gradient_penalty(mlp(2, 4, 1), points(), points(1))


def test_penalties_reach_the_weights():
    net = mlp(2, 4, 1)
    for penalty in (functools.partial(r1, weight=1.0), gradient_penalty):
        parts = torch.autograd.grad(penalty(net, points(), points() + 1), net[0].weight)
        assert parts[0].abs().sum() > 0
    flat = nn.Linear(2, 1)  # no slope at all: the root of zero must not make NaN
    nn.init.zeros_(flat.weight)
    parts = torch.autograd.grad(gradient_penalty(flat, points(), points()), flat.weight)
    assert parts[0].isfinite().all()


def test_spectral_normalization_of_every_layer():
    torch.manual_seed(0)
    net = spectral(DCDiscriminator(1, 8, width=4, classes=3))
    for _ in range(200):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
    assert len(weights) == 4
    for weight in weights:
        largest = np.linalg.svd(weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=1e-3)


# The loop


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_as_a_loop_by_hand(name):
    config = replace(CONFIG, loss=name, discriminator_steps=2, betas=(0.3, 0.9), seed=4)
    G, D = pair()
    penalty = functools.partial(r1, weight=0.5)
    steps = list(train_gan(G, D, [points()], config, penalty=penalty))
    other_g, other_d = pair()
    adam_g = torch.optim.Adam(other_g.parameters(), 1e-2, (0.3, 0.9))
    adam_d = torch.optim.Adam(other_d.parameters(), 2e-2, (0.3, 0.9))
    turn = 0
    for step in steps:
        z = noise(config, step.step, 3)
        for k in range(2):
            epoch, batch = divmod(turn, 4)
            turn += 1
            order = torch.randperm(64, generator=torch.Generator().manual_seed(4 * 1_000_003 + epoch))
            real = points()[order[16 * batch : 16 * batch + 16]].requires_grad_()
            logits = other_d(real)
            value = gan_loss(name).discriminator(logits, other_d(other_g(z[k]).detach()))
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            adam_d.zero_grad()
            (value + 0.25 * slope.square().sum(1).mean()).backward()
            adam_d.step()
        cheat = gan_loss(name).generator(other_d(other_g(z[2])))
        adam_g.zero_grad()
        cheat.backward()
        adam_g.step()
        assert (value.item(), cheat.item()) == pytest.approx(step[1:3], abs=1e-5)
    for net, other in ((G, other_g), (D, other_d)):
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_noise_depends_on_seed_and_step_alone():
    torch.manual_seed(0)
    first = noise(CONFIG, 3, 2)
    torch.randn(5)
    assert all(torch.equal(a, b) for a, b in zip(first, noise(CONFIG, 3, 2), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], noise(CONFIG, 4, 1)[0])
    assert not torch.equal(first[0], noise(replace(CONFIG, seed=1), 3, 1)[0])


def test_the_average_follows_the_generator():
    G, D = pair()
    ema, wanted = average(G, 0.8), None
    for _ in train_gan(G, D, [points()], CONFIG, ema=ema):
        now = G[0].weight.detach().double()
        wanted = now if wanted is None else 0.8 * wanted + 0.2 * now
        torch.testing.assert_close(ema.module[0].weight.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_line_of_points_is_learned(seed):
    """The generator's mean and spread come near those of the data, N((1, -1), 0.5²)."""
    torch.manual_seed(seed)
    data = torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(1024, 2)
    G, D = mlp(2, 16, 2), mlp(2, 32, 1)
    config = GANConfig(400, 2, batch_size=128, lr_generator=5e-3, lr_discriminator=5e-3, seed=seed)
    ema = average(G, 0.97)
    for _ in train_gan(G, D, [data], config, penalty=functools.partial(r1, weight=0.3), ema=ema):
        pass
    made = ema.module(torch.randn(2000, 2)).detach()
    assert (made.mean(0) - data.mean(0)).abs().max() < 0.3
    assert 0.25 < made.std() / data.std() < 1.75


# Killed and resumed


def start(folder, steps=12):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.Popen([sys.executable, SCRIPT, folder, str(steps)], env=environment)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert start(whole, steps=40).wait() == 0
    process = start(broken, steps=40)
    while process.poll() is None:
        if (broken / "run.pt").exists():
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    killed = torch.load(broken / "run.pt", weights_only=True)["step"]
    assert killed < 40
    assert start(broken, steps=40).wait() == 0
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (whole, broken)]
    for name in ("generator", "discriminator", "ema"):
        assert equal(ends[0][name], ends[1][name])
    done = len(ends[1]["losses"])
    assert ends[0]["losses"][-done:] == ends[1]["losses"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "c.pt"
    list(train_gan(*pair(), [points()], CONFIG, checkpoint=file))
    kept = file.read_bytes()
    with pytest.raises(ValueError, match="made with loss='non-saturating', not 'hinge'"):
        list(train_gan(*pair(), [points()], replace(CONFIG, loss="hinge"), checkpoint=file))
    with pytest.raises(ValueError, match="belongs to another generator"):
        list(train_gan(mlp(3, 9, 2), pair()[1], [points()], CONFIG, checkpoint=file))
    with pytest.raises(ValueError, match="differ in ema"):
        G, D = pair()
        list(train_gan(G, D, [points()], CONFIG, ema=average(G, 0.9), checkpoint=file))
    file.write_bytes(kept[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        list(train_gan(*pair(), [points()], CONFIG, checkpoint=file))


def test_fewer_steps_than_a_checkpoint_has_are_refused(tmp_path):
    file = tmp_path / "c.pt"
    list(train_gan(*pair(), [points()], CONFIG, checkpoint=file))
    kept = file.read_bytes()
    with pytest.raises(ValueError, match=r"steps must be at least 5, which checkpoint .* has taken"):
        list(train_gan(*pair(), [points()], replace(CONFIG, steps=3), checkpoint=file))
    assert file.read_bytes() == kept


def test_a_checkpoint_is_written_when_it_is_due(tmp_path):
    file, held = tmp_path / "c.pt", []
    for _ in train_gan(*pair(), [points()], replace(CONFIG, steps=5, save_every=2), checkpoint=file):
        held.append(torch.load(file, weights_only=True)["step"] if file.exists() else 0)
    assert held == [0, 2, 2, 4, 5]


@pytest.mark.parametrize("first", ["train", "train_gan"])
def test_both_loops_run_in_one_process_where_the_gpu_has_bfloat16(first, tmp_path):
    """Accelerate holds one precision a process. Here a processor stands in for such a GPU."""
    code = (
        "import sys, torch; from course_lib.gan.loop import *; from course_lib.nets.mlp import mlp\n"
        "from course_lib.training.loop import TrainConfig, train\n"
        "from course_lib import checkpoint; checkpoint.precision = lambda: 'bf16'\n"
        "x, seen = torch.randn(64, 2), {'train': set(), 'train_gan': set()}\n"
        "net, judge, maker = mlp(2, 4, 1), mlp(2, 4, 1), mlp(3, 4, 2)\n"
        "for name, model in (('train', net), ('train_gan', judge)):\n"
        "    model[0].register_forward_hook(lambda m, x, y, s=seen[name]: s.add(y.dtype))\n"
        "loss = lambda model, x: model(x).square().mean()\n"
        "c, d = TrainConfig(2, batch_size=16), GANConfig(2, 3, batch_size=16)\n"
        "runs = {'train': lambda: list(train(net, loss, [x], c)),\n"
        "        'train_gan': lambda: list(train_gan(maker, judge, [x], d))}\n"
        "runs.pop(sys.argv[1])(); runs.popitem()[1]()\n"
        "assert seen == {'train': {torch.bfloat16}, 'train_gan': {torch.float32}}, seen\n"
    )
    (tmp_path / "run.py").write_text(code)
    added = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, tmp_path / "run.py", first]
    done = subprocess.run(command, env=os.environ | added, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_processes_give_the_weights_of_one(tmp_path):
    """Also where they begin with different weights: the first process's count."""
    code = (
        "import os, sys, torch; from course_lib.gan.loop import *; from course_lib.nets.mlp import mlp\n"
        "rank = int(os.environ.get('RANK', 0))\n"
        "torch.manual_seed(2 + rank); G, D = mlp(3, 8, 2), mlp(2, 8, 1)\n"
        "x = torch.randn(64, 2, generator=torch.Generator().manual_seed(3))\n"
        "c = GANConfig(steps=6, latent=3, batch_size=16, lr_generator=1e-2, lr_discriminator=2e-2)\n"
        "steps = [s[1:3] for s in train_gan(G, D, [x], c, checkpoint=sys.argv[1])]\n"
        "torch.save(torch.tensor(steps), f'{sys.argv[1]}.losses{rank}')\n"
    )
    (tmp_path / "run.py").write_text(code)
    added = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(SCRIPT.parents[1])}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for options, name in (([], "one.pt"), (launch, "two.pt")):
        command = [sys.executable, *options, tmp_path / "run.py", tmp_path / name]
        done = subprocess.run(command, env=os.environ | added, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for name in ("generator", "discriminator"):
        for key, value in one[name].items():
            torch.testing.assert_close(two[name][key], value, rtol=1e-4, atol=1e-5)
    losses = [torch.load(tmp_path / name) for name in ("one.pt.losses0", "two.pt.losses0", "two.pt.losses1")]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-4, atol=1e-5)


# Divergence


class Breaks(nn.Module):
    """A network whose output is no number from its n-th call on."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call, self.calls = net, call, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (torch.nan if self.calls >= self.call else 1)


def test_divergence_of_the_discriminator_says_where_and_spares_the_checkpoint(tmp_path):
    G, D = pair()
    broken = Breaks(D, 10)  # three calls a step: the fourth step's first
    config = replace(CONFIG, save_every=1)
    with pytest.raises(FloatingPointError, match="diverged: at step 4 the discriminator's loss is nan"):
        list(train_gan(G, broken, [points()], config, checkpoint=tmp_path / "c.pt"))
    assert all(w.isfinite().all() for net in (G, D) for w in net.parameters())
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 3


def test_divergence_of_the_generator_says_where():
    G, D = pair()
    with pytest.raises(FloatingPointError, match=r"diverged: at step 2 the generator's loss is nan"):
        list(train_gan(G, Breaks(D, 6), [points()], CONFIG))
    assert all(w.isfinite().all() for w in G.parameters())


def test_steps_that_are_far_too_large_diverge_with_a_message():
    G, D = pair()
    wild = replace(CONFIG, steps=200, loss="least-squares", lr_generator=1e6, lr_discriminator=1e6)
    with pytest.raises(FloatingPointError, match="training diverged: at step"):
        list(train_gan(G, D, [points()], wild))


# Bad input


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"latent": 0},
        {"batch_size": 1.5},
        {"discriminator_steps": 0},
        {"save_every": -1},
        {"seed": True},
        {"lr_generator": 0.0},
        {"lr_discriminator": float("nan")},
        {"betas": (0.5, 1.0)},
        {"betas": (0.5,)},
        {"betas": 0.5},
        {"betas": ("a", 0.9)},
        {"lr_generator": None},
        {"loss": "none"},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_data_that_fit_nothing_are_refused():
    G, D = pair()
    with pytest.raises(ValueError, match="at least one batch of 16; got 5 rows"):
        list(train_gan(G, D, [points(5)], CONFIG))
    with pytest.raises(ValueError, match=r"generator must make points \(16, 3\) .*got \(16, 2\)"):
        list(train_gan(G, D, [torch.zeros(32, 3)], CONFIG))
    with pytest.raises(ValueError, match=r"generator must make points .*float64.*got .*float32"):
        list(train_gan(G, D, [points().double()], CONFIG))
    with pytest.raises(ValueError, match="tensors must be finite"):
        list(train_gan(G, D, [points().index_fill(0, torch.tensor([3]), torch.nan)], CONFIG))
    for nothing in (points(), []):
        with pytest.raises(ValueError, match="tensors must be a list"):
            list(train_gan(G, D, nothing, CONFIG))


@pytest.mark.parametrize("net", [mlp(2, 8, 3), nn.Sequential(nn.Flatten(0), nn.Linear(32, 1))])
def test_a_discriminator_without_one_logit_for_each_point_is_refused(net):
    with pytest.raises(ValueError, match=r"discriminator must return \(16,\) or \(16, 1\)"):
        list(train_gan(pair()[0], net, [points()], CONFIG))


# The networks


@pytest.mark.parametrize("channels, size, levels", [(1, 8, 2), (1, 28, 2), (3, 32, 3), (2, 6, 1)])
def test_shapes_and_range(channels, size, levels):
    options = {"width": 4, "levels": levels}
    G = DCGenerator(channels, size, latent=5, **options)
    D = DCDiscriminator(channels, size, **options)
    x = G(torch.randn(3, 5))
    assert x.shape == (3, channels, size, size) and x.abs().max() <= 1
    assert D(x).shape == (3,)


def test_hidden_layers_of_the_generator_are_normalized_and_without_a_checkerboard():
    G = DCGenerator(1, 16, latent=5, width=4, levels=3)
    seen = []
    for module in G.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_hook(lambda m, x, y: seen.append(y))
        if isinstance(module, nn.ConvTranspose2d):
            assert all(k % s == 0 for k, s in zip(module.kernel_size, module.stride, strict=True))
    G(torch.randn(400, 5))
    assert len(seen) == 3  # all but the last layer
    for y in seen:
        y = y.transpose(0, 1).flatten(1)
        torch.testing.assert_close(y.mean(1), torch.zeros(len(y)), atol=1e-4, rtol=0)
        torch.testing.assert_close(y.var(1), torch.ones(len(y)), atol=0.02, rtol=0)


def test_the_discriminator_bends():
    D = DCDiscriminator(1, 8, width=4)
    x, move = torch.randn(2, 4, 1, 8, 8)
    bend = (D(x + move) + D(x - move) - 2 * D(x)).abs()
    assert (bend > 1e-4).all()


def test_projection_is_what_it_says():
    _, D, (images, labels) = problem(classes=3)
    features = D.layers(images)
    want = features @ D.last.weight[0] + D.last.bias + (features @ D.embed.weight.T)[range(48), labels]
    torch.testing.assert_close(D(images, labels), want)


def test_an_image_is_judged_by_itself():
    _, D, (images,) = problem()
    torch.testing.assert_close(D(images)[:5], D(images[:5]), rtol=1e-5, atol=1e-6)


def test_labels_reach_both_networks():
    G, D, (images, labels) = problem(classes=3)
    G.eval()
    z = torch.randn(48, 4)
    assert not torch.allclose(G(z, labels), G(z, (labels + 1) % 3))
    assert not torch.allclose(D(images, labels), D(images, (labels + 1) % 3))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda G, D, z, x, y: G(z[:, :3], y), r"z must have shape \(B, 4\); got \(2, 3\)"),
        (lambda G, D, z, x, y: G(z), "y must be integer labels of shape .*got none"),
        (lambda G, D, z, x, y: G(z, y[:1]), r"y must be integer labels of shape \(2,\)"),
        (lambda G, D, z, x, y: G(z, y.float()), "y must be integer labels"),
        (lambda G, D, z, x, y: G(z, 0 * y + 3), r"y must lie in 0 \.\.\. 2; got 3 to 3"),
        (lambda G, D, z, x, y: D(x, 0 * y - 1), r"y must lie in 0 \.\.\. 2; got -1 to -1"),
        (lambda G, D, z, x, y: DCGenerator(1, 8, latent=4, classes=-1), "classes must be an integer"),
        (lambda G, D, z, x, y: DCDiscriminator(1, 8, classes=2.5), "classes must be an integer"),
        (lambda G, D, z, x, y: D(x.repeat(1, 3, 1, 1), y), r"x must have shape \(B, 1, 8, 8\)"),
        (lambda G, D, z, x, y: D(x[:, :, :7], y), r"x must have shape \(B, 1, 8, 8\)"),
        (lambda G, D, z, x, y: D(x), "y must be integer labels"),
        (lambda G, D, z, x, y: problem()[0](z, y), "y must be left out"),
        (lambda G, D, z, x, y: problem()[1](x, y), "y must be left out"),
        (
            lambda G, D, z, x, y: DCGenerator(1, 10, latent=4),
            "size must be divisible by 4 for 2 levels; got 10",
        ),
        (lambda G, D, z, x, y: DCGenerator(0, 8, latent=4), "channels must be"),
        (lambda G, D, z, x, y: DCGenerator(1, 8, latent=0), "latent must be"),
        (lambda G, D, z, x, y: DCDiscriminator(1, 8, width=0), "width must be"),
        (lambda G, D, z, x, y: DCDiscriminator(1, 8, levels=0), "levels must be"),
    ],
)
def test_networks_refuse_what_does_not_fit(call, said):
    G, D, (images, labels) = problem(classes=3)
    with pytest.raises(ValueError, match=said):
        call(G, D, torch.randn(2, 4), images[:2], labels[:2])
