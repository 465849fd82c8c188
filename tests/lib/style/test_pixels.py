"""Optimizing pixels, and transfer, against SciPy and PyTorch's own solver."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from course_lib.style import pixels
from course_lib.style.features import RandomFeatures, halve
from course_lib.style.losses import content_loss, gram, style_loss, total_variation
from course_lib.style.pixels import optimize, transfer

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def photos(n=1, side=32, seed=0):
    """Smooth colour images in [-0.8, 0.8]."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(1.6 * coarse - 0.8, size=(side, side), mode="bilinear")


EXTRACT = RandomFeatures(8, coarsest=8, generator=torch.Generator().manual_seed(0))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_optimize_finds_the_minimum_that_scipy_finds():
    start = torch.tensor([-1.2, 1.0, 0.5], dtype=F64)
    found = list(optimize(rosenbrock, start, 60))
    want = minimize(lambda v: rosenbrock(torch.tensor(v)).item(), start.numpy(), method="L-BFGS-B", tol=1e-12)
    np.testing.assert_allclose(found[-1].image, want.x, atol=1e-4)
    assert [i.step for i in found] == list(range(1, 61))
    assert all(b.loss <= a.loss for a, b in itertools.pairwise(found))
    assert torch.equal(start, torch.tensor([-1.2, 1.0, 0.5], dtype=F64))  # left alone
    for i in found[::10]:
        assert i.loss == pytest.approx(rosenbrock(i.image).item(), rel=1e-12)


def test_optimize_takes_the_steps_of_one_call_to_pytorch_s():
    start = torch.tensor([-1.2, 1.0, 0.5], dtype=F64)
    x = start.clone().requires_grad_()
    exact = dict(line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0)
    solver = torch.optim.LBFGS([x], max_iter=12, max_eval=500, history_size=20, **exact)

    def closure():
        solver.zero_grad()
        value = 3 * rosenbrock(x)
        value.backward()
        return value

    solver.step(closure)
    *_, last = optimize(rosenbrock, start, 12)
    torch.testing.assert_close(last.image, x.detach(), rtol=1e-10, atol=1e-10)


def test_optimize_evaluates_little_more_than_once_an_iteration():
    calls = []

    def counted(x):
        calls.append(1)
        return (x**2).sum() + 0.1 * (x**4).sum()

    list(optimize(counted, rand(50), 15))
    assert len(calls) < 40


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        list(optimize(lambda x: (x * float("nan")).sum(), torch.ones(3), 2))


@pytest.mark.parametrize("seed", range(5))
def test_a_texture_gets_the_gram_matrices(seed):
    g = torch.Generator().manual_seed(seed)
    style = photos(seed=seed)
    found = list(transfer(EXTRACT, style, stages=2, steps=25, generator=g))
    targets = {k: gram(f) for k, f in EXTRACT(style).items()}
    begin = style_loss(EXTRACT(style.mean((2, 3), keepdim=True) + 0.1 * torch.randn(1, 3, 32, 32)), targets)
    assert style_loss(EXTRACT(found[-1].image), targets) < 0.05 * begin
    assert [i.step for i in found] == list(range(1, 51))
    assert found[0].image.shape[-1] == 16 and found[-1].image.shape[-1] == 32
    assert all(i.image.abs().max() <= 1 for i in found)


def test_content_and_variation_pull():
    style, content = photos(seed=1), photos(2, seed=2)
    keep = {"1/2": EXTRACT(content)["1/2"]}
    options = dict(content=content, content_layers=("1/2",), steps=15)
    made = {}
    for weight in (0.01, 1.0):
        *_, last = transfer(EXTRACT, style, content_weight=weight, **options)
        made[weight] = content_loss(EXTRACT(last.image), keep).item()
    assert made[1.0] < made[0.01]
    *_, rough = transfer(EXTRACT, style, **options)
    *_, smooth = transfer(EXTRACT, style, tv_weight=1.0, **options)
    assert total_variation(smooth.image) < total_variation(rough.image)
    assert smooth.image.shape == content.shape  # a batch, from one style


