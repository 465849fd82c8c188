"""GAN losses and penalties: against NumPy, finite differences, and slopes known by hand."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.gan.losses import (
    HINGE,
    LEAST_SQUARES,
    NON_SATURATING,
    SATURATING,
    WASSERSTEIN,
    gradient_penalty,
    r1,
    slopes,
    spectral,
)
from course_lib.nets.dcgan import DCDiscriminator
from course_lib.nets.mlp import mlp

GAMES = {
    "saturating": SATURATING,
    "non-saturating": NON_SATURATING,
    "wasserstein": WASSERSTEIN,
    "hinge": HINGE,
    "least-squares": LEAST_SQUARES,
}


def points(count=64):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(3))


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


@pytest.mark.parametrize("name", GAMES)
def test_losses_are_their_definitions(name):
    rng = np.random.default_rng(0)
    real, fake = 2 * rng.standard_normal(7), 2 * rng.standard_normal(9)
    loss = GAMES[name]
    got = loss.discriminator(torch.tensor(real), torch.tensor(fake)), loss.generator(torch.tensor(fake))
    np.testing.assert_allclose([v.item() for v in got], by_numpy(name, real, fake), rtol=1e-12)


@pytest.mark.parametrize("name", ["saturating", "non-saturating"])
def test_large_logits_stay_finite_and_keep_their_gradient(name):
    fake = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = GAMES[name]
    value = loss.discriminator(torch.tensor([-1000.0, 1000.0]), fake)
    assert value.item() == pytest.approx(1000.0)
    (slope,) = torch.autograd.grad(loss.generator(fake), fake)
    wanted = [-0.0, -0.5] if name == "saturating" else [-0.5, 0.0]
    torch.testing.assert_close(slope, torch.tensor(wanted))


@pytest.mark.parametrize("name", GAMES)
def test_every_generator_loss_pushes_fake_logits_up(name):
    fake = torch.tensor([-2.0, -0.5, 0.3], requires_grad=True)
    (slope,) = torch.autograd.grad(GAMES[name].generator(fake), fake)
    assert (slope < 0).all()


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
