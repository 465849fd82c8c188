"""Gram matrices, losses and transfer, against NumPy loops, autograd, SciPy, and bad input."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from course_lib.features import RandomFeatures
from course_lib.style import adain, content_loss, gram, optimize, style_loss, total_variation, transfer

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def photos(n=1, side=32, seed=0):
    """Smooth colour images in [-0.8, 0.8]."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(1.6 * coarse - 0.8, size=(side, side), mode="bilinear")


EXTRACT = RandomFeatures(8, coarsest=8, generator=torch.Generator().manual_seed(0))


def test_gram_is_the_mean_product_of_features():
    f = rand(2, 3, 4, 5)
    want = np.zeros((2, 3, 3))
    for n, i, j, h, w in np.ndindex(2, 3, 3, 4, 5):
        want[n, i, j] += f[n, i, h, w] * f[n, j, h, w] / (3 * 4 * 5)
    np.testing.assert_allclose(gram(f), want, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 3, 4, 5), (1, 3, 0, 5)])
def test_gram_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"features must have shape \(N, C, H, W\)"):
        gram(torch.zeros(shape))


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
    with pytest.raises(ValueError, match="vanish, as they do in layer p"):
        loss({"p": f}, {"p": target})


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


@pytest.mark.parametrize("seed", range(5))
def test_adain_has_the_style_s_moments(seed):
    f, g = rand(2, 4, 6, 7, seed=seed) ** 3, rand(2, 4, 3, 5, seed=seed + 9) + 2
    found = adain(f, g, eps=0.0).flatten(2).numpy()
    want = g.flatten(2).numpy()
    np.testing.assert_allclose(found.mean(2), want.mean(2), atol=1e-12)
    np.testing.assert_allclose(found.std(2), want.std(2), atol=1e-12)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(found[0], f[0].flatten(1).numpy(), strict=True)]
    np.testing.assert_allclose(correlation, 1)  # a rising straight line


def test_adain_survives_constant_channels_and_refuses_other_shapes():
    assert torch.isfinite(adain(torch.ones(1, 2, 4, 4), torch.rand(1, 2, 4, 4))).all()
    with pytest.raises(ValueError, match="with one C"):
        adain(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4))
    with pytest.raises(ValueError, match="with one C"):
        adain(torch.ones(2, 4, 4), torch.ones(1, 2, 4, 4))


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


def test_style_and_content_may_differ_in_size():
    *_, last = transfer(EXTRACT, photos(side=48), content=photos(side=32), content_layers=("1/1",), steps=2)
    assert last.image.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("options, said", [
    (dict(style_layers=("1/3",)), "style_layers must be among colour, 1/1.*got 1/3"),
    (dict(content=photos(), content_layers=("1/8",)), "content_layers must be among"),
    (dict(content_weight=-1.0), "weights must be at least 0"),
    (dict(steps=0), "steps at least 1"),
    (dict(stages=7), "multiples of 64"),
    (dict(content=2 * photos()), r"content must lie in \[-1, 1\]"),
    (dict(start=torch.zeros(1, 1, 32, 32)), r"start must have shape \(N, 3, H, W\)"),
])  # fmt: skip
def test_transfer_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        next(transfer(EXTRACT, photos(), **options))


def test_transfer_refuses_a_style_outside_its_range():
    with pytest.raises(ValueError, match=r"style must lie in \[-1, 1\]"):
        next(transfer(EXTRACT, photos() + 1))
