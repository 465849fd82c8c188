"""The list of scenes: as many as counted by hand, each with an index of its own."""

import math

import pytest
import torch

from course_lib.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNT,
    ENTROPY,
    SHAPES,
    SINGLES,
    SIZES,
    Scene,
    factors,
    index_of,
    sample,
)


@pytest.fixture(scope="module")
def every() -> torch.Tensor:
    return torch.arange(COUNT)


def test_the_numbers() -> None:
    objects, cells = 3 * 6 * 2, 16
    assert SINGLES == objects * cells * 4
    assert COUNT == SINGLES + objects**2 * cells * (cells - 1) // 2 * 4 == 624_384
    assert ENTROPY == pytest.approx(19.25, abs=0.005)
    assert 2**ENTROPY == pytest.approx(COUNT)


def test_every_index_is_another_scene_in_range(every) -> None:
    scene = factors(every)
    first, second = (torch.stack([part[:, k] for part in scene[1:]]) for k in (0, 1))
    ranges = torch.tensor([len(SHAPES), len(COLOURS), len(SIZES), 16])[:, None]
    two = every >= SINGLES
    assert ((first >= 0) & (first < ranges)).all() and (second[:, ~two] == -1).all()
    assert ((second[:, two] >= 0) & (second[:, two] < ranges)).all()
    assert (first[3] != second[3]).all()
    assert ((scene.background >= 0) & (scene.background < len(BACKGROUNDS))).all()
    # a number for what is there, whatever the order of the objects
    key = lambda x: (((x[0] + 1) * 10 + x[1] + 1) * 10 + x[2] + 1) * 100 + x[3] + 1
    a, b = key(first), key(second)
    whole = (torch.maximum(a, b) * 10**6 + torch.minimum(a, b)) * 10 + scene.background
    assert len(whole.unique()) == COUNT


def test_index_of_inverts_factors_in_either_order(every) -> None:
    scene = factors(every)
    assert torch.equal(index_of(scene), every)
    two = every[SINGLES:]
    turned = Scene(scene.background[SINGLES:], *(part[SINGLES:].flip(1) for part in scene[1:]))
    assert torch.equal(index_of(turned), two)


def test_samples_are_uniform_and_repeat_with_a_seed() -> None:
    seeded = lambda: sample(40_000, generator=torch.Generator().manual_seed(3))
    index = seeded()
    assert torch.equal(index, seeded())
    for values, n in ((index * 16 // COUNT, 16), (index % 36, 36)):  # of the list, of the last object
        expected = len(index) / n
        chi2 = ((values.bincount(minlength=n) - expected) ** 2 / expected).sum().item()
        assert chi2 < n + 7 * math.sqrt(2 * n)
    assert sample(0).shape == (0,)


TWO = torch.tensor([[1, 0]])


@pytest.mark.parametrize("change, said", [
    (dict(background=torch.tensor([4])), "background must be in range"),
    (dict(shape=torch.tensor([[3, 0]])), "shape must be in range"),
    (dict(colour=torch.tensor([[-1, 0]])), "colour must be in range"),
    (dict(size=torch.tensor([[0, -1]])), "size must be in range"),
    (dict(cell=torch.tensor([[5, -1]])), "shape must be in range"),
    (dict(cell=torch.tensor([[16, 2]])), "cell must be in range"),
    (dict(cell=torch.tensor([[5, 5]])), "cell must differ"),
    (dict(cell=torch.tensor([5])), r"cell must be int64 \(1, 2\)"),
    (dict(size=TWO.float()), r"size must be int64 \(1, 2\); got torch.float32"),
])  # fmt: skip
def test_index_of_refuses(change, said) -> None:
    scene = Scene(torch.tensor([0]), TWO, TWO, TWO, TWO)
    with pytest.raises(ValueError, match=said):
        index_of(scene._replace(**change))


@pytest.mark.parametrize("index", [torch.tensor([-1]), torch.tensor([COUNT]), torch.tensor(3),
                                   torch.tensor([1.0]), [1]])  # fmt: skip
def test_factors_refuses(index) -> None:
    with pytest.raises(ValueError, match="index must be int64"):
        factors(index)
