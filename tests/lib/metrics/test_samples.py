"""Metrics of samples, against definitions in NumPy and SciPy, closed forms for normals, and torchmetrics."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.special import softmax
from scipy.stats import entropy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from course_lib.metrics import samples
from course_lib.metrics.samples import (
    cubic,
    extract,
    frechet,
    frechet_distance,
    inception_score,
    kid,
    kid_subsets,
    mmd,
    rbf,
    wasserstein,
)

F64 = torch.float64
SEEDS = range(3)


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


def test_a_distance_of_0_is_not_negative_by_rounding():
    for seed in range(40):
        x = torch.randn(20, 40, dtype=F64, generator=torch.Generator().manual_seed(seed))
        assert 0 <= frechet(x, x) < 1e-12


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


def normal_samples(n: int, mean: torch.Tensor, cov: torch.Tensor, k: torch.Generator) -> torch.Tensor:
    return mean + torch.randn(n, len(mean), dtype=F64, generator=k) @ torch.linalg.cholesky(cov).T


def within(values: list[float], want: float, errors: float = 5.0) -> bool:
    """The mean is within so many of its standard errors."""
    return abs(np.mean(values) - want) < errors * np.std(values, ddof=1) / len(values) ** 0.5


# ---- the bias of the Fréchet distance


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [5, 50])
def test_frechets_bias_on_a_line_is_exact(n, seed):
    """Against the true N(0, 1): E x̄² + E (s - 1)² = 1/n + 2 - 2 E s, and E s is known in closed form."""
    root = math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2)) * (2 / (n - 1)) ** 0.5  # E s
    x = torch.randn(3000, n, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))
    zero, one = torch.zeros(1), torch.eye(1)
    got = [frechet_distance(s.mean(0), s.var(0)[None], zero, one) for s in x]
    assert within(got, 1 / n + 2 - 2 * root)


@pytest.mark.parametrize("seed", SEEDS)
def test_frechets_bias_as_stated(seed):
    """c/N where the distance is 0: from a covariance's eigenvalues, and D (D + 5)/2 for the unit matrix."""
    k, n, D = torch.Generator().manual_seed(seed), 400, 4
    turn = torch.linalg.qr(torch.randn(D, D, dtype=F64, generator=k)).Q
    for values in (torch.ones(D), torch.tensor([4.0, 1.0, 0.5, 0.1])):
        cov = turn @ values.double().diag() @ turn.T
        sets = [normal_samples(n, torch.zeros(D, dtype=F64), cov, k) for _ in range(200)]
        got = [n * frechet(x, y) for x, y in zip(sets[::2], sets[1::2], strict=True)]
        c = 2 * sum(values) + sum(
            (1 + (i == j)) * values[i] * values[j] / (values[i] + values[j])
            for i in range(D)
            for j in range(D)
        )
        assert c == pytest.approx(D * (D + 5) / 2) or values.unique().numel() > 1
        assert abs(np.mean(got) - c.item()) < 5 * np.std(got, ddof=1) / 10 + 0.03 * c.item()  # of order 1/N²


# ---- MMD and KID


