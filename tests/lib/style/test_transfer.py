"""Gram matrices, losses and transfer, against NumPy loops, autograd, SciPy, and bad input."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from course_lib import style as module
from course_lib.style.features import RandomFeatures, halve
from course_lib.style.transfer import adain, content_loss, gram, optimize, style_loss, total_variation, transfer

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def photos(n=1, side=32, seed=0):
    """Smooth colour images in [-0.8, 0.8]."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(1.6 * coarse - 0.8, size=(side, side), mode="bilinear")


EXTRACT = RandomFeatures(8, coarsest=8, generator=torch.Generator().manual_seed(0))


def test_gram_is_the_mean_product_of_features():
    f = rand(2, 3, 4, 5)
    want = np.zeros((2, 3, 3))
    for n, i, j, h, w in np.ndindex(2, 3, 3, 4, 5):
        want[n, i, j] += f[n, i, h, w] * f[n, j, h, w] / (3 * 4 * 5)
    np.testing.assert_allclose(gram(f), want, atol=1e-12)


@pytest.mark.parametrize("f, said", [
    (torch.zeros(3, 4, 5), r"must have shape \(N, C, H, W\).*got \(3, 4, 5\)"),
    (torch.zeros(0, 3, 4, 5), r"must have shape \(N, C, H, W\)"),
    (torch.zeros(1, 3, 0, 5), r"must have shape \(N, C, H, W\)"),
    (torch.full((1, 3, 4, 5), 200, dtype=torch.uint8), "must be a floating-point tensor; got torch.uint8"),
    (torch.zeros(1, 3, 4, 5, dtype=torch.complex64), "must be a floating-point tensor"),
    (np.zeros((1, 3, 4, 5)), "must be a floating-point tensor; got float64"),
    (torch.full((1, 3, 4, 5), float("nan")), "must be finite"),
    (torch.full((1, 3, 4, 5), 1e30), "must be finite, and so must sums of their products"),
])  # fmt: skip
def test_gram_refuses_other_features(f, said):
    with pytest.raises(ValueError, match=f"features {said}"):
        gram(f)


def test_style_loss_is_relative_and_a_mean():
    a, b = (
        {"p": rand(2, 3, 4, 4), "q": rand(2, 5, 2, 2)},
        {"p": rand(1, 3, 6, 6, seed=1), "q": rand(1, 5, 3, 3)},
    )
    want = []
    for name in a:
        for n in range(2):
            f, g = (t.flatten(1).numpy() for t in (a[name][n], b[name][0]))
            s, t = (m @ m.T / m.size for m in (f, g))
            want.append(((s - t) ** 2).sum() / (t**2).sum())
    targets = {k: gram(f) for k, f in b.items()}
    assert style_loss(a, targets).item() == pytest.approx(np.mean(want), rel=1e-12)
    assert style_loss(b, targets).item() == pytest.approx(0, abs=1e-24)
    nothing = {k: torch.zeros_like(f) for k, f in b.items()}
    assert style_loss(nothing, targets).item() == pytest.approx(1)


