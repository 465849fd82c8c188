"""The nearest scene: what was drawn is read, no scene is nearer to any image, and errors are as stated."""

import math
import re
from collections.abc import Callable

import pytest
import torch

from course_lib.scenes import COUNT, SINGLES, draw, factors, read, sample


def test_what_was_drawn_is_read() -> None:
    index = torch.cat([torch.arange(SINGLES), sample(2000)])
    seen = read(draw(index))
    assert torch.equal(seen.index, index) and (seen.residual == 0).all()


@pytest.fixture(scope="module")
def distances() -> Callable[[torch.Tensor], torch.Tensor]:
    """Squared distances (COUNT,) of an image from every scene, added up from differences in the cells."""
    every = factors(torch.arange(COUNT))
    alone = (every.cell[:, 0] == 0).nonzero()[
        : SINGLES // 16, 0
    ]  # the first cell has an object, no other has
    one = factors(alone)
    known = torch.empty(4, 3, 6, 2, 3, 8, 8)
    known[one.background, one.shape[:, 0], one.colour[:, 0], one.size[:, 0]] = draw(alone)[..., :8, :8]
    empty = draw(alone[one.shape[:, 0] == 0][::12])[..., 8:16, 8:16]  # (4, 3, 8, 8)

    def measure(image: torch.Tensor) -> torch.Tensor:
        cells = image.double().view(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (16, 3, 8, 8)
        apart = lambda tile: (cells - tile.double()[..., None, :, :, :]).square().sum((-3, -2, -1))
        without = apart(empty)  # (4, 16)
        more = apart(known) - without[:, None, None, None]  # (4, 3, 6, 2, 16)
        result = without.sum(1)[every.background]
        for k in (0, 1):
            shape, colour, size, cell = (part[:, k] for part in every[1:])
            result += torch.where(cell < 0, 0, more[every.background, shape, colour, size, cell])
        return result

    return measure


@pytest.mark.parametrize("noise", [0.1, 1.0, 4.0])
def test_no_scene_is_nearer(noise, distances) -> None:
    one, two = draw(sample(20)).chunk(2)
    x = torch.cat([one, (one + two) / 2]) + noise * torch.randn(20, 3, 32, 32)  # also between two scenes
    seen = read(x)
    for image, index, residual in zip(x, seen.index, seen.residual, strict=True):
        every = distances(image)
        assert every[index] == pytest.approx(every.min().item(), rel=1e-12)
        assert residual.item() == pytest.approx((every.min() / 3072).sqrt().item(), rel=1e-5)
    some = sample(100)
    torch.testing.assert_close(every[some].float(), (draw(some) - image).square().sum((1, 2, 3)))


def test_a_second_object_must_gain() -> None:
    index = torch.tensor([100])
    x = draw(index)
    x[:, :, 24:, 24:] += 0.01 * torch.randn(3, 8, 8)  # nearer to nothing than to any object
    assert torch.equal(read(x).index, index)


def test_an_empty_image_has_one_object() -> None:
    x = draw(torch.tensor([100]))[:, :, -1:, -1:].expand(1, 3, 32, 32)
    seen = read(x)
    assert seen.index < SINGLES
    # the object that differs least
    assert seen.residual == (draw(torch.arange(SINGLES)) - x).square().mean((1, 2, 3)).sqrt().min()


def stated() -> dict[float, tuple[float, float]]:
    rows = re.findall(r"^ +(\d\.\d) +(\d+\.\d+) % +(\d\.\d+) %$", read.__doc__, re.M)
    return {float(noise): (float(rate) / 100, float(error) / 100) for noise, rate, error in rows}


@pytest.mark.parametrize("noise", [0.3, 0.5])
def test_as_often_wrong_as_stated(noise) -> None:
    rate, error = stated()[noise]
    index = sample(3000)
    wrong = (read(draw(index) + noise * torch.randn(3000, 3, 32, 32)).index != index).double().mean().item()
    assert abs(wrong - rate) < 5 * math.hypot(error, math.sqrt(rate * (1 - rate) / 3000))


def test_images_may_be_of_any_float_and_of_many_batches() -> None:
    index = sample(1500)
    x = draw(index)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(read(x[:50].to(dtype)).index, index[:50])
    assert torch.equal(read(x).index, index)


@pytest.mark.parametrize("x", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(2, 3, 28, 28),
                               torch.full((1, 3, 32, 32), math.nan)])  # fmt: skip
def test_read_refuses(x) -> None:
    with pytest.raises(ValueError, match="images must be"):
        read(x)
