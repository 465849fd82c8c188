"""Couplings, against all permutations, a linear program, sorting, and Gaussians in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn
from torch.testing import assert_close

from course_lib.diffusion.coupling import costs, optimal, pick, sinkhorn, straightness, wasserstein
from course_lib.diffusion.loss import paired, regression
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import Cosine, Linear
from course_lib.diffusion.sample import grid
from course_lib.diffusion.solve import heun
from course_lib.mixture.gaussian import GaussianMixture

SEEDS = range(5)
F64 = torch.float64
every_seed = pytest.mark.parametrize("seed", SEEDS)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batches(seed, *shape, dtype=F64):
    g = generator(seed)
    return 2 + torch.randn(*shape, generator=g, dtype=dtype), torch.randn(*shape, generator=g, dtype=dtype)


def mass_times_cost(plan, x0, eps):
    """In loops."""
    return sum(
        plan[i, j].item() * sum((x0[i].flatten() - eps[j].flatten()) ** 2).item()
        for i in range(len(x0))
        for j in range(len(eps))
    )


def sorted_rows(x):
    return sorted(map(tuple, x.flatten(1).tolist()))


# The best permutation


@every_seed
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_optimal_is_the_best_of_all_permutations(seed, shape, dtype):
    x0, eps = batches(seed, 6, *shape, dtype=dtype)
    best = min((x0 - eps[list(p)]).square().sum().item() for p in itertools.permutations(range(6)))
    got = optimal(x0, eps)
    assert (x0 - got).square().sum().item() == pytest.approx(best, rel=1e-5)
    assert sorted_rows(got) == sorted_rows(eps) and got.dtype == dtype


@every_seed
def test_optimal_on_the_line_sorts(seed):
    x0, eps = batches(seed, 200, 1)
    got = optimal(x0, eps)
    assert_close(got[x0[:, 0].argsort()], eps.sort(0).values)


@every_seed
def test_wasserstein_on_the_line_compares_sorted_points(seed):
    x, y = batches(seed, 300, 1)
    want = math.sqrt(np.mean((np.sort(x.numpy(), 0) - np.sort(y.numpy(), 0)) ** 2))
    assert wasserstein(x, y) == pytest.approx(want, rel=1e-9)


@every_seed
def test_wasserstein_is_a_distance(seed):
    x, y = batches(seed, 40, 3)
    z = torch.randn(40, 3, generator=generator(seed + 9), dtype=F64)
    assert wasserstein(x, x[torch.randperm(40, generator=generator(seed))]) == 0
    assert wasserstein(x, y) == pytest.approx(wasserstein(y, x), rel=1e-12)
    assert wasserstein(x, y) <= wasserstein(x, z) + wasserstein(z, y)
    assert wasserstein(x, x + 0.5) == pytest.approx(0.5 * math.sqrt(3), rel=1e-9)  # a shift


def test_costs_lose_no_digits_far_from_the_origin():
    x = 1e6 + torch.arange(40.0, dtype=F64)[:, None]
    assert_close(costs(x, x), (x - x.T) ** 2, rtol=1e-12, atol=1e-12)


# Sinkhorn


@every_seed
@pytest.mark.parametrize("reg", [0.5, 1.0, 5.0])
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
    C = np.array([[((x - y) ** 2).sum().item() for y in eps] for x in x0])
    rows = np.kron(np.eye(7), np.ones(7))
    columns = np.kron(np.ones(7), np.eye(7))
    best = linprog(C.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.full(14, 1 / 7)).fun
    for reg in (0.02, 0.1):
        got = mass_times_cost(sinkhorn(x0, eps, reg=reg, tolerance=1e-4, steps=200_000), x0, eps)
        assert best - 1e-3 <= got <= best + reg * math.log(7) + 1e-3


@every_seed
def test_sinkhorn_against_a_general_minimizer(seed):
    x0, eps = batches(seed, 4, 2)
    C, reg = ((x0[:, None] - eps) ** 2).sum(2).numpy().ravel(), 0.7
    goal = lambda p: p @ C + reg * (p @ np.log(p))
    slope = lambda p: C + reg * (np.log(p) + 1)
    A = np.vstack([np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))])[:-1]  # one is implied
    found = minimize(
        goal, np.full(16, 1 / 16), jac=slope, bounds=[(1e-12, 1)] * 16, method="SLSQP",
        constraints={"type": "eq", "fun": lambda p: A @ p - 0.25, "jac": lambda p: A},
        options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    got = sinkhorn(x0, eps, reg=reg, tolerance=1e-10)
    np.testing.assert_allclose(got.numpy().ravel(), found.x, atol=1e-5)


@every_seed
def test_a_large_reg_makes_them_independent(seed):
    x0, eps = batches(seed, 20, 2)
    plan = sinkhorn(x0, eps, reg=1e6)
    assert_close(plan, torch.full((20, 20), 1 / 400, dtype=F64), rtol=1e-3, atol=0)


def test_images_and_half_precision():
    x0, eps = batches(0, 5, 1, 2, 2, dtype=torch.bfloat16)
    plan = sinkhorn(x0, eps, reg=1.0)
    assert_close(plan, sinkhorn(x0.flatten(1), eps.flatten(1), reg=1.0)) and plan.dtype == F64
    assert optimal(x0, eps).dtype == torch.bfloat16


@every_seed
def test_pick_follows_the_plan(seed):
    """Counts of the drawn pairs, within 5 standard errors."""
    x0, eps = batches(seed, 3, 1)
    plan, n, g = sinkhorn(x0, eps, reg=2.0), 4000, generator(seed)
    counts = sum((pick(plan, eps, generator=g)[:, None] == eps[None]).all(2).double() for _ in range(n))
    share = 3 * plan
    assert ((counts / n - share).abs() < 5 * (share * (1 - share) / n).sqrt() + 1e-3).all()


@every_seed
def test_a_permutation_as_a_plan_is_picked_exactly(seed):
    _, eps = batches(seed, 6, 2)
    order = torch.randperm(6, generator=generator(seed))
    assert torch.equal(pick(torch.eye(6)[order] / 6, eps), eps[order])


# A coupling of batches keeps the marginals


@pytest.mark.parametrize(
    "couple",
    [optimal, lambda x, e: pick(sinkhorn(x, e, reg=0.3, tolerance=1e-2), e)],
    ids=["optimal", "sinkhorn"],
)
def test_the_noise_of_one_row_is_standard_normal(couple):
    """Over many batches, with 5 standard errors; and it does depend on the data."""
    torch.manual_seed(0)
    drawn, data = [], []
    for _ in range(1500):
        x0 = torch.randn(6, 1, dtype=F64).abs()
        drawn.append(couple(x0, torch.randn(6, 1, dtype=F64))[0, 0])
        data.append(x0[0, 0])
    drawn, data = torch.stack(drawn), torch.stack(data)
    for power, want, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - want) < 5 * math.sqrt(spread / 1500)
    assert np.corrcoef(drawn, data)[0, 1] > 0.5


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
    """x = t²: the integral of (1 - 2t)² is 1/3; on half of the time 2(1/2)³/… by quadrature."""
    times = grid(4000)
    assert straightness((times**2).view(-1, 1, 1), times).item() == pytest.approx(1 / 3, rel=1e-4)
    late = grid(4000, end=0.5)
    t = np.linspace(0.5, 1, 100_001)
    want = np.mean((1.5 - 2 * t) ** 2) * 0.5
    assert straightness((late**2).view(-1, 1, 1), late).item() == pytest.approx(want, rel=1e-3)


@every_seed
def test_the_drop_of_the_cost_is_straightness_plus_variance(seed):
    """Liu et al.'s identity for one Gaussian N(m, s²), where the flow and the variance are known."""
    s, m, n = 0.5, 1.5, 20_000
    mixture = GaussianMixture(*(torch.tensor(v, dtype=F64) for v in ([1.0], [[m]], [s**2])))
    oracle, times = MixtureOracle(mixture, Linear()), grid(100, end=1e-3)
    eps = torch.randn(n, 1, generator=generator(seed), dtype=F64)
    net = lambda x, t: oracle.predict("velocity", x, t)
    states = heun(net, Linear(), eps, times, trajectory=True)
    t = np.linspace(0, 1, 10_001)
    variance = np.mean(s**2 / (s**2 * (1 - t) ** 2 + t**2))  # of x' given x_t, over time
    drop = (m**2 + s**2 + 1) - (m**2 + (1 - s) ** 2)  # of E‖x0 - ε‖²: independent less monotone
    found = straightness(states, times)
    assert abs(found.mean().item() - (drop - variance)) < 5 * found.std().item() / math.sqrt(n) + 5e-3


