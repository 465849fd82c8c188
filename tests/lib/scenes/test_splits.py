"""Held-out combinations: none in training, all in the test, each part known from training."""

import pytest
import torch

from course_lib.scenes import COLOURS, COUNT, HELD_OUT, SHAPES, SIZES, Scene, factors, split

pytestmark = pytest.mark.slow


def held(name: str, scene: Scene) -> torch.Tensor:
    """From the factors, not from captions."""
    shape = lambda word: scene.shape == SHAPES.index(word)
    if name == "pairs":
        pairs = (("red", "circle"), ("green", "square"), ("blue", "triangle"))
        found = [(scene.colour == COLOURS.index(colour)) & shape(word) for colour, word in pairs]
        return torch.stack(found).any(0).any(1)
    row, column = scene.cell // 4, scene.cell % 4
    two = scene.cell[:, 1] >= 0
    result = torch.zeros(len(two), dtype=torch.bool)
    for a, b in ((0, 1), (1, 0)):
        result |= two & shape("triangle")[:, a] & shape("circle")[:, b] & (column[:, a] < column[:, b])
        result |= two & shape("square")[:, a] & shape("triangle")[:, b] & (row[:, a] < row[:, b])
    return result


@pytest.mark.parametrize("name", HELD_OUT)
def test_training_has_none_and_the_test_all(name) -> None:
    train, test = split(name)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(COUNT))
    assert not held(name, factors(train)).any() and held(name, factors(test)).all()
    assert torch.equal(split(name).train, train)


@pytest.mark.parametrize("name", HELD_OUT)
def test_training_shows_each_part(name) -> None:
    train = factors(split(name).train)
    looks = torch.zeros(len(SHAPES), len(COLOURS), len(SIZES), dtype=torch.bool)
    looks[train.shape[:, 0], train.colour[:, 0], train.size[:, 0]] = True
    known = looks.all(2)
    assert torch.equal(known, looks.any(2)) and known.sum() == known.numel() - (3 if name == "pairs" else 0)
    assert known.any(0).all() and known.any(1).all()
    # each direction from one shape to another, but for the two held out, seen from either side
    row, column = train.cell // 4, train.cell % 4
    seen = set()
    for a, b in ((0, 1), (1, 0)):
        for relation, true in (("left", column[:, a] < column[:, b]), ("above", row[:, a] < row[:, b])):
            true &= train.cell[:, 1] >= 0
            pairs = (train.shape[:, a] * len(SHAPES) + train.shape[:, b])[true].unique()
            seen |= {(relation, *divmod(pair, len(SHAPES))) for pair in pairs.tolist()}
    assert len(seen) == 2 * 9 - (2 if name == "relations" else 0)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of pairs, relations; got 'colours'"):
        split("colours")
