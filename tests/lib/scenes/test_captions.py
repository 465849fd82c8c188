"""Captions: true by what is seen in the picture, with the chances that are stated, and their tokens."""

import math

import pytest
import torch

from course_lib.scenes import (
    COUNT,
    LENGTH,
    PALETTE,
    SINGLES,
    WORDS,
    caption,
    decode,
    draw,
    encode,
    factors,
    holds,
    index_of,
    masks,
    sample,
)
from course_lib.scenes.scene import Scene

RELATIONS = {
    "left": lambda a, b: a["x"] < b["x"],
    "right": lambda a, b: a["x"] > b["x"],
    "above": lambda a, b: a["y"] < b["y"],
    "below": lambda a, b: a["y"] > b["y"],
}


def seen(pixels: torch.Tensor) -> str:
    """The name of a pixel's colour (3,)."""
    levels = tuple(((pixels + 1) * 127.5).round().int().tolist())
    return {colour: name for name, colour in PALETTE.items()}[levels]


def look(index: torch.Tensor) -> list[tuple[str, list[dict]]]:
    """Background and objects of scenes, measured in the picture and in the objects' masks."""
    result = []
    axis = torch.arange(32) + 0.5
    for image, covers in zip(draw(index), masks(index), strict=True):
        ground = seen(image[:, *divmod(covers.sum(0).argmin().item(), 32)])
        objects = []
        for cover in covers[covers.sum((1, 2)) > 0]:
            area, rows = cover.sum().item(), cover[cover.sum(1) > 0]
            pointed = not torch.equal(rows, rows.flip(0))
            objects.append(
                {
                    "shape": "triangle"
                    if pointed
                    else "square"
                    if rows.unique().tolist() == [0, 1]
                    else "circle",
                    "colour": seen(image[:, *divmod(cover.argmax().item(), 32)]),
                    "size": "large" if area > 25 else "small",
                    "x": (cover.sum(0) @ axis).item() / area // 8,
                    "y": (cover.sum(1) @ axis).item() / area // 8,
                }
            )
        result.append((ground, objects))
    return result


def judge(said: str, ground: str, objects: list[dict]) -> bool:
    """Whether a caption is true of what was seen, word by word."""
    said, _, on = f" {said}".partition(" on ")
    if on and on != ground:
        return False
    phrases, relation = [], None
    for word in said.split():
        if word == "a":
            phrases.append(set())
        elif word in RELATIONS:
            relation = RELATIONS[word]
        elif word not in ("of", "and", "thing"):
            phrases[-1].add(word)
    fits = lambda phrase, one: phrase <= {one["shape"], one["colour"], one["size"]}
    if len(phrases) < 2:
        return all(any(fits(phrase, one) for one in objects) for phrase in phrases)
    pairs = [(a, b) for a in objects for b in objects if a is not b]
    return any(
        fits(phrases[0], a) and fits(phrases[1], b) and (relation is None or relation(a, b)) for a, b in pairs
    )


@pytest.fixture(scope="module")
def index() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    single = torch.randint(SINGLES, (100,), generator=generator)
    return torch.cat([single, sample(500, generator=generator)])


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_captions_are_true(index, keep) -> None:
    said = caption(index, keep=keep, generator=torch.Generator().manual_seed(2))
    assert holds(said, index).all()
    assert all(judge(words, *scene) for words, scene in zip(said, look(index), strict=True))


@pytest.mark.parametrize("keep", [0.15, 0.3, 0.6])
def test_truth_is_what_is_seen(index, keep) -> None:
    said = caption(index.roll(1), keep=keep, generator=torch.Generator().manual_seed(3))
    expected = [judge(words, *scene) for words, scene in zip(said, look(index), strict=True)]
    assert 5 < sum(expected) < len(expected) - 5
    assert holds(said, index).tolist() == expected


