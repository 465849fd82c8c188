"""Paths: derivatives against autograd, moments against the SDE's own equations, tables against loops."""

import decimal
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch.testing import assert_close

from course_lib.diffusion.path import VE, VP, Cosine, Linear, Path, Tabulated, per_sample

F64 = torch.float64
PATHS = {
    "vp": VP(),
    "vp-slow": VP(0.5, 6.0),
    "vp-constant": VP(2.0, 2.0),
    "cosine": Cosine(),
    "linear": Linear(),
    "ve": VE(),
    "ve-narrow": VE(0.1, 3.0),
}
INSIDE = torch.linspace(0.005, 0.995, 199, dtype=F64)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def at(t):
    return torch.tensor([t], dtype=F64)


# Continuous paths


@every_path
@pytest.mark.parametrize("name", ["a", "b"])
def test_derivatives_against_autograd(path, name):
    t = INSIDE.clone().requires_grad_()
    value = getattr(path, name)(t) + 0 * t  # VE's a does not depend on t
    (want,) = torch.autograd.grad(value.sum(), t)
    assert_close(getattr(path, "d" + name)(INSIDE), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("low, high", [(0.1, 20.0), (0.5, 6.0), (2.0, 2.0)])
@pytest.mark.parametrize("t", [0.001, 0.2, 0.5, 1.0])
def test_vp_against_quadrature_of_its_rate(low, high, t):
    total, _ = quad(lambda r: low * (1 - r) + high * r, 0, t, epsabs=1e-13)
    path = VP(low, high)
    assert path.a(at(t)).item() == pytest.approx(math.exp(-total / 2), rel=1e-12)
    assert path.b(at(t)).item() == pytest.approx(math.sqrt(1 - math.exp(-total)), rel=1e-10)
    assert path.beta(at(t)).item() == pytest.approx(low * (1 - t) + high * t, rel=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.125, 0.5, 0.9, 1.0])
def test_cosine_and_linear_against_the_math_module(t):
    assert Cosine().a(at(t)).item() == pytest.approx(math.cos(math.pi * t / 2), abs=1e-15)
    assert Cosine().b(at(t)).item() == pytest.approx(math.sin(math.pi * t / 2), abs=1e-15)
    assert (Linear().a(at(t)).item(), Linear().b(at(t)).item()) == (1 - t, t)


@pytest.mark.parametrize("low, high", [(0.01, 50.0), (0.1, 3.0)])
def test_ve_adds_the_variance_between_two_levels(low, high):
    for t in (0.1, 0.5, 1.0):
        want = (low ** (1 - t) * high**t) ** 2 - low**2
        assert VE(low, high).b(at(t)).item() ** 2 == pytest.approx(want, rel=1e-10)
        assert VE(low, high).a(at(t)).item() == 1


@every_path
def test_the_ends(path):
    assert path.a(at(0.0)).item() == 1 and path.b(at(0.0)).item() == 0
    assert path.log_snr(at(0.0)).item() == math.inf


