"""The prior over codes: against sums over all grids, its own conditionals, counts of samples."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nets.pixelcnn import pixelcnn
from course_lib.training.loop import TrainConfig, train
from course_lib.vq.prior import CodePrior

SEEDS = range(3)


def a_prior(seed=0, shape=(2, 2), K=3):
    torch.manual_seed(seed)
    return CodePrior(pixelcnn(K, max(shape), width=12), K, shape)


def all_grids(K, H, W):
    return torch.tensor(list(itertools.product(range(K), repeat=H * W))).view(-1, H, W)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("K, shape", [(3, (2, 2)), (2, (2, 3)), (4, (1, 3)), (5, (1, 1))])
def test_the_prior_sums_to_one_over_all_grids(K, shape, seed):
    prior = a_prior(seed, shape, K)
    with torch.no_grad():
        assert prior(all_grids(K, *shape)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_log_prob_is_the_sum_of_its_conditionals(seed):
    """Each conditional from the joint probabilities of all grids, by summing."""
    prior, grids = a_prior(seed), all_grids(3, 2, 2).view(-1, 4)
    with torch.no_grad():
        p = prior.log_prob(grids.view(-1, 2, 2)).double().exp().view(3, 3, 3, 3)
        logits = prior.net(F.one_hot(grids.view(-1, 2, 2), 3).permute(0, 3, 1, 2).float())
    conditional = logits.softmax(1).flatten(2)  # (81, 3, 4)
    k = [1, 2, 0, 2]
    row = int((grids == torch.tensor(k)).all(1).nonzero())
    for i in range(4):
        before = p[tuple(k[:i])].sum(tuple(range(1, 4 - i))) if i < 3 else p[tuple(k[:i])]
        np.testing.assert_allclose(conditional[row, :, i], before / before.sum(), atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_have_the_priors_probabilities(seed):
    prior, n = a_prior(seed), 4000
    drawn = prior.sample(n, generator=torch.Generator().manual_seed(seed))
    number = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    with torch.no_grad():
        p = prior(all_grids(3, 2, 2)).double().exp()
    p = (p / p.sum()).numpy()
    seen = np.bincount(number, minlength=81)
    # chi-square with 80 degrees of freedom: mean 80, standard deviation sqrt(160)
    assert stats.chisquare(seen, n * p).statistic < 80 + 5 * 160**0.5


def test_a_prior_learns_what_there_is_to_learn():
    """Grids whose first code is a fair coin and whose others repeat it: log 2 nats a grid."""
    codes = torch.randint(2, (400, 1, 1), generator=torch.Generator().manual_seed(0)).expand(-1, 2, 2)
    prior = a_prior(K=4)
    list(train(prior, prior.loss, (codes,), TrainConfig(steps=150, batch_size=50, lr=1e-2)))
    with torch.no_grad():
        assert -prior(codes).mean().item() == pytest.approx(math.log(2), abs=0.03)
        assert prior.loss(codes).item() == pytest.approx(math.log(2) / 4, abs=0.01)
    drawn = prior.sample(50)
    assert (drawn == drawn[:, :1, :1]).float().mean() > 0.95


def test_grids_of_another_shape_and_numbers_of_no_code_are_refused():
    """A convolution takes any grid: its numbers would be those of some other distribution."""
    prior = a_prior()
    with pytest.raises(ValueError, match=r"indices must be grids of shape \(2, 2\); got \(1, 2, 3\)"):
        prior(torch.zeros(1, 2, 3).long())
    for bad in (3, -1):
        with pytest.raises((RuntimeError, IndexError)):
            prior(torch.full((1, 2, 2), bad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prior_in_half_precision(dtype):
    prior, grids = a_prior(), all_grids(3, 2, 2)
    want = prior(grids)
    half = prior.to(dtype)
    got = half(grids)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    assert got.double().exp().sum().item() == pytest.approx(1, abs=0.02)
    half.loss(grids).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())
    assert half.sample(5).max() < 3


def test_a_training_step_reads_nothing_from_the_device():
    class HostReads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with HostReads() as reads:
        a_prior().loss(all_grids(3, 2, 2)).backward()
    assert reads.count == 0