def double_loop(x: np.ndarray, y: np.ndarray, k) -> float:
    """The U-statistic, pair by pair."""
    mean = lambda pairs: sum(k(a, b) for a, b in pairs) / len(pairs)
    same = lambda z: [(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    return mean(same(x)) + mean(same(y)) - 2 * mean([(a, b) for a in x for b in y])


@pytest.mark.parametrize("seed", SEEDS)
def test_mmd_pair_by_pair(seed):
    k = torch.Generator().manual_seed(seed)
    x, y = torch.randn(9, 3, dtype=F64, generator=k), torch.rand(6, 3, dtype=F64, generator=k)
    want = double_loop(x.numpy(), y.numpy(), lambda a, b: (sum(a * b) / 3 + 1) ** 3)
    assert kid(x, y) == pytest.approx(want, rel=1e-12) == mmd(x, y, cubic)
    want = double_loop(x.numpy(), y.numpy(), lambda a, b: math.exp(-sum((a - b) ** 2) / (2 * 0.7**2)))
    assert mmd(x, y, rbf(0.7)) == pytest.approx(want, rel=1e-12)
    assert mmd(x.float(), y.float(), rbf(0.7)) == pytest.approx(want, rel=1e-5)


def cubic_between(mean1, cov1, mean2, cov2) -> float:
    """E (xᵀy/D + 1)³ of independent normals, from the first three moments of each."""

    def moments(m, S):
        second = S + torch.outer(m, m)
        mixed = torch.einsum("ij,k->ijk", S, m)
        third = torch.einsum("i,j,k->ijk", m, m, m) + mixed + mixed.permute(0, 2, 1) + mixed.permute(2, 0, 1)
        return m, second, third

    powers = [(a * b).sum() for a, b in zip(moments(mean1, cov1), moments(mean2, cov2), strict=True)]
    D = len(mean1)
    return (1 + 3 * powers[0] / D + 3 * powers[1] / D**2 + powers[2] / D**3).item()


def rbf_between(mean1, cov1, mean2, cov2, h: float) -> float:
    """E exp(-‖x - y‖²/2h²) of independent normals: a Gaussian integral."""
    D, total, gap = len(mean1), cov1 + cov2, mean1 - mean2
    shrink = torch.linalg.det(torch.eye(D, dtype=F64) + total / h**2) ** -0.5
    return (
        shrink * torch.exp(-gap @ torch.linalg.solve(total + h**2 * torch.eye(D, dtype=F64), gap) / 2)
    ).item()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("apart", [True, False])
def test_mmd_is_unbiased(n, apart, seed):
    """For two normals its mean is the population's value, whatever n; 0 if they are equal."""
    first = normal(3, seed)
    second = normal(3, seed + 50) if apart else first
    k = torch.Generator().manual_seed(seed)
    sets = [(normal_samples(n, *first, k), normal_samples(n + 2, *second, k)) for _ in range(400)]
    mean_of = lambda e: e(*first, *first) + e(*second, *second) - 2 * e(*first, *second)
    assert within([kid(x, y) for x, y in sets], mean_of(cubic_between))
    assert within([mmd(x, y, rbf(1.5)) for x, y in sets], mean_of(lambda *m: rbf_between(*m, 1.5)))


@pytest.mark.parametrize("seed", SEEDS)
def test_mmds_spread_falls_as_stated(seed):
    """By 16 for 16 times the samples if the distributions are equal, by 4 if they are not."""
    k = torch.Generator().manual_seed(seed)
    spread = lambda n, move: np.std(
        [
            mmd(torch.randn(n, 2, dtype=F64, generator=k), torch.randn(n, 2, generator=k) + move, rbf(1.0))
            for _ in range(200)
        ]
    )
    assert 16 / 1.5 < spread(10, 0.0) / spread(160, 0.0) < 16 * 1.5
    assert 4 / 1.5 < spread(10, 2.0) / spread(160, 2.0) < 4 * 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_subsets(seed):
    k = torch.Generator().manual_seed(seed)
    x, y = torch.randn(40, 5, dtype=F64, generator=k), torch.rand(60, 5, dtype=F64, generator=k)
    draws = kid_subsets(x, y, subsets=400, size=8, generator=k)
    assert draws.shape == (400,) and draws.dtype == F64
    assert within(draws.tolist(), kid(x, y))
    again = [kid_subsets(x, y, subsets=3, size=8, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*again)
    whole = kid_subsets(x, y[:40], subsets=2, size=40)  # all samples: only their order is drawn
    assert whole.tolist() == pytest.approx([kid(x, y[:40])] * 2, rel=1e-10)


# ---- precision of the arithmetic


@pytest.mark.parametrize("metric", [frechet, kid, lambda x, y: mmd(x, y, rbf(0.7))])
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_features_far_from_0_lose_no_digits(metric, seed):
    k = torch.Generator().manual_seed(seed)
    x, y = 1000 + torch.randn(200, 5, generator=k), 1000.5 + torch.randn(150, 5, generator=k)
    assert x.dtype == torch.float32
    assert metric(x, y) == pytest.approx(metric(x.double(), y.double()), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_distances_do_not_depend_on_where_0_is(seed):
    """Coordinates of few digits, so that shifting them is exact."""
    x, y = torch.randint(1024, (2, 300, 2), generator=torch.Generator().manual_seed(seed)).double() / 1024
    metric = lambda x, y: mmd(x, y, rbf(0.1))
    assert metric(x + 2**22, y + 2**22) == pytest.approx(metric(x, y), rel=1e-12)


# ---- what goes through in parts


@pytest.mark.parametrize("kernel", [cubic, rbf(1.0)])
def test_mmd_in_chunks(monkeypatch, kernel):
    x, y = torch.randn(2, 30, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    want = mmd(x, y[:25], kernel)
    monkeypatch.setattr(samples, "ROWS", 7)
    assert mmd(x, y[:25], kernel) == pytest.approx(want, rel=1e-12)


# ---- W2


@pytest.mark.parametrize("seed", SEEDS)
def test_wasserstein_is_that_of_the_best_of_all_orders(seed):
    x, y = torch.randn(2, 6, 2, 20, generator=torch.Generator().manual_seed(seed))
    apart = (x.double()[:, None] - y.double()).square().sum((2, 3))
    want = min(apart[range(6), list(order)].mean() for order in itertools.permutations(range(6)))
    assert wasserstein(x, y) == pytest.approx(math.sqrt(want), rel=1e-12)
    assert wasserstein(x, x[torch.randperm(6)]) == 0
    assert wasserstein(x + 1e4, y + 1e4) == pytest.approx(math.sqrt(want), rel=1e-2)  # as x + 1e4 is rounded


# ---- inception score


@pytest.mark.parametrize("seed", SEEDS)
def test_inception_score_by_definition(seed):
    logits = 3 * torch.randn(50, 7, dtype=F64, generator=torch.Generator().manual_seed(seed))
    p = softmax(logits.numpy(), axis=1)
    want = math.exp(np.mean([entropy(row, p.mean(0)) for row in p]))
    assert inception_score(logits) == pytest.approx(want, rel=1e-10)
    assert inception_score(logits + 100 * torch.randn(50, 1)) == pytest.approx(want, rel=1e-6)


def test_inception_scores_limits():
    assert inception_score(torch.zeros(5, 4)) == pytest.approx(1)  # no class is told apart
    assert inception_score(1000 * torch.eye(6).repeat(3, 1)) == pytest.approx(6)  # all, equally often
    assert inception_score(1000 * torch.eye(6)[[0, 0, 1, 1]]) == pytest.approx(2)  # two of six


@pytest.mark.parametrize("seed", SEEDS)
def test_inception_scores_bias(seed):
    """A classifier that is always certain, C classes equally likely: log C - (C - 1)/2N on average."""
    k, n, classes = torch.Generator().manual_seed(seed), 100, 5
    labels = torch.randint(classes, (2000, n), generator=k)
    logs = [math.log(inception_score(1e4 * torch.eye(classes)[row])) for row in labels]
    want = math.log(classes) - (classes - 1) / (2 * n)
    assert abs(np.mean(logs) - want) < 5 * np.std(logs) / 2000**0.5 + 2 * classes**2 / (12 * n**2)


# ---- extraction


def test_extract_goes_batch_by_batch():
    sizes = []

    def features(x):
        sizes.append(len(x))
        return x.flatten(1).requires_grad_()

    images = torch.arange(40.0).view(10, 1, 2, 2)
    got = extract(features, images, batch=4)
    assert torch.equal(got, images.flatten(1)) and sizes == [4, 4, 2]
    assert not got.requires_grad


def test_extract_leaves_a_network_as_it_was():
    """In training mode a batch norm would move its mean, and a dropout drop."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.rand(10, 1, 2, 2)
    for features in (net, net.forward):
        torch.testing.assert_close(extract(features, x, batch=5), x.flatten(1), rtol=1e-4, atol=0)
        assert [m.training for m in net] == [True, True, False]
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- torchmetrics


class Same(torch.nn.Module):
    """A feature network that passes its input on."""

    num_features = 5

    def forward(self, x):
        return x.flatten(1)[:, :5]


def images_for_torchmetrics() -> torch.Tensor:
    return torch.rand(2, 60, 1, 5, 1, generator=torch.Generator().manual_seed(0))


def test_frechet_as_torchmetrics():
    x, y = images_for_torchmetrics()
    theirs = FrechetInceptionDistance(feature=Same(), normalize=True, input_img_size=(1, 5, 1))
    theirs.update(x, real=True)
    theirs.update(y**2, real=False)
    assert frechet(x.flatten(1), (y**2).flatten(1)) == pytest.approx(theirs.compute().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted")
def test_kid_as_torchmetrics():
    """A subset of all samples leaves nothing to chance."""
    x, y = images_for_torchmetrics()
    theirs = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=60, normalize=True)
    theirs.update(x, real=True)
    theirs.update(y**2, real=False)
    assert kid(x.flatten(1), (y**2).flatten(1)) == pytest.approx(theirs.compute()[0].item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings("ignore:std")  # of their one part
def test_inception_score_as_torchmetrics():
    """Its images are bytes; its network makes logits of them, which ours takes."""

    class Logits(Same):
        def forward(self, x):
            return super().forward(x).float() / 40

    x = (255 * images_for_torchmetrics()[0]).byte()
    theirs = InceptionScore(feature=Logits(), splits=1)
    theirs.update(x)
    assert inception_score(Logits()(x)) == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


# ---- refusals


@pytest.mark.parametrize("call, match", [
    (lambda z: frechet(z, z.double() * 1e200), "the covariance of y must be finite"),
    (lambda z: frechet(z, z[:1]), "y must hold at least 2 samples; got 1"),
    (lambda z: frechet(z / 0, z), "x must be finite"),
    (lambda z: frechet(z, z[:, :1]), "y must be floating-point"),
    (lambda z: frechet_distance(z[0], -torch.eye(2), z[0], torch.eye(2)), "cov1 must be symmetric"),
    (lambda z: mmd(z, z, lambda x, y: x), r"kernel must return .*; got \(5, 2\)"),
    (lambda z: kid_subsets(z, z), "size must be at most the number of samples, 5; got 1000"),
    (lambda z: inception_score(z / 0), "logits must be finite"),
    (lambda z: wasserstein(z, z[:4]), "y must be floating-point"),
])  # fmt: skip
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.arange(10.0).view(5, 2))
