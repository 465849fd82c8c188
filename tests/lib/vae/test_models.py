"""Variational autoencoders, against linear Gaussian models where all is exact, quadrature and autograd.

In these x is an affine function of normal latents plus noise, so that the evidence, the posterior and
hence the ELBO are those of one multivariate normal, put together here in NumPy from the layers' weights.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nets.mlp import mlp
from course_lib.training.data import load_dataset
from course_lib.training.loop import TrainConfig, train
from course_lib.vae.models import VAE, ConditionalVAE, HierarchicalVAE, importance_bound
from course_lib.vae.normal import kl_to_standard_normal, log_normal, log_standard_normal, reparameterize
from course_lib.vae.pixels import Bernoulli, ContinuousBernoulli, Gaussian, dequantize

SEEDS = range(3)
F64 = torch.float64
SHAPE, D = (1, 2, 3), 6  # of the toy images
CLASSES = 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(B=3, seed=7, shape=SHAPE, dtype=F64):
    return (1.8 * torch.rand(B, *shape, generator=generator(seed), dtype=F64) - 0.9).to(dtype)


def within(values, want):
    """Whether means over the last axis lie within 5 standard errors of what they should be."""
    values = np.asarray(values)
    error = values.std(-1, ddof=1) / math.sqrt(values.shape[-1])
    return (np.abs(values.mean(-1) - want) < 5 * error).all()


def repeated(f, x, *given, n, seed):
    """`f` of n copies of each image, (B, n)."""
    many = (v.repeat_interleave(n, 0) for v in (x, *given))
    out = f(*many, generator=generator(seed))
    value = out if isinstance(out, torch.Tensor) else out.elbo
    return value.detach().view(len(x), n).numpy()


# Linear Gaussian models, and their exact answers


def layer(net):
    """The one linear layer of a network."""
    (found,) = (m for m in net.modules() if isinstance(m, nn.Linear))
    return found


def affine(net):
    """Weight and bias of a network's one layer."""
    return tuple(p.detach().numpy() for p in (layer(net).weight, layer(net).bias))


def conditional(net):
    """Weight, bias and standard deviation of a network that returns means and constant log-variances."""
    (weight, bias), K = affine(net), len(layer(net).bias) // 2
    assert not weight[K:].any()
    return weight[:K], bias[:K], np.exp(bias[K:] / 2)


def compose(mean, std, *steps):
    """Mean and covariance of a chain: each step is an affine map plus independent noise."""
    factor, parts = np.diag(std), [(mean, np.diag(std))]
    for weight, bias, noise in steps:
        mean, factor = weight @ mean + bias, np.hstack([weight @ factor, np.diag(noise)])
        parts.append((mean, factor))
    columns = factor.shape[1]
    factor = np.vstack([np.pad(f, ((0, 0), (0, columns - f.shape[1]))) for _, f in parts])
    return np.concatenate([m for m, _ in parts]), factor @ factor.T


def given_x(mean, cov, x):
    """Log-density of the last coordinates at x, and mean and covariance of the others there."""
    K = len(mean) - len(x)
    gain = cov[:K, K:] @ np.linalg.inv(cov[K:, K:])
    evidence = multivariate_normal(mean[K:], cov[K:, K:]).logpdf(x)
    return evidence, mean[:K] + gain @ (x - mean[K:]), cov[:K, :K] - gain @ cov[K:, :K]


def gap(mean, cov, posterior_mean, posterior_cov):
    q, p = (MultivariateNormal(*map(torch.tensor, v)) for v in ((mean, cov), (posterior_mean, posterior_cov)))
    return kl_divergence(q, p).item()


def linear(inputs, outputs, seed, scale, constant=0):
    """A random affine layer in float64, whose last `constant` outputs do not depend on the input."""
    made = nn.Linear(inputs, outputs, dtype=F64)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator(seed + p.ndim), dtype=F64))
        made.weight[outputs - constant :] = 0
    return made


def encoder(inputs, K, seed, constant=False):
    return nn.Sequential(nn.Flatten(), linear(inputs, 2 * K, seed, 0.4, K if constant else 0))


def decoder(inputs, seed):
    return nn.Sequential(linear(inputs, D, seed, 0.5), nn.Unflatten(1, SHAPE))


def linear_vae(seed=0, K=2, sigma=0.6):
    """Its encoder is any affine map, log-variances included."""
    parts = encoder(D, K, 10 * seed), decoder(K, 10 * seed + 5), Gaussian(sigma).double()
    return VAE(*parts, latent_dim=K)


def sigma_of(model):
    return np.full(D, math.exp(model.likelihood.log_sigma.item()))


def exact(model, x, shift=0.0):
    """For each image: log-evidence, and the posterior's mean and covariance. `shift` moves the decoder."""
    weight, bias = affine(model.decoder)
    K = model.latent_dim
    joint = compose(np.zeros(K), np.ones(K), (weight[:, :K], bias + shift, sigma_of(model)))
    return [given_x(*joint, v) for v in x.flatten(1).numpy()]


