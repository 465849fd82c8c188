"""Quantizers with and without a codebook, against NumPy, SciPy, scikit-learn, autograd and enumeration."""

import copy
import math
import multiprocessing
import os

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.vq.lookupfree import FiniteScalarQuantizer, LookupFreeQuantizer
from course_lib.vq.quantizers import (
    Quantized,
    VectorQuantizer,
    VectorQuantizerEMA,
    perplexity,
    restart_dead_codes,
)

SEEDS = range(3)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_codes(kind, codes, **settings):
    """A quantizer whose codebook is `codes`."""
    quantizer = kind(*codes.shape, **settings).to(codes.dtype)
    with torch.no_grad():
        quantizer.codebook.copy_(codes)
    if kind is VectorQuantizerEMA:
        quantizer.sums.copy_(codes)
    return quantizer


def vectors(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def four(dim=3):
    """One of each kind, for vectors of that size."""
    torch.manual_seed(0)
    return [
        VectorQuantizer(7, dim),
        VectorQuantizerEMA(7, dim),
        FiniteScalarQuantizer([5] * dim),
        LookupFreeQuantizer(dim),
    ]


ids = lambda q: type(q).__name__


# What all quantizers return


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_shapes_indices_and_codes_fit_together(quantizer):
    z = normal(2, 3, 4, 5, dtype=torch.float32)
    out = quantizer.eval()(z)
    assert isinstance(out, Quantized)
    assert out.quantized.shape == z.shape and out.indices.shape == (2, 4, 5)
    assert out.indices.dtype == torch.int64 and out.loss.shape == out.perplexity.shape == ()
    torch.testing.assert_close(quantizer.codes(out.indices), out.quantized, rtol=0, atol=0)
    assert 1 <= out.perplexity <= quantizer.n_codes


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_distances_are_float32_under_autocast(quantizer):
    z = normal(2, 3, 8, 8, dtype=torch.float32)
    want = quantizer.eval()(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = quantizer(z)
    assert torch.equal(got.indices, want.indices) and torch.equal(got.quantized, want.quantized)
    torch.testing.assert_close(got.loss, want.loss, rtol=0, atol=0)


@pytest.mark.parametrize("quantizer", four(), ids=ids)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_in_half_precision_find_the_codes_of_float32(quantizer, dtype):
    half = copy.deepcopy(quantizer).to(dtype).train()
    z = (normal(2, 3, 8, 8) / 5).to(dtype).requires_grad_()
    wide = copy.deepcopy(half).float().eval()  # with the same rounded codes
    want = wide(z.float())
    out = half(z)
    assert torch.equal(out.indices, want.indices) and out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, want.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.quantized.float(), want.quantized, rtol=1e-2, atol=1e-2)
    (out.quantized.float().sum() + out.loss).backward()
    assert z.grad.dtype == dtype and z.grad.isfinite().all()
    for parameter in half.parameters():
        assert parameter.dtype == dtype and parameter.grad.abs().sum() > 0


def test_moving_averages_stay_in_float32():
    """In bfloat16 a count of 256 takes up no one more, and 1 % of a step is rounded away."""
    quantizer = VectorQuantizerEMA(2, 1)
    kept = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for module in (quantizer.bfloat16(), quantizer.half(), quantizer.to("cpu", torch.float16)):
        assert all(torch.equal(kept[name], value) for name, value in module.state_dict().items())
    assert all(value.dtype == torch.float64 for value in quantizer.double().state_dict().values())
    assert all(value.dtype == torch.float32 for value in quantizer.float().state_dict().values())
    quantizer.bfloat16().train()
    quantizer.codebook.copy_(torch.tensor([[0.0], [9.0]])), quantizer.sums.copy_(quantizer.codebook)
    for _ in range(200):
        quantizer(torch.zeros(1, 1, 20, 20, dtype=torch.bfloat16))
    assert quantizer.counts[0].item() == pytest.approx(400 - 399 * 0.99**200, rel=1e-4)  # 347


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_training_reads_nothing_from_the_device(quantizer):
    z = normal(2, 3, 4, 4, dtype=torch.float32).requires_grad_()
    with HostReads() as reads:
        out = quantizer.train()(z)
        (out.quantized.sum() + out.loss).backward()
    assert reads.count == 0


class HostReads(TorchDispatchMode):
    """Counts numbers that an operation hands from the device to Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantizer", four(), ids=ids)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_that_are_not_finite_show_in_the_loss_and_move_no_average(quantizer, bad):
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = normal(2, 3, 4, 4, dtype=torch.float32)
    z[1, 2, 0, 3] = bad
    assert not quantizer.train()(z).loss.isfinite()
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_vectors_of_another_size_are_refused(quantizer):
    """Broadcast, they would get codes."""
    for z in (torch.zeros(2, 4, 3, 3), torch.zeros(2, 1, 3, 3), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"z must have shape \(B, 3, H', W'\); got \(2, "):
            quantizer(z)


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_numbers_of_no_code_are_refused(quantizer):
    K = quantizer.n_codes
    for bad in (K, -1):
        with pytest.raises((ValueError, IndexError)):
            quantizer.codes(torch.tensor([[[0, bad]]]))


@pytest.mark.parametrize("levels", [[5, 2], [1001], [5, 0], [8] * 21])
def test_levels_with_which_codes_cannot_be_reached_or_numbered_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels must be from 3 to 1000, with a product below 2\*\*63"):
        FiniteScalarQuantizer(levels)


def test_fsq_numbers_up_to_the_largest_integers():
    quantizer = FiniteScalarQuantizer([8] * 20 + [7])  # 7/8 of 2**63
    z = 9 * torch.ones(1, 21, 1, 1)
    top = quantizer(z)
    assert top.indices.item() == quantizer.n_codes - 1 == 7 * 8**20 - 1
    assert torch.equal(quantizer.codes(top.indices), top.quantized)
    assert quantizer(-z).indices.item() == 0 and top.perplexity == 1


# The codebook trained by gradients


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [VectorQuantizer, VectorQuantizerEMA])
def test_the_nearest_code_is_scipys(kind, seed):
    codes, z = normal(40, 6, seed=seed), normal(3, 6, 5, 7, seed=seed + 10)
    out = with_codes(kind, codes).eval()(z)
    index = cdist(vectors(z), codes).argmin(1).reshape(3, 5, 7)
    assert np.array_equal(out.indices, index)
    torch.testing.assert_close(out.quantized, codes[torch.tensor(index)].permute(0, 3, 1, 2))
    used = np.bincount(index.ravel(), minlength=40) / index.size
    assert out.perplexity.item() == pytest.approx(np.exp(stats.entropy(used)), rel=1e-6)


@pytest.mark.parametrize("kind", [VectorQuantizer, VectorQuantizerEMA])
def test_one_far_code_spoils_no_index(kind):
    """It moved the origin of the distances, and 85 % of the indices were wrong."""
    codes = normal(50, 4, dtype=torch.float32)
    codes[7] = -1e6
    z = normal(1, 4, 20, 20, seed=1, dtype=torch.float32)
    want = cdist(vectors(z).double(), codes.double()).argmin(1)
    got = with_codes(kind, codes).eval()(z).indices.flatten()
    assert np.array_equal(got, want)


def test_far_from_zero_no_digits_cancel():
    codes = normal(50, 4, dtype=torch.float32) + 1000
    z = normal(1, 4, 20, 20, seed=1, dtype=torch.float32) + 1000
    want = cdist(vectors(z).double(), codes.double())
    got = with_codes(VectorQuantizer, codes)(z).indices.flatten()
    chosen = want[np.arange(400), got]
    assert (chosen - want.min(1)).max() < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_term_by_term(seed):
    codes, beta = normal(12, 3, seed=seed), 0.7
    z = normal(2, 3, 4, 4, seed=seed + 10).requires_grad_()
    quantizer = with_codes(VectorQuantizer, codes, commitment=beta)
    out = quantizer(z)
    weights = normal(*z.shape, seed=20)
    through = torch.autograd.grad((weights * out.quantized).sum(), z, retain_graph=True)[0]
    assert torch.equal(through, weights)
    none = torch.autograd.grad(out.quantized.sum(), quantizer.codebook, allow_unused=True, retain_graph=True)
    assert none == (None,)
    by_z, by_codes = torch.autograd.grad(out.loss, (z, quantizer.codebook))
    flat, index, n = vectors(z.detach()).numpy(), out.indices.flatten().numpy(), z.numel()
    want = np.zeros((12, 3))
    for row, k in zip(flat, index, strict=True):
        want[k] += 2 * (codes[k].numpy() - row) / n
    np.testing.assert_allclose(by_codes, want, atol=1e-14)
    want = 2 * beta * (flat - codes.numpy()[index]) / n
    np.testing.assert_allclose(vectors(by_z), want, atol=1e-14)
    unused = ~np.isin(np.arange(12), index)
    assert (by_codes[torch.tensor(unused)] == 0).all()


def test_the_gradient_is_that_of_finite_differences_inside_a_cell():
    codes = normal(5, 2)
    z = normal(1, 2, 2, 2, seed=1)
    loss = lambda v: with_codes(VectorQuantizer, codes)(torch.tensor(v).view(1, 2, 2, 2)).loss.item()
    want = optimize.approx_fprime(z.flatten().numpy(), loss)
    # differentiated by z, codebook and commitment terms are alike: the value does not know of sg
    z.requires_grad_()
    out = with_codes(VectorQuantizer, codes)(z)
    got = torch.autograd.grad(out.loss, z)[0].flatten() * (1 + 0.25) / 0.25
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_kmeans_fixed_point_has_no_gradient():
    flat = normal(300, 3)
    found = KMeans(6, n_init=1, random_state=0, tol=0, max_iter=500).fit(flat.numpy())
    quantizer = with_codes(VectorQuantizer, torch.tensor(found.cluster_centers_))
    out = quantizer(flat.T.reshape(1, 3, 20, 15))
    assert np.array_equal(out.indices.flatten(), found.labels_)
    (slope,) = torch.autograd.grad(out.loss, quantizer.codebook)
    assert slope.abs().max() < 1e-13


# Moving averages


@pytest.mark.parametrize("seed", SEEDS)
def test_ema_is_numpys(seed):
    K, D, rho, eps = 9, 3, 0.9, 1e-3
    codes = normal(K, D, seed=seed)
    quantizer = with_codes(VectorQuantizerEMA, codes, decay=rho, eps=eps).train()
    e, N, m = codes.numpy().copy(), np.ones(K), codes.numpy().copy()
    for step in range(20):
        z = normal(2, D, 3, 4, seed=100 * seed + step)
        out = quantizer(z)
        flat = vectors(z).numpy()
        n, s, index = np.zeros(K), np.zeros((K, D)), []
        for row in flat:
            k = min(range(K), key=lambda k: sum((row[d] - e[k, d]) ** 2 for d in range(D)))
            index.append(k)
            n[k] += 1
            s[k] += row
        assert np.array_equal(out.indices.flatten(), index)
        np.testing.assert_allclose(vectors(out.quantized), e[index], atol=1e-12)  # before the update
        want = 0.25 * np.mean([(row - e[k]) ** 2 for row, k in zip(flat, index, strict=True)])
        assert out.loss.item() == pytest.approx(want, rel=1e-12)
        N, m = rho * N + (1 - rho) * n, rho * m + (1 - rho) * s
        e = m / ((N + eps) / (N.sum() + K * eps) * N.sum())[:, None]
        for got, expected in ((quantizer.counts, N), (quantizer.sums, m), (quantizer.codebook, e)):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_without_memory_the_ema_is_lloyds_algorithm():
    flat = normal(200, 2)
    start = flat[:5].clone()
    quantizer = with_codes(VectorQuantizerEMA, start, decay=0.0, eps=1e-15).train()
    for _ in range(30):
        quantizer(flat.T.reshape(1, 2, 20, 10))
    want = KMeans(5, init=start.numpy(), n_init=1, tol=0, max_iter=500).fit(flat.numpy())
    np.testing.assert_allclose(quantizer.codebook, want.cluster_centers_, rtol=1e-9)


def test_averages_move_in_training_mode_only_and_are_saved():
    quantizer = VectorQuantizerEMA(5, 3)
    assert list(quantizer.parameters()) == []
    assert set(quantizer.state_dict()) == {"codebook", "counts", "sums"}
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = normal(2, 3, 4, 4, dtype=torch.float32).requires_grad_()
    quantizer.eval()(z)
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    out = quantizer.train()(z)
    assert not any(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    assert not any(value.requires_grad for value in quantizer.state_dict().values())
    out.loss.backward()  # the update did not spoil the graph
    want = 2 * 0.25 * (z - before["codebook"][out.indices].permute(0, 3, 1, 2)) / z.numel()
    torch.testing.assert_close(z.grad, want)


def test_an_unused_code_slides_to_the_origin_and_never_divides_by_zero():
    start = torch.tensor([[5.0, 5.0], [-50.0, 50.0]])  # its way to the origin passes no vector
    quantizer = with_codes(VectorQuantizerEMA, start, decay=0.9).train()
    for _ in range(400):
        quantizer(torch.rand(1, 2, 2, 2) + 5)
    assert quantizer.codebook.isfinite().all() and quantizer.codebook[1].abs().max() < 1e-3


class Largest(TorchDispatchMode):
    """Remembers the most numbers in any tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("kind", [VectorQuantizer, VectorQuantizerEMA])
def test_no_tensor_of_all_distances_is_made(kind):
    N, K, D = 16_384, 512, 16
    quantizer = kind(K, D).train()
    z = normal(4, D, 64, 64, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        out = quantizer(z)
        (out.quantized.sum() + out.loss).backward()
    assert N * D <= largest.numel <= 2**20 < N * K < N * K * D  # a chunk of distances has 4 MiB


def test_lookup_free_quantization_makes_no_tensor_of_all_probabilities():
    quantizer = LookupFreeQuantizer(12)
    z = normal(1, 12, 64, 64, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        quantizer(z).loss.backward()
    assert largest.numel <= 4096 * 64 < 4096 * quantizer.n_codes


def test_counts_are_exact_beyond_what_float32_counts():
    """2²⁴ + 1 is 2²⁴ in float32: sums of ones there stand still."""
    quantizer = VectorQuantizerEMA(1, 1, decay=0.0)
    n = 2**24 + 4
    index = torch.zeros(1, dtype=torch.int64).expand(n)
    quantizer.update(torch.zeros(1, 1).expand(n, 1), index)
    assert quantizer.counts.item() == n


def take_part(rank, folder):
    """One of two processes: EMA steps with half of each batch, then a restart."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    quantizer = VectorQuantizerEMA(6, 3, decay=0.8).train()
    for batch in torch.randn(5, 4, 3, 4, 4):
        quantizer(batch[rank::2])
    before = copy.deepcopy(quantizer.state_dict())
    generator = torch.Generator().manual_seed(rank)
    moved = restart_dead_codes(quantizer, torch.randn(2, 3, 4, 4), threshold=1e9, generator=generator)
    found = {"before": before, "after": quantizer.state_dict(), "moved": moved}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, which is fast")
def test_two_processes_keep_the_codebook_of_one(tmp_path):
    """And restart the same codes at the same vectors."""
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=take_part, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    torch.manual_seed(0)
    quantizer = VectorQuantizerEMA(6, 3, decay=0.8).train()
    for batch in torch.randn(5, 4, 3, 4, 4):
        quantizer(batch)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(first["before"][name], second["before"][name])
        torch.testing.assert_close(first["before"][name], value)
        assert torch.equal(first["after"][name], second["after"][name])
    assert first["moved"] == second["moved"] == 6
    assert (first["after"]["codebook"] != first["before"]["codebook"]).all()


# Restart


def test_restart_moves_dead_codes_onto_vectors_and_no_others():
    quantizer = with_codes(VectorQuantizerEMA, normal(6, 3, dtype=torch.float32))
    quantizer.counts.copy_(torch.tensor([5.0, 0.2, 1.0, 0.0, 3.0, 0.99]))
    z = normal(2, 3, 4, 4, seed=1, dtype=torch.float32)
    before = quantizer.codebook.clone()
    generator = torch.Generator().manual_seed(0)
    assert restart_dead_codes(quantizer, z, generator=generator) == 3
    moved = [1, 3, 5]
    kept = [0, 2, 4]
    assert torch.equal(quantizer.codebook[kept], before[kept])
    distance = torch.cdist(quantizer.codebook[moved], vectors(z))
    assert (distance.min(1).values == 0).all() and len(distance.argmin(1).unique()) == 3
    assert quantizer.counts.tolist() == [5, 1, 1, 1, 3, 1]
    assert torch.equal(quantizer.sums[moved], quantizer.codebook[moved])
    quantizer.refresh()  # averages and codebook agree
    want = vectors(z)[distance.argmin(1)]
    torch.testing.assert_close(quantizer.codebook[moved], want, rtol=1e-4, atol=1e-4)
    assert restart_dead_codes(quantizer, z) == 0


def test_restart_of_more_codes_than_vectors():
    quantizer = VectorQuantizerEMA(10, 2)
    quantizer.counts.zero_()
    assert restart_dead_codes(quantizer, torch.rand(1, 2, 2, 2), threshold=0.5) == 4
    assert (quantizer.counts == 0.5).sum() == 4


def test_restart_is_reproducible_and_raises_the_perplexity():
    z = normal(4, 2, 8, 8, dtype=torch.float32) + 5
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        quantizer = VectorQuantizerEMA(32, 2).train()
        for _ in range(3):
            before = quantizer(z).perplexity
        restart_dead_codes(quantizer, z, generator=torch.Generator().manual_seed(1))
        found.append(quantizer.codebook.clone())
    assert torch.equal(*found) and quantizer(z).perplexity > 3 * before


def test_perplexity_counts_codes():
    assert perplexity(torch.zeros(2, 3, 3).long()) == 1
    assert perplexity(torch.arange(8).view(2, 2, 2)).item() == pytest.approx(8)
    some = torch.randint(5, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    p = np.bincount(some.flatten()) / 48
    assert perplexity(some).item() == pytest.approx(np.exp(stats.entropy(p)), rel=1e-6)


# Without a codebook


@pytest.mark.parametrize("seed", SEEDS)
def test_lookup_free_is_the_nearest_corner_and_its_entropies_are_exact(seed):
    d, tau = 5, 1.7
    quantizer = LookupFreeQuantizer(d, temperature=tau, entropy=0.3, commitment=0.2)
    z = normal(2, d, 4, 4, seed=seed).requires_grad_()
    corners = np.array([[1 if k >> i & 1 else -1 for i in range(d)] for k in range(2**d)])
    squared = cdist(vectors(z.detach()), corners, "sqeuclidean")
    out = quantizer(z)
    assert np.array_equal(out.indices.flatten(), squared.argmin(1))
    q = np.exp(-squared / tau)
    q /= q.sum(1, keepdims=True)
    each, used = stats.entropy(q, axis=1).mean(), stats.entropy(q.mean(0))
    np.testing.assert_allclose([v.item() for v in quantizer.entropies(vectors(z))], [each, used], rtol=1e-10)
    commit = squared.min(1).mean() / d
    assert out.loss.item() == pytest.approx(0.3 * (each - used) + 0.2 * commit, rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: quantizer(z).loss, z)
    assert torch.equal(torch.autograd.grad(out.quantized.sum(), z)[0], torch.ones_like(z))


def test_lookup_free_is_finite_far_out():
    z = (1e4 * normal(2, 7, 3, 3, dtype=torch.float32)).requires_grad_()
    quantizer = LookupFreeQuantizer(7)
    out = quantizer(z)
    out.loss.backward()
    assert out.loss.isfinite() and z.grad.isfinite().all()
    assert (quantizer(torch.zeros(1, 7, 1, 1)).quantized == -1).all()  # sign(0) = -1, as in the paper


@pytest.mark.parametrize("levels", [[3], [4], [8, 5, 3], [7, 7], [1000], [999]])
def test_fsq_has_the_levels_it_was_given(levels):
    quantizer = FiniteScalarQuantizer(levels)
    assert quantizer.n_codes == math.prod(levels)
    line = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    out = quantizer(line.view(1, 1, 1, -1).expand(1, len(levels), 1, -1))
    for i, L in enumerate(levels):
        seen = (out.quantized[0, i, 0] * (L // 2)).round().unique()
        assert np.array_equal(seen, np.arange(-(L // 2), (L - 1) // 2 + 1))
    assert quantizer(torch.zeros(1, len(levels), 1, 1)).quantized.abs().max() == 0


def test_fsq_numbers_are_mixed_radix():
    levels = (8, 5, 3)
    quantizer = FiniteScalarQuantizer(levels)
    codes = quantizer.codes(torch.arange(120).view(1, 12, 10))[0].flatten(1)
    digits = np.stack(np.unravel_index(np.arange(120), levels, order="F"))
    half = np.array(levels)[:, None] // 2
    np.testing.assert_allclose(codes, (digits - half) / half, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_fsq_follows_the_papers_listing_and_its_gradient(seed):
    """The listing of appendix A.1 in NumPy, but for artanh in place of tan."""
    levels = np.array([8, 6, 5])
    half_l = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2 == 1, 0.0, 0.5)
    shift = np.arctanh(offset / half_l)
    z = (2 * normal(2, 3, 4, 4, seed=seed)).requires_grad_()
    flat = vectors(z.detach()).numpy()
    bounded = np.tanh(flat + shift) * half_l - offset
    want = np.round(bounded) / (levels // 2)
    quantizer = FiniteScalarQuantizer(levels.tolist())
    out = quantizer(z)
    np.testing.assert_allclose(vectors(out.quantized.detach()), want, atol=1e-12)
    assert out.loss == 0
    slope = torch.autograd.grad(out.quantized.sum(), z)[0]
    want = (1 - np.tanh(flat + shift) ** 2) * half_l / (levels // 2)
    np.testing.assert_allclose(vectors(slope), want, rtol=1e-9)
    assert np.abs(np.tan(offset / half_l) - shift).max() < 2e-3  # the listing's tan is nearly this