# The loss


@every_seed
def test_a_coupling_in_the_loss(seed):
    """Against the mean square computed here from the same draws."""
    x0, seen = batches(seed, 8, 2)[0].float(), []
    net = lambda x, t: seen.append((x, t)) or torch.zeros_like(x)
    torch.manual_seed(seed)
    got = regression(Linear(), target="velocity", couple=optimal)(net, x0)
    torch.manual_seed(seed)
    t, eps = torch.rand(8), torch.randn(8, 2)
    eps = min((eps[list(p)] for p in itertools.permutations(range(8))), key=lambda e: (x0 - e).square().sum())
    assert_close(got, (eps - x0).square().mean())
    assert_close(seen[0][0], (1 - t)[:, None] * x0 + t[:, None] * eps)


def test_without_a_coupling_nothing_changes():
    x0 = batches(0, 8, 2)[0]
    net = lambda x, t: x
    values = []
    for couple in (None, lambda x, e: e):
        torch.manual_seed(0)
        values.append(regression(Cosine(), couple=couple)(net, x0))
    assert torch.equal(*values)


def test_labels_stay_with_their_data():
    """Only the noise is reordered."""
    x0, y, seen = torch.arange(6.0)[:, None], torch.arange(6), []

    def net(x, t, y):
        seen.append((x, t, y))
        return x

    regression(Linear(), target="velocity", times=lambda u: 0 * u, couple=optimal)(net, x0, y)
    assert torch.equal(seen[0][0], x0) and seen[0][2] is y  # at t = 0 the network sees the data