def posterior_of(model, x, y=None):
    """What the encoder says, as means and covariances; the label is laid out as planes behind the image."""
    flat, (weight, bias) = x.flatten(1).numpy(), affine(model.encoder)
    if y is not None:
        flat = np.hstack([flat, np.repeat(np.eye(CLASSES)[y], D, 1)])
    halves = (np.split(weight @ v + bias, 2) for v in flat)
    return [(mean, np.diag(np.exp(log_var))) for mean, log_var in halves]


def orthogonal(model, seed):
    """Give the decoder orthogonal columns, so that the posterior is diagonal."""
    weight = layer(model.decoder).weight
    K = model.latent_dim
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, K)))[0] * np.linspace(0.4, 1.2, K)
    with torch.no_grad():
        weight[:, :K] = torch.tensor(q)
    return model


def set_layer(net, weight, bias):
    with torch.no_grad():
        layer(net).weight.copy_(torch.tensor(weight))
        layer(net).bias.copy_(torch.tensor(bias))


def optimal(seed=0, K=2, offset=0.0, wider=1.0):
    """A linear VAE whose encoder is the posterior: moved by `offset` and `wider`, if wanted."""
    model = orthogonal(linear_vae(seed, K), seed)
    weight, bias = affine(model.decoder)
    _, cov = compose(np.zeros(K), np.ones(K), (weight, bias, sigma_of(model)))
    gain = cov[:K, K:] @ np.linalg.inv(cov[K:, K:])
    variance = np.diag(cov[:K, :K] - gain @ cov[K:, :K])
    center = -gain @ bias + offset * np.sqrt(variance)
    set_layer(
        model.encoder,
        np.vstack([gain, np.zeros_like(gain)]),
        np.concatenate([center, np.log(wider**2 * variance)]),
    )
    return model


# The pieces


def statistics(B=4, K=3, seed=0):
    both = torch.randn(2, B, K, generator=generator(seed), dtype=F64)
    return both[0], 2 * both[1]