def test_numbers_of_true_scenes() -> None:
    every = torch.arange(COUNT)
    number = lambda said: int(holds(said, every).sum())
    assert number("") == COUNT and number("on sky") == COUNT // 4
    assert number("a thing and a thing") == COUNT - SINGLES
    # one or two of 120 · 36² pairs are of the 6 red objects
    assert number("a red thing") == 4 * (16 * 6 + 120 * (36**2 - 30**2))
    # of 16 · 15 ordered pairs of cells, 16 · 3 have one column, half of the others the first more to the left
    assert number("a small red circle left of a large blue square") == 4 * (16 * 15 - 16 * 3) // 2
    assert number("a large blue square right of a small red circle on grey") == (16 * 15 - 16 * 3) // 2
    assert number("a circle above a circle") == 4 * 120 * 12**2 - 4 * (4 * 6) * 12**2


def test_one_caption_or_one_each() -> None:
    index = torch.tensor([0, 36, 3])
    assert holds("a red thing", index).tolist() == holds(["a red thing"] * 3, index).tolist()
    with pytest.raises(ValueError, match="captions must be one or one for each of 3 scenes; got 2"):
        holds(["", ""], index)


def test_chances_are_those_stated() -> None:
    """A scene whose objects differ in row and in column: of its words, and of its four whole captions."""
    pair = lambda a, b: torch.tensor([[a, b]])
    index = index_of(Scene(torch.tensor([1]), pair(0, 2), pair(4, 5), pair(0, 1), pair(0, 5)))
    n, generator = 4000, torch.Generator().manual_seed(4)
    fits = lambda count, p: abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))
    small, large = "a small pink circle", "a large black triangle"
    whole = caption(index.expand(n), generator=generator)
    assert {*whole} == {
        *(f"{small} {relation} {large} on grey" for relation in ("left of", "above")),
        *(f"{large} {relation} {small} on grey" for relation in ("right of", "below")),
    }
    assert all(fits(whole.count(one), 1 / 4) for one in {*whole})
    part = caption(index.expand(n), keep=0.7, generator=generator)
    number = lambda word: sum(word in said for said in part)
    assert (
        fits(number("grey"), 0.7) and fits(number(" and "), 0.7 * 0.3) and fits(number("above"), 0.7**2 / 4)
    )
    assert all(fits(number(word), (0.5 + 0.5 * 0.7) * 0.7) for word in ("small", "black", "circle"))


def test_the_same_generator_says_the_same(index) -> None:
    seeded = lambda: caption(index, keep=0.5, generator=torch.Generator().manual_seed(5))
    assert seeded() == seeded()


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan")])
def test_caption_refuses(keep) -> None:
    with pytest.raises(ValueError, match="keep must be from 0 to 1"):
        caption(torch.tensor([0]), keep=keep)


@pytest.mark.parametrize("said", [
    "red circle", "a circle red", "a red", "a small large circle", "a red circle on", "a circle on pink",
    " on white", "on white ", "a circle  on white", "A circle", "a circle left a square", "a circle left of",
    "a circle and a square and a circle", "a circle.", "a circleon white", "\n",
])  # fmt: skip
def test_what_is_not_in_the_grammar_is_refused(said) -> None:
    for function in (lambda: holds(said, torch.tensor([0])), lambda: encode(["a circle", said])):
        with pytest.raises(ValueError, match="captions must be in the grammar"):
            function()


def test_tokens_say_the_caption(index) -> None:
    assert len(WORDS) < 40 and len({*WORDS}) == len(WORDS)
    said = [*caption(index), *caption(index, keep=0.3), "", "on white"]
    tokens = encode(said)
    assert tokens.shape == (len(said), LENGTH) and tokens.dtype == torch.int64
    assert decode(tokens) == said
    assert tokens.unique().tolist() == list(range(len(WORDS)))  # each word is said
    assert (tokens[: len(index)] > 0).sum(1).max() == LENGTH  # and the longest caption has no room to spare
    padding = tokens == 0
    assert (padding[:, 1:] >= padding[:, :-1]).all()
    assert encode([]).shape == (0, LENGTH)


@pytest.mark.parametrize("token", [-1, len(WORDS)])
def test_decode_refuses(token) -> None:
    with pytest.raises(ValueError, match="tokens must be from 0 to 24"):
        decode(torch.tensor([[1, token]]))


def test_captions_of_one_object_name_no_second() -> None:
    index = torch.arange(SINGLES)[::7]
    assert (factors(index).cell[:, 1] == -1).all()
    assert all(said.count("a ") == 1 for said in caption(index))