@pytest.fixture
def runs(monkeypatch):
    """What `transfer` gives to `optimize`, which answers at once with pixels outside [-1, 1]."""
    seen = []

    def record(loss, start, steps):
        seen.append((loss, start))
        yield pixels.Iteration(1, 0.0, 1.7 * start)

    monkeypatch.setattr(pixels, "optimize", record)
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_what_each_stage_makes_small_and_where_it_begins(runs, seed):
    style, content, start = photos(seed=seed), photos(2, seed=seed + 10), photos(2, seed=seed + 20)
    options = dict(content=content, content_layers=("1/2",), content_weight=0.3, tv_weight=0.2, stages=2)
    made = list(transfer(EXTRACT, style, start=start, **options))
    torch.testing.assert_close(runs[0][1], halve(start))
    bigger = F.interpolate(1.7 * halve(start), scale_factor=2, mode="bicubic")
    torch.testing.assert_close(runs[1][1], bigger)
    for (loss, begin), done, factor in zip(runs, made, (2, 1), strict=True):
        torch.testing.assert_close(done.image, (1.7 * begin).clamp(-1, 1))
        x = 1.9 * begin
        assert x.abs().max() > 1.1
        outside = np.maximum(np.abs(x.double().numpy()) - 1, 0)
        grams = {k: gram(f) for k, f in EXTRACT(halve(style, factor)).items()}
        keep = {"1/2": EXTRACT(halve(content, factor))["1/2"]}
        want = style_loss(EXTRACT(x), grams) + 0.3 * content_loss(EXTRACT(x), keep)
        want = want + 0.2 * total_variation(x) + (outside**2).mean()
        assert loss(x).item() == pytest.approx(want.item(), rel=1e-5)


def test_a_transfer_begins_with_the_content_unless_told(runs):
    content = photos(seed=3)
    next(transfer(EXTRACT, photos(), content=content))
    assert torch.equal(runs[0][1], content)


@pytest.mark.parametrize("seed", range(5))
def test_a_texture_begins_with_the_style_s_colour_and_a_little_noise(runs, seed):
    style = (photos(seed=seed) + 0.8).clamp(-1, 1)  # so bright that some noise is cut
    next(transfer(EXTRACT, style, generator=torch.Generator().manual_seed(seed)))
    noise = np.asarray(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    want = np.clip(style.numpy().mean((2, 3), keepdims=True) + 0.1 * noise, -1, 1)
    np.testing.assert_allclose(runs[0][1], want, atol=1e-6)


def flat(value, dtype=torch.float32):
    return torch.full((1, 3, 32, 32), value, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.9])
def test_an_image_of_one_colour_shows_nothing_to_filters_without_mean(value, dtype):
    for extract in (EXTRACT, RandomFeatures(coarsest=8)):
        with pytest.raises(ValueError, match="style must show something to layer 1/1"):
            next(transfer(extract, flat(value, dtype)))
        with pytest.raises(ValueError, match="content must show something to layer 1/4"):
            next(transfer(extract, photos().to(dtype), content=flat(value, dtype)))


def test_its_colour_and_faint_images_are_seen():
    start = torch.Generator().manual_seed(0)
    *_, last = transfer(EXTRACT, flat(0.3), style_layers=("colour",), steps=30, generator=start)
    assert (last.image - 0.3).abs().max() < 0.1  # it begins with noise of ±0.4
    found = list(transfer(EXTRACT, 0.02 * photos(), content=0.02 * photos(seed=1), steps=5))
    assert found[-1].loss < found[0].loss < 10


def test_style_and_content_may_differ_in_size():
    *_, last = transfer(EXTRACT, photos(side=48), content=photos(side=32), content_layers=("1/1",), steps=2)
    assert last.image.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("options, said", [
    (dict(content_weight=-1.0), "content_weight must be a number, at least 0"),
    (dict(stages=7), "style must have sides that are multiples of 64"),
    (dict(content=2 * photos()), r"content must lie in \[-1, 1\]"),
    (dict(content=photos(2), start=photos()), r"start must have content's shape, \(2, 3, 32, 32\)"),
    (dict(style=photos(2), content=photos()), "style must hold one image, or one for each of 1; got 2"),
    (dict(style=photos() + 1), r"style must lie in \[-1, 1\]"),
])  # fmt: skip
def test_what_transfer_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        next(transfer(EXTRACT, **{"style": photos(), **options}))