def test_content_loss_compares_place_by_place():
    a, b = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    want = np.mean([((x - y) ** 2).sum() / (y**2).sum() for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert content_loss({"p": a}, {"p": b}).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("loss", [style_loss, content_loss])
def test_losses_refuse_unknown_and_vanishing_layers(loss):
    f = rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="targets must be among p; got q"):
        loss({"p": f}, {"q": f})
    with pytest.raises(ValueError, match="targets must be among p; got none"):
        loss({"p": f}, {})
    target = torch.zeros(1, 3, 3) if loss is style_loss else torch.zeros(1, 3, 4, 4)
    for value in (0.0, 1e-18):
        with pytest.raises(ValueError, match="vanish, or be mere rounding, as they are in layer p"):
            loss({"p": f}, {"p": target + value})
    with pytest.raises(ValueError, match=r"targets must be finite.* in layer p"):
        loss({"p": f}, {"p": target + float("nan")})
    good = {"p": gram(f) if loss is style_loss else f}
    with pytest.raises(ValueError, match="features must be finite"):
        loss({"p": f / 0}, good)
    assert loss({"p": f}, {"p": 1e-4 * good["p"]}) > 1e7  # faint is not nothing


@pytest.mark.parametrize("seen, target", [
    ((1, 1), (1, 3, 3)),  # channels
    ((2, 3), (3, 3)),  # no axis of images
    ((1, 3), (4, 3, 3)),  # more targets than images
    ((3, 3), (2, 3, 3)),
    ((1, 5), (1, 3, 3)),
])  # fmt: skip
def test_losses_do_not_broadcast(seen, target):
    f = torch.ones(*seen, 4, 4)
    said = rf"targets must have shape \({seen[0]}, {seen[1]}.*in layer p; got \({target[0]}, "
    with pytest.raises(ValueError, match=said):
        style_loss({"p": f}, {"p": torch.ones(target)})
    with pytest.raises(ValueError, match=said):
        content_loss({"p": f}, {"p": torch.ones(*target[:-1], 4, 4)[..., : target[-1] + 1, :]})
    with pytest.raises(ValueError, match="targets must have shape"):
        content_loss({"p": torch.ones(1, 3, 1, 1)}, {"p": torch.ones(1, 3, 4, 4)})


def test_total_variation_is_the_mean_length_of_slopes():
    x = rand(2, 3, 5, 6)
    want = 0.0
    for n, c, h, w in np.ndindex(2, 3, 5, 6):
        right = x[n, c, h, w + 1] - x[n, c, h, w] if w < 5 else 0.0
        below = x[n, c, h + 1, w] - x[n, c, h, w] if h < 4 else 0.0
        want += float(np.hypot(float(right), float(below))) / x.numel()
    assert total_variation(x, rounding=1e-12).item() == pytest.approx(want, rel=1e-9)
    flat = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    total_variation(flat).backward()
    assert total_variation(flat) == 0 and torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("x, rounding, said", [
    (torch.zeros(0, 3, 4, 4), 1e-3, r"x must have shape \(N, C, H, W\)"),
    (torch.zeros(3, 4, 4), 1e-3, r"x must have shape \(N, C, H, W\)"),
    (torch.full((1, 3, 4, 4), float("nan")), 1e-3, "x must be finite"),
    (torch.zeros(1, 3, 4, 4), 0.0, "rounding must be positive"),
    (torch.zeros(1, 3, 4, 4), -1.0, "rounding must be a number, at least 0"),
    (torch.zeros(1, 3, 4, 4), float("nan"), "rounding must be a number, at least 0"),
])  # fmt: skip
def test_total_variation_refuses(x, rounding, said):
    with pytest.raises(ValueError, match=said):
        total_variation(x, rounding=rounding)


@pytest.mark.parametrize("seed", range(5))
def test_adain_has_the_style_s_moments(seed):
    f, g = rand(2, 4, 6, 7, seed=seed) ** 3, rand(2, 4, 3, 5, seed=seed + 9) + 2
    found = adain(f, g, eps=0.0).flatten(2).numpy()
    want = g.flatten(2).numpy()
    np.testing.assert_allclose(found.mean(2), want.mean(2), atol=1e-12)
    np.testing.assert_allclose(found.std(2), want.std(2), atol=1e-12)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(found[0], f[0].flatten(1).numpy(), strict=True)]
    np.testing.assert_allclose(correlation, 1)  # a rising straight line


def test_adain_survives_constant_channels():
    assert torch.isfinite(adain(torch.ones(1, 2, 4, 4), torch.rand(1, 2, 4, 4))).all()


@pytest.mark.parametrize("features, style, eps, said", [
    (rand(1, 2, 4, 4), rand(1, 3, 4, 4), 1e-5, r"style must have shape \(N, 2, H, W\)"),
    (rand(2, 4, 4), rand(1, 2, 4, 4), 1e-5, r"features must have shape \(N, C, H, W\)"),
    (rand(1, 2, 4, 4), rand(1, 2, 0, 4), 1e-5, r"style must have shape .*got \(1, 2, 0, 4\)"),
    (rand(1, 2, 4, 4), rand(3, 2, 4, 4), 1e-5, "style must hold one image, or one for each of 1; got 3"),
    (rand(1, 2, 4, 4).int(), rand(1, 2, 4, 4), 1e-5, "features must be a floating-point tensor"),
    (rand(1, 2, 4, 4) / 0, rand(1, 2, 4, 4), 1e-5, "features must be finite"),
    (rand(1, 2, 4, 4), rand(1, 2, 4, 4), -1e-5, "eps must be a number, at least 0"),
    (torch.full((1, 2, 4, 4), 0.3), rand(1, 2, 4, 4), 0.0, "eps must be positive where a channel"),
])  # fmt: skip
def test_adain_refuses(features, style, eps, said):
    with pytest.raises(ValueError, match=said):
        adain(features, style, eps=eps)


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


