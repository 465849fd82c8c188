"""VQ-VAE: quantizers against NumPy in float64, scikit-learn, autograd and enumeration; and bad input."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize, stats
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.vq.lookupfree import FiniteScalarQuantizer, LookupFreeQuantizer
from course_lib.nets.convolutional import ConvDecoder, ConvEncoder
from course_lib.nets.pixelcnn import pixelcnn
from course_lib.vq.quantizers import (
    Quantized,
    VectorQuantizer,
    VectorQuantizerEMA,
    perplexity,
    restart_dead_codes,
)
from course_lib.training.loop import TrainConfig, train
from course_lib.vq.vqvae import VQVAE, CodePrior, prior_loss, vq_loss

SEEDS = range(5)


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
    assert torch.equal(got.indices, want.indices) and got.quantized.dtype == torch.float32
    torch.testing.assert_close(got.loss, want.loss, rtol=0, atol=0)
    assert quantizer(z.bfloat16()).quantized.dtype == torch.float32


@pytest.mark.parametrize("quantizer", four(), ids=ids)
@pytest.mark.parametrize(
    "z, said",
    [
        (torch.zeros(2, 4, 3, 3), r"z must have shape \(B, 3, H', W'\).*got \(2, 4, 3, 3\)"),
        (torch.zeros(0, 3, 3, 3), r"got \(0, 3, 3, 3\)"),
        (torch.zeros(2, 3, 0, 3), r"got \(2, 3, 0, 3\)"),
        (torch.zeros(2, 3), r"got \(2, 3\)"),
        (torch.zeros(2, 3, 3, 3).long(), "z must be a floating-point tensor; got torch.int64"),
        (torch.full((2, 3, 3, 3), torch.nan), "z and the codes must be finite"),
        (torch.full((2, 3, 3, 3), torch.inf), "z and the codes must be finite"),
        ("z", "z must be a floating-point tensor"),
    ],
)
def test_bad_vectors_are_refused(quantizer, z, said):
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        quantizer.train()(z)
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_bad_indices_are_refused(quantizer):
    K = quantizer.n_codes
    for indices, said in [
        (torch.tensor([[[0, K]]]), rf"indices must lie in 0 ... {K - 1}; got 0 to {K}"),
        (torch.tensor([[[-1]]]), "got -1 to -1"),
        (torch.zeros(0, 2, 2).long(), "got none"),
        (torch.zeros(2, 2).long(), "indices must be int64 of shape"),
        (torch.zeros(2, 2, 2), "indices must be int64 of shape"),
        ([0], "indices must be int64 of shape"),
    ]:
        with pytest.raises(ValueError, match=said):
            quantizer.codes(indices)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: VectorQuantizer(0, 3), "n_codes must be an integer of at least 1; got 0"),
        (lambda: VectorQuantizer(4, 0), "dim must be"),
        (lambda: VectorQuantizer(4, 3, commitment=-1), "commitment must be a number, at least 0"),
        (lambda: VectorQuantizer(4, 3, commitment=math.nan), "commitment must be"),
        (lambda: VectorQuantizerEMA(0, 3), "n_codes must be"),
        (lambda: VectorQuantizerEMA(4, 3, decay=1.0), r"decay must be in \[0, 1\); got 1.0"),
        (lambda: VectorQuantizerEMA(4, 3, decay=-0.1), "decay must be"),
        (lambda: VectorQuantizerEMA(4, 3, decay=math.nan), "decay must be"),
        (lambda: VectorQuantizerEMA(4, 3, eps=0.0), "eps must be positive"),
        (lambda: VectorQuantizerEMA(4, 3, commitment=math.inf), "commitment must be"),
        (lambda: FiniteScalarQuantizer([]), "levels must be integers from 3 to 1000"),
        (lambda: FiniteScalarQuantizer([5, 2]), r"levels must be .* got \[5, 2\]"),
        (lambda: FiniteScalarQuantizer([5, 1]), "levels must be"),
        (lambda: FiniteScalarQuantizer([5, 3.0]), "levels must be"),
        (lambda: FiniteScalarQuantizer([1001]), "levels must be"),
        (lambda: LookupFreeQuantizer(0), "dim must be"),
        (lambda: LookupFreeQuantizer(21), "dim must be at most 20"),
        (lambda: LookupFreeQuantizer(3, temperature=0.0), "temperature must be positive"),
        (lambda: LookupFreeQuantizer(3, entropy=-0.1), "entropy must be a number, at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


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
    quantizer = with_codes(VectorQuantizerEMA, start).train()
    for _ in range(3000):
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


def test_two_processes_keep_the_codebook_of_one(tmp_path):
    script = Path(__file__).with_name("vq_script.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, script, tmp_path], env=environment, check=True)
    subprocess.run([sys.executable, script, tmp_path], env=environment, check=True)
    one, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "0", "1"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)


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


def test_restart_refuses():
    quantizer = VectorQuantizerEMA(4, 2)
    with pytest.raises(ValueError, match=r"z must have shape \(B, 2"):
        restart_dead_codes(quantizer, torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="threshold must be positive"):
        restart_dead_codes(quantizer, torch.rand(1, 2, 2, 2), threshold=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        restart_dead_codes(quantizer, torch.full((1, 2, 2, 2), torch.nan))


def test_perplexity_counts_codes():
    assert perplexity(torch.zeros(2, 3, 3).long(), 5) == 1
    assert perplexity(torch.arange(8).view(2, 2, 2), 8).item() == pytest.approx(8)
    assert perplexity(torch.arange(8).view(2, 2, 2) % 3 * 2, 8).item() < 3


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


# The model


def small_model(quantizer=None, dim=4):
    torch.manual_seed(0)
    quantizer = quantizer or VectorQuantizerEMA(8, dim)
    shape = dict(width=8, levels=1)
    return VQVAE(ConvEncoder(1, dim, **shape), quantizer, ConvDecoder(1, dim, **shape))


@pytest.mark.parametrize("quantizer", four(), ids=ids)
def test_encode_decode_and_forward_agree(quantizer):
    model = small_model(quantizer, dim=3).eval()
    x = torch.rand(5, 1, 8, 6) * 2 - 1
    out = model(x)
    assert out.images.shape == x.shape
    assert torch.equal(model.encode(x), out.codes.indices) and out.codes.indices.shape == (5, 4, 3)
    torch.testing.assert_close(model.decode(out.codes.indices), out.images)
    want = (out.images - x).square().mean() + out.codes.loss
    torch.testing.assert_close(vq_loss(model, x), want)


def test_encoding_moves_no_average():
    model = small_model().train()
    before = model.quantizer.codebook.clone()
    model.encode(torch.rand(3, 1, 8, 8))
    assert torch.equal(before, model.quantizer.codebook) and model.training
    with pytest.raises(ValueError):
        model.encode(torch.zeros(3, 1, 7, 7))
    assert model.training


@pytest.mark.parametrize(
    "x, said",
    [
        (torch.zeros(2, 3, 8, 8), r"x must have shape \(B, 1, H, W\); got \(2, 3, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), "with B at least 1"),
        (torch.full((2, 1, 8, 8), 1.5), r"x must lie in \[-1, 1\]; got values from 1.5 to 1.5"),
        (torch.full((2, 1, 8, 8), torch.nan), r"x must lie in \[-1, 1\]"),
        (torch.zeros(2, 1, 7, 8), "divisible by 2; got 7×8"),
        (torch.zeros(2, 1, 8, 8).long(), "x must be a floating-point tensor"),
    ],
)
def test_bad_images_are_refused(x, said):
    with pytest.raises(ValueError, match=said):
        small_model()(x)


def test_training_lowers_the_loss_and_bf16_runs():
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = F.interpolate(x[..., ::4, ::4], size=8)  # blocks, which can be learned
    model = small_model()
    steps = list(train(model, vq_loss, [x], TrainConfig(steps=60, batch_size=32, lr=3e-3)))
    assert steps[-1].loss < 0.7 * steps[0].loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = vq_loss(model, x)
    assert value.dtype == torch.float32 and value.isfinite()


# The prior


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
    list(train(prior, prior_loss, [codes], TrainConfig(steps=150, batch_size=50, lr=1e-2)))
    with torch.no_grad():
        assert -prior(codes).mean().item() == pytest.approx(math.log(2), abs=0.03)
        assert prior_loss(prior, codes).item() == pytest.approx(math.log(2) / 4, abs=0.01)
    drawn = prior.sample(50)
    assert (drawn == drawn[:, :1, :1]).float().mean() > 0.95


def test_the_prior_refuses():
    prior = a_prior()
    for indices, said in [
        (torch.full((1, 2, 2), 3), r"indices must lie in 0 ... 2; got 3 to 3"),
        (torch.zeros(1, 2, 3).long(), r"indices must have shape \(B, 2, 2\); got \(1, 2, 3\)"),
        (torch.zeros(0, 2, 2).long(), "got none"),
        (torch.zeros(1, 2, 2), "indices must be int64"),
    ]:
        with pytest.raises(ValueError, match=said):
            prior(indices)
    with pytest.raises(ValueError, match="n must be"):
        prior.sample(0)
    with pytest.raises(ValueError, match="n_codes must be"):
        CodePrior(nn.Identity(), 0, (2, 2))
    with pytest.raises(ValueError, match=r"shape\[1\] must be"):
        CodePrior(nn.Identity(), 3, (2, 0))
