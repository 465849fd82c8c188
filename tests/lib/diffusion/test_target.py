"""Targets: against derivatives and rotations that define them; conversions there and back."""

import itertools

import numpy as np
import pytest
import torch
from cases import F64, PATHS, normal
from torch.distributions import Normal
from torch.testing import assert_close

from course_lib.diffusion.path import VE, VP, Cosine, GaussianPath, Linear
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.target import TARGETS, Pair, coefficients, combine, convert, split

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


def setting(name, seed=0, shape=(3,), B=64, dtype=F64):
    """A path, data and noise, and their mixture at moderate times, rounded to dtype at first."""
    x0, eps = normal(2, B, *shape, seed=seed).to(dtype)
    low, high = MODERATE[name]
    t = low + (high - low) * torch.rand(B, generator=torch.Generator().manual_seed(seed), dtype=F64)
    t = ((t * 100).round() / 100 if name == "table" else t).to(dtype)
    return PATHS[name], Pair(x0, eps), PATHS[name].mix(x0, eps, t), t


def derivative(f, s):
    """Of f(s) (B, D) by s (B,), column by column."""
    s = s.clone().requires_grad_()
    columns = [torch.autograd.grad(column.sum(), s, retain_graph=True)[0] for column in f(s).T]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name, target", CASES)
def test_every_target_is_what_its_row_says(name, target):
    path, pair, _, t = setting(name)
    got = combine(path, target, pair, t).numpy()
    for n in range(len(t)):
        a, b = (f(t[n : n + 1]).item() for f in (path.a, path.b))
        c = {"x0": (1, 0), "eps": (0, 1), "score": (0, -1 / b), "v": (-b, a)}.get(target)
        c = c or (path.da(t[n : n + 1]).item(), path.db(t[n : n + 1]).item())
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


@pytest.mark.parametrize("name, target", CASES)
def test_split_finds_data_and_noise(name, target):
    for shape in ((3,), (1, 2, 2)):
        path, pair, xt, t = setting(name, shape=shape)
        found = split(path, target, combine(path, target, pair, t), xt, t)
        assert_close(found.x0, pair.x0, rtol=1e-10, atol=1e-10)
        assert_close(found.eps, pair.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (F64, 1e-12)])
def test_conversions(name, dtype, bound):
    """Of exact predictions to the other target, and there and back of any, right or wrong."""
    path, pair, xt, t = setting(name, dtype=dtype)
    for source, target in itertools.product(POSSIBLE[name], repeat=2):
        got = convert(path, source, target, combine(path, source, pair, t), xt, t)
        want = combine(path, target, pair, t)
        assert (got - want).abs().max() < 10 * bound * want.abs().max().clamp(min=1), (source, target)
        guess = normal(*xt.shape, seed=50).to(dtype)
        there = convert(path, source, target, guess, xt, t)
        back = convert(path, target, source, there, xt, t)
        assert there.dtype == back.dtype == dtype
        assert (back - guess).abs().max() < bound * guess.abs().max(), (source, target)


X = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)


@pytest.mark.parametrize("path, target, t", [
    (Cosine(), "eps", 1.0), (Linear(), "eps", 1.0), (Cosine(), "score", 1.0), (VP(), "x0", 0.0),
    (Linear(), "x0", 0.0), (VE(), "x0", 0.0), (Tabulated.schedule(), "x0", 0.0), (VP(), "score", 0.0),
    (Linear(), "score", 0.0), (VE(), "score", 0.0), (VP(), "velocity", 0.0), (VE(), "velocity", 0.0),
])  # fmt: skip
def test_where_a_target_is_infinite_or_does_not_tell_them_apart(path, target, t):
    """By one time for all, and by one bad time among good ones."""
    for times in (t, torch.tensor([0.5, t], dtype=F64)):
        with pytest.raises(ValueError, match=f"target '{target}' is infinite, or .* at t = {t:g}$"):
            split(path, target, X, X, times)


@pytest.mark.parametrize("path, target, ends", [
    (Linear(), "velocity", (0.0, 1.0)), (Cosine(), "velocity", (0.0, 1.0)), (Cosine(), "v", (0.0, 1.0)),
    (VP(), "v", (0.0, 1.0)), (Tabulated.schedule(), "v", (0.0, 1.0)), (Linear(), "eps", (0.0,)),
    (VP(), "eps", (0.0,)), (Linear(), "x0", (1.0,)), (Cosine(), "x0", (1.0,)), (VE(), "x0", (1.0,)),
])  # fmt: skip
def test_where_it_does(path, target, ends):
    for t in ends:
        pair = Pair(X, X.flip(0))
        found = split(path, target, combine(path, target, pair, t), path.mix(*pair, t), t)
        assert_close(found.x0, pair.x0, rtol=1e-10, atol=1e-10)
        assert_close(found.eps, pair.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [Linear(), VE(), VE(0.01, 0.5)])
def test_v_wants_a_variance_preserving_path(path):
    with pytest.raises(ValueError, match="target 'v' needs a variance-preserving path"):
        coefficients("v", path, torch.tensor([0.5]))


def test_a_path_of_ones_own_needs_only_signal_and_noise():
    class Square(GaussianPath):
        a = staticmethod(lambda t: 1 - t**2)
        b = staticmethod(lambda t: t**2)

    assert_close(convert(Square(), "eps", "x0", X, X, 0.5), (X - 0.25 * X) / 0.75)


def test_a_table_has_no_velocity():
    with pytest.raises(ValueError, match="path is a table, which has no derivatives"):
        convert(Tabulated.schedule(), "eps", "velocity", X, X, 0.5)


@pytest.mark.parametrize("name", ["noise", "X0", None])
def test_unknown_targets(name):
    with pytest.raises(ValueError, match=f"target must be one of {', '.join(TARGETS)}; got {name!r}"):
        convert(Linear(), "x0", name, X, X, 0.5)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2,)])
def test_a_prediction_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"prediction must have the shape of xt, \(2, 2\)"):
        split(Linear(), "x0", torch.zeros(shape, dtype=F64), X, 0.5)
