"""The loss, its densities and weights: against loops, scipy's quantiles, and exact denoisers."""

import math

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    F64,
    PATHS,
    SIGMA_DATA,
    exact,
    gaussian,
    mixture,
    nonlinear,
    normal,
    numbers,
    oracle_of,
)
from scipy.special import expit
from scipy.stats import kstest, norm
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.loss import as_eps, as_x0, bound, log_normal_sigma, logit_normal, min_snr
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.tabulated import Tabulated

every_case = pytest.mark.parametrize("name, target", CASES)
U = torch.linspace(0.001, 0.999, 999, dtype=F64)


def denoiser(name, target, net=nonlinear):
    return Denoiser(net, PATHS[name], target, sigma_data=SIGMA_DATA if target == "edm" else None)


def seeded(loss, *given, seed=0, **options):
    torch.manual_seed(seed)
    return loss(*given, **options)


# Densities


def test_logit_normal_against_its_quantiles():
    np.testing.assert_allclose(logit_normal(Linear(), U), expit(norm.ppf(U)), rtol=1e-9)
    got = logit_normal(Linear(), U, mean=-0.5, deviation=1.5)
    np.testing.assert_allclose(got, expit(norm(-0.5, 1.5).ppf(U)), rtol=1e-9)


@pytest.mark.parametrize("path", [VE(0.002, 80.0), VP(), Cosine(), Linear()])
def test_log_sigma_is_normal(path):
    """Karras et al. (2022), table 1: P_mean = −1.2, P_std = 1.2."""
    sigma = path.sigma(log_normal_sigma(path, U))
    np.testing.assert_allclose(sigma.log(), norm(-1.2, 1.2).ppf(U), rtol=1e-7, atol=1e-8)
    torch.manual_seed(0)
    drawn = path.sigma(log_normal_sigma(path, torch.rand(4000), mean=0.3, deviation=0.5).double()).log()
    assert kstest(drawn, norm(0.3, 0.5).cdf).pvalue > 1e-4


# Weights


@every_case
def test_weights_are_squares_of_derivatives(name, target):
    """Of x_0 and of ε by what the network says, with x_t held: by autograd."""
    t, x = torch.tensor([0.15, 0.4, 0.8], dtype=F64), normal(3, 1, seed=1)
    said = normal(3, 1).requires_grad_()
    model = denoiser(name, target, lambda x, t: said)
    for weight, value in zip((as_x0, as_eps), model.predict(x, t), strict=True):
        (slope,) = torch.autograd.grad(value.sum(), said, retain_graph=True)
        assert_close(weight(model, t), slope[:, 0] ** 2, rtol=1e-9, atol=0)


@every_case
def test_a_weight_makes_the_losses_of_all_targets_one(name, target):
    """On the same draws, for networks that say the same."""
    path, x0, simple = PATHS[name], normal(200, 3), denoiser(name, "eps")
    model = denoiser(name, target)
    c = lambda x, t: [v.view(-1, 1) for v in model.coefficients(t)]

    def net(x, t):
        if target == "edm":
            t = path.time(torch.exp(4 * t))
            x = x * (path.b(t) ** 2 + (path.a(t) * SIGMA_DATA) ** 2).sqrt()[:, None]
        c0, c1 = c(x, t)
        pair = simple.predict(x, t)
        return c0 * pair.x0 + c1 * pair.eps

    model.net = net
    # not near the data, where ε of x_0 is all rounding
    times = lambda path, u: 0.1 + 0.8 * u
    for weight in (as_eps, min_snr(2.0)):
        got, want = (seeded(m.loss, x0, weight=weight, times=times).item() for m in (model, simple))
        assert got == pytest.approx(want, rel=1e-5), weight


def test_min_snr_is_hangs():
    """On ε it is min(γ/SNR, 1), on x_0 min(SNR, γ), on v min(SNR, γ)/(SNR + 1) (Hang et al., 2023)."""
    t, path = torch.linspace(0.02, 0.98, 50, dtype=F64), Cosine()
    snr = np.cos(math.pi / 2 * t.numpy()) ** 2 / np.sin(math.pi / 2 * t.numpy()) ** 2
    least = np.minimum(snr, 5.0)
    for target, want in (("eps", least / snr), ("x0", least), ("v", least / (snr + 1))):
        np.testing.assert_allclose(min_snr(5.0)(Denoiser(nonlinear, path, target), t), want, rtol=1e-9)


@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-7), (torch.float32, 1e-6)])
@pytest.mark.parametrize("schedule, T", [("linear", 1000), ("linear", 30), ("cosine", 10)])
def test_bound_is_ddpms_equation_12(schedule, T, dtype, rtol):
    r""":math:`\beta_n^2 / (2 \sigma_n^2 \alpha_n (1 - \bar\alpha_n))` in NumPy."""
    path = Tabulated.schedule(schedule, T)
    beta = path.betas[1:].numpy()
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    variance = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    want = beta[1:] ** 2 / (2 * variance * alpha[1:] * (1 - alpha_bar[1:]))  # of n = 2 … T
    got = bound(Denoiser(nonlinear, path, "eps"), (torch.arange(1, T + 1, dtype=F64) / T).to(dtype))
    np.testing.assert_allclose(got[1:] / T, want, rtol=rtol)
    assert got[0] == got[1]  # the first step has no such term


def test_the_bound_wants_a_table():
    with pytest.raises(ValueError, match="model must have a path that is a table"):
        Denoiser(nonlinear, VP(), "eps").loss(normal(4, 2), weight=bound)


