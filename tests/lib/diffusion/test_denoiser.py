"""Denoisers: against oracles, EDM's formulas, and stored states."""

import io
import math

import numpy as np
import pytest
import torch
from cases import CASES, F64, PATHS, SIGMA_DATA, exact, mixture, nonlinear, normal, oracle_of
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.denoiser import Denoiser, edm
from course_lib.diffusion.path import VE, VP, Cosine, GaussianPath, Linear
from course_lib.diffusion.samplers import (
    ancestral,
    ddim,
    dpm_solver,
    edm_heun,
    euler,
    grid,
    heun,
    reverse_sde,
)
from course_lib.diffusion.tabulated import Tabulated


class Net(nn.Module):
    """A network with weights that says in which precision it is called."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 2), []

    def forward(self, x, t, y=None):
        self.seen.append((x.dtype, t.dtype, tuple(t.shape)))
        return self.layer(x) if y is None else self.layer(x) + y[:, None].to(x)


@pytest.mark.parametrize("name, target", CASES)
@pytest.mark.parametrize("kind", ["number", "one for all", "each its own"])
def test_an_exact_network_is_the_oracle(name, target, kind):
    oracle, x = oracle_of(PATHS[name]), normal(6, 2, seed=3)
    model = exact(oracle, target)
    t = {
        "number": 0.4,
        "one for all": torch.tensor([0.4], dtype=F64),
        "each its own": torch.tensor([0.1, 0.2, 0.3, 0.5, 0.7, 0.9], dtype=F64),
    }[kind]
    methods = ["forward", "predict", "eps", "score"] + ["velocity"] * (name != "table")
    for method in methods:
        got, want = getattr(model, method)(x, t), getattr(oracle, method)(x, t)
        assert_close(got, want, rtol=1e-7, atol=1e-8, msg=method)


def w2(x, m):
    """The distance W₂ between points on a line and a mixture, by quantiles of its samples."""
    points = m.sample(4000, generator=torch.Generator().manual_seed(8))[0][:, 0]
    q = (torch.arange(len(x), dtype=F64) + 0.5) / len(x)
    return (x[:, 0].sort().values - points.quantile(q)).square().mean().sqrt().item()


@pytest.mark.parametrize("path", [VP(), VE(0.05, 10.0)], ids=["vp", "ve"])
def test_every_sampler_draws_the_same_from_every_target(path):
    """A target is named once: there is no default to disagree with."""
    m = mixture(1, D=1)
    oracle, scale = oracle_of(path, seed=1, D=1), path.b(torch.ones(1, dtype=F64))
    x, times = scale * normal(200, 1, seed=2), grid(10)
    targets = ["eps", "velocity", "score", "x0", "edm"] + ["v"] * (path.a(torch.ones(1)) < 1).item()
    for sampler in (ddim, ancestral, euler, heun, reverse_sde, dpm_solver, edm_heun):
        noisy = {"generator": torch.Generator} if sampler in (ancestral, reverse_sde) else {}
        distances = []
        for target in targets:
            given = {name: kind().manual_seed(0) for name, kind in noisy.items()}
            distances.append(w2(sampler(exact(oracle, target), x, times, **given), m))
        assert max(distances) < 1 and np.ptp(distances) < 1e-4, (sampler.__name__, distances)


# Karras et al. (2022)


@pytest.mark.parametrize("name", ["ve", "vp", "linear", "table"])
def test_preconditioning_is_table_1s(name):
    path, t = PATHS[name], torch.tensor([0.02, 0.3, 0.9], dtype=F64)
    found = edm(path, t, SIGMA_DATA)
    for k in range(3):
        a, b = (f(t[k]).item() for f in (path.a, path.b))
        sigma, s = b / a, SIGMA_DATA
        want = (
            s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2), 1 / math.sqrt(sigma**2 + s**2),
            math.log(sigma) / 4,
        )  # fmt: skip
        np.testing.assert_allclose([v[k].item() for v in found], want, rtol=1e-10)


@pytest.mark.parametrize("name", ["ve", "vp", "linear", "table"])
def test_a_denoiser_in_edms_form(name):
    """D = c_skip x̂ + c_out F(c_in x̂, c_noise), equation 7, with any F."""
    path, x, t = PATHS[name], 2 * normal(3, 2), torch.tensor([0.02, 0.3, 0.9], dtype=F64)
    model = Denoiser(nonlinear, path, "edm", sigma_data=SIGMA_DATA)
    skip, out, into, noise = (v[:, None] for v in edm(path, t, SIGMA_DATA))
    xhat = x / path.a(t)[:, None]
    assert_close(model(x, t), skip * xhat + out * nonlinear(into * xhat, noise[:, 0]), rtol=1e-10, atol=1e-12)
    x0, eps = model.predict(x, t)
    assert_close(path.mix(x0, eps, t), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ve", "vp", "linear"])
def test_the_loss_in_edms_form(name):
    """λ(σ) ‖D − x_0‖² with λ = (σ² + σ_d²)/(σ σ_d)², equation 8 and table 1: weight 1 on F's error."""
    path, x0 = PATHS[name], normal(400, 2)
    model = Denoiser(nonlinear, path, "edm", sigma_data=SIGMA_DATA)
    torch.manual_seed(0)
    got = model.loss(x0)
    torch.manual_seed(0)
    t, eps = path.inside(torch.rand(400)).double(), torch.randn_like(x0)
    sigma = path.sigma(t)
    factor = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    want = (factor[:, None] * (model(path.mix(x0, eps, t), t) - x0) ** 2).mean()
    assert_close(got, want, rtol=1e-6, atol=0)