@pytest.mark.parametrize("path", [Cosine(), Linear()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_signal_at_all_is_left_at_the_end(path, dtype):
    one = torch.ones(1, dtype=dtype)
    assert path.a(one).item() == 0 and path.b(one).item() == 1
    assert path.log_snr(one).item() == -math.inf


@every_path
def test_log_snr_falls_and_is_a_log_ratio(path):
    snr = path.log_snr(INSIDE)
    assert (snr.diff() < 0).all()
    want = np.log(path.a(INSIDE).numpy() ** 2 / path.b(INSIDE).numpy() ** 2)
    np.testing.assert_allclose(snr, want, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "vp-slow", "vp-constant", "cosine"])
def test_variance_preserving(name):
    t = torch.linspace(0, 1, 101, dtype=F64)
    square = PATHS[name].a(t) ** 2 + PATHS[name].b(t) ** 2
    assert_close(square, torch.ones_like(t), rtol=1e-14, atol=0)


@every_path
@pytest.mark.parametrize("start", [(1.0, 0.0), None], ids=["data", "anywhere"])
def test_the_sde_has_the_moments_of_the_path(path, start):
    """m' = f m and v' = 2 f v + g², integrated by scipy, are a(t) and b(t)² at every t."""
    begin = 1e-4
    first = (path.a(at(begin)).item(), path.b(at(begin)).item() ** 2)
    scale = 1.0 if start else 3.0  # the mean's equation is linear: any start, scaled
    f = lambda t: path.drift(at(t)).item()
    g = lambda t: path.diffusion(at(t)).item()
    slope = lambda t, y: [f(t) * y[0], 2 * f(t) * y[1] + g(t) ** 2]
    times = [0.1, 0.5, 0.9]
    found = solve_ivp(
        slope,
        (begin, 0.9),
        (scale * first[0], first[1]),
        t_eval=times,
        rtol=1e-9,
        atol=1e-12,
        method="DOP853",
    )
    t = torch.tensor(times, dtype=F64)
    np.testing.assert_allclose(found.y[0], scale * path.a(t), rtol=1e-7)
    np.testing.assert_allclose(found.y[1], path.b(t) ** 2, rtol=1e-7)


def test_coefficients_of_the_sdes_in_the_literature():
    r"""Song et al., 2021: VP has :math:`f = -\beta/2, g^2 = \beta`, VE :math:`g^2 = d\sigma^2/dt`."""
    beta = 0.1 + 19.9 * INSIDE
    assert_close(VP().drift(INSIDE), -beta / 2)
    assert_close(VP().diffusion(INSIDE), beta.sqrt())
    rate = 0.01 * 5000**INSIDE * math.sqrt(2 * math.log(5000))  # their equation 30
    assert_close(VE().diffusion(INSIDE), rate)
    assert not VE().drift(INSIDE).any()
    assert_close(Linear().diffusion(INSIDE), (2 * INSIDE / (1 - INSIDE)).sqrt())


@pytest.mark.parametrize("name, want", [
    ("vp", math.sqrt(0.1)), ("vp-slow", math.sqrt(0.5)), ("ve", 0.01 * math.sqrt(2 * math.log(5000))),
    ("cosine", 0.0), ("linear", 0.0),
])  # fmt: skip
def test_diffusion_at_the_data(name, want):
    """A forward simulation begins at t = 0, where g is finite."""
    assert PATHS[name].diffusion(at(0.0)).item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("t", [1e-7, 1e-5, 1e-3])
def test_float32_keeps_the_noise_near_the_data(t):
    """Against 50 decimal digits."""
    time = torch.tensor([t])
    with decimal.localcontext(decimal.Context(prec=50)):
        exact = decimal.Decimal(time.item())
        total = decimal.Decimal("0.1") * exact + decimal.Decimal("9.95") * exact**2
        vp = float((1 - (-total).exp()).sqrt())
        ve = float(decimal.Decimal("0.01") * ((2 * decimal.Decimal(5000).ln() * exact).exp() - 1).sqrt())
    assert VP().b(time).item() == pytest.approx(vp, rel=1e-6)
    assert VE().b(time).item() == pytest.approx(ve, rel=1e-6)


@every_path
@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shape_and_dtype_of_times_are_kept(path, shape, dtype):
    t = torch.full(shape, 0.3, dtype=dtype)
    for method in ("a", "b", "da", "db", "log_snr", "drift", "diffusion"):
        value = getattr(path, method)(t)
        assert value.shape == shape and value.dtype == dtype, method


# Mixing


@every_path
@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2, 2)])
def test_mix(path, shape):
    x0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=F64)
    got = path.mix(x0, eps, t)
    for n in range(4):
        a, b = path.a(t[n]).item(), path.b(t[n]).item()
        np.testing.assert_allclose(got[n], a * x0[n].numpy() + b * eps[n].numpy(), rtol=1e-13)


def test_times_take_the_type_of_the_samples():
    x = torch.zeros(2, 3)
    t = per_sample(torch.tensor([0.25, 0.5], dtype=F64), x)
    assert t.dtype == torch.float32 and t.shape == (2, 1)
    assert per_sample(torch.rand(2), torch.zeros(2, 1, 4, 4)).shape == (2, 1, 1, 1)


