r"""Captions from a small grammar, when they are true, and their tokens.

.. code-block:: text

    caption  = [thing [relation thing]] ["on" background]
    thing    = "a" [size] [colour] (shape | "thing")
    relation = "left of" | "right of" | "above" | "below" | "and"

A caption is true of a scene if the scene has as many objects as the caption names, or more, with the sizes,
colours and shapes that it gives, in the relation and on the background that it gives. What it leaves out may
be anything: "a red circle" is true of a scene with a square besides, and "" of every scene. "left of" means a
smaller column and "above" a smaller row, whatever the other coordinate; "and" asks for no relation.
"""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from course_lib.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, factors

RELATIONS = ("left of", "right of", "above", "below")
WORDS = (  # the first is padding
    *("", "a", "thing", "and", "left", "right", "of", "above", "below", "on"),
    *(*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS),
)
LENGTH = 12  # words in the longest caption
_THING = rf"a(?: ({'|'.join(SIZES)}))?(?: ({'|'.join(COLOURS)}))? ({'|'.join(SHAPES)}|thing)"
_CAPTION = re.compile(
    rf"(?:{_THING}(?: ({'|'.join(RELATIONS)}|and) {_THING})?)?"
    rf"(?:(?:^|(?<=\w) )on ({'|'.join(BACKGROUNDS)}))?"
)
_PARTS = (SIZES, COLOURS, SHAPES, RELATIONS, SIZES, COLOURS, SHAPES, BACKGROUNDS)  # what the groups name


def caption(index: Tensor, *, keep: float = 1.0, generator: torch.Generator | None = None) -> list[str]:
    """A caption for each scene (N,), true of it.

    Either object comes first with equal chance. With one object named, the caption ends there; with two, the
    relation is one of those that hold, each with equal chance. `keep` is the chance of each part that may be
    left out to stay, independently: the second object, the relation, every size, colour and shape, and the
    background.

    Raises:
        ValueError: `keep` is not from 0 to 1.

    Examples:
        >>> index = torch.tensor([51])
        >>> caption(index)
        ['a large yellow square on white']
        >>> caption(index, keep=0.0)
        ['a thing']
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be from 0 to 1; got {keep!r}")
    scene = factors(index.cpu())
    relation = torch.arange(len(RELATIONS))[:, None]
    related = [_stand(relation, *cells).T.tolist() for cells in (scene.cell.T, scene.cell.T.flip(0))]
    swap, choice, *stay = torch.rand(len(index), 11, generator=generator).T
    stays = (torch.stack(stay, 1) < keep).tolist()
    columns = [column.tolist() for column in scene]
    result = []
    for i, (background, shape, colour, size, cell) in enumerate(zip(*columns, strict=True)):
        second, relation, ground, *looks = stays[i]
        order = [1, 0] if swap[i] < 0.5 else [0, 1]
        order = [k for k in order if cell[k] >= 0]
        words = [
            " ".join(_phrase(size[k], colour[k], shape[k], looks[3 * k : 3 * k + 3]))
            for k in order[: 1 + second]
        ]
        if len(words) == 2:
            true = [name for name, holds in zip(RELATIONS, related[order[0]][i], strict=True) if holds]
            words.insert(1, true[int(choice[i] * len(true))] if relation else "and")
        words += ["on", BACKGROUNDS[background]] if ground else []
        result.append(" ".join(words))
    return result


def holds(captions: str | Sequence[str], index: Tensor) -> Tensor:
    """Which captions are true of which scenes (N,): (N,), bool. One caption, or one for each scene.

    Raises:
        ValueError: a caption is not in the grammar, or there are neither one nor N.

    Examples:
        >>> from course_lib.scenes import COUNT
        >>> every = torch.arange(COUNT)
        >>> int(holds("", every).sum()), int(holds("a small red circle on grey", every).sum())
        (624384, 8536)
    """
    captions = [captions] if isinstance(captions, str) else captions
    if len(captions) not in (1, len(index)):
        raise ValueError(f"captions must be one or one for each of {len(index)} scenes; got {len(captions)}")
    scene = factors(index)
    rows = torch.tensor([_asked(said) for said in captions], device=index.device).view(-1, 9)
    named, asked = rows[:, 0], rows[:, 1:].T  # asked: (8, 1 or N)
    fits = lambda wanted, there: (wanted < 0) | (wanted == there)
    result = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    for first in (0, 1):
        true = fits(asked[7], scene.background)
        for place, k in enumerate((first, 1 - first)):
            size, colour, shape = asked[4 * place : 4 * place + 3]
            looks = fits(size, scene.size[:, k]) & fits(colour, scene.colour[:, k])
            looks = looks & fits(shape, scene.shape[:, k]) & (scene.cell[:, k] >= 0)
            true = true & (looks | (named <= place))
        result |= true & _stand(asked[3], scene.cell[:, first], scene.cell[:, 1 - first])
    return result


def encode(captions: str | Sequence[str]) -> Tensor:
    """Tokens (N, 12) of captions, int64: places of words in `WORDS`, then 0.

    A caption without words is padding alone: let a network attend to padding too, or softmax has nothing.

    Raises:
        ValueError: a caption is not in the grammar.

    Examples:
        >>> encode("a red circle")
        tensor([[ 1, 12, 18,  0,  0,  0,  0,  0,  0,  0,  0,  0]])
    """
    captions = [captions] if isinstance(captions, str) else captions
    result = torch.zeros(len(captions), LENGTH, dtype=torch.int64)
    for row, said in zip(result, captions, strict=True):
        _asked(said)
        words = [WORDS.index(word) for word in said.split()]
        row[: len(words)] = torch.tensor(words)
    return result


def decode(tokens: Tensor) -> list[str]:
    """The words of tokens (N, L) in one string each, without padding: the inverse of `encode`.

    Raises:
        ValueError: a token is not the place of a word.

    Examples:
        >>> decode(encode(["a red circle", ""]))
        ['a red circle', '']
    """
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < len(WORDS):
        raise ValueError(f"tokens must be from 0 to {len(WORDS) - 1}")
    return [" ".join(WORDS[token] for token in row if token) for row in tokens.tolist()]


def _phrase(size: int, colour: int, shape: int, stay: list[bool]) -> Iterator[str]:
    yield "a"
    if stay[0]:
        yield SIZES[size]
    if stay[1]:
        yield COLOURS[colour]
    yield SHAPES[shape] if stay[2] else "thing"


def _stand(relation: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether objects in these cells (N,) stand in a relation, a place in `RELATIONS`; −1 asks for none."""
    apart = torch.where(relation < 2, first % SIDE - second % SIDE, first // SIDE - second // SIDE)
    return (relation < 0) | torch.where(relation % 2 == 0, apart < 0, apart > 0)


def _asked(said: str) -> list[int]:
    """How many objects a caption names, and the places in `_PARTS` of what it gives, −1 for nothing."""
    match = _CAPTION.fullmatch(said)
    if match is None:
        raise ValueError(f"captions must be in the grammar of shapes32; got {said!r}")
    parts = match.groups()
    places = [names.index(word) if word in names else -1 for word, names in zip(parts, _PARTS, strict=True)]
    return [(parts[2] is not None) + (parts[6] is not None), *places]
