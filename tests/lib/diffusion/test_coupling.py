"""Couplings, against all permutations, scipy's assignment, a linear program, and Gaussians in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import F64, gaussian, generator, normal
from scipy.optimize import linear_sum_assignment, linprog, minimize
from torch.testing import assert_close

from course_lib.diffusion.coupling import optimal, pick, sinkhorn, straightness
from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import Linear
from course_lib.diffusion.samplers import grid, heun

every_seed = pytest.mark.parametrize("seed", range(3))


def batches(seed, *shape, dtype=F64):
    g = generator(seed)
    return 2 + torch.randn(*shape, generator=g, dtype=dtype), torch.randn(*shape, generator=g, dtype=dtype)


def costs(x0, eps):
    """Squared distances in float64, by differences."""
    x, y = (v.flatten(1).double().numpy() for v in (x0, eps))
    return ((x[:, None] - y) ** 2).sum(2)


# The best permutation


@every_seed
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_optimal_is_the_best_of_all_permutations(seed, shape, dtype):
    x0, eps = (v.to(dtype) for v in batches(seed, 6, *shape))
    c = costs(x0, eps)
    best = min(c[range(6), p].sum() for p in itertools.permutations(range(6)))
    got = optimal(x0, eps)
    assert (x0.double() - got.double()).square().sum().item() == pytest.approx(best, rel=1e-6)
    assert sorted(got.flatten(1).tolist()) == sorted(eps.flatten(1).tolist()) and got.dtype == dtype


@every_seed
@pytest.mark.parametrize("D, center, scale", [(2, 0.0, 1.0), (192, 0.0, 1.0), (3, 1e6, 1.0), (64, -1e5, 1.0)])
def test_optimal_is_scipys_assignment_of_exact_costs(seed, D, center, scale):
    """In float32, also for data far from the origin, whose inner products lose digits."""
    x0 = center + scale * normal(40, D, seed=seed, dtype=torch.float32)
    eps = normal(40, D, seed=seed + 50, dtype=torch.float32)
    middle = x0.double() - x0.double().mean(0)  # moves all costs of a row alike, and keeps their digits
    c = costs(middle, eps)
    best, got = linear_sum_assignment(c)[1], costs(middle, optimal(x0, eps)).diagonal().sum()
    assert got == pytest.approx(c[range(40), best].sum(), rel=1e-9)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_optimal_keeps_its_digits_under_autocast_and_short_products(precision):
    x0, eps = normal(64, 48, dtype=torch.float32), normal(64, 48, seed=1, dtype=torch.float32)
    want, before = optimal(x0, eps), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(optimal(x0, eps), want)
    finally:
        torch.set_float32_matmul_precision(before)


@every_seed
def test_optimal_on_the_line_sorts(seed):
    x0, eps = batches(seed, 200, 1)
    got = optimal(x0, eps)
    assert_close(got[x0[:, 0].argsort()], eps.sort(0).values)


def test_one_row_and_no_numbers():
    one = torch.ones(1, 2)
    assert torch.equal(optimal(one, one), one)
    with pytest.raises(ValueError):
        optimal(one * math.nan, one)
    with pytest.raises(ValueError, match=r"eps must have the shape of x0, \(3, 2\); got \(3, 1\)"):
        optimal(torch.zeros(3, 2), torch.zeros(3, 1))


# Sinkhorn


@every_seed
@pytest.mark.parametrize("reg", [0.5, 5.0])
def test_rows_and_columns_have_the_right_mass(seed, reg):
    x0, eps = batches(seed, 30, 2)
    plan = sinkhorn(x0, eps, reg=reg, tolerance=1e-6)
    assert plan.shape == (30, 30) and (plan >= 0).all()
    assert_close(plan.sum(1), torch.full((30,), 1 / 30, dtype=F64), rtol=1e-12, atol=0)
    assert_close(plan.sum(0), torch.full((30,), 1 / 30, dtype=F64), rtol=2e-6, atol=0)


@every_seed
def test_a_small_reg_gives_the_linear_program(seed):
    """The plan of least cost over all plans; the entropy costs at most reg log B."""
    x0, eps = batches(seed, 7, 2)
    c = costs(x0, eps)
    sums = np.vstack([np.kron(np.eye(7), np.ones(7)), np.kron(np.ones(7), np.eye(7))])
    best = linprog(c.ravel(), A_eq=sums, b_eq=np.full(14, 1 / 7)).fun
    got = (sinkhorn(x0, eps, reg=0.2, tolerance=1e-3).numpy() * c).sum()
    assert best - 2e-2 <= got <= best + 0.2 * math.log(7) + 1e-3


@every_seed
def test_sinkhorn_against_a_general_minimizer(seed):
    x0, eps = batches(seed, 4, 2)
    c, reg = costs(x0, eps).ravel(), 0.7
    goal = lambda p: p @ c + reg * (p @ np.log(p))
    slope = lambda p: c + reg * (np.log(p) + 1)
    sums = np.vstack([np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))])[:-1]  # one is implied
    found = minimize(
        goal, np.full(16, 1 / 16), jac=slope, bounds=[(1e-12, 1)] * 16, method="SLSQP",
        constraints={"type": "eq", "fun": lambda p: sums @ p - 0.25, "jac": lambda p: sums},
        options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    got = sinkhorn(x0, eps, reg=reg, tolerance=1e-10)
    np.testing.assert_allclose(got.numpy().ravel(), found.x, atol=1e-5)


def test_a_large_reg_makes_them_independent():
    x0, eps = batches(0, 20, 2)
    plan = sinkhorn(x0, eps, reg=1e6)
    assert_close(plan, torch.full((20, 20), 1 / 400, dtype=F64), rtol=1e-3, atol=0)


def test_images_and_half_precision():
    x0, eps = batches(0, 5, 1, 2, 2, dtype=torch.bfloat16)
    plan = sinkhorn(x0, eps, reg=1.0)
    assert_close(plan, sinkhorn(x0.flatten(1), eps.flatten(1), reg=1.0))
    assert plan.dtype == F64


@every_seed
def test_pick_follows_the_plan(seed):
    """Counts of the drawn pairs, within 5 standard errors."""
    x0, eps = batches(seed, 3, 1)
    plan, n, g = sinkhorn(x0, eps, reg=2.0), 2000, generator(seed)
    counts = sum((pick(plan, eps, generator=g)[:, None] == eps[None]).all(2).double() for _ in range(n))
    share = 3 * plan
    assert ((counts / n - share).abs() < 5 * (share * (1 - share) / n).sqrt() + 1e-3).all()


def test_a_permutation_as_a_plan_is_picked_exactly():
    _, eps = batches(0, 6, 2)
    order = torch.randperm(6, generator=generator(0))
    assert torch.equal(pick(torch.eye(6)[order] / 6, eps), eps[order])


@pytest.mark.parametrize(
    "couple",
    [optimal, lambda x, e: pick(sinkhorn(x, e, reg=0.5, tolerance=1e-2), e)],
    ids=["optimal", "sinkhorn"],
)
def test_the_noise_of_one_row_is_standard_normal(couple):
    """A coupling of batches keeps the marginals, over many batches; and the noise does depend on the data."""
    torch.manual_seed(0)
    drawn, data = [], []
    for _ in range(500):
        x0 = torch.randn(6, 1, dtype=F64).abs()
        drawn.append(couple(x0, torch.randn(6, 1, dtype=F64))[0, 0])
        data.append(x0[0, 0])
    drawn, data = torch.stack(drawn), torch.stack(data)
    for power, want, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - want) < 5 * math.sqrt(spread / 500)
    assert np.corrcoef(drawn, data)[0, 1] > 0.5


@every_seed
def test_a_coupling_in_the_loss(seed):
    """Against the mean square computed here from the same draws; the noise alone is ordered."""
    x0, seen = batches(seed, 6, 2)[0].float(), []
    net = lambda x, t, y: seen.append((x, t, y)) or torch.zeros_like(x)
    y = torch.arange(6)
    torch.manual_seed(seed)
    got = Denoiser(net, Linear(), "velocity").loss(x0, couple=optimal, y=y)
    torch.manual_seed(seed)
    t, eps = torch.rand(6), torch.randn(6, 2)
    eps = min((eps[list(p)] for p in itertools.permutations(range(6))), key=lambda e: (x0 - e).square().sum())
    assert_close(got, (eps - x0).square().mean())
    assert_close(seen[0][0], (1 - t)[:, None] * x0 + t[:, None] * eps)
    assert seen[0][2] is y


# Straightness


def test_lines_at_constant_speed_are_straight():
    start, end = batches(0, 7, 2)
    times = torch.tensor([1.0, 0.7, 0.65, 0.2, 0.0], dtype=F64)
    states = torch.stack([t * start + (1 - t) * end for t in times])
    assert straightness(states, times).max() < 1e-20
    assert straightness(states.flip(0), times.flip(0)).max() < 1e-20


def test_straightness_of_an_arc():
    """A quarter of a circle at constant speed: π²/4 less the squared chord."""
    times = grid(2000)
    angle = math.pi / 2 * times
    states = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    assert straightness(states, times).item() == pytest.approx(math.pi**2 / 4 - 2, rel=1e-5)


def test_a_line_at_changing_speed_is_not_straight():
    """x = t²: the integral of (1 − 2t)² is 1/3; over the later half, that of (3/2 − 2t)²: 1/24."""
    for times, want in ((grid(4000), 1 / 3), (grid(4000, stop=0.5), 1 / 24)):
        assert straightness((times**2).view(-1, 1, 1), times).item() == pytest.approx(want, rel=1e-4)


def test_the_drop_of_the_cost_is_straightness_plus_variance():
    """Liu et al.'s identity for one Gaussian N(m, s²), where the flow and the variance are known."""
    m, s2, n = 0.7, 0.4, 5000
    states = heun(
        MixtureOracle(gaussian(), Linear()), normal(n, 1), times := grid(50, stop=1e-3), trajectory=True
    )
    t = np.linspace(0, 1, 10_001)
    variance = np.mean(s2 / (s2 * (1 - t) ** 2 + t**2))  # of x' given x_t, over time
    drop = (m**2 + s2 + 1) - (m**2 + (1 - s2**0.5) ** 2)  # of E‖x0 - ε‖²: independent less monotone
    found = straightness(states, times)
    assert abs(found.mean().item() - (drop - variance)) < 5 * found.std().item() / math.sqrt(n) + 5e-3


# Refusals


@pytest.mark.parametrize("reg", [0, -1.0, math.inf, math.nan])
def test_bad_reg(reg):
    with pytest.raises(ValueError, match="reg must be positive and finite"):
        sinkhorn(torch.zeros(3, 2), torch.zeros(3, 2), reg=reg)


def test_sinkhorn_says_when_it_has_not_arrived():
    x0, eps = batches(0, 20, 2)
    with pytest.raises(ValueError, match=r"reg = 0\.001 is too small for 5 steps"):
        sinkhorn(x0, eps, reg=1e-3, steps=5)


def test_a_plan_of_another_size():
    with pytest.raises(ValueError, match=r"plan must have shape \(3, 3\); got \(2, 3\)"):
        pick(torch.ones(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.5, 0.5], [1.0, 0.0, 0.5]])
def test_bad_times(times):
    with pytest.raises(ValueError, match="times must rise or fall strictly, one for each state"):
        straightness(torch.zeros(3, 2, 2), torch.tensor(times))
