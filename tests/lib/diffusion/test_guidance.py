"""Guidance, against autograd of exact densities and a Gaussian case in closed form."""

import pytest
import torch
from cases import F64, PATHS, exact, mixture, normal, numbers, oracle_of
from torch.testing import assert_close

from course_lib.diffusion.denoiser import BaseDenoiser, Denoiser
from course_lib.diffusion.guidance import Clipped, Guided, drop_labels
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.samplers import ddim, edm_heun, euler, grid, heun, karras
from course_lib.diffusion.target import Pair
from course_lib.mixture.gaussian import GaussianMixture

X, Y = normal(6, 2, seed=4), torch.tensor([0, 1, 2, 2, 1, 0])
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def scores(path, t):
    """The gradients of log p(x) and of log p(x|y), by autograd of the mixture and of its components."""
    m, x = mixture(), X.clone().requires_grad_()
    now = oracle_of(path).at(t)
    (free,) = torch.autograd.grad(now.log_prob(x).sum(), x)
    given = torch.zeros_like(X)
    for k in range(len(m.weights)):
        one = GaussianMixture(torch.ones(1, dtype=F64), now.means[k : k + 1], now.covariances[k : k + 1])
        (slope,) = torch.autograd.grad(one.log_prob(x).sum(), x)
        given[k == Y] = slope[k == Y]
    return free, given


@every_path
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -0.5])
def test_the_guided_score(path, scale):
    """(1 − γ) ∇ log p(x) + γ ∇ log p(x|y), and data and noise by Tweedie, at a number or at times."""
    free, given = scores(path, 0.4)
    want, (a, b) = (1 - scale) * free + scale * given, numbers(path, 0.4)
    model = Guided(oracle_of(path), scale)
    for t in (0.4, torch.tensor([0.4]), torch.full((6,), 0.4, dtype=F64)):
        assert_close(model.score(X, t, y=Y), want, rtol=1e-6, atol=1e-6)
        x0, eps = model.predict(X, t, y=Y)
        assert_close(eps, -b * want, rtol=1e-6, atol=1e-6)
        assert_close(x0, (X + b**2 * want) / a, rtol=1e-5, atol=1e-6)
    assert_close(Guided(oracle_of(path), 1.0)(X, 0.4, y=Y), oracle_of(path)(X, 0.4, y=Y))
    assert_close(Guided(oracle_of(path), 0.0)(X, 0.4, y=Y), oracle_of(path)(X, 0.4))


@pytest.mark.parametrize("target", ["x0", "eps", "velocity", "score", "v", "edm"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_velocity_and_pair_agree(target, rescale):
    """Whatever the network says, also for times of which some are in the interval."""
    path = VP()
    model = Guided(exact(oracle_of(path), target), 3.0, interval=(0.2, 0.5), rescale=rescale)
    for t in (0.1, 0.3, torch.tensor([0.1, 0.2, 0.3, 0.5, 0.7, 0.9], dtype=F64)):
        x0, eps = model.predict(X, t, y=Y)
        at = path.expand(t, X)
        want = path.da(at) * x0 + path.db(at) * eps
        assert_close(model.velocity(X, t, y=Y), want, rtol=1e-6, atol=1e-7)
        assert_close(path.mix(x0, eps, t), X, rtol=1e-6, atol=1e-7)


def test_an_interval_is_guided_and_no_more():
    """Outside, the conditional model is asked once."""
    calls = []

    def net(x, t, y=None):
        calls.append(y is None)
        return torch.zeros_like(x) if y is None else torch.ones_like(x)

    model = Guided(Denoiser(net, Cosine(), "x0"), 3.0, interval=(0.3, 0.6))
    for t, want in ((0.29, 1.0), (0.3, 3.0), (0.6, 3.0), (0.61, 1.0)):
        calls.clear()
        assert (model(X, t, y=Y) == want).all() and len(calls) == (2 if want == 3 else 1)
    t = torch.tensor([0.29, 0.3, 0.45, 0.6, 0.61, 1.0], dtype=F64)
    assert model(X, t, y=Y)[:, 0].tolist() == [1, 3, 3, 3, 1, 1]


def test_rescale():
    """Lin et al. (2024), equations 15 and 16, on x̂_0, by loops; the noise is then what is left."""
    x, path, t, phi = normal(5, 1, 3, 3), Cosine(), 0.6, 0.4
    net = lambda x, t, y=None: torch.sin(3 * x) + (0 if y is None else x * y.view(-1, 1, 1, 1))
    base, y = Denoiser(net, path, "x0"), torch.arange(5)
    got = Guided(base, 4.0, rescale=phi).predict(x, t, y=y)
    for k in range(5):
        positive, free = base(x, t, y=y)[k].numpy(), base(x, t)[k].numpy()
        cfg = free + 4.0 * (positive - free)
        want = phi * cfg * (positive.std() / cfg.std()) + (1 - phi) * cfg
        assert_close(got.x0[k], torch.from_numpy(want), rtol=1e-9, atol=1e-10)
    assert_close(path.mix(*got, t), x)


class Normal(BaseDenoiser):
    """x | c ~ N(c, 1) and c ~ N(0, 1), so x ~ N(0, 2), on a path with a = 1."""

    def predict(self, x, t, c=None):
        b = self.path.b(self.path.expand(t, x))
        score = -x / (2 + b**2) if c is None else (c - x) / (1 + b**2)
        return Pair(x + b**2 * score, -b * score)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.0])