def test_per_sample_takes_one_time_for_all_samples():
    x = torch.randn(3, 1, 4, 4)
    one = per_sample(torch.tensor([0.25], dtype=F64), x)
    assert one.shape == (1, 1, 1, 1) and one.dtype == x.dtype
    assert per_sample(one, x) is one
    path, eps = Cosine(), torch.randn_like(x)
    assert_close(path.mix(x, eps, one), path.mix(x, eps, torch.full((3,), 0.25)), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        per_sample(torch.tensor([1.5]), x)


@pytest.mark.parametrize("t, match", [
    (torch.tensor(0.5), r"t must have shape \(2,\)"),
    (torch.full((2, 1), 0.5), r"t must have shape \(2,\)"),
    (torch.full((3,), 0.5), r"t must have shape \(2,\).*got \(3,\)"),
    (torch.tensor([0.5, 1.01]), r"t must lie in \[0, 1\]"),
    (torch.tensor([-0.01, 0.5]), r"t must lie in \[0, 1\]"),
    (torch.tensor([math.nan, 0.5]), r"t must lie in \[0, 1\]"),
    (torch.tensor([500.0, 3.0]), r"t must lie in \[0, 1\]; got 3.0 to 500.0"),
])  # fmt: skip
def test_bad_times(t, match):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=match):
        per_sample(t, x)
    with pytest.raises(ValueError, match=match):
        Linear().mix(x, x, t)


def test_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"eps must have the shape of x0, \(2, 3\); got \(2, 1\)"):
        Linear().mix(torch.zeros(2, 3), torch.zeros(2, 1), torch.full((2,), 0.5))


