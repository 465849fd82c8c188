"""The Fréchet distance, against scipy's matrix root, closed forms, transport on a line, and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from course_lib.metrics import frechet, frechet_distance

F64 = torch.float64
SEEDS = range(5)


def normal(D: int, seed: int, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean, and a covariance of a rank."""
    k = torch.Generator().manual_seed(seed)
    factor = torch.randn(D, rank or D, dtype=F64, generator=k)
    return torch.randn(D, dtype=F64, generator=k), factor @ factor.T / D


def by_scipy(mean1, cov1, mean2, cov2) -> float:
    """Heusel's formula as it stands, with the root of the unsymmetric product."""
    root = sqrtm(cov1.numpy() @ cov2.numpy())
    return float((mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * np.trace(root).real)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("D", [1, 2, 7, 64])
def test_as_scipys_matrix_root(D, seed):
    first, second = normal(D, seed), normal(D, seed + 100)
    assert frechet_distance(*first, *second) == pytest.approx(by_scipy(*first, *second), rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_diagonal(seed):
    k = torch.Generator().manual_seed(seed)
    m1, m2, s1, s2 = torch.rand(4, 9, dtype=F64, generator=k)
    want = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum().item()
    assert frechet_distance(m1, s1.square().diag(), m2, s2.square().diag()) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_transport_on_a_line(seed):
    """Where one set is the other stretched and shifted, sorting it is the optimal transport."""
    x = torch.randn(500, dtype=F64, generator=torch.Generator().manual_seed(seed))
    y = (1.7 * x - 0.4)[torch.randperm(500, generator=torch.Generator().manual_seed(seed + 1))]
    n, got = 500, frechet(x[:, None], y[:, None])
    variance = (n / (n - 1) - 1) * (x.std(correction=0) - y.std(correction=0)) ** 2  # of N - 1 in place of N
    want = (x.sort().values - y.sort().values).square().mean() + variance
    assert got == pytest.approx(want.item(), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_invariances(seed):
    k = torch.Generator().manual_seed(seed)
    x, y = torch.randn(80, 6, dtype=F64, generator=k), torch.rand(50, 6, dtype=F64, generator=k)
    turn, move = torch.linalg.qr(torch.randn(6, 6, dtype=F64, generator=k)).Q, torch.randn(6, generator=k)
    want = frechet(x, y)
    assert frechet(y, x) == pytest.approx(want, rel=1e-10)
    assert frechet(x @ turn + move, y @ turn + move) == pytest.approx(want, rel=1e-9)
    assert frechet(3 * x, 3 * y) == pytest.approx(9 * want, rel=1e-10)
    assert frechet(x[torch.randperm(80, generator=k)], y) == pytest.approx(want, rel=1e-10)
    assert frechet(x.float(), y.float()) == pytest.approx(want, rel=1e-5)
    assert frechet(x, x) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_samples_than_dimensions(seed):
    """The rest of the space holds nothing: the distance is that within the plane of the samples."""
    k = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 5, 3, dtype=F64, generator=k)
    frame = torch.linalg.qr(torch.randn(40, 3, dtype=F64, generator=k)).Q  # (40, 3)
    assert frechet(x @ frame.T, y @ frame.T) == pytest.approx(frechet(x, y), rel=1e-6)


def test_no_variance_at_all():
    zero, mean = torch.zeros(3, 3), torch.ones(3)
    assert frechet_distance(mean, zero, -mean, zero) == 12
    assert frechet_distance(mean, zero, mean, torch.eye(3)) == pytest.approx(3)
    assert frechet(torch.ones(2, 4), torch.ones(3, 4)) == 0


def test_orthogonal_planes_share_nothing():
    one, two = torch.diag(torch.tensor([2.0, 0, 0])), torch.diag(torch.tensor([0.0, 3, 1]))
    assert frechet_distance(torch.zeros(3), one, torch.zeros(3), two) == pytest.approx(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_low_ranks_are_never_nan(seed):
    first, second = normal(30, seed, rank=4), normal(30, seed + 9, rank=29)
    for scale in (1e-12, 1.0, 1e12):
        got = frechet_distance(first[0], scale * first[1], second[0], scale * second[1])
        assert math.isfinite(got) and got >= 0


def test_as_torchmetrics():
    """Its own computation, with a feature network that passes features on."""
    image = pytest.importorskip("torchmetrics.image.fid")

    class Same(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.flatten(1)[:, :5]

    k = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 60, 1, 5, 1, generator=k)
    theirs = image.FrechetInceptionDistance(feature=Same(), normalize=True, input_img_size=(1, 5, 1))
    theirs.update(x, real=True)
    theirs.update(y**2, real=False)
    assert frechet(x.flatten(1), (y**2).flatten(1)) == pytest.approx(theirs.compute().item(), rel=1e-4)


GOOD = torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(2)


@pytest.mark.parametrize("place, value, match", [
    (0, torch.zeros(2, 1), r"mean1 must be a tensor of shape \(D,\)"),
    (0, [0.0, 0.0], r"mean1 must be a tensor.*got list"),
    (0, torch.zeros(0), r"mean1 must be a tensor of shape \(D,\) with D at least 1; got \(0,\)"),
    (1, torch.eye(3), r"cov1 must be a tensor of shape \(2, 2\); got \(3, 3\)"),
    (2, torch.zeros(3), r"mean2 must be a tensor of shape \(2,\); got \(3,\)"),
    (3, torch.zeros(2), r"cov2 must be a tensor of shape \(2, 2\); got \(2,\)"),
    (1, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "cov1 must be symmetric"),
    (3, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "cov2 must have no negative eigenvalue; got -1"),
    (3, torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "cov2 must be finite"),
    (2, torch.tensor([0.0, math.inf]), "mean2 must be finite"),
])  # fmt: skip
def test_bad_moments(place, value, match):
    given = list(GOOD)
    given[place] = value
    with pytest.raises(ValueError, match=match):
        frechet_distance(*given)


@pytest.mark.parametrize("x, y, match", [
    (torch.zeros(4), torch.zeros(4, 2), r"x must be features \(N, D\).*got \(4,\)"),
    (torch.zeros(4, 2), torch.zeros(1, 2), r"y must be features .* at least 2 samples; got \(1, 2\)"),
    (np.zeros((4, 2)), torch.zeros(4, 2), "x must be features .*got ndarray"),
    (torch.zeros(4, 2), torch.zeros(4, 3), "y must have as many features as x, 2; got 3"),
    (torch.full((4, 2), math.nan), torch.zeros(4, 2), "x must be finite"),
    (torch.zeros(4, 2), torch.full((4, 2), math.inf), "y must be finite"),
])  # fmt: skip
def test_bad_features(x, y, match):
    with pytest.raises(ValueError, match=match):
        frechet(x, y)
