"""Precision and recall, and modes, against definitions in NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch

from course_lib.metrics import coverage
from course_lib.metrics.coverage import mode_coverage, precision_recall

F64 = torch.float64
SEEDS = range(3)


def within(values: list[float], want: float, errors: float = 5.0) -> bool:
    """The mean is within so many of its standard errors."""
    return abs(np.mean(values) - want) < errors * np.std(values, ddof=1) / len(values) ** 0.5


def by_definition(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float]:
    """Each point beside each, from differences in float64."""
    real, fake = real.double().numpy(), fake.double().numpy()

    def share(points, support):
        radii = [np.sort(((support - p) ** 2).sum(1))[k] for p in support]
        return np.mean([(((support - p) ** 2).sum(1) <= radii).any() for p in points])

    return share(fake, real), share(real, fake)


def offset(x: torch.Tensor) -> torch.Tensor:
    return 100 + 0.01 * x


def clusters(x: torch.Tensor) -> torch.Tensor:
    """Five, with structure far below the rounding of a product in float32, and in one far below float64's."""
    places = torch.tensor([0.0, 1e4, -1e4, 1e9, 2e9])
    return (
        places[torch.arange(len(x)) % 5, None]
        + x * torch.tensor([1e-3, 1.0, 1e-3, 1e-1, 1])[torch.arange(len(x)) % 5, None]
    ).double()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("D", [2, 40])
@pytest.mark.parametrize("make", [lambda x: x, offset, clusters, lambda x: 1e25 * x, lambda x: 1e-25 * x])
@pytest.mark.parametrize("seed", SEEDS)
def test_precision_and_recall_by_definition(seed, make, D, k, monkeypatch):
    monkeypatch.setattr(coverage, "CHUNK", 2**13)  # several parts
    rng = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(300, D, generator=rng), 0.8 * torch.randn(150, D, generator=rng) + 0.1
    real, fake = make(real), make(fake)
    got = precision_recall(real, fake, k=k)
    assert got == by_definition(real, fake, k)
    assert precision_recall(fake, real, k=k) == got[::-1]


def test_many_equal_points():
    """More than there are spare candidates for a neighbour."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).repeat(30, 1)
    other = x[:100] + 1e-3
    assert precision_recall(x, other) == by_definition(x, other, 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_precision_and_recall_on_a_line_tend_to_a_factor_below_1(k, seed):
    """1 - 4^-k, if no ball of a neighbour reaches the point from either side; whatever the densities."""
    draw = torch.Generator().manual_seed(seed)
    for power in (1, 0.5):  # equal densities on [0, 1]; 1 and 2x
        pairs = [torch.rand(2, 500, 1, dtype=F64, generator=draw) for _ in range(40)]
        for values in zip(*(precision_recall(x, y**power, k=k) for x, y in pairs), strict=True):
            ends = 0.01  # where a density stops there are fewer neighbours
            assert abs(np.mean(values) - (1 - 4.0**-k)) < 5 * np.std(values, ddof=1) / 40**0.5 + ends


def test_precision_without_recall():
    """Samples of one mode of two: all are like data, half of the data are not like them."""
    k = torch.Generator().manual_seed(0)
    real = torch.randn(400, 2, generator=k) + torch.tensor([[20.0, 0.0], [-20.0, 0.0]]).repeat(200, 1)
    fake = 0.5 * torch.randn(400, 2, generator=k) + torch.tensor([20.0, 0.0])
    got = precision_recall(real, fake)
    assert got.precision > 0.9 and 0.3 < got.recall < 0.5
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    assert precision_recall(torch.zeros(5, 2), torch.zeros(6, 2)) == (
        1,
        1,
    )  # balls of radius 0 hold their centre


def test_mode_coverage_counts():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = torch.tensor([[0.5, 0.0], [0.0, 1.0], [10.0, 0.9], [5.0, 5.0], [0.0, 8.9]])
    got = mode_coverage(samples, centres, 1.0)
    assert got.covered == 2 and got.quality == 3 / 5 and got.counts.tolist() == [2, 1, 0]
    assert mode_coverage(samples, centres, 1.2).counts.tolist() == [2, 1, 1]
    assert [mode_coverage(samples, centres, 1.0, share=s).covered for s in (0.2, 0.21, 0.4, 1.0)] == [
        2,
        1,
        1,
        0,
    ]
    assert mode_coverage(samples + 100, centres, 1.0)[:2] == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_quality_of_a_perfect_sampler(seed):
    """In two dimensions within three standard deviations: 1 - exp(-9/2)."""
    k, n = torch.Generator().manual_seed(seed), 20_000
    angle = torch.arange(8) * math.pi / 4
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    samples = centres[torch.randint(8, (n,), generator=k)] + 0.02 * torch.randn(n, 2, generator=k)
    got, q = mode_coverage(samples, centres, 0.06, share=0.1), 1 - math.exp(-4.5)
    assert got.covered == 8 and got.counts.sum() == round(got.quality * n)
    assert abs(got.quality - q) < 5 * (q * (1 - q) / n) ** 0.5


def test_few_samples_cover_too_few_modes():
    """N draws of K equal modes reach K (1 - (1 - 1/K)^N) of them on average."""
    k, centres = torch.Generator().manual_seed(0), 10.0 * torch.arange(25.0)[:, None]
    got = [
        mode_coverage(centres[torch.randint(25, (30,), generator=k)], centres, 1.0).covered
        for _ in range(400)
    ]
    assert within(got, 25 * (1 - (1 - 1 / 25) ** 30))


@pytest.mark.parametrize("call, match", [
    (lambda z: precision_recall(z, z, k=0), "k must be an integer of at least 1; got 0"),
    (lambda z: precision_recall(z, z, k=5), "real must hold at least 6 samples; got 5"),
])  # fmt: skip
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(5, 2))