@every_seed
def test_pairs_that_are_given(seed):
    x0, eps = batches(seed, 9, 3)
    y, seen = torch.arange(9), []

    def net(x, t, y):
        seen.append((x, t, y))
        return 0.5 * x

    weight = lambda path, t: 1 + t
    got = paired(Cosine(), target="v", weight=weight, end=0.1)(net, x0, eps, y)
    xt, t, passed = seen[0]
    a, b = torch.cos(math.pi / 2 * t)[:, None], torch.sin(math.pi / 2 * t)[:, None]
    assert_close(xt, a * x0 + b * eps, rtol=1e-5, atol=1e-6)
    want = ((1 + t) * (0.5 * xt - (a * eps - b * x0)).square().mean(1)).mean()
    assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert passed is y and t.min() >= 0.1 and t.max() <= 0.9


@every_seed
def test_straight_pairs_are_learned_exactly(seed):
    """x0 = ε/2 + 1: the best velocity at time 1/2 is linear, and a linear network finds it."""
    eps = torch.randn(4000, 1, generator=generator(seed), dtype=F64)
    net = nn.Linear(1, 1, dtype=F64)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=40, tolerance_grad=1e-9)
    loss = paired(Linear(), times=lambda u: torch.full_like(u, 0.5))

    def closure():
        optimizer.zero_grad()
        value = loss(lambda x, t: net(x), eps / 2 + 1, eps)
        value.backward()
        return value

    optimizer.step(closure)  # x = 3ε/4 + 1/2, and ε - x0 = ε/2 - 1
    assert net.weight.item() == pytest.approx(2 / 3, abs=1e-4)
    assert net.bias.item() == pytest.approx(-4 / 3, abs=1e-4)


# Refusals