@pytest.mark.parametrize("ends", [(0.0, 20.0), (-1.0, 20.0), (5.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_bad_rates(ends):
    with pytest.raises(ValueError, match="beta_min must be positive and at most beta_max"):
        VP(*ends)


@pytest.mark.parametrize("ends", [(0.0, 5.0), (-1.0, 5.0), (5.0, 1.0), (2.0, 2.0), (0.1, math.inf)])
def test_bad_noise_levels(ends):
    with pytest.raises(ValueError, match="sigma_min must be positive and below sigma_max"):
        VE(*ends)


@pytest.mark.parametrize("method", ["a", "b", "da", "db"])
def test_the_bare_path_has_nothing(method):
    with pytest.raises(NotImplementedError):
        getattr(Path(), method)(at(0.5))


# Tables


def linear_alpha_bar(T):
    r""":math:`\bar\alpha_0, \dots, \bar\alpha_T` of DDPM, scaled to T steps, by a loop."""
    product, out = 1.0, [1.0]
    for n in range(T):
        product *= 1 - 1000 / T * (1e-4 + (0.02 - 1e-4) * n / max(T - 1, 1))
        out.append(product)
    return np.array(out)


def cosine_alpha_bar(T):
    """Nichol and Dhariwal's, by a loop, with β cut at 0.999."""
    f = lambda n: math.cos((n / T + 0.008) / 1.008 * math.pi / 2) ** 2
    product, out = 1.0, [1.0]
    for n in range(1, T + 1):
        product *= 1 - min(1 - f(n) / f(n - 1), 0.999)
        out.append(product)
    return np.array(out)


TABLES = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


@pytest.mark.parametrize("schedule, T", [
    ("linear", 1000), ("linear", 21), ("linear", 100), ("cosine", 1000), ("cosine", 1), ("cosine", 50),
])  # fmt: skip
def test_tables_against_loops(schedule, T):
    path, alpha_bar = Tabulated.from_betas(schedule, T), TABLES[schedule](T)
    assert path.T == T and len(path.betas) == len(path.alpha_bar) == T + 1
    assert path.alpha_bar[0] == 1 and path.betas[0] == 0
    np.testing.assert_allclose(path.alpha_bar, alpha_bar, rtol=1e-10)
    t = torch.arange(T + 1, dtype=F64) / T
    np.testing.assert_allclose(path.a(t) ** 2, alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(path.b(t) ** 2, 1 - alpha_bar, rtol=1e-9)
    np.testing.assert_allclose(path.beta(t)[1:], 1 - alpha_bar[1:] / alpha_bar[:-1], rtol=1e-9)
    assert path.beta(t)[0] == 0
    assert (path.log_snr(t).diff() < 0).all()


def test_the_default_table_is_ddpms():
    path = Tabulated.from_betas()
    assert path.T == 1000
    assert path.betas[1].item() == pytest.approx(1e-4) and path.betas[1000].item() == pytest.approx(0.02)


def test_the_cosine_table_follows_its_cosine_until_beta_is_cut():
    path = Tabulated.from_betas("cosine", 1000)
    t = np.arange(1000) / 1000  # all but the last step
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(path.alpha_bar[:1000], f / f[0], rtol=1e-10)
    assert path.betas[1000] == 0.999 and (path.betas[1:1000] < 0.999).all()


def test_vp_is_the_limit_of_the_linear_table():
    """VP(0.1, 20) differs from the 1000-step table by 1.0e-3 in a and 1.3e-3 in b, and ever less beyond."""
    differences = []
    for T in (1000, 4000):
        t, path = torch.arange(T + 1, dtype=F64) / T, Tabulated.from_betas("linear", T)
        differences.append([(getattr(VP(), k)(t) - getattr(path, k)(t)).abs().max().item() for k in "ab"])
    print("largest differences of a and b:", differences)
    assert differences[0][0] < 1.05e-3 and differences[0][1] < 1.35e-3
    # the sums that stand for integrals are off by O(1/T)
    for coarse, fine in zip(*differences, strict=True):
        assert 3.5 < coarse / fine < 4.5


def test_any_betas():
    path = Tabulated(torch.tensor([0.5, 0.2]))
    assert_close(path.alpha_bar, torch.tensor([1, 0.5, 0.4], dtype=F64))
    assert path.alpha_bar.dtype == F64
    t = torch.tensor([[1.0], [0.5], [0.0]])
    assert_close(path.a(t), torch.tensor([[0.4], [0.5], [1.0]]).sqrt())
    assert path.index(t).tolist() == [[2], [1], [0]]


@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_every_step_is_found(T, dtype):
    n = torch.arange(T + 1)
    assert torch.equal(Tabulated.from_betas(T=T).index((n.double() / T).to(dtype)), n)


@pytest.mark.parametrize("t", [0.0005, 0.9995, 0.12345, 1.001, -0.001, 2.0, math.nan, math.inf])
def test_times_between_the_steps_are_refused(t):
    for method in ("a", "b", "beta", "index"):
        with pytest.raises(ValueError, match="t must be one of 0, 1/1000"):
            getattr(Tabulated.from_betas(), method)(torch.tensor([0.5, t]))


@pytest.mark.parametrize("method", ["da", "db", "drift", "diffusion"])
def test_a_table_has_no_derivatives(method):
    with pytest.raises(ValueError, match="path is a table, which has no derivatives"):
        getattr(Tabulated.from_betas(), method)(torch.tensor([0.5]))


@pytest.mark.parametrize("betas, match", [
    ([0.1, 0.2], "betas must be a tensor"),
    (torch.tensor(0.1), "betas must be a tensor"),
    (torch.zeros(0), "betas must be a tensor .* T at least 1"),
    (torch.full((2, 2), 0.1), "betas must be a tensor"),
    (torch.tensor([0.1, 1.0]), r"betas must lie in \(0, 1\)"),
    (torch.tensor([0.0, 0.1]), r"betas must lie in \(0, 1\)"),
    (torch.tensor([-0.1, 0.1]), r"betas must lie in \(0, 1\); got -0.1"),
    (torch.tensor([0.1, math.nan]), r"betas must lie in \(0, 1\)"),
])  # fmt: skip
def test_bad_betas(betas, match):
    with pytest.raises(ValueError, match=match):
        Tabulated(betas)


@pytest.mark.parametrize("given, match", [
    ({"T": 0}, "T must be an integer of at least 1; got 0"),
    ({"T": -5}, "T must be an integer of at least 1"),
    ({"T": 10.0}, "T must be an integer of at least 1"),
    ({"T": True}, "T must be an integer of at least 1"),
    ({"T": 20}, "T must be at least 21 for the linear table"),
    ({"schedule": "sigmoid"}, "schedule must be 'linear' or 'cosine'; got 'sigmoid'"),
])  # fmt: skip
def test_bad_tables(given, match):
    with pytest.raises(ValueError, match=match):
        Tabulated.from_betas(**given)