# The loss


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_the_loss_is_a_weighted_mean_square(shape):
    """In loops, from the same draws."""
    x0, model = normal(50, *shape), Denoiser(nonlinear, Cosine(), "v")
    got = seeded(model.loss, x0, weight=lambda model, t: 1 + t**2, times=lambda path, u: u.sqrt())
    torch.manual_seed(0)
    u, eps = torch.rand(50).sqrt().double().numpy(), torch.randn_like(x0).numpy()
    total = 0.0
    for n in range(50):
        a, b = math.cos(math.pi * u[n] / 2), math.sin(math.pi * u[n] / 2)
        xt = a * x0[n].numpy() + b * eps[n]
        out = 0.6 * np.sin(2 * xt) + 0.3 * xt * u[n] - 0.1
        total += (1 + u[n] ** 2) * ((out - (a * eps[n] - b * x0[n].numpy())) ** 2).mean()
    assert got.item() == pytest.approx(total / 50, rel=1e-5)


@every_case
def test_no_draw_makes_it_infinite(name, target, monkeypatch):
    """torch.rand may return 0 and 1 − 2⁻²⁴: five zeros in 10⁸ numbers."""
    x0 = normal(4, 2, dtype=torch.float32)
    for u in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda n, u=u, **kind: torch.full((n,), u))
        for times in (None, logit_normal, log_normal_sigma):
            for weight in (None, as_eps, as_x0, min_snr()):
                loss = denoiser(name, target).loss(x0, times=times, weight=weight)
                assert torch.isfinite(loss), (u, times, weight)


@every_case
def test_the_loss_of_the_exact_denoiser_is_the_remaining_variance(name, target):
    """One Gaussian: Var[target | x_t] = (c_0 − c_1 a/b)² v b²/(a² v + b²). 5 standard errors."""
    path, v, t, n = PATHS[name], 0.4, 0.6, 20_000
    model = exact(MixtureOracle(gaussian(), path), target)
    a, b = numbers(path, t)
    c0, c1 = (c.item() for c in model.coefficients(torch.tensor(t, dtype=F64)))
    want = (c0 - c1 * a / b) ** 2 * v * b**2 / (a**2 * v + b**2)
    x0, _ = gaussian().sample(n, generator=torch.Generator().manual_seed(0))
    got = seeded(model.loss, x0, times=lambda path, u: torch.full_like(u, t)).item()
    assert abs(got - want) < 5 * want * math.sqrt(2 / n)  # the remainder is Gaussian


@every_case
def test_the_exact_denoiser_is_the_optimum(name, target):
    """The gradient along any direction is 0 there, within 5 standard errors, and is not elsewhere."""
    m, n = mixture(), 4000
    x0, _ = m.sample(n, generator=torch.Generator().manual_seed(0))
    model = exact(oracle_of(PATHS[name]), target)
    net = model.net

    def slopes(off):
        theta = torch.zeros(n, 1, dtype=F64, requires_grad=True)  # one parameter, n copies of it
        model.net = lambda x, t: net(x, t) + (off + theta) * torch.cos(x + 3 * t[:, None])
        times = lambda path, u: (torch.floor(6 * u) + 2) / 10
        seeded(model.loss, x0, times=times, weight=as_eps).backward()
        return n * theta.grad[:, 0]

    at_best, elsewhere = slopes(0.0), slopes(1.0)
    assert at_best.mean().abs() < 5 * at_best.std() / math.sqrt(n)
    assert elsewhere.mean().abs() > 5 * elsewhere.std() / math.sqrt(n)


def test_pairs_that_are_given():
    """As for reflow: x0 = ε/2 + 1, the best velocity at time 1/2 is linear, and least squares finds it."""
    eps, net = normal(4000, 1), nn.Linear(1, 1, dtype=F64)
    model = Denoiser(lambda x, t: net(x), Linear(), "velocity")
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=40, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        value = model.loss(eps / 2 + 1, eps=eps, times=lambda path, u: torch.full_like(u, 0.5))
        value.backward()
        return value

    optimizer.step(closure)  # x = 3ε/4 + 1/2, and ε - x0 = ε/2 - 1
    assert net.weight.item() == pytest.approx(2 / 3, abs=1e-4)
    assert net.bias.item() == pytest.approx(-4 / 3, abs=1e-4)


@pytest.mark.parametrize("given", [{"eps": torch.zeros(4, 1)}, {"couple": lambda x0, eps: eps[:1]}])
def test_noise_of_another_shape(given):
    """It would be broadcast."""
    with pytest.raises(ValueError, match=r"eps must have the shape of x0, \(4, 3\); got"):
        Denoiser(nonlinear, Linear(), "x0").loss(torch.zeros(4, 3), **given)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None].to(x)], 1))


class Reads(TorchDispatchMode):
    """Counts how often a number is read back from where it was computed."""

    count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.count += f is torch.ops.aten._local_scalar_dense.default
        return f(*args, **(kwargs or {}))


@every_case
def test_it_compiles_whole_and_reads_nothing_back(name, target):
    model, x0 = denoiser(name, target, Small()), torch.randn(8, 2)
    weights = [None, as_x0, as_eps, min_snr()] + [bound] * (name == "table")
    with Reads() as reads:
        for weight in weights:
            model.loss(x0, weight=weight, times=log_normal_sigma).backward()
    assert reads.count == 0
    if name != "vp" and target not in ("x0", "edm"):  # each path and each target is compiled
        return
    torch.compiler.reset()
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    assert_close(seeded(compiled, x0), seeded(model.loss, x0))
    torch.compiler.reset()