def test_kl_against_torch():
    mean, log_var = statistics()
    q = Independent(Normal(mean, (log_var / 2).exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert_close(kl_to_standard_normal(mean, log_var), kl_divergence(q, p), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mean, log_var", [(0.0, 0.0), (1.5, -3.0), (-0.3, 1.0), (-4.0, -8.0)])
def test_kl_against_quadrature(mean, log_var):
    q = norm(mean, math.exp(log_var / 2))
    integrand = lambda z: q.pdf(z) * (q.logpdf(z) - norm.logpdf(z))
    low, high = mean - 12 * q.std(), mean + 12 * q.std()
    want = quad(integrand, low, high, epsabs=1e-12, limit=200)[0]
    got = kl_to_standard_normal(*(torch.tensor([[v]], dtype=F64) for v in (mean, log_var)))
    assert got.item() == pytest.approx(want, abs=1e-9)


def test_gradients_of_the_pieces_against_differences():
    mean, log_var = (v.requires_grad_() for v in statistics())
    z = torch.randn(4, 3, generator=generator(1), dtype=F64, requires_grad=True)
    draw = lambda m, v: reparameterize(m, v, generator=generator(2))
    assert torch.autograd.gradcheck(kl_to_standard_normal, (mean, log_var))
    assert torch.autograd.gradcheck(log_normal, (z, mean, log_var))
    assert torch.autograd.gradcheck(log_standard_normal, (z,))
    assert torch.autograd.gradcheck(draw, (mean, log_var))


def test_normal_densities_against_scipy():
    (mean, log_var), z = statistics(), statistics(seed=1)[0]
    want = norm(mean.numpy(), np.exp(log_var.numpy() / 2)).logpdf(z.numpy()).sum(1)
    np.testing.assert_allclose(log_normal(z, mean, log_var), want, rtol=1e-12)
    np.testing.assert_allclose(log_standard_normal(z), norm.logpdf(z.numpy()).sum(1), rtol=1e-12)


@pytest.mark.parametrize("log_var", [-1e-3, 1e-5, 3e-7])
def test_the_divergence_of_a_latent_that_hardly_says_anything_keeps_its_digits(log_var):
    """In float32 exp(v) - 1 has none left of v²/2, against the series of exp(v) - 1 - v."""
    value = torch.tensor([[log_var]])
    got = kl_to_standard_normal(torch.zeros(1, 1), value).item()
    v = value.double().item()
    assert got == pytest.approx((v**2 / 2 + v**3 / 6 + v**4 / 24) / 2, rel=1e-2, abs=1e-12) and got >= 0


@pytest.mark.parametrize("log_var", [-80.0, -100.0, -170.0, -200.0, -1e4])
def test_densities_where_variances_leave_float32(log_var):
    """1/σ² overflows from -89 on, and 1/σ from -178 on: a draw that rounds to the mean gave 0 · ∞."""
    mean, log_vars = torch.tensor([[1.0, 0.0]]), torch.full((1, 2), log_var, requires_grad=True)
    z = reparameterize(mean, log_vars, generator=generator(0))
    got = log_normal(z, mean, log_vars)
    got.sum().backward()
    best = -log_var - math.log(2 * math.pi)  # at the mean, of which the draw is a few nats short
    assert best - 20 < got.item() <= best + 1e-3 * abs(best) and log_vars.grad.isfinite().all()
    assert kl_to_standard_normal(mean, log_vars).item() == pytest.approx((1 - 2 - 2 * log_var) / 2, rel=1e-6)
    far = log_normal(mean + 1, mean, log_vars)
    assert far == -math.inf or far.item() == pytest.approx(-math.exp(-log_var) + best, rel=1e-5)


def test_half_precision_statistics_are_added_up_in_float32():
    mean, log_var = (v.to(torch.bfloat16).expand(1, 4096) for v in torch.tensor([[[0.5]], [[-0.25]]]))
    z = mean + 1
    for f, given in ((kl_to_standard_normal, (mean, log_var)), (log_normal, (z, mean, log_var))):
        got = f(*given)
        assert got.dtype == torch.float32
        assert_close(got.double(), f(*(v.double() for v in given)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_reparameterized_draws(seed):
    """Standard normal once mean and deviation are taken off, and independent of each other."""
    n, (mean, log_var) = 20_000, statistics(1)
    z = reparameterize(mean.expand(n, -1), log_var.expand(n, -1), generator=generator(seed))
    scaled = ((z - mean) / (log_var / 2).exp()).numpy()
    assert (np.abs(scaled.mean(0)) < 5 / math.sqrt(n)).all()
    error = np.sqrt((1 + np.eye(3)) / n)
    assert (np.abs(np.cov(scaled.T) - np.eye(3)) < 5 * error).all()


# The plain VAE


@pytest.mark.parametrize("seed", SEEDS)
def test_the_elbo_against_exact_evidence_and_gap(seed):
    """Mean of the ELBO, of the log-weight, and the two terms, within 5 standard errors."""
    n, model, x = 4000, linear_vae(seed), images(seed=seed)
    pairs = list(zip(posterior_of(model, x), exact(model, x), strict=True))
    want = [evidence - gap(*q, *p) for q, (evidence, *p) in pairs]
    assert all(evidence - w > 0.1 for (_, (evidence, *_)), w in zip(pairs, want, strict=True))
    assert within(repeated(model, x, n=n, seed=seed), want)
    assert within(repeated(model.log_weight, x, n=n, seed=seed + 50), want)
    prior = np.zeros(2), np.eye(2)
    kl = model(x).kl.detach().numpy()
    np.testing.assert_allclose(kl, [gap(*q, *prior) for q, _ in pairs], rtol=1e-10)
    terms = model(x.repeat_interleave(n, 0), generator=generator(seed)).reconstruction
    assert within(terms.detach().view(3, n), np.array(want) + kl)


def test_elbo_is_reconstruction_less_kl():
    model, x = linear_vae(), images()
    elbo, reconstruction, kl = model(x, generator=generator(0))
    assert elbo.shape == reconstruction.shape == kl.shape == model.log_weight(x).shape == (3,)
    assert elbo.dtype == F64 and torch.equal(elbo, reconstruction - kl)


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_exact_posterior_every_weight_is_the_evidence(seed, K):
    model, x = optimal(seed, K), images(seed=seed)
    want = [evidence for evidence, *_ in exact(model, x)]
    got = repeated(model.log_weight, x, n=200, seed=seed)
    np.testing.assert_allclose(got, np.repeat(np.array(want)[:, None], 200, 1), rtol=1e-10)
    assert within(repeated(model, x, n=4000, seed=seed), want)
    for (mean, cov), (_, *posterior) in zip(posterior_of(model, x), exact(model, x), strict=True):
        assert abs(gap(mean, cov, *posterior)) < 1e-10


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_weight_is_the_evidence(seed):
    model, x = optimal(seed, offset=0.7, wider=1.3), images(seed=seed)
    evidence = np.array([[e] for e, *_ in exact(model, x)])
    weights = np.exp(repeated(model.log_weight, x, n=20_000, seed=seed) - evidence)
    assert within(weights, 1) and weights.std(-1).min() > 0.1


@pytest.mark.parametrize("estimate", [lambda m, *a, **o: m(*a, **o).elbo, VAE.log_weight])
@pytest.mark.parametrize("seed", SEEDS)
def test_reparameterized_gradient_of_the_elbo(seed, estimate):
    """Against autograd of the exact ELBO, for each parameter, within 5 standard errors of 40 batches."""
    model, x = linear_vae(seed), images(1, seed=seed)
    parameters = list(model.parameters())
    K, flat = model.latent_dim, x.flatten(1)
    statistics, to_x = layer(model.encoder)(flat)[0], layer(model.decoder)
    q = MultivariateNormal(statistics[:K], torch.diag(statistics[K:].exp()))
    noise = torch.exp(2 * model.likelihood.log_sigma) * torch.eye(D, dtype=F64)
    evidence = MultivariateNormal(to_x.bias, to_x.weight @ to_x.weight.T + noise)
    precision = torch.eye(K, dtype=F64) + to_x.weight.T @ torch.linalg.solve(noise, to_x.weight)
    center = torch.linalg.solve(precision, to_x.weight.T @ torch.linalg.solve(noise, flat[0] - to_x.bias))
    posterior = MultivariateNormal(center, precision_matrix=precision)
    elbo = evidence.log_prob(flat)[0] - kl_divergence(q, posterior)
    want = torch.cat([g.flatten() for g in torch.autograd.grad(elbo, parameters)])
    got, g, many = [], generator(seed), x.expand(200, -1, -1, -1)
    for _ in range(40):
        gradients = torch.autograd.grad(estimate(model, many, generator=g).mean(), parameters)
        got.append(torch.cat([v.flatten() for v in gradients]))
    assert (want.abs() > 1e-6).all() and within(torch.stack(got, 1), want.numpy())


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_of_a_linear_vae(seed):
    """Decoder's means: N(b, W Wᵀ), without the pixels' noise."""
    n, model = 20_000, linear_vae(seed)
    weight, bias = affine(model.decoder)
    x = model.sample(n, generator=generator(seed))
    assert x.shape == (n, *SHAPE) and x.dtype == F64 and not x.requires_grad
    same_moments(x, bias, weight @ weight.T)


def same_moments(x, mean, cov):
    x, variance = x.flatten(1).numpy(), np.diag(cov)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x))).all()
    error = np.sqrt((np.outer(variance, variance) + cov**2) / len(x))
    assert (np.abs(np.cov(x.T) - cov) < 5 * error).all()


def test_reconstruct_is_the_decoder_at_the_encoders_mean():
    model, x = linear_vae(), images()
    (E, e), (W, b) = affine(model.encoder), affine(model.decoder)
    want = (x.flatten(1).numpy() @ E[:2].T + e[:2]) @ W.T + b
    got = model.reconstruct(x)
    assert got.shape == x.shape and not got.requires_grad
    np.testing.assert_allclose(got.flatten(1), want, rtol=1e-10)
    for likelihood in (Bernoulli(), ContinuousBernoulli()):  # whose means are no longer the parameters
        model.likelihood = likelihood
        means = likelihood.mean(torch.tensor(want)).view_as(x)
        assert_close(model.reconstruct(x), means)
        assert model.sample(50).abs().max() < 1


# The importance-weighted bound


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bound_rises_towards_the_evidence(seed):
    n, model, x = 1500, optimal(seed, offset=0.8, wider=1.2), images(seed=seed)
    evidence = np.array([e for e, *_ in exact(model, x)])
    bound = lambda K: repeated(
        lambda *a, **o: importance_bound(model, *a, draws=K, **o), x, n=n, seed=10 * seed + K
    )
    bounds = [bound(K) for K in (1, 3, 30)]
    error = lambda v: v.std(-1) / math.sqrt(n)
    for lower, higher in itertools.pairwise(bounds):
        assert (higher.mean(-1) - lower.mean(-1) > 5 * np.hypot(error(lower), error(higher))).all()
    assert all((v.mean(-1) < evidence + 5 * error(v)).all() for v in bounds)
    elbo = [e - gap(*q, *p) for q, (e, *p) in zip(posterior_of(model, x), exact(model, x), strict=True)]
    assert within(bounds[0], elbo)
    assert (evidence - bounds[-1].mean(-1) < 0.1 * (evidence - elbo)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bound_of_two_draws_against_quadrature(seed):
    """One latent, so that the expectation is an integral over two normal draws (Gauss–Hermite)."""
    model, x = optimal(seed, K=1, offset=0.8, wider=0.8), images(1, seed=seed)
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    (W, b), ((mean, cov),) = affine(model.decoder), posterior_of(model, x)
    z = mean + math.sqrt(cov.item()) * nodes
    log_weight = norm(z[:, None] @ W.T + b, sigma_of(model)).logpdf(x.flatten(1).numpy()).sum(1)
    log_weight += norm.logpdf(z) - norm(mean, math.sqrt(cov.item())).logpdf(z)
    pairs = np.logaddexp(log_weight[:, None], log_weight) - math.log(2)
    want = (np.outer(masses, masses) * pairs).sum() / masses.sum() ** 2
    bound = lambda *a, **o: importance_bound(model, *a, draws=2, **o)
    assert within(repeated(bound, x, n=5000, seed=seed), want)
    assert want - (masses * log_weight).sum() / masses.sum() > 0.01


@pytest.mark.parametrize("name", ["plain", "conditional", "hierarchical"])
@pytest.mark.parametrize("draws", [1, 2, 7])
def test_the_bound_against_stored_weights(draws, name):
    """The weights are those of `log_weight` with the same generator; one draw is one weight."""
    model, data = small(name)
    got = importance_bound(model, *data, draws=draws, generator=generator(3))
    g = generator(3)
    weights = [model.log_weight(*data, generator=g).detach().double() for _ in range(draws)]
    want = logsumexp(torch.stack(weights), 0) - math.log(draws)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not got.requires_grad and got.shape == (5,)
    if draws == 1:
        assert torch.equal(got, model.log_weight(*data, generator=generator(3)))


def test_the_bound_of_weights_that_underflow():
    model, x = linear_vae(sigma=1e-3), images()
    assert model.log_weight(x).max() < -1e4
    assert torch.isfinite(importance_bound(model, x, draws=5)).all()


class Constant:
    """A model whose every weight is the evidence."""

    def __init__(self, log_evidence):
        self.log_evidence = log_evidence

    def log_weight(self, x, *, generator=None):
        return self.log_evidence.clone()


def test_the_bound_of_very_many_draws_does_not_stand_still():
    """A sum of logarithms does so in float32: at -30,000 nats the thousandth weight no longer counts."""
    want = torch.tensor([-1000.3, 12.7, -math.inf, -3e4])
    got = importance_bound(Constant(want), torch.zeros(4, 1, 1, 1), draws=5_000)
    assert_close(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bad", [1.001, -3.0, math.nan])
def test_the_bound_refuses_images_out_of_range(bad):
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]"):
        importance_bound(linear_vae(), torch.full((2, *SHAPE), bad, dtype=F64), draws=1)


# The conditional VAE


def conditional_vae(seed=0, K=2):
    parts = encoder(D * (1 + CLASSES), K, 10 * seed), decoder(K + CLASSES, 10 * seed + 5)
    return ConditionalVAE(*parts, Gaussian(0.6).double(), latent_dim=K, classes=CLASSES)


def exact_conditional(model, x, y):
    """The class moves the decoder's bias by its column of the weights."""
    columns = affine(model.decoder)[0][:, model.latent_dim :].T
    return [exact(model, v[None], columns[k])[0] for v, k in zip(x, y.tolist(), strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_conditional_elbo_against_exact_evidence_and_gap(seed):
    model, x, y = conditional_vae(seed), images(4, seed=seed), torch.tensor([2, 0, 1, 2])
    pairs = zip(posterior_of(model, x, y), exact_conditional(model, x, y), strict=True)
    want = [evidence - gap(*q, *p) for q, (evidence, *p) in pairs]
    assert within(repeated(model, x, y, n=4000, seed=seed), want)
    assert within(repeated(model.log_weight, x, y, n=4000, seed=seed + 50), want)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_exact_posterior_every_conditional_weight_is_the_evidence(seed):
    """The encoder must take the class's part of the image away, which it reads off the planes."""
    model, x, y = orthogonal(conditional_vae(seed), seed), images(4, seed=seed), torch.tensor([1, 1, 0, 2])
    K, (weight, bias) = model.latent_dim, affine(model.decoder)
    _, cov = compose(np.zeros(K), np.ones(K), (weight[:, :K], bias, sigma_of(model)))
    gain = cov[:K, K:] @ np.linalg.inv(cov[K:, K:])
    planes = np.repeat(-gain @ weight[:, K:] / D, D, 1)  # each is seen D times
    set_layer(
        model.encoder,
        np.vstack([np.hstack([gain, planes]), np.zeros((K, D * (1 + CLASSES)))]),
        np.concatenate([-gain @ bias, np.log(np.diag(cov[:K, :K] - gain @ cov[K:, :K]))]),
    )
    want = np.array([evidence for evidence, *_ in exact_conditional(model, x, y)])
    got = repeated(model.log_weight, x, y, n=100, seed=seed)
    np.testing.assert_allclose(got, np.repeat(want[:, None], 100, 1), rtol=1e-10)
    np.testing.assert_allclose(importance_bound(model, x, y, draws=3), want, rtol=1e-10)


def test_the_encoder_sees_planes_and_the_decoder_a_one_hot_tail():
    model, x, y = conditional_vae(), images(3), torch.tensor([2, 0, 1])
    seen = []
    for net in (model.encoder, model.decoder):
        net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    z = statistics(3, 2)[0]
    model.encode(x, y), model.decode(z, y)
    assert seen[0].shape == (3, 1 + CLASSES, 2, 3) and seen[1].shape == (3, 2 + CLASSES)
    assert torch.equal(seen[0][:, :1], x) and torch.equal(seen[1][:, :2], z)
    for i, k in enumerate(y.tolist()):
        for c in range(CLASSES):
            assert (seen[0][i, 1 + c] == float(c == k)).all()
            assert seen[1][i, 2 + c] == float(c == k)


def test_the_label_changes_everything():
    model, x = conditional_vae(), images(1).expand(CLASSES, -1, -1, -1)
    y = torch.arange(CLASSES)
    z = torch.zeros(CLASSES, 2, dtype=F64)
    for out in (
        *model.encode(x, y),
        model.decode(z, y),
        model.reconstruct(x, y),
        *model(x, y, generator=generator(0)),
    ):
        assert len(out.unique(dim=0)) == CLASSES


@pytest.mark.parametrize("seed", SEEDS)
def test_conditional_samples(seed):
    n, model = 15_000, conditional_vae(seed)
    weight, bias = affine(model.decoder)
    y = torch.arange(CLASSES).repeat_interleave(n)
    x = model.sample(CLASSES * n, y, generator=generator(seed))
    for k in range(CLASSES):
        same_moments(x[y == k], bias + weight[:, 2 + k], weight[:, :2] @ weight[:, :2].T)


# The hierarchical VAE


def hierarchy(dims, seed=0):
    """A chain of affine maps; only the variances of q(z_1 | x) depend on anything."""
    seeds, sizes = iter(range(100 * seed, 100 * seed + 100, 5)), (D, *dims)
    up = [encoder(sizes[level], d, next(seeds), level > 0) for level, d in enumerate(dims)]
    down = [decoder(dims[0], next(seeds))]
    down += [encoder(above, below, next(seeds), True) for below, above in itertools.pairwise(dims)]
    return HierarchicalVAE(up, down, Gaussian(0.6).double(), latent_dims=dims)


def exact_chain(model):
    """Mean and covariance of (z_1, …, z_L, x) in the model."""
    dims = model.latent_dims
    steps = [conditional(net) for net in list(model.decoders)[:0:-1]]
    steps.append((*affine(model.decoders[0]), sigma_of(model)))
    mean, cov = compose(np.zeros(dims[-1]), np.ones(dims[-1]), *steps)
    blocks = np.split(np.arange(sum(dims)), np.cumsum(dims[::-1])[:-1])[::-1]  # z_L came first
    order = np.concatenate([*blocks, sum(dims) + np.arange(D)])
    return mean[order], cov[np.ix_(order, order)]


def chain_elbo(model, x):
    """For each image the exact ELBO, and the exact divergence of the encoders from the prior."""
    joint, total = exact_chain(model), sum(model.latent_dims)
    weight, bias = affine(model.encoders[0])
    steps, out = [conditional(net) for net in list(model.encoders)[1:]], []
    for v in x.flatten(1).numpy():
        mean, log_var = np.split(weight @ v + bias, 2)
        q = compose(mean, np.exp(log_var / 2), *steps)
        evidence, *posterior = given_x(*joint, v)
        out.append((evidence - gap(*q, *posterior), gap(*q, joint[0][:total], joint[1][:total, :total])))
    return np.array(out).T


@pytest.mark.parametrize("dims", [(2,), (3, 2), (1, 2, 2), (2, 2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_chain_against_exact_evidence_and_joint_gap(seed, dims):
    n, model, x = 4000, hierarchy(dims, seed), images(2, seed=seed)
    want, divergence = chain_elbo(model, x)
    assert within(repeated(model, x, n=n, seed=seed), want)
    assert within(repeated(model.log_weight, x, n=n, seed=seed + 50), want)
    elbo, reconstruction, kl = model(x.repeat_interleave(n, 0), generator=generator(seed + 90))
    assert torch.equal(elbo, reconstruction - kl) and elbo.shape == (2 * n,)
    assert within(kl.detach().view(2, n), divergence)
    assert within(reconstruction.detach().view(2, n), want + divergence)


@pytest.mark.parametrize("seed", SEEDS)
def test_reparameterized_gradient_of_a_chains_elbo(seed):
    """Along random directions, against differences of the exact ELBO, within 5 standard errors."""
    model, x, g, step = hierarchy((3, 2), seed), images(1, seed=seed), generator(seed), 1e-4
    parameters = list(model.parameters())
    directions = [
        [torch.randn(p.shape, generator=g, dtype=F64) * (p != 0) for p in parameters] for _ in "xyz"
    ]

    def value(direction, step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p += step * d
        return chain_elbo(moved, x)[0].item()

    want = [(value(d, step) - value(d, -step)) / (2 * step) for d in directions]
    many, got = x.expand(200, -1, -1, -1), []
    for _ in range(40):
        gradient = torch.autograd.grad(model(many, generator=g).elbo.mean(), parameters)
        got.append([sum((u * v).sum().item() for u, v in zip(gradient, d, strict=True)) for d in directions])
    assert within(np.transpose(got), want)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_exact_posterior_every_weight_of_a_chain_is_the_evidence(seed, levels):
    """One number a level: then each conditional of the posterior is a normal that the model can state."""
    model, x = hierarchy((1,) * levels, seed), images(seed=seed)
    mean, cov = exact_chain(model)
    below = levels + np.arange(D)
    for level, net in enumerate(model.encoders):
        gain = cov[level, below] @ np.linalg.inv(cov[np.ix_(below, below)])
        variance = cov[level, level] - gain @ cov[below, level]
        center = mean[level] - gain @ mean[below]
        set_layer(net, np.stack([gain, np.zeros_like(gain)]), [center, math.log(variance)])
        below = np.array([level])
    want = np.array([given_x(mean, cov, v)[0] for v in x.flatten(1).numpy()])
    got = repeated(model.log_weight, x, n=100, seed=seed)
    np.testing.assert_allclose(got, np.repeat(want[:, None], 100, 1), rtol=1e-9)
    np.testing.assert_allclose(importance_bound(model, x, draws=3), want, rtol=1e-9)


def test_one_level_is_the_plain_vae():
    """The same draws; the plain one's ELBO only replaces a term by its expectation."""
    plain, x = linear_vae(), images()
    chain = HierarchicalVAE([plain.encoder], [plain.decoder], plain.likelihood, latent_dims=[2])
    draw = lambda f: f(x, generator=generator(4))
    assert_close(draw(chain.log_weight), draw(plain.log_weight), rtol=1e-12, atol=0)
    assert torch.equal(draw(chain).reconstruction, draw(plain).reconstruction)
    assert torch.equal(*(m.sample(6, generator=generator(5)) for m in (chain, plain)))


@pytest.mark.parametrize("dims", [(2,), (3, 2), (1, 2, 2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_samples_of_a_chain(seed, dims):
    n, model = 20_000, hierarchy(dims, seed)
    mean, cov = exact_chain(model)
    x = model.sample(n, generator=generator(seed))
    assert x.shape == (n, *SHAPE) and not x.requires_grad
    noise = np.diag(sigma_of(model) ** 2)
    same_moments(x, mean[-D:], cov[-D:, -D:] - noise)


# All three, with networks that bend


def net(*sizes, shape=None):
    return nn.Sequential(nn.Flatten(), mlp(*sizes), nn.Unflatten(1, shape) if shape else nn.Identity())


def small(name, likelihood=None, pixels=(1, 8, 8), latent=2, seed=0):
    """A model in float32, and data to call it with."""
    torch.manual_seed(seed)
    n, likelihood = math.prod(pixels), likelihood or ContinuousBernoulli()
    x, y = images(5, shape=pixels, dtype=torch.float32), torch.tensor([0, 1, 2, 1, 0])
    if name == "plain":
        parts = net(n, 32, 2 * latent), net(latent, 32, n, shape=pixels)
        return VAE(*parts, likelihood, latent_dim=latent), (x,)
    if name == "conditional":
        parts = net(n * (1 + CLASSES), 32, 2 * latent), net(latent + CLASSES, 32, n, shape=pixels)
        return ConditionalVAE(*parts, likelihood, latent_dim=latent, classes=CLASSES), (x, y)
    up = [net(n, 32, 2 * latent), net(latent, 16, 6)]
    down = [net(latent, 32, n, shape=pixels), net(3, 16, 2 * latent)]
    return HierarchicalVAE(up, down, likelihood, latent_dims=(latent, 3)), (x,)


MODELS = ("plain", "conditional", "hierarchical")


@pytest.mark.parametrize("name", MODELS)
def test_all_parameters_receive_gradients(name):
    model, data = small(name, Gaussian())
    model(*data).elbo.mean().backward()
    for key, p in model.named_parameters():
        assert torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", MODELS)
def test_draws_follow_the_generator(name):
    model, data = small(name)
    for draw in (
        lambda seed: model(*data, generator=generator(seed)).elbo,
        lambda seed: model.log_weight(*data, generator=generator(seed)),
        lambda seed: importance_bound(model, *data, draws=2, generator=generator(seed)),
        lambda seed: model.sample(5, *data[1:], generator=generator(seed)),
    ):
        torch.manual_seed(0)
        first = draw(0)
        torch.manual_seed(1)
        assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))


@pytest.mark.parametrize("name", MODELS)
def test_images_are_taken_one_by_one_and_left_as_they_were(name):
    """An image's bound does not depend on its company: all but the first are exchanged."""
    model, (x, *y) = small(name)
    before, other = x.clone(), torch.cat([x[:1], -x[1:]])
    first, second = (model(v, *y, generator=generator(0)).elbo for v in (x, other))
    assert_close(first[0], second[0], rtol=1e-6, atol=0)
    assert (first[1:] != second[1:]).all() and torch.equal(x, before)


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_round_trip(name, tmp_path):
    model, data = small(name, Gaussian())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other, _ = small(name, Gaussian(3.0), seed=1)
    elbo = lambda m: m(*data, generator=generator(0)).elbo
    assert not torch.equal(elbo(model), elbo(other))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(elbo(model), elbo(other))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", [ContinuousBernoulli, Gaussian])
def test_under_autocast_the_elbo_stays_in_float32(name, likelihood):
    """Networks in bfloat16 have three digits, sums have all: 1 % of the float32 value, same draws."""
    model, data = small(name, likelihood())
    draw = lambda: (*model(*data, generator=generator(0)), model.log_weight(*data, generator=generator(0)))
    whole = draw()
    with torch.autocast("cpu", torch.bfloat16):
        half = draw()
    for got, want in zip(half, whole, strict=True):
        assert got.dtype == torch.float32 and torch.isfinite(got).all()
        assert not torch.equal(got, want)
        assert_close(got, want, rtol=0.01, atol=0.05)
    half[0].mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", [ContinuousBernoulli, Gaussian])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_in_half_precision(name, likelihood, dtype):
    """They train, encode and sample with images in float32, and their ELBO is nearly the float32 model's."""
    model, data = small(name, likelihood())
    want = model(*data, generator=generator(0)).elbo
    half = copy.deepcopy(model).to(dtype)
    got = half(*data, generator=generator(0)).elbo
    assert got.dtype == torch.float32
    assert_close(got, want, rtol=0.01, atol=0.2)
    half.loss(*data).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in half.parameters())
    drawn = [m.sample(5, *data[1:], generator=generator(1)) for m in (half, model)]
    assert_close(*drawn, rtol=0.05, atol=0.05)
    bound = importance_bound(half, *data, draws=3, generator=generator(2))
    assert_close(bound, importance_bound(model, *data, draws=3, generator=generator(2)), rtol=0.01, atol=0.2)
    if name != "hierarchical":
        assert half.encode(*data)[1].dtype == half.reconstruct(*data).dtype == torch.float32


# Training


class HostReads(TorchDispatchMode):
    """Counts numbers that an operation hands from the device to Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", [Bernoulli, ContinuousBernoulli, Gaussian])
def test_a_training_step_reads_nothing_from_the_device(name, likelihood):
    model, (x, *y) = small(name, likelihood())
    levels = x.sign() if likelihood is Bernoulli else (8 * x).round() / 8
    with HostReads() as reads:
        model.loss(levels if likelihood is Bernoulli else dequantize(levels, 17), *y).backward()
    assert reads.count == 0
    with HostReads() as reads:
        x.sum().item()
    assert reads.count == 1  # the count counts


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_minus_the_mean_elbo(name):
    model, data = small(name)
    torch.manual_seed(3)
    got = model.loss(*data)
    torch.manual_seed(3)
    assert_close(got, -model(*data).elbo.mean(), rtol=0, atol=0)


def fit(name, seed=0):
    """A short run on the digits. Returns the held-out ELBO before and after."""
    digits = load_dataset("digits")
    model, _ = small(name, latent=8, seed=seed)
    train_rows, test_rows = [digits.train], [digits.test]
    if name == "conditional":
        train_rows, test_rows = [digits.train, digits.train_labels % 3], [digits.test, digits.test_labels % 3]
    held_out = lambda: model(*test_rows, generator=generator(0)).elbo.detach()
    before = held_out()
    torch.manual_seed(seed)
    list(train(model, model.loss, train_rows, TrainConfig(steps=220, batch_size=128, lr=3e-3)))
    model.cpu()
    return before, held_out()


@pytest.mark.parametrize("name", MODELS)
def test_training_raises_the_held_out_elbo(name):
    """By far more than chance, and beyond what the best independent pixels reach."""
    before, after = fit(name)
    gain = after - before
    assert gain.mean() > 50 and gain.mean() > 10 * gain.std() / math.sqrt(len(gain))
    assert after.mean() > independent_pixels()


def independent_pixels():
    """Held-out log-density of continuous Bernoullis fitted pixel by pixel, by PyTorch's formula and LBFGS."""
    digits = load_dataset("digits")
    y, held_out = ((v.flatten(1).double() + 1) / 2 for v in (digits.train, digits.test))
    logits = torch.zeros(64, dtype=F64, requires_grad=True)
    of = lambda: torch.distributions.ContinuousBernoulli(logits=logits.clamp(-30, 30), validate_args=False)
    optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -of().log_prob(y).sum(1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return of().log_prob(held_out).sum(1).mean().item() - 64 * math.log(2)


def test_what_would_be_ignored_or_added_up_wrongly_is_refused():
    model, (x, *_) = small("plain")
    y = torch.zeros(len(x), dtype=torch.int64)
    with pytest.raises(TypeError):
        model(x, y)  # is not conditioned on labels
    model.decoder = net(2, 64, shape=(1, 1, 64))
    with pytest.raises(ValueError, match=r"params must have the shape of x.*got \(5, 1, 1, 64\)"):
        model(x)
    model.encoder = net(64, 6)  # for three latents, not two
    with pytest.raises(RuntimeError):
        model(x)
    conditional, _ = small("conditional")
    for bad in (CLASSES, -1):
        with pytest.raises(IndexError):
            conditional.loss(x, torch.full((len(x),), bad))
    chain, _ = small("hierarchical")
    with pytest.raises(ValueError, match="one entry for each level; got 2, 3, 2"):
        HierarchicalVAE([*chain.encoders], [*chain.decoders, nn.Identity()], Gaussian(), latent_dims=(2, 3))