def test_guidance_is_not_a_tilted_density(scale):
    r"""By the flow the variance becomes :math:`2^{1 - \gamma}`.

    dx/dσ = σ((1 − γ)/(2 + σ²) + γ/(1 + σ²)) x + … is linear, and integrates to
    x ∝ (2 + σ²)^{(1 − γ)/2} (1 + σ²)^{γ/2}. The tilted density would have 1/(1/2 + γ/2).
    """
    model = Guided(Normal(VE(0.002, 1000.0)), scale)
    ends = 1000 * torch.tensor([[-1.0], [1.0]], dtype=F64)  # a linear map: two points tell it
    out = edm_heun(model, ends, karras(model.path, 400, sigma_max=1000.0), c=0.3)
    assert ((out[1] - out[0]) / 2).item() ** 2 == pytest.approx(2 ** (1 - scale), rel=1e-3)


def test_it_is_a_denoiser_like_any_other():
    """A batch of several conditions is what each is alone; float32 stays; all targets sample the same."""
    path, times = VP(), grid(6)
    for sampler in (ddim, euler, heun, edm_heun):
        model = Guided(oracle_of(path), 2.0, interval=(0.1, 0.9))
        want = torch.cat([sampler(model, X[k : k + 2], times, y=Y[k : k + 2]) for k in (0, 2, 4)])
        assert_close(sampler(model, X, times, y=Y), want, rtol=1e-9, atol=1e-9)
        for target in ("eps", "velocity", "v"):
            other = Guided(exact(oracle_of(path), target), 2.0, interval=(0.1, 0.9))
            assert_close(sampler(other, X, times, y=Y), want, rtol=1e-4, atol=1e-5)
        assert sampler(model, X.float(), times, y=Y).dtype == torch.float32


def test_refusals():
    with pytest.raises(ValueError, match="condition must be given"):
        Guided(oracle_of(VP()), 2.0)(X, 0.5)
    with pytest.raises(ValueError, match=r"rescale must be in \[0, 1\]; got 1.5"):
        Guided(oracle_of(VP()), 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="bound must be positive"):
        Clipped(oracle_of(VP()), 0.0)
    bad = Guided(Denoiser(lambda x, t, y=None: x, Linear(), "eps"), 2.0)
    with pytest.raises(ValueError, match="target 'eps' is infinite"):  # where the model within may not begin
        ddim(bad, X, grid(3), y=Y)


@every_path
def test_clipped(path):
    """The noise is what is left of x; at b = 0, where x says nothing of it, the model's own."""
    free, model = oracle_of(path), Clipped(oracle_of(path), 0.3)
    pair = model.predict(X, 0.5)
    assert_close(pair.x0, free(X, 0.5).clamp(-0.3, 0.3))
    assert_close(path.mix(*pair, 0.5), X)
    eps_net = Clipped(Denoiser(lambda x, t: 0.5 * x, path, "eps"), 0.3)
    assert_close(eps_net.eps(X, 0.0), 0.5 * X)


def test_labels_are_dropped():
    y = torch.arange(20_000) % 10
    dropped = drop_labels(y, 0.2, null=10, generator=torch.Generator().manual_seed(0))
    share = (dropped == 10).double().mean().item()
    assert abs(share - 0.2) < 5 * (0.16 / 20_000) ** 0.5
    assert (dropped[dropped != 10] == y[dropped != 10]).all()
    assert torch.equal(drop_labels(y, 0.0, null=10), y)
