"""Paths: derivatives against autograd, moments against the SDE's own equations."""

import decimal
import math

import numpy as np
import pytest
import torch
from cases import F64, normal
from scipy.integrate import quad, solve_ivp
from torch.testing import assert_close

from course_lib.diffusion.path import VE, VP, Cosine, GaussianPath, Linear
from course_lib.diffusion.tabulated import Tabulated

PATHS = {
    "vp": VP(),
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


@every_path
@pytest.mark.parametrize("name", ["a", "b"])
def test_derivatives_against_autograd(path, name):
    t = INSIDE.clone().requires_grad_()
    value = getattr(path, name)(t) + 0 * t  # VE's a does not depend on t
    (want,) = torch.autograd.grad(value.sum(), t)
    assert_close(getattr(path, "d" + name)(INSIDE), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("low, high", [(0.1, 20.0), (2.0, 2.0)])
@pytest.mark.parametrize("t", [0.001, 0.5, 1.0])
def test_vp_against_quadrature_of_its_rate(low, high, t):
    total, _ = quad(lambda r: low * (1 - r) + high * r, 0, t, epsabs=1e-13)
    path = VP(low, high)
    assert path.a(at(t)).item() == pytest.approx(math.exp(-total / 2), rel=1e-12)
    assert path.b(at(t)).item() == pytest.approx(math.sqrt(1 - math.exp(-total)), rel=1e-10)
    assert path.beta(at(t)).item() == pytest.approx(low * (1 - t) + high * t, rel=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.125, 0.9, 1.0])
def test_the_other_paths_against_the_math_module(t):
    assert Cosine().a(at(t)).item() == pytest.approx(math.cos(math.pi * t / 2), abs=1e-15)
    assert Cosine().b(at(t)).item() == pytest.approx(math.sin(math.pi * t / 2), abs=1e-15)
    assert (Linear().a(at(t)).item(), Linear().b(at(t)).item()) == (1 - t, t)
    want = (0.1 ** (1 - t) * 3.0**t) ** 2 - 0.1**2
    assert VE(0.1, 3.0).b(at(t)).item() ** 2 == pytest.approx(want, rel=1e-10, abs=0)
    assert VE(0.1, 3.0).a(at(t)).item() == 1


@every_path
def test_the_ends(path):
    assert path.a(at(0.0)).item() == 1 and path.b(at(0.0)).item() == 0
    assert path.log_snr(at(0.0)).item() == math.inf
    if isinstance(path, Cosine | Linear):
        for one in (torch.ones(1), at(1.0)):
            assert (
                path.a(one).item() == 0 and path.b(one).item() == 1 and path.log_snr(one).item() == -math.inf
            )


@every_path
def test_log_snr_falls_and_is_a_log_ratio(path):
    snr = path.log_snr(INSIDE)
    assert (snr.diff() < 0).all()
    want = np.log(path.a(INSIDE).numpy() ** 2 / path.b(INSIDE).numpy() ** 2)
    np.testing.assert_allclose(snr, want, rtol=1e-12, atol=1e-10)


@every_path
@pytest.mark.parametrize("dtype, rtol", [(F64, 1e-10), (torch.float32, 1e-5)])
def test_time_is_the_inverse_of_sigma(path, dtype, rtol):
    """Also where the noise is small: no digits cancel."""
    low, high = path.sigma(torch.tensor([1e-6, 0.99], dtype=F64)).log().tolist()
    sigma = torch.linspace(low, high, 60, dtype=F64).exp().to(dtype)
    assert_close(path.sigma(path.time(sigma).double()).to(dtype), sigma, rtol=rtol, atol=0)
    assert path.time(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("path", [Cosine(), Linear()])
def test_the_time_of_infinite_noise(path):
    assert path.time(torch.tensor(math.inf)).item() == pytest.approx(1)


@every_path
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_sde_has_the_moments_of_the_path(path, scale):
    """m' = f m and v' = 2 f v + g², integrated by scipy, are a(t) and b(t)² at every t."""
    begin = 1e-4
    first = (path.a(at(begin)).item(), path.b(at(begin)).item() ** 2)
    f = lambda t: path.drift(at(t)).item()
    g = lambda t: path.diffusion(at(t)).item()
    slope = lambda t, y: [f(t) * y[0], 2 * f(t) * y[1] + g(t) ** 2]
    times = [0.1, 0.5, 0.9]
    start = (scale * first[0], first[1])  # the mean's equation is linear
    found = solve_ivp(slope, (begin, 0.9), start, t_eval=times, rtol=1e-8, atol=1e-11, method="DOP853")
    t = torch.tensor(times, dtype=F64)
    np.testing.assert_allclose(found.y[0], scale * path.a(t), rtol=1e-6)
    np.testing.assert_allclose(found.y[1], path.b(t) ** 2, rtol=1e-6)


def test_coefficients_of_the_sdes_in_the_literature():
    r"""Song et al., 2021: VP has :math:`f = -\beta/2, g^2 = \beta`, VE :math:`g^2 = d\sigma^2/dt`."""
    beta = 0.1 + 19.9 * INSIDE
    assert_close(VP().drift(INSIDE), -beta / 2)
    assert_close(VP().diffusion(INSIDE), beta.sqrt())
    assert_close(VE().diffusion(INSIDE), 0.01 * 5000**INSIDE * math.sqrt(2 * math.log(5000)))  # equation 30
    assert not VE().drift(INSIDE).any()
    assert_close(Linear().diffusion(INSIDE), (2 * INSIDE / (1 - INSIDE)).sqrt())
    for path, want in ((VP(), 0.1**0.5), (VE(), 0.01 * math.sqrt(2 * math.log(5000))), (Cosine(), 0.0)):
        assert path.diffusion(at(0.0)).item() == pytest.approx(want, abs=1e-9)  # a simulation begins there


@pytest.mark.parametrize("t", [1e-7, 1e-5, 1e-3])
def test_float32_keeps_the_noise_near_the_data(t):
    """Against 50 decimal digits."""
    time = torch.tensor([t])
    with decimal.localcontext(decimal.Context(prec=50)):
        number = decimal.Decimal(time.item())
        total = decimal.Decimal("0.1") * number + decimal.Decimal("9.95") * number**2
        vp = float((1 - (-total).exp()).sqrt())
        ve = float(decimal.Decimal("0.01") * ((2 * decimal.Decimal(5000).ln() * number).exp() - 1).sqrt())
    assert VP().b(time).item() == pytest.approx(vp, rel=1e-6)
    assert VE().b(time).item() == pytest.approx(ve, rel=1e-6)


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shape_and_dtype_of_times_are_kept(path, dtype):
    for shape in ((), (3,), (3, 1, 1)):
        t = torch.full(shape, 0.3, dtype=dtype)
        for method in ("a", "b", "da", "db", "sigma", "time", "log_snr", "drift", "diffusion"):
            value = getattr(path, method)(t)
            assert value.shape == shape and value.dtype == dtype, method


# Times beside samples


@every_path
@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2, 2)])
def test_mix(path, shape):
    x0, eps = normal(2, *shape)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=F64)
    got = path.mix(x0, eps, t)
    for n in range(4):
        a, b = path.a(t[n]).item(), path.b(t[n]).item()
        np.testing.assert_allclose(got[n], a * x0[n].numpy() + b * eps[n].numpy(), rtol=1e-13)