def test_the_target_of_edms_network_has_unit_variance():
    """The reason of the form: for data of the standard deviation σ_data, at every noise."""
    path, x0, eps = VE(), SIGMA_DATA * normal(100_000, 1), normal(100_000, 1, seed=1)
    for t in (0.1, 0.5, 0.9):
        c0, c1 = Denoiser(nonlinear, path, "edm", sigma_data=SIGMA_DATA).coefficients(
            torch.tensor(t).double()
        )
        assert (c0 * x0 + c1 * eps).std().item() == pytest.approx(1, abs=0.01)


# States


@pytest.mark.parametrize(
    "path", [VP(0.2, 15.0), VE(0.02, 20.0), Linear(), Cosine(), Tabulated([0.1, 0.3, 0.5])]
)
def test_a_stored_state_restores_it_whole(path):
    """Through a file that is read with weights_only, and without: what was predicted is predicted."""
    t = 1 / 3 if isinstance(path, Tabulated) else 0.4
    for target, sigma in (("eps", None), ("edm", torch.tensor(0.6)), ("x0", None)):
        model, x = Denoiser(Net(), path, target, sigma_data=sigma), torch.randn(4, 2)
        file = io.BytesIO()
        torch.save({"config": model.config(), "state": model.state_dict()}, file)
        file.seek(0)
        stored = torch.load(file, weights_only=True)
        again = Denoiser.from_config(Net(), stored["config"])
        again.load_state_dict(stored["state"])
        for got, want in zip(again.predict(x, t), model.predict(x, t), strict=True):
            assert torch.equal(got, want)


def test_settings_that_are_numpys():
    model = Denoiser(Net(), VP(np.float64(0.1), np.float32(20)), "eps")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("other, what", [
    (Denoiser(Net(), VP(), "x0"), "target"),
    (Denoiser(Net(), VP(0.1, 19.0), "eps"), "path"),
    (Denoiser(Net(), Cosine(), "eps"), "path"),
    (Denoiser(Net(), VP(), "edm", sigma_data=0.5), "target, sigma_data"),
])  # fmt: skip
def test_weights_of_another_denoiser(other, what):
    with pytest.raises((ValueError, RuntimeError), match=f"another {what}"):
        Denoiser(Net(), VP(), "eps").load_state_dict(other.state_dict())


# Conditions, precision, times


def test_conditions_pass_through():
    seen = []

    def net(x, t, *, y, z):
        seen.append((y, z))
        return x

    y, z, x = torch.arange(4), "anything", normal(4, 2)
    model = Denoiser(net, Cosine(), "eps")
    for call in (model, model.predict, model.eps, model.score, model.velocity, model.output):
        call(x, 0.5, y=y, z=z)
    model.loss(x, y=y, z=z)
    assert len(seen) == 7 and all(given[0] is y and given[1] is z for given in seen)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("state", [torch.bfloat16, torch.float32, F64])
