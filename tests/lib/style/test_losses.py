"""Gram matrices, losses and AdaIN, against NumPy loops."""

import numpy as np
import pytest
import torch

from course_lib.style.losses import adain, content_loss, gram, style_loss, total_variation

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_gram_is_the_mean_product_of_features():
    f = rand(2, 3, 4, 5)
    want = np.zeros((2, 3, 3))
    for n, i, j, h, w in np.ndindex(2, 3, 3, 4, 5):
        want[n, i, j] += f[n, i, h, w] * f[n, j, h, w] / (3 * 4 * 5)
    np.testing.assert_allclose(gram(f), want, atol=1e-12)


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


@pytest.mark.parametrize("seen, target", [
    ((1, 1), (1, 3, 3)),  # channels
    ((2, 3), (3, 3)),  # no axis of images
    ((1, 3), (4, 3, 3)),  # more targets than images
    ((3, 3), (2, 3, 3)),
    ((1, 5), (1, 3, 3)),
])  # fmt: skip
def test_losses_do_not_broadcast(seen, target):
    f = torch.ones(*seen, 4, 4)
    said = rf"targets must have shape \({seen[0]}, {seen[1]}.*in p; got \({target[0]}, "
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


def test_faint_features_are_not_nothing():
    f = rand(1, 3, 4, 4)
    assert style_loss({"p": f}, {"p": 1e-4 * gram(f)}) > 1e7
