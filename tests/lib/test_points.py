"""Squared distances and nearest centers, against differences in float64, where products lose digits."""

import pytest
import torch

from course_lib import points
from course_lib.points import nearest, squared_distances

F32, F64 = torch.float32, torch.float64
SEEDS = range(5)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def exact(x, y):
    """(N, M), from differences in float64."""
    return (x.double()[:, None] - y.double()).square().sum(2)


def far_code(seed, D=8):
    x, c = normal(500, D, seed=seed), normal(20, D, seed=seed + 50)
    c[3] = 1e5
    return x, c


def clusters(seed, D=8):
    """Fine structure, 0.01 wide, in clusters 1e5 apart."""
    places = 1e5 * normal(4, D, seed=seed).sign()
    pick = torch.arange(600) % 4
    x = places[pick] + 0.01 * normal(600, D, seed=seed + 50)
    return x, (places[:, None] + 0.01 * normal(4, 6, D, seed=seed + 99)).flatten(0, 1)


def offset(seed, D=8):
    return 100 + 0.1 * normal(500, D, seed=seed), 100 + 0.1 * normal(30, D, seed=seed + 50)


def huge(seed, D=8):
    """Squares overflow in float32, and some are ordinary."""
    x, c = normal(300, D, seed=seed), normal(20, D, seed=seed + 50)
    x[::2] *= 1e25
    c[::2] *= 1e25
    return x, c


def lattice(seed, D=8):
    """Many centers as near as each other."""
    return normal(100, D, seed=seed).sign(), torch.cat([torch.eye(D), -torch.eye(D)]).double()


def usual(seed, D=8):
    return normal(3000, D, seed=seed), normal(200, D, seed=seed + 50)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("case", [usual, far_code, clusters, offset, huge, lattice])
@pytest.mark.parametrize("seed", SEEDS)
def test_nearest_is_that_of_differences_in_float64(seed, case, dtype):
    x, c = (v.to(dtype) for v in case(seed))
    distances = exact(x, c)
    chosen = distances.gather(1, nearest(x, c)[:, None])[:, 0]
    assert (chosen <= distances.amin(1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("case", [usual, far_code, offset])
def test_four_candidates_without_a_read_agree(case, monkeypatch):
    """What a GPU does with ``read=False``, here on the processor."""
    x, c = (v.float() for v in case(0))
    found = points._best_of_few(x, c, squared_distances(x, c))
    assert torch.equal(found, nearest(x, c))


def test_nearest_at_the_edges():
    x = normal(50, 3)
    assert (nearest(x, x[:1]) == 0).all()
    assert torch.equal(nearest(x, x), torch.arange(50))
    for scale in (1e200, 1e-200, 1e-310):  # squares overflow, vanish; numbers without all their digits
        assert torch.equal(nearest(scale * x, scale * x), torch.arange(50))
    half = nearest(x.to(torch.bfloat16), x.to(torch.bfloat16))
    assert torch.equal(half, nearest(x.to(torch.bfloat16).float(), x.to(torch.bfloat16).float()))
    assert nearest(x * torch.nan, x[:5]).shape == (50,)


def test_nearest_knows_of_autocast_and_short_products():
    x, c = (v.float() for v in offset(0, D=64))
    want = nearest(x, c)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(x, c), want)
        assert torch.allclose(squared_distances(x, c), exact(x, c).float(), rtol=1e-4, atol=0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest(x, c), want)
        assert torch.allclose(squared_distances(x, c), exact(x, c).float(), rtol=1e-4, atol=0)
    finally:
        torch.set_float32_matmul_precision(before)


def test_nearest_reads_nothing_back_and_changes_nothing():
    """No number goes from a tensor to Python; inputs stay."""
    x, c = far_code(0)
    before = x.clone(), c.clone()
    with torch.profiler.profile() as profile:
        nearest(x, c)
    assert "aten::_local_scalar_dense" not in {e.key for e in profile.key_averages()}
    assert torch.equal(x, before[0]) and torch.equal(c, before[1])


@pytest.mark.parametrize("D", [2, 64])
@pytest.mark.parametrize("dtype, rtol", [(F32, 2e-5), (F64, 1e-13)])
@pytest.mark.parametrize("case", [usual, far_code, clusters, offset])
@pytest.mark.parametrize("seed", SEEDS)
def test_squared_distances_lose_no_digits(seed, case, dtype, rtol, D):
    x, c = (v.to(dtype)[:200] for v in case(seed, D))
    torch.testing.assert_close(squared_distances(x, c).double(), exact(x, c), rtol=rtol, atol=0)
    assert (squared_distances(c, c).diagonal() == 0).all()


def test_squared_distances_have_gradients():
    x, y = normal(5, 40).requires_grad_(), normal(4, 40, seed=1)
    (found,) = torch.autograd.grad(squared_distances(x, y).sum(), x)
    torch.testing.assert_close(found, 2 * (x[:, None] - y).sum(1).detach())