def test_precisions(weights, state):
    """The network sees its own, times float32 at least; the state and the loss keep theirs."""
    model = Denoiser(Net().to(weights), VP(), "edm", sigma_data=0.5)
    x, kind = torch.randn(4, 2, dtype=F64).to(state), torch.promote_types(state, torch.float32)
    assert {v.dtype for v in model.predict(x, 0.3)} == {kind}
    assert model.velocity(x, torch.rand(4)).dtype == model.score(x, 0.3).dtype == kind
    loss = model.loss(x)
    loss.backward()
    assert loss.dtype == kind and ddim(model, x, grid(3, start=0.9)).dtype == kind
    assert set(model.net.seen) == {(weights, torch.promote_types(weights, torch.float32), (4,))}
    assert model.net.layer.weight.grad.isfinite().all()


def test_bfloat16_costs_no_more_than_its_digits():
    """Times, state and path stay in float32: only the network's own rounding is left."""
    net, x = Net(), torch.randn(64, 2)
    half = Denoiser(Net().bfloat16(), VP(), "v")
    half.net.load_state_dict(net.state_dict())
    full = Denoiser(net, VP(), "v")
    got, want = (heun(model, x, grid(20)) for model in (half, full))
    assert (got - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("t", [500, -1, math.nan, 1.5])
def test_no_times(t):
    model, x = Denoiser(nonlinear, Cosine(), "v"), normal(2, 2)
    for attempt in (
        lambda: model(x, t),
        lambda: model.velocity(x, torch.tensor([0.5, t])),
        lambda: ddim(model, x, torch.tensor([t, 0.5, 0.0])),
    ):
        with pytest.raises(
            ValueError, match=r"t must lie in \[0, 1\]|times must fall|times must rise or fall"
        ):
            attempt()
    with pytest.raises(ValueError, match="t must be floating-point times"):
        model(x, torch.tensor([3, 500]))


def test_times_that_a_table_lacks():
    model = Denoiser(nonlinear, Tabulated.schedule("linear", 100), "eps")
    for attempt in (
        lambda: model(normal(4, 2), 0.505),
        lambda: ddim(model, normal(4, 2), torch.tensor([1.0, 0.505, 0.0])),
    ):
        with pytest.raises(ValueError, match="t must be one of 0, 1/100"):
            attempt()


@pytest.mark.parametrize("target, path, match", [
    ("noise", VP(), "target must be one of .*; got 'noise'"),
    ("v", Linear(), "target 'v' needs a variance-preserving path"),
    ("velocity", Tabulated.schedule(), "path is a table"),
    ("edm", VP(), "sigma_data must be given with the target 'edm', and with no other"),
])  # fmt: skip
def test_bad_targets(target, path, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(nonlinear, path, target)


@pytest.mark.parametrize("change", [lambda x: x[:, :1], lambda x: x[:1], lambda x: x[..., None]])
def test_a_network_of_another_shape(change):
    """It would be broadcast."""
    model = Denoiser(lambda x, t: change(x), Cosine(), "v")
    for attempt in (lambda: model(normal(4, 3), 0.5), lambda: model.loss(normal(4, 3))):
        with pytest.raises(ValueError, match=r"net must return the shape of x, \(4, 3\); got"):
            attempt()


@pytest.mark.parametrize("path, target, t", [
    (Cosine(), "eps", 1.0), (Linear(), "score", 1.0), (Cosine(), "x0", 0.0), (VP(), "edm", 0.0),
    (Linear(), "edm", 1.0),
])  # fmt: skip
def test_where_a_sampler_may_not_begin(path, target, t):
    model = Denoiser(nonlinear, path, target, sigma_data=0.5 if target == "edm" else None)
    with pytest.raises(ValueError, match=r"at t = |times must leave out"):
        ddim(model, normal(4, 3), grid(3, start=t, stop=0.5))


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.3]), torch.tensor([0.1, 0.2, 0.3, 0.9])])
def test_a_prediction_compiles_whole(t):
    torch.compiler.reset()
    model, x = Denoiser(nonlinear, Tabulated.schedule("linear", 100), "v"), torch.randn(4, 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(x, t), model(x, t))


def test_a_path_of_ones_own():
    class Square(GaussianPath):
        a = staticmethod(lambda t: 1 - t**2)
        b = staticmethod(lambda t: t**2)
        da = staticmethod(lambda t: -2 * t)
        db = staticmethod(lambda t: 2 * t)

    oracle, linear = oracle_of(Square()), oracle_of(Linear())
    x = normal(50, 2)
    got, want = ddim(exact(oracle, "x0"), x, grid(9)), ddim(linear, x, grid(9) ** 2)
    assert_close(got, want, rtol=1e-8, atol=1e-8)  # the same noise levels, reached at other times