@pytest.mark.parametrize("loss, start, steps, history, said", [
    (torch.sum, torch.ones(3), 0, 20, "steps must be an integer of at least 1; got 0"),
    (torch.sum, torch.ones(3), 1.5, 20, "steps must be an integer"),
    (torch.sum, torch.ones(3), 1, 0, "history must be an integer of at least 1; got 0"),
    (torch.sum, torch.ones(3).int(), 1, 20, "start must be a floating-point tensor.*got torch.int32"),
    (torch.sum, np.ones(3), 1, 20, "start must be a floating-point tensor.*got float64"),
    (torch.sum, torch.ones(0), 1, 20, r"start must be .*with entries; got torch.float32 \(0,\)"),
    (torch.abs, torch.ones(3), 1, 20, "loss must return a tensor of one number; got .*3"),
    (lambda x: 2.0, torch.ones(3), 1, 20, "loss must return a tensor of one number; got 2.0"),
])  # fmt: skip
def test_optimize_refuses(loss, start, steps, history, said):
    with pytest.raises(ValueError, match=said):
        next(optimize(loss, start, steps, history=history))


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
        yield module.Iteration(1, 0.0, 1.7 * start)

    monkeypatch.setattr(module, "optimize", record)
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
        with pytest.raises(ValueError, match=r"must not vanish, or be mere rounding.* in layer 1/1"):
            next(transfer(extract, flat(value, dtype)))
        with pytest.raises(ValueError, match=r"must not vanish, or be mere rounding.* in layer 1/4"):
            next(transfer(extract, photos().to(dtype), content=flat(value, dtype)))


def test_its_colour_and_faint_images_are_seen():
    *_, last = transfer(EXTRACT, flat(0.3), style_layers=("colour",), steps=30)
    assert (last.image - 0.3).abs().max() < 0.02
    found = list(transfer(EXTRACT, 0.02 * photos(), content=0.02 * photos(seed=1), steps=5))
    assert found[-1].loss < found[0].loss < 10


def test_style_and_content_may_differ_in_size():
    *_, last = transfer(EXTRACT, photos(side=48), content=photos(side=32), content_layers=("1/1",), steps=2)
    assert last.image.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("options, said", [
    (dict(style_layers=("1/3",)), "style_layers must be among colour, 1/1.*got 1/3"),
    (dict(content=photos(), content_layers=("1/8",)), "content_layers must be among"),
    (dict(content_weight=-1.0), "content_weight must be a number, at least 0"),
    (dict(content_weight=float("nan")), "content_weight must be a number"),
    (dict(tv_weight=float("inf")), "tv_weight must be a number"),
    (dict(steps=0), "steps must be an integer of at least 1; got 0"),
    (dict(stages=1.5), "stages must be an integer of at least 1; got 1.5"),
    (dict(stages=7), r"style must have sides that are multiples of 64; got \(32, 32\)"),
    (dict(content=2 * photos()), r"content must lie in \[-1, 1\]"),
    (dict(start=torch.zeros(1, 1, 32, 32)), r"start must have shape \(B, 3, H, W\)"),
    (dict(content=photos(2), start=photos()), r"start must have content's shape, \(2, 3, 32, 32\)"),
    (dict(content=photos(), start=photos(side=16)), "start must have content's shape"),
])  # fmt: skip
def test_transfer_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        next(transfer(EXTRACT, photos(), **options))


def test_transfer_refuses_a_style_outside_its_range():
    with pytest.raises(ValueError, match=r"style must lie in \[-1, 1\]"):
        next(transfer(EXTRACT, photos() + 1))


def test_transfer_refuses_styles_that_do_not_fit_the_images():
    for options in (
        dict(content=photos()),
        dict(start=photos(), style_layers=("colour",)),
        dict(content=photos(3)),
    ):
        with pytest.raises(ValueError, match=r"style must hold one image, or one for each of [13]; got 2"):
            next(transfer(EXTRACT, photos(2), **options))
    with pytest.raises(ValueError, match="style must be a floating-point tensor"):
        next(transfer(EXTRACT, None, content=photos()))
    assert next(transfer(EXTRACT, photos(2), content=photos(2, seed=1), steps=1)).image.shape[0] == 2
