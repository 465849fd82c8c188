"""Metrics of samples, against definitions in NumPy and SciPy, closed forms for normals, and torchmetrics."""

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

from course_lib.metrics.samples import (
    cubic,
    extract,
    frechet,
    frechet_distance,
    inception_score,
    kid,
    kid_subsets,
    mmd,
    mode_coverage,
    precision_recall,
    rbf,
)

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


@pytest.mark.parametrize("metric", [frechet, kid, lambda x, y: mmd(x, y, rbf(0.7)), precision_recall])
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
    for metric in (lambda x, y: mmd(x, y, rbf(0.1)), precision_recall):
        assert metric(x + 2**22, y + 2**22) == pytest.approx(metric(x, y), rel=1e-12)


# ---- precision and recall


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_definition(k, seed):
    """Each point beside each, in NumPy; more rows than are taken at a time."""
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(1100, 2)), 0.8 * rng.normal(size=(300, 2)) + 0.5

    def share(points, support):
        distance = np.linalg.norm(support[:, None] - support[None], axis=2)
        radii = np.sort(distance, axis=1)[:, k]
        return np.mean([(np.linalg.norm(support - p, axis=1) <= radii).any() for p in points])

    got = precision_recall(torch.from_numpy(real), torch.from_numpy(fake), k=k)
    assert got == pytest.approx((share(fake, real), share(real, fake)))
    assert precision_recall(torch.from_numpy(fake), torch.from_numpy(real), k=k) == got[::-1]


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


# ---- modes


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
    with pytest.raises(ValueError, match=r"features must map 10 images to \(10, D\); got \(10, 1, 2, 2\)"):
        extract(lambda x: x, images)
    with pytest.raises(ValueError, match="batch must be an integer of at least 1; got 0"):
        extract(features, images, batch=0)
    for bad, got in ((images.numpy(), "ndarray"), (None, "NoneType"), (images[:0], r"\(0, 1, 2, 2\)")):
        with pytest.raises(ValueError, match=f"images must be a tensor of at least one image; got {got}"):
            extract(features, bad)
    with pytest.raises(ValueError, match="features must return a tensor; got dict"):
        extract(lambda x: {"p": x}, images)


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
    (1, torch.eye(2, dtype=torch.complex64), "cov1 must be real; got torch.complex64"),
])  # fmt: skip
def test_bad_moments(place, value, match):
    given = list(GOOD)
    given[place] = value
    with pytest.raises(ValueError, match=match):
        frechet_distance(*given)


SETS = [
    ("x", "y", 2, frechet),
    ("x", "y", 2, kid),
    ("x", "y", 2, lambda x, y: mmd(x, y, rbf(1.0))),
    ("x", "y", 2, lambda x, y: kid_subsets(x, y, size=2)),
    ("real", "fake", 4, precision_recall),
    ("samples", "centres", 1, lambda x, y: mode_coverage(x, y, 1.0)),
]


@pytest.mark.parametrize("first, second, least, metric", SETS)
def test_bad_features(first, second, least, metric):
    good = torch.zeros(4, 2)
    few = f"of at least {least} samples; got"
    for x, y, match in [
        (torch.zeros(4), good, rf"{first} must be features \(N, D\).*got \(4,\)"),
        (good, torch.zeros(least - 1, 2), rf"{second} must be features .*{few} \({least - 1}, 2\)"),
        (np.zeros((4, 2)), good, f"{first} must be features .*got ndarray"),
        (torch.zeros(4, 0), torch.zeros(4, 0), rf"{first} must be features .*got \(4, 0\)"),
        (good, torch.zeros(4, 3), f"{second} must have as many features as {first}, 2; got 3"),
        (torch.full((4, 2), math.nan), good, f"{first} must be finite"),
        (good, torch.full((4, 2), math.inf), f"{second} must be finite"),
        (good, good * 1j, f"{second} must be real; got torch.complex64"),
    ]:
        with pytest.raises(ValueError, match=match):
            metric(x, y)


@pytest.mark.parametrize("call, match", [
    (lambda z: rbf(0), "bandwidth must be positive and finite; got 0"),
    (lambda z: rbf(math.inf), "bandwidth must be positive and finite; got inf"),
    (lambda z: kid(z.double() + 1e200, z), "kernel must return finite values"),
    (lambda z: kid_subsets(z, z.double() + 1e200, size=2), "kernel must return finite values"),
    (lambda z: mmd(z, z, lambda x, y: x @ y.T / 0), "kernel must return finite values"),
    (lambda z: frechet(z, (z.double() + 1e200).cumsum(0)), "y must not be so large that its covariance"),
    (lambda z: mmd(z, z, lambda x, y: x), r"kernel must return \(5, 5\); got \(5, 2\)"),
    (lambda z: kid_subsets(z, z), "size must be an integer from 2 to 5; got 1000"),
    (lambda z: kid_subsets(z, z, size=1), "size must be an integer from 2 to 5; got 1"),
    (lambda z: kid_subsets(z, z, size=2.0), "size must be an integer from 2 to 5; got 2.0"),
    (lambda z: kid_subsets(z, z, size=3, subsets=0), "subsets must be an integer of at least 1; got 0"),
    (lambda z: precision_recall(z, z, k=0), "k must be an integer of at least 1; got 0"),
    (lambda z: precision_recall(z, z, k=5), "real must be features .* at least 6 samples"),
    (lambda z: inception_score(z[0]), r"logits must be features \(N, D\) of at least 1 samples; got \(2,\)"),
    (lambda z: inception_score(z / 0), "logits must be finite"),
    (lambda z: mode_coverage(z, z, 0.0), "radius must be positive and finite; got 0.0"),
    (lambda z: mode_coverage(z, z, 1.0, share=1.5), r"share must be in \[0, 1\]; got 1.5"),
])  # fmt: skip
def test_bad_options(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(5, 2))
