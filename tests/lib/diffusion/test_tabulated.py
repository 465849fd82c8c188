"""Tables against loops, and their limit."""

import math

import numpy as np
import pytest
import torch
from cases import F64
from torch.testing import assert_close

from course_lib.diffusion.path import VP
from course_lib.diffusion.tabulated import Tabulated


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


@pytest.mark.parametrize("name, T", [
    ("linear", 1000), ("linear", 21), ("cosine", 1000), ("cosine", 1), ("cosine", 50),
])  # fmt: skip
def test_tables_against_loops(name, T):
    path = Tabulated.schedule(name, T)
    alpha_bar = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}[name](T)
    assert path.T == T and len(path.betas) == len(path.alpha_bar) == T + 1
    assert path.alpha_bar[0] == 1 and path.betas[0] == 0
    t = torch.arange(T + 1, dtype=F64) / T
    np.testing.assert_allclose(path.a(t) ** 2, alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(path.b(t) ** 2, 1 - alpha_bar, rtol=1e-9)
    np.testing.assert_allclose(path.beta(t)[1:], 1 - alpha_bar[1:] / alpha_bar[:-1], rtol=1e-9)
    assert (path.log_snr(t).diff() < 0).all()
    assert_close(path.time(path.sigma(t)), t)
    between = (path.sigma(t)[:-1] * 0.4 + path.sigma(t)[1:] * 0.6).clamp(min=1e-6)
    assert_close(path.time(between), t[1:])  # the nearest
    assert path.time(torch.tensor(math.inf)) == 1


def test_the_default_table_is_ddpms():
    path = Tabulated.schedule()
    assert path.T == 1000
    assert path.betas[1].item() == pytest.approx(1e-4) and path.betas[1000].item() == pytest.approx(0.02)


def test_vp_is_the_limit_of_the_linear_table():
    """VP(0.1, 20) differs from the 1000-step table by 1.0e-3 in a and 1.3e-3 in b, and ever less beyond."""
    differences = []
    for T in (1000, 4000):
        t, path = torch.arange(T + 1, dtype=F64) / T, Tabulated.schedule("linear", T)
        differences.append([(getattr(VP(), k)(t) - getattr(path, k)(t)).abs().max().item() for k in "ab"])
    assert differences[0][0] < 1.05e-3 and differences[0][1] < 1.35e-3
    for coarse, fine in zip(*differences, strict=True):  # sums that stand for integrals are off by O(1/T)
        assert 3.5 < coarse / fine < 4.5


def test_any_betas():
    path = Tabulated([0.5, 0.2])
    assert_close(path.alpha_bar, torch.tensor([1, 0.5, 0.4], dtype=F64))
    t = torch.tensor([[1.0], [0.5], [0.0]])
    assert_close(path.a(t), torch.tensor([[0.4], [0.5], [1.0]]).sqrt())
    assert path.index(t).tolist() == [[2], [1], [0]]


@pytest.mark.parametrize("T", [1, 1000, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_table_takes_all_its_own_times(T, dtype):
    path, n = Tabulated(torch.full((T,), 1e-4)), torch.arange(T + 1)
    t = (n.double() / T).to(dtype)
    path.expand(t, torch.zeros(T + 1, 1))
    assert torch.equal(path.index(t), n)


@pytest.mark.parametrize("T", [1, 7, 1000, 40_000])
def test_steps_of_training_are_each_as_likely(T):
    """Also from the ends of torch.rand: 0, and 1 − 2⁻²⁴."""
    path = Tabulated(torch.full((T,), 1e-4))
    u = (torch.arange(10 * T, dtype=F64) + 0.5) / (10 * T)
    assert torch.equal(torch.bincount(path.index(path.times(u))), torch.tensor([0] + [10] * T))
    ends = path.inside(path.times(torch.tensor([0.0, 1 - 2**-24])))
    assert path.index(ends).tolist() == [1, T]


def test_times_between_the_steps():
    """Refused where a time is given, moved to the nearest step where a loss draws one."""
    path, x = Tabulated.schedule(), torch.zeros(2, 1)
    for t in (0.0005, 0.12345, 0.9995):
        for attempt in (lambda t=t: path.expand(t, x), lambda t=t: path.expand(torch.tensor([0.5, t]), x)):
            with pytest.raises(ValueError, match="t must be one of 0, 1/1000"):
                attempt()
    assert_close(path.inside(torch.tensor([-1.0, 0.0, 0.12345, 2.0])), torch.tensor([0.001, 0.001, 0.123, 1]))


@pytest.mark.parametrize("method", ["da", "db", "drift", "diffusion"])
def test_a_table_has_no_derivatives(method):
    with pytest.raises(ValueError, match="path is a table, which has no derivatives"):
        getattr(Tabulated.schedule(), method)(torch.tensor([0.5]))


@pytest.mark.parametrize("betas", [0.1, [], [[0.1]], [0.1, 1.0], [0.0, 0.1], [0.1, math.nan]])
def test_bad_betas(betas):
    with pytest.raises(ValueError, match=r"betas must be numbers \(T,\) in \(0, 1\)"):
        Tabulated(betas)


def test_bad_schedules():
    with pytest.raises(ValueError, match="T must be at least 21 for the linear table"):
        Tabulated.schedule("linear", 20)
    with pytest.raises(ValueError, match="name must be 'linear' or 'cosine'; got 'sigmoid'"):
        Tabulated.schedule("sigmoid")
