"""Targets: against derivatives and rotations that define them; conversions there and back."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from course_lib.diffusion.path import VE, VP, Cosine, Linear, Tabulated
from course_lib.diffusion.target import TARGETS, Pair, coefficients, combine, convert, split

SEEDS = range(5)
F64 = torch.float64
PATHS = {
    "vp": VP(),
    "cosine": Cosine(),
    "linear": Linear(),
    "ve": VE(0.1, 3.0),
    "table": Tabulated.from_betas("linear", 100),
}
# where neither a nor b is small
MODERATE = {
    "vp": (0.15, 0.4), "cosine": (0.3, 0.7), "linear": (0.3, 0.7), "ve": (0.35, 0.75), "table": (0.15, 0.4),
}  # fmt: skip
POSSIBLE = {
    "vp": ("x0", "eps", "score", "v", "velocity"),
    "cosine": ("x0", "eps", "score", "v", "velocity"),
    "linear": ("x0", "eps", "score", "velocity"),
    "ve": ("x0", "eps", "score", "velocity"),
    "table": ("x0", "eps", "score", "v"),
}
CASES = [(name, target) for name in PATHS for target in POSSIBLE[name]]
PAIRS = [(name, *both) for name in PATHS for both in itertools.product(POSSIBLE[name], repeat=2)]


def setting(name, seed=0, shape=(3,), B=64, dtype=F64):
    """A path, data and noise, and their mixture at moderate times, rounded to dtype at first."""
    g = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, B, *shape, generator=g, dtype=F64).to(dtype)
    low, high = MODERATE[name]
    t = low + (high - low) * torch.rand(B, generator=g, dtype=F64)
    t = ((t * 100).round() / 100 if name == "table" else t).to(dtype)
    return PATHS[name], Pair(x0, eps), PATHS[name].mix(x0, eps, t), t


def derivative(f, s):
    """Of f(s) (B, D) by s (B,), column by column."""
    s = s.clone().requires_grad_()
    columns = [torch.autograd.grad(column.sum(), s, retain_graph=True)[0] for column in f(s).T]
    return torch.stack(columns, 1)


# What the targets are


@pytest.mark.parametrize("name, target", CASES)
def test_every_target_is_what_its_row_says(name, target):
    path, pair, _, t = setting(name)
    got = combine(path, target, pair, t).numpy()
    for n in range(len(t)):
        a, b = (f(t[n : n + 1]).item() for f in (path.a, path.b))
        if target == "velocity":
            da, db = (path.da(t[n : n + 1]).item(), path.db(t[n : n + 1]).item())
            c = (da, db)
        else:
            c = {"x0": (1, 0), "eps": (0, 1), "score": (0, -1 / b), "v": (-b, a)}[target]
        np.testing.assert_allclose(got[n], c[0] * pair.x0[n].numpy() + c[1] * pair.eps[n].numpy(), rtol=1e-10)


@pytest.mark.parametrize("name", ["vp", "cosine", "linear", "ve"])
def test_velocity_is_the_derivative_of_the_sample_by_time(name):
    path, pair, _, t = setting(name)
    want = derivative(lambda t: path.mix(*pair, t), t)
    assert_close(combine(path, "velocity", pair, t), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_score_is_the_gradient_of_the_density_given_the_data(name):
    path, pair, xt, t = setting(name)
    x = xt.clone().requires_grad_()
    density = Normal(path.a(t)[:, None] * pair.x0, path.b(t)[:, None])
    (want,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    assert_close(combine(path, "score", pair, t), want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["vp", "cosine", "table"])
def test_v_is_the_derivative_by_the_angle(name):
    """Salimans and Ho: x = cos φ x_0 + sin φ ε and v = dx/dφ."""
    path, pair, _, t = setting(name)
    angle = torch.atan2(path.b(t), path.a(t))
    want = derivative(lambda s: s.cos()[:, None] * pair.x0 + s.sin()[:, None] * pair.eps, angle)
    assert_close(combine(path, "v", pair, t), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2, 2)])
@pytest.mark.parametrize("name, target", CASES)
def test_split_finds_data_and_noise(name, target, shape):
    path, pair, xt, t = setting(name, shape=shape)
    found = split(path, target, combine(path, target, pair, t), xt, t)
    assert_close(found.x0, pair.x0, rtol=1e-10, atol=1e-10)
    assert_close(found.eps, pair.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name, source, target", PAIRS)
def test_convert_gives_the_other_target(name, source, target):
    path, pair, xt, t = setting(name)
    prediction = combine(path, source, pair, t)
    assert_close(
        convert(path, source, target, prediction, xt, t), combine(path, target, pair, t), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name, source, target", PAIRS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (F64, 1e-12)])
def test_round_trips(name, source, target, dtype, bound):
    """Of any prediction, right or wrong. The error is relative to the largest value."""
    for seed in SEEDS:
        path, _, xt, t = setting(name, seed, dtype=dtype)
        guess = torch.randn(xt.shape, generator=torch.Generator().manual_seed(50 + seed), dtype=dtype)
        there = convert(path, source, target, guess, xt, t)
        back = convert(path, target, source, there, xt, t)
        assert there.dtype == back.dtype == dtype
        assert (back - guess).abs().max() < bound * max(guess.abs().max(), 1), seed


@pytest.mark.parametrize("name, source, target", PAIRS)
def test_an_exact_prediction_stays_one_in_float32(name, source, target):
    """What float32 makes of a prediction, against the same in float64."""
    path, pair, xt, t = setting(name, dtype=torch.float32)
    prediction = combine(path, source, pair, t)
    got = convert(path, source, target, prediction, xt, t)
    want = convert(path, source, target, prediction.double(), xt.double(), t.double())
    assert (got - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1)


# The ends


def time(t, B=2):
    return torch.full((B,), t, dtype=F64)


X = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)


@pytest.mark.parametrize("path, target, t", [
    (Cosine(), "eps", 1.0), (Linear(), "eps", 1.0), (Cosine(), "score", 1.0), (Linear(), "score", 1.0),
    (VP(), "x0", 0.0), (Cosine(), "x0", 0.0), (Linear(), "x0", 0.0), (VE(), "x0", 0.0),
    (Tabulated.from_betas(), "x0", 0.0),
])  # fmt: skip
def test_where_a_target_does_not_tell_them_apart(path, target, t):
    with pytest.raises(ValueError, match=f"target '{target}' does not tell x0 and eps apart .* at t = {t}"):
        split(path, target, X, X, time(t))
    with pytest.raises(ValueError, match=f"target '{target}'"):
        convert(path, target, "x0", X, X, time(t))


@pytest.mark.parametrize("path, target, t", [
    (VP(), "score", 0.0), (Linear(), "score", 0.0), (Cosine(), "score", 0.0), (VE(), "score", 0.0),
    (Tabulated.from_betas(), "score", 0.0), (VP(), "velocity", 0.0), (VE(), "velocity", 0.0),
])  # fmt: skip
def test_where_a_target_is_infinite(path, target, t):
    for attempt in (
        lambda: coefficients(target, path, time(t)),
        lambda: combine(path, target, Pair(X, X), time(t)),
        lambda: split(path, target, X, X, time(t)),
        lambda: convert(path, "eps", target, X, X, time(t)),
    ):
        with pytest.raises(ValueError, match=f"target '{target}' is infinite .* at t = {t}"):
            attempt()


def test_one_bad_time_among_good_ones_is_named():
    with pytest.raises(ValueError, match=r"target 'eps' .* at t = 1\.0"):
        split(Linear(), "eps", X, X, torch.tensor([0.25, 1.0], dtype=F64))


@pytest.mark.parametrize("path, target, ends", [
    (Linear(), "velocity", (0.0, 1.0)), (Cosine(), "velocity", (0.0, 1.0)), (Cosine(), "v", (0.0, 1.0)),
    (VP(), "v", (0.0, 1.0)), (Tabulated.from_betas(), "v", (0.0, 1.0)), (Linear(), "eps", (0.0,)),
    (VP(), "eps", (0.0,)), (Linear(), "x0", (1.0,)), (Cosine(), "x0", (1.0,)), (VE(), "x0", (1.0,)),
])  # fmt: skip
def test_where_it_does(path, target, ends):
    for t in ends:
        pair = Pair(X, X.flip(0))
        xt = path.mix(*pair, time(t))
        found = split(path, target, combine(path, target, pair, time(t)), xt, time(t))
        assert_close(found.x0, pair.x0, rtol=1e-10, atol=1e-10)
        assert_close(found.eps, pair.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [Linear(), VE()])
def test_v_wants_a_variance_preserving_path(path):
    for attempt in (
        lambda: combine(path, "v", Pair(X, X), time(0.5)),
        lambda: split(path, "v", X, X, time(0.5)),
        lambda: convert(path, "eps", "v", X, X, time(0.5)),
    ):
        with pytest.raises(ValueError, match="target 'v' needs a variance-preserving path"):
            attempt()


def test_a_table_has_no_velocity():
    with pytest.raises(ValueError, match="path is a table, which has no derivatives"):
        convert(Tabulated.from_betas(), "eps", "velocity", X, X, time(0.5))


# Refusals


@pytest.mark.parametrize("name", ["noise", "", "X0", None])
def test_unknown_targets(name):
    for attempt in (
        lambda: combine(Linear(), name, Pair(X, X), time(0.5)),
        lambda: split(Linear(), name, X, X, time(0.5)),
        lambda: convert(Linear(), "x0", name, X, X, time(0.5)),
    ):
        with pytest.raises(
            ValueError, match=f"target must be one of x0, eps, score, v, velocity; got {name!r}"
        ):
            attempt()
    assert list(TARGETS) == ["x0", "eps", "score", "v", "velocity"]


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2,), (2, 2, 1)])
def test_a_prediction_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"prediction must have the shape of xt, \(2, 2\)"):
        split(Linear(), "x0", torch.zeros(shape, dtype=F64), X, time(0.5))


@pytest.mark.parametrize("t, match", [
    (time(0.5, 3), r"t must have shape \(2,\)"),
    (time(0.5)[:, None], r"t must have shape \(2,\)"),
    (time(1.5), r"t must lie in \[0, 1\]"),
    (time(-0.5), r"t must lie in \[0, 1\]"),
    (time(math.nan), r"t must lie in \[0, 1\]"),
])  # fmt: skip
def test_bad_times(t, match):
    for attempt in (
        lambda: combine(Linear(), "x0", Pair(X, X), t),
        lambda: split(Linear(), "x0", X, X, t),
        lambda: convert(Linear(), "x0", "eps", X, X, t),
    ):
        with pytest.raises(ValueError, match=match):
            attempt()
