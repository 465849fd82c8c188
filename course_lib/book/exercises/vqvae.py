"""Exercises of the chapter on VQ-VAE."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from course_lib.book.exercises import Exercise, normal
from course_lib.vq.lookupfree import FiniteScalarQuantizer
from course_lib.vq.quantizers import VectorQuantizer, VectorQuantizerEMA, perplexity


def _nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """With the quantizer itself, the vectors in a column."""
    quantizer = VectorQuantizer(*codebook.shape).to(codebook)
    quantizer.codebook.data = codebook
    return quantizer(z.T[None, :, :, None]).indices.flatten()


def _points_and_codes() -> list[tuple]:
    """Codes of equal length and of very different length; points between them."""
    sphere = normalize(normal(6, 3, seed=1), dim=1)
    uneven = normal(9, 2, seed=2) * torch.arange(1, 10)[:, None]
    return [(normal(40, 3), sphere), (3 * normal(50, 2, seed=3), uneven)]


def _ema(counts: Tensor, sums: Tensor, z: Tensor, index: Tensor, decay: float, eps: float) -> Tensor:
    quantizer = VectorQuantizerEMA(*sums.shape, decay=decay, eps=eps).to(sums)
    quantizer.counts.copy_(counts), quantizer.sums.copy_(sums)
    quantizer.update(z, index)
    return quantizer.codebook


def _averages() -> list[tuple]:
    """A step in which one code gets nothing, with a smoothing that shows."""
    counts, sums = torch.tensor([3.0, 0.5, 0.0, 1.0]).double(), normal(4, 2, seed=4)
    index = torch.tensor([0, 0, 1, 3, 3, 3, 0, 1])
    return [(counts, sums, normal(8, 2, seed=5), index, decay, 0.1) for decay in (0.9, 0.5)]


def _ema_by_hand(
    *,
    swap: bool = False,
    mean: bool = False,
    plain: bool = False,
    rescale: bool = True,
    total_kept: bool = True,
) -> Callable[..., Tensor]:
    """An EMA step with mistakes."""

    def codes(counts, sums, z, index, decay, eps):
        K, old = len(counts), 1 - decay if swap else decay
        own = torch.nn.functional.one_hot(index, K).to(z)
        n, s = own.sum(0), own.T @ z
        if mean:
            s = s / n.clamp(min=1)[:, None]
        counts, sums = old * counts + (1 - old) * n, old * sums + (1 - old) * s
        total = counts.sum()
        smooth = (counts + eps) / (total + K * eps) * (total if rescale else 1)
        smooth = smooth if total_kept else counts + eps
        return sums / (counts if plain else smooth)[:, None]

    return codes


def _frequency(indices: Tensor, n_codes: int) -> Tensor:
    return torch.bincount(indices.flatten(), minlength=n_codes) / indices.numel()


def _indices() -> list[tuple]:
    """All codes equally often; one code only; some codes missing."""
    generator = torch.Generator().manual_seed(6)
    some = torch.randint(5, (3, 4, 4), generator=generator)
    return [(torch.arange(8).view(2, 2, 2), 8), (torch.zeros(1, 2, 2).long(), 4), (some, 9)]


def _fsq(rounded: Tensor, levels: Tensor) -> Tensor:
    """Through the quantizer: values whose bounded value is the rounded one, or nearly."""
    quantizer = FiniteScalarQuantizer(levels.tolist()).double()
    h = (levels - 1).double() * 0.999 / 2
    o = 0.5 * (levels % 2 == 0)
    inside = ((0.99 * rounded + o) / h).clamp(-1 + 1e-9, 1 - 1e-9)
    return quantizer((torch.atanh(inside) - torch.atanh(o / h)).T[None, :, :, None]).indices.flatten()


def _rounded() -> list[tuple]:
    found = []
    for seed, levels in enumerate(([8, 5, 3], [4, 7])):
        size, generator = torch.tensor(levels), torch.Generator().manual_seed(seed)
        digits = torch.stack([torch.randint(n, (30,), generator=generator) for n in levels], 1)
        found.append((digits - size // 2, size))
    return found


def _number(*, shift: bool = True, reverse: bool = False, basis: str = "levels") -> Callable[..., Tensor]:
    """A code's number with mistakes."""

    def number(rounded: Tensor, levels: Tensor) -> Tensor:
        digits = rounded + levels // 2 if shift else rounded
        one = torch.ones(1, dtype=levels.dtype)
        weight = torch.cat([one, levels[:-1].cumprod(0)])
        if basis == "own":
            weight = levels.cumprod(0)
        if basis == "first":
            weight = levels[0] ** torch.arange(len(levels))
        if reverse:
            weight = torch.cat([one, levels.flip(0)[:-1].cumprod(0)]).flip(0)
        return (digits * weight).sum(1)

    return number


EXERCISES = {
    "vqvae-nearest": Exercise(
        reference=lambda z, e: _nearest(normalize(z, dim=1), normalize(e, dim=1)),
        cases=_points_and_codes,
        mistakes={
            "looked for the nearest code: its length counts there, and not here": _nearest,
            "forgotten to divide by the lengths of the codes": lambda z, e: (z @ e.T).argmax(1),
            "divided by the squares of the lengths": lambda z, e: (z @ e.T / e.square().sum(1)).argmax(1),
            "looked for the largest angle": lambda z, e: (z @ normalize(e, dim=1).T).argmin(1),
            "searched over the points instead of the codes": lambda z, e: (
                normalize(z, dim=1) @ normalize(e, dim=1).T
            ).argmax(0),
        },
    ),
    "vqvae-ema": Exercise(
        reference=_ema,
        cases=_averages,
        mistakes={
            "swapped the weights: the decay belongs to the old value": _ema_by_hand(swap=True),
            "averaged the batch's means instead of its sums": _ema_by_hand(mean=True),
            "divided by the counts as they are, without smoothing": _ema_by_hand(plain=True),
            "left out the factor that makes the smoothed counts add up to the total": _ema_by_hand(
                rescale=False
            ),
            "added eps to the counts and stopped there": _ema_by_hand(total_kept=False),
        },
    ),
    "vqvae-perplexity": Exercise(
        reference=lambda indices, n_codes: perplexity(indices),
        cases=_indices,
        tolerance=1e-5,
        mistakes={
            "returned the entropy; take its exponential": lambda i, K: torch.special.entr(
                _frequency(i, K)
            ).sum(),
            "taken log 0 for codes that do not occur": lambda i, K: (
                (-_frequency(i, K) * _frequency(i, K).log()).sum().exp()
            ),
            "forgotten the minus sign of the entropy": lambda i, K: (
                -torch.special.entr(_frequency(i, K)).sum()
            ).exp(),
            "counted the codes that occur": lambda i, K: (_frequency(i, K) > 0).sum().float(),
            "mixed bits and nats: 2 goes with log2, e with log": lambda i, K: (
                2 ** torch.special.entr(_frequency(i, K)).sum()
            ),
        },
    ),
    "vqvae-index": Exercise(
        reference=_fsq,
        cases=_rounded,
        mistakes={
            "forgotten to shift the values so that the digits begin at 0": _number(shift=False),
            "begun with the last coordinate": _number(reverse=True),
            "multiplied by a coordinate's own number of levels too": _number(basis="own"),
            "used the first number of levels for all coordinates": _number(basis="first"),
        },
    ),
}
