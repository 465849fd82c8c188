"""Seeds and k-means, against scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from course_lib.mixture.kmeans import INITS, k_means, seeds
from course_lib.points import nearest

SEEDS = range(3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def points(seed, n=300, d=3, dtype=torch.float64):
    """Three overlapping clouds."""
    g = generator(seed)
    return (torch.randn(n, d, generator=g) + 2 * torch.randint(3, (n, 1), generator=g)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n, d, k", [(300, 3, 7), (5, 1, 1), (3000, 2, 1000)])  # the last comes in chunks
def test_nearest(n, d, k, dtype):
    x, centers = points(0, n, d, dtype), points(1, k, d, dtype)
    distance = cdist(x.double(), centers.double())
    found = nearest(x, centers)
    assert found.shape == (n,)
    chosen = distance[np.arange(n), found]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-12 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("dtype, offset", [(torch.float32, 2.0**16), (torch.float64, 2.0**40)])
def test_far_from_the_origin(dtype, offset):
    """On a grid of eighths the offset rounds nothing, so that it must change nothing."""
    x = (points(0, 1000, 2) * 8).round().to(dtype) / 8
    near, far = k_means(x, x[:4]), k_means(x + offset, x[:4] + offset)
    assert torch.equal(nearest(x, x[:4]), nearest(x + offset, x[:4] + offset))
    assert (near[1] != far[1]).double().mean() < 0.01  # points half-way may go to either side
    torch.testing.assert_close(far[0] - offset, near[0], atol=0.05, rtol=0)


def test_many_points_far_from_the_origin_in_float32():
    """The sum of the points themselves would be off by far more than their spread."""
    x = 1e4 + torch.randn(200_000, 1, generator=generator(0))
    centers, _ = k_means(x, x[:1])
    assert abs(centers.item() - x.double().mean().item()) < 1e-2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_means_against_sklearn(seed, k):
    x = points(seed)
    centers, labels = k_means(x, x[:k])
    theirs = KMeans(k, init=x[:k].numpy(), n_init=1, tol=0, max_iter=100).fit(x.numpy())
    inertia = (x - centers[labels]).square().sum().item()
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    np.testing.assert_allclose(centers, theirs.cluster_centers_, atol=1e-9)


@pytest.mark.parametrize("max_iter", [0, 1, 2, 5])
def test_each_round_lowers_the_inertia_and_labels_belong_to_the_centers(max_iter):
    x = points(0)
    (centers, labels), (after, after_labels) = (
        k_means(x, x[:5], max_iter=m) for m in (max_iter, max_iter + 1)
    )
    assert torch.equal(labels, nearest(x, centers))
    assert (x - after[after_labels]).square().sum() < (x - centers[labels]).square().sum()


def test_a_center_without_points_stays():
    x = points(0)
    lost = torch.full((1, 3), 1e3, dtype=x.dtype)
    centers, labels = k_means(x, torch.cat([x[:2], lost]))
    assert torch.equal(centers[2:], lost)
    assert set(labels.tolist()) == {0, 1}


def test_centers_that_are_not_finite_or_none_are_refused():
    for bad in (torch.full((2, 3), torch.nan, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="centers must"):
            k_means(points(0), bad)


def test_one_far_point_in_float32():
    """Its center lies at −99999, and the other two where they belong."""
    x = torch.cat([torch.randn(2000, 1, generator=generator(0)) * 0.5, torch.tensor([[-99999.0]])])
    x[:1000] += 8
    centers, labels = k_means(x, torch.tensor([[1.0], [6.0], [-9e4]]))
    assert abs(centers[0]) < 0.1 and abs(centers[1] - 8) < 0.1 and centers[2] == -99999
    assert (labels[:1000] == 1).all() and (labels[1000:2000] == 0).all()


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_float32_at_any_scale(scale):
    x = points(0, dtype=torch.float32)
    chosen = seeds(x * scale, 4, generator=generator(0))
    want = KMeans(4, init=(chosen / scale).double().numpy(), n_init=1, tol=0).fit(x.double().numpy())
    centers, labels = k_means(x * scale, chosen)
    np.testing.assert_allclose(centers / scale, want.cluster_centers_, atol=1e-3)
    assert (labels.numpy() != want.labels_).mean() < 0.01


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_are_different_points(seed, init):
    x = points(seed)
    chosen = seeds(x, 20, init=init, generator=generator(seed))
    assert (cdist(chosen, x) == 0).any(1).all()
    assert len(chosen.unique(dim=0)) == len(chosen) == 20


@pytest.mark.parametrize("init", INITS)
def test_seeds_follow_the_generator(init):
    x = points(0)
    first, again, other = (seeds(x, 6, init=init, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3) and first.dtype == x.dtype


@pytest.mark.parametrize("init", INITS)
def test_as_many_seeds_as_points(init):
    x = points(0, 6)
    assert torch.equal(seeds(x, 6, init=init, generator=generator(0)).unique(dim=0), x.unique(dim=0))


@pytest.mark.parametrize("seed", SEEDS)
def test_k_means_refines_the_seeds_of_k_means_plus_plus(seed):
    x = points(seed)
    plus = seeds(x, 4, init="k-means++", generator=generator(seed))
    theirs = KMeans(4, init=plus.numpy(), n_init=1, tol=0, max_iter=100).fit(x.numpy())
    refined = seeds(x, 4, init="k-means", generator=generator(seed))
    np.testing.assert_allclose(refined, theirs.cluster_centers_, atol=1e-9)


def frequencies(x, k, init, seed, draws=2000):
    """How often each point, recognized by its value, is the last of k seeds."""
    g = generator(seed)
    last = torch.cat([seeds(x, k, init=init, generator=g)[-1:] for _ in range(draws)])
    return (last == x.T).double().mean(0), draws


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_how_seeds_are_drawn(seed, init):
    """The second seed: 2000 draws, standard error sqrt(p (1 − p) / 2000); 5 are allowed."""
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.5]], dtype=torch.float64)
    squared = cdist(x, x) ** 2  # row: the first seed, which is uniform; column: the second
    want = {"k-means++": (squared / squared.sum(1, keepdims=True)).mean(0), "random": np.full(5, 0.2)}[init]
    got, draws = frequencies(x, 2, init, seed)
    assert (np.abs(got.numpy() - want) < 5 * np.sqrt(want * (1 - want) / draws)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_third_seed_is_far_from_both_others(seed):
    """What counts is the nearest of both: one seed from each pair and the lone point, nearly surely."""
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1], [100.0]])
    chosen = seeds(x, 3, generator=generator(seed))
    assert len((chosen / 9).round().unique()) == 3


@pytest.mark.parametrize("k, init, match", [
    (0, "k-means++", "k must"),
    (301, "random", "k must be at most the number of points, 300"),
    (3, "kmeans", "init must be one of"),
])  # fmt: skip
def test_bad_requests(k, init, match):
    with pytest.raises(ValueError, match=match):
        seeds(points(0), k, init=init)


@pytest.mark.parametrize("init", ["k-means++", "k-means"])
def test_too_few_distinct_points(init):
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(10, 1)
    assert len(seeds(x, 2, init=init).unique(dim=0)) == 2
    with pytest.raises(ValueError, match="x has only 2 distinct points; 3 seeds"):
        seeds(x, 3, init=init)