@pytest.mark.parametrize("t", [
    0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.full((2,), 0.25), torch.full((2,), 0.25, dtype=F64),
    torch.full((2,), 0.25, dtype=torch.bfloat16),
])  # fmt: skip
@pytest.mark.parametrize("dtype, kind", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64),
])  # fmt: skip
def test_times_take_the_type_of_the_samples_float32_at_least(t, dtype, kind):
    at = Linear().expand(t, torch.zeros(2, 1, 4, 4, dtype=dtype))
    assert at.dtype == kind and at.shape[1:] == (1, 1, 1) and (at == 0.25).all()


@pytest.mark.parametrize("t", [1.01, -0.01, 500, math.nan, math.inf])
@pytest.mark.parametrize("path", [Linear(), Tabulated.schedule()])
def test_no_times(path, t):
    """By number, by tensor, and as the times of a grid."""
    x = torch.zeros(2, 3)
    for attempt in (
        lambda: path.mix(x, x, t),
        lambda: path.mix(x, x, torch.tensor([0.5, t])),
        lambda: path.require(torch.tensor([0.5, t])),
    ):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            attempt()


@pytest.mark.parametrize("t", [torch.tensor([1, 0]), torch.full((2, 1), 0.5), torch.full((3,), 0.5)])
def test_times_of_another_kind(t):
    with pytest.raises(ValueError, match=r"t must be floating-point times \(2,\), or one for all"):
        Linear().expand(t, torch.zeros(2, 3))


def test_times_can_be_differentiated_and_mapped():
    """By torch.func, where there are no numbers to look at."""
    x, t = torch.ones(3, 2, dtype=F64), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    path, mix = Cosine(), lambda t: Cosine().mix(x, 2 * x, t.expand(3)).sum()
    assert_close(torch.func.vmap(torch.func.grad(mix))(t), 6 * path.da(t) + 12 * path.db(t))


def test_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"eps must have the shape of x0, \(2, 3\); got \(2, 1\)"):
        Linear().mix(torch.zeros(2, 3), torch.zeros(2, 1), torch.full((2,), 0.5))


@pytest.mark.parametrize("ends", [(0.0, 20.0), (5.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_bad_rates(ends):
    with pytest.raises(ValueError, match="beta_min must be positive and at most beta_max"):
        VP(*ends)


@pytest.mark.parametrize("ends", [(0.0, 5.0), (5.0, 1.0), (2.0, 2.0), (0.1, math.inf)])
def test_bad_noise_levels(ends):
    with pytest.raises(ValueError, match="sigma_min must be positive and below sigma_max"):
        VE(*ends)


def test_the_bare_path_has_nothing():
    for method in ("a", "b", "da", "db", "time"):
        with pytest.raises(NotImplementedError):
            getattr(GaussianPath(), method)(at(0.5))