GOOD = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "function, first, second",
    [
        (optimal, "x0", "eps"),
        (lambda x, y: sinkhorn(x, y, reg=1.0), "x0", "eps"),
        (wasserstein, "x", "y"),
    ],
    ids=["optimal", "sinkhorn", "wasserstein"],
)
@pytest.mark.parametrize("x, y, match", [
    (GOOD, torch.zeros(4, 2), r"eps must have the shape of x0, \(3, 2\); got \(4, 2\)"),
    (GOOD, torch.zeros(3, 3), "eps must have the shape of x0"),
    (torch.zeros(0, 2), torch.zeros(0, 2), "x0 must be a floating-point tensor"),
    (torch.zeros(3), torch.zeros(3), "x0 must be a floating-point tensor"),
    (GOOD.int(), GOOD, "x0 must be a floating-point tensor"),
    (GOOD, GOOD.numpy(), "eps must be a floating-point tensor"),
    (GOOD * math.nan, GOOD, "x0 must be finite"),
    (GOOD, GOOD + math.inf, "eps must be finite"),
])  # fmt: skip
def test_bad_batches(function, first, second, x, y, match):
    with pytest.raises(ValueError, match="^" + match.replace("x0", first).replace("eps", second)):
        function(x, y)


@pytest.mark.parametrize("reg", [0, -1.0, math.inf, math.nan])
def test_bad_reg(reg):
    with pytest.raises(ValueError, match="reg must be positive and finite"):
        sinkhorn(GOOD, GOOD, reg=reg)


@pytest.mark.parametrize("options", [{"tolerance": 0}, {"tolerance": math.nan}, {"steps": 0}, {"steps": 1.5}])
def test_bad_iterations(options):
    with pytest.raises(ValueError, match="tolerance must be positive and steps at least 1"):
        sinkhorn(GOOD, GOOD, reg=1.0, **options)


def test_sinkhorn_says_when_it_has_not_arrived():
    x0, eps = batches(0, 20, 2)
    with pytest.raises(ValueError, match=r"reg = 0\.001 is too small for 5 steps"):
        sinkhorn(x0, eps, reg=1e-3, steps=5)


@pytest.mark.parametrize("plan, match", [
    (torch.ones(2, 3), r"plan must have shape \(3, 3\); got \(2, 3\)"),
    (-torch.ones(3, 3), "plan must be finite and at least 0"),
    (torch.full((3, 3), math.nan), "plan must be finite and at least 0"),
    (torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 1, 1]]), "something in every row"),
])  # fmt: skip
def test_bad_plans(plan, match):
    with pytest.raises(ValueError, match=match):
        pick(plan, GOOD)


@pytest.mark.parametrize("times, match", [
    (torch.tensor([1.0, 0.0]), r"times must have shape \(3,\)"),
    (torch.zeros(3, 1), r"times must have shape \(3,\)"),
    (torch.tensor([1.0, 0.5, 0.5]), "times must rise or fall strictly"),
    (torch.tensor([1.0, 0.0, 0.5]), "times must rise or fall strictly"),
])  # fmt: skip
def test_bad_times(times, match):
    with pytest.raises(ValueError, match=match):
        straightness(torch.zeros(3, 2, 2), times)


@pytest.mark.parametrize("couple, match", [
    (lambda x, e: e[:-1], r"couple must return the shape of x, \(8, 2\); got \(7, 2\)"),
    (lambda x, e: None, "couple must return the shape of x.*got NoneType"),
    (lambda x, e: e * math.nan, "couple returned NaN or infinity"),
])  # fmt: skip
def test_bad_couplings(couple, match):
    with pytest.raises(ValueError, match=match):
        regression(Linear(), couple=couple)(lambda x, t: x, torch.zeros(8, 2))


@pytest.mark.parametrize("end", [-0.1, 0.5, math.nan])
def test_bad_ends(end):
    with pytest.raises(ValueError, match=r"end must be in \[0, 0.5\)"):
        paired(Linear(), end=end)


def test_pairs_of_two_shapes():
    with pytest.raises(ValueError, match="eps must have the shape of x0"):
        paired(Linear(), times=lambda u: u)(lambda x, t: x, torch.zeros(8, 2), torch.zeros(8, 3))
