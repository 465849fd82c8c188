"""Densities of pixels, against scipy, torch.distributions, quadrature, 50-digit arithmetic and sampling."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm
from torch.testing import assert_close

from course_lib.require import require_images
from course_lib.vae.pixels import Bernoulli, ContinuousBernoulli, Gaussian, bits_per_dim, dequantize

SEEDS = range(3)
F64, BF16 = torch.float64, torch.bfloat16
ALL = (Bernoulli, ContinuousBernoulli, Gaussian)
SWITCHES = (0.1, 0.2, 1e-3)  # logits where a formula hands over to a series, or to the uniform
ONES = torch.ones(2, 1, 3, 3)
BESIDE = tuple(v * (1 + d) for v in SWITCHES for d in (-1e-9, 0, 1e-9))
LOGITS = (0.0, 1e-300, 1e-8, 1e-4, 0.03, 0.15, 0.199, *BESIDE, 0.21, 0.5, 2.0, 9.0, 30.0, 300.0, 1e4)
SIGNED = torch.tensor([s * v for v in LOGITS for s in (1, -1)], dtype=F64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(B=4, shape=(2, 3, 5), seed=0, dtype=F64):
    return (2 * torch.rand(B, *shape, generator=generator(seed), dtype=F64) - 1).to(dtype)


def normal(B=4, shape=(2, 3, 5), seed=1, dtype=F64):
    return torch.randn(B, *shape, generator=generator(seed), dtype=F64).to(dtype)


def black_and_white(B=4, shape=(2, 3, 5), seed=0, dtype=F64):
    return images(B, shape, seed, dtype).sign()


def pixels(values):
    """Each value as an image of one pixel."""
    return torch.as_tensor(values, dtype=F64).reshape(-1, 1, 1, 1)


def within(values, want):
    """Whether the mean of independent values lies within 5 standard errors of what it should be."""
    return abs(values.mean() - want) < 5 * values.std() / math.sqrt(len(values))


# Bernoulli


def test_bernoulli_against_torch():
    params, x = normal(), black_and_white()
    want = torch.distributions.Bernoulli(logits=params).log_prob((x + 1) / 2).sum((1, 2, 3))
    assert_close(Bernoulli().log_prob(params, x), want, rtol=1e-12, atol=0)
    means = torch.distributions.Bernoulli(logits=params).mean
    assert_close((Bernoulli().mean(params) + 1) / 2, means, rtol=1e-12, atol=0)


def test_bernoulli_masses_sum_to_one():
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=F64).view(64, 1, 2, 3)
    params = 2 * normal(1, (1, 2, 3))
    mass = Bernoulli().log_prob(params.expand(64, -1, -1, -1), every).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    assert_close((mass[:, None, None, None] * every).sum(0), Bernoulli().mean(params)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_bernoulli_samples(seed):
    n, params = 20_000, normal(1)
    x = Bernoulli().sample(params.expand(n, -1, -1, -1), generator=generator(seed))
    assert set(x.unique().tolist()) == {-1, 1}
    p = 1 / (1 + np.exp(-params[0].numpy()))
    assert (np.abs((x == 1).double().mean(0).numpy() - p) < 5 * np.sqrt(p * (1 - p) / n)).all()


@pytest.mark.parametrize("grey", [0.0, 0.999, -0.5, 1.01])
def test_grey_images_have_no_bernoulli_mass(grey):
    """As in scipy, whose logpmf is minus infinity there too."""
    x = black_and_white()
    x[1, 0, 2, 3] = grey
    got = Bernoulli().log_prob(normal(), x)
    assert (got == -math.inf).tolist() == [False, True, False, False]


# Continuous Bernoulli


def density(logit):
    """The density of one pixel, as a function of a number, written so that nothing overflows."""
    low = -abs(logit) / 2
    mass = quad(lambda x: math.exp(logit * x / 2 + low), -1, 1, points=[math.copysign(0.9, logit)], limit=200)
    return lambda x: math.exp(logit * x / 2 + low) / mass[0]


def moment(logit, f):
    p, peak = density(logit), [math.copysign(0.9, logit)]
    return quad(lambda x: f(x) * p(x), -1, 1, points=peak, epsabs=1e-13, epsrel=1e-12)[0]


def decimal_log_prob(logit, x):
    """To 40 digits and more, also near a logit of 0."""
    with localcontext() as context:
        context.prec = 400 if 0 < abs(logit) < 1e-20 else 60
        a = Decimal(logit) / 2
        volume = (a.exp() - (-a).exp()) / a if a else Decimal(2)
        return float(a * Decimal(x) - volume.ln())


def decimal_mean(logit):
    with localcontext() as context:
        context.prec = 700 if 0 < abs(logit) < 1e-20 else 60
        a = Decimal(logit) / 2
        return float((a.exp() + (-a).exp()) / (a.exp() - (-a).exp()) - 1 / a) if a else 0.0


@pytest.mark.parametrize("logit", [-30.0, -3.0, -0.3, -0.1, -1e-6, 0.0, 1e-3, 0.19, 0.2, 1.0, 8.0, 30.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    p = lambda x: ContinuousBernoulli().log_prob(pixels([logit]), pixels([x])).exp().item()
    assert quad(p, -1, 1, epsabs=1e-11, limit=200)[0] == pytest.approx(1, abs=1e-10)


def test_continuous_bernoulli_against_torch():
    """PyTorch's is a density of y = (x + 1)/2, and dy/dx = 1/2 for each pixel."""
    params, x = 3 * normal(), images()
    torchs = torch.distributions.ContinuousBernoulli(logits=params)
    want = (torchs.log_prob((x + 1) / 2) - math.log(2)).sum((1, 2, 3))
    assert_close(ContinuousBernoulli().log_prob(params, x), want, rtol=1e-9, atol=1e-9)
    assert_close((ContinuousBernoulli().mean(params) + 1) / 2, torchs.mean, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_continuous_bernoulli_has_full_precision(dtype):
    """Within 8 roundings of the largest term, against decimal arithmetic."""
    for x in (-1.0, -0.375, 0.0, 0.5, 1.0):
        logits = pixels(SIGNED).to(dtype)
        got = ContinuousBernoulli().log_prob(logits, torch.full_like(logits, x)).double().numpy()
        want = np.array([decimal_log_prob(v, x) for v in logits.flatten().tolist()])
        size = 1 + logits.abs().flatten().double().numpy() / 2
        assert np.isfinite(want).all()
        np.testing.assert_array_less(np.abs(got - want), 8 * torch.finfo(dtype).eps * size)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 5e-6), (F64, 1e-9)])
def test_continuous_bernoulli_mean_to_many_digits(dtype, atol):
    logits = SIGNED.to(dtype)
    want = [decimal_mean(v) for v in logits.tolist()]
    np.testing.assert_allclose(ContinuousBernoulli().mean(logits).double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("logit", [-30.0, -1.0, -0.09, 0.0, 0.04, 0.11, 5.0, 30.0])
def test_continuous_bernoulli_mean_against_quadrature(logit):
    got = ContinuousBernoulli().mean(pixels([logit])).item()
    assert got == pytest.approx(moment(logit, lambda x: x), abs=1e-9)


@pytest.mark.parametrize("logit", [-4.0, -0.3, -0.05, 0.0, 1e-5, 0.15, 0.3, 2.0, 25.0])
def test_continuous_bernoulli_gradients_against_differences(logit):
    params, x = pixels([logit] * 3), pixels([-0.9, 0.1, 1.0])
    assert torch.autograd.gradcheck(ContinuousBernoulli().log_prob, (params.requires_grad_(), x))
    assert torch.autograd.gradcheck(ContinuousBernoulli().mean, (params,))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_continuous_bernoulli_gradients_at_and_beside_the_switches(dtype):
    """The derivative of the log-density in the logit is (x − mean)/2, as for every exponential family."""
    logits, x = pixels(SIGNED).to(dtype).requires_grad_(), 0.25
    ContinuousBernoulli().log_prob(logits, torch.full_like(logits, x)).sum().backward()
    want = [(x - decimal_mean(v)) / 2 for v in logits.flatten().tolist()]
    atol = 1e-5 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(logits.grad.flatten().double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("logit", [1e4, -1e4, 1e6, -1e9])
@pytest.mark.parametrize("likelihood", [Bernoulli, ContinuousBernoulli])
def test_extreme_logits(likelihood, logit, dtype):
    params = pixels([logit] * 2).to(dtype).requires_grad_()
    value = likelihood().log_prob(params, pixels([-1, 1]).to(dtype))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(params.grad).all()
    likely, unlikely = value[int(logit > 0)].item(), value[int(logit < 0)].item()
    assert likely - unlikely == pytest.approx(abs(logit), rel=1e-6)
    # a large logit's density at its end is |ℓ|/2, an extreme one's mass 1: no rounding of ℓ itself is left
    assert likely == pytest.approx(
        math.log(abs(logit) / 2) if likelihood is ContinuousBernoulli else 0, rel=1e-5
    )
    assert likelihood().mean(params).flatten().tolist() == pytest.approx([np.sign(logit)] * 2, abs=3e-4)


@pytest.mark.parametrize("logit", [-30.0, -2.0, -0.04, 0.0, 2e-3, 0.5, 8.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_continuous_bernoulli_samples(seed, logit):
    """Mean, variance and distribution function, within 5 standard errors of quadrature."""
    n = 20_000
    x = ContinuousBernoulli().sample(torch.full((n,), logit, dtype=F64), generator=generator(seed)).numpy()
    assert x.min() >= -1 and x.max() <= 1
    mean = moment(logit, lambda v: v)
    assert within(x, mean) and within((x - mean) ** 2, moment(logit, lambda v: (v - mean) ** 2))
    p, seen = density(logit), 0
    for at in (-0.99, -0.97, -0.9, -0.5, 0.0, 0.3, 0.8, 0.97):
        below = quad(p, -1, at, epsabs=1e-13, limit=200)[0]
        if n * below * (1 - below) > 50:  # else a frequency is no normal variable
            seen += 1
            assert abs((x < at).mean() - below) < 5 * math.sqrt(below * (1 - below) / n)
    assert seen >= 3


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("u", ["least", "most"])
def test_continuous_bernoulli_samples_are_images_whatever_is_drawn(monkeypatch, u, dtype):
    """A uniform draw may be 0; it may be so in one pixel of 2²⁴ in float32."""
    most = 1 - torch.finfo(dtype).eps / 2
    extreme = lambda *shape, **options: torch.full_like(params, 0.0 if u == "least" else most)
    params = pixels([s * v for v in (*LOGITS, 104.0, 1e8) for s in (1, -1)]).to(dtype)
    monkeypatch.setattr(torch, "rand", extreme)
    require_images("the sample", ContinuousBernoulli().sample(params))


# Gaussian


@pytest.mark.parametrize("sigma", [0.01, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("learn", [True, False])
def test_gaussian_against_scipy(sigma, learn):
    likelihood, params, x = Gaussian(sigma, learn=learn).double(), normal(), images()
    assert likelihood.log_sigma.exp().item() == pytest.approx(sigma, rel=1e-6)
    scale = math.exp(likelihood.log_sigma.item())
    want = norm(params.numpy(), scale).logpdf(x.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(params, x).detach(), want, rtol=1e-12)
    assert torch.equal(likelihood.mean(params), params)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 1, 1), (1, 3, 5), (3, 1), (5,), (1, 1, 1)])
def test_gaussian_with_several_deviations(shape):
    """One for each pixel, channel, row or column."""
    sigma = torch.rand(shape, generator=generator(3), dtype=F64) + 0.2
    likelihood, params, x = Gaussian(sigma).double(), normal(), images()
    scale = np.exp(likelihood.log_sigma.detach().numpy())
    np.testing.assert_allclose(scale, sigma, rtol=1e-6)
    want = norm(params.numpy(), np.broadcast_to(scale, (2, 3, 5))).logpdf(x.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(params, x).detach(), want, rtol=1e-12)
    assert likelihood.sample(params).shape == x.shape


@pytest.mark.parametrize("shape", [(3, 1, 1), (4,), (2, 1, 1, 1), (3, 3, 3)])
def test_gaussian_refuses_deviations_that_do_not_fit_the_images(shape):
    """Images of (1, 3, 3) have no three channels, no four columns, and no deviation of their own."""
    with pytest.raises(RuntimeError, match="expand"):
        Gaussian(torch.ones(shape)).log_prob(ONES, ONES)


@pytest.mark.parametrize("log_sigma", [-60.0, -90.0, -1000.0])
def test_gaussian_at_its_mean_where_deviations_leave_float32(log_sigma):
    """1/σ overflows from -89 on: 0 · ∞ gave NaN."""
    likelihood = Gaussian()
    likelihood.log_sigma.data.fill_(log_sigma)
    params = ONES.clone().requires_grad_()
    value = likelihood.log_prob(params, ONES)
    value.sum().backward()
    want = 9 * (-log_sigma - math.log(2 * math.pi) / 2)
    assert value.tolist() == pytest.approx([want] * 2, rel=1e-6)
    assert params.grad.isfinite().all() and likelihood.log_sigma.grad.isfinite()


def test_gaussian_starts_with_a_learned_unit_deviation():
    (parameter,) = Gaussian().parameters()
    assert parameter.requires_grad and parameter.item() == 0


def test_gaussian_gradients_against_differences():
    likelihood, x = Gaussian(0.4).double(), images()
    functional = lambda log_sigma, params: torch.func.functional_call(
        likelihood, {"log_sigma": log_sigma}, (params, x)
    )
    likelihood.forward = likelihood.log_prob
    log_sigma = torch.tensor(-0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(functional, (log_sigma, normal().requires_grad_()))


def test_gaussian_sigma_is_learned_only_if_asked():
    fixed, learned = Gaussian(0.3, learn=False), Gaussian(0.3)
    params = normal(dtype=torch.float32).requires_grad_()
    for likelihood in (fixed, learned):
        likelihood.log_prob(params, images(dtype=torch.float32)).sum().backward()
    assert fixed.log_sigma.grad is None and not fixed.log_sigma.requires_grad
    assert torch.isfinite(learned.log_sigma.grad) and learned.log_sigma.grad != 0
    other = Gaussian(9.0, learn=False)
    other.load_state_dict(fixed.state_dict())
    assert other.log_sigma == fixed.log_sigma


def test_the_best_sigma_is_the_root_mean_square_error():
    """Where the gradient vanishes."""
    params, x = normal(), images()
    likelihood = Gaussian((params - x).square().mean().sqrt().item()).double()
    likelihood.log_prob(params, x).sum().backward()
    assert abs(likelihood.log_sigma.grad.item()) < 1e-4 * x.numel()


@pytest.mark.parametrize("sigma", [0.4, torch.tensor([[[0.3]], [[2.0]]])])
@pytest.mark.parametrize("seed", SEEDS)
def test_gaussian_samples(seed, sigma):
    n, params = 20_000, normal(1)
    x = Gaussian(sigma).double().sample(params.expand(n, -1, -1, -1), generator=generator(seed)).detach()
    scaled = ((x - params) / sigma).numpy()
    assert (np.abs(scaled.mean(0)) < 5 / math.sqrt(n)).all()
    assert (np.abs((scaled**2).mean(0) - 1) < 5 * math.sqrt(2 / n)).all()
    assert kstest(scaled[:, 0, 0, 0], "norm").pvalue > 1e-6
    flat = scaled.reshape(n, -1)
    products = flat[:, :-1] * flat[:, 1:]  # of pixels side by side, which are independent
    assert (np.abs(products.mean(0)) < 5 / math.sqrt(n)).all()


@pytest.mark.parametrize("sigma", [
    0, 0.0, -1.0, math.inf, math.nan, torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([1.0, torch.nan]),
])  # fmt: skip
def test_gaussian_refuses_a_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be positive and finite; got"):
        Gaussian(sigma)


# All of them


@pytest.mark.parametrize("likelihood", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_type_of_the_images_is_kept(likelihood, dtype):
    params, x = normal(dtype=dtype), black_and_white(dtype=dtype)
    assert likelihood().log_prob(params, x).dtype == dtype
    assert likelihood().mean(params).dtype == likelihood().sample(params).dtype == dtype
    assert likelihood().log_prob(params, x).shape == (4,)
    assert likelihood().mean(params).shape == likelihood().sample(params).shape == x.shape


@pytest.mark.parametrize("likelihood", ALL)
def test_sums_are_taken_in_the_type_of_the_images(likelihood):
    """Parameters in bfloat16, as autocast returns them: over 3000 pixels a sum in bfloat16 is far off."""
    shape = (3, 32, 32)
    params, x = normal(shape=shape, dtype=BF16), black_and_white(shape=shape, dtype=torch.float32)
    got = likelihood().log_prob(params, x)
    assert got.dtype == torch.float32
    assert_close(got.double(), likelihood().log_prob(params.double(), x.double()), rtol=1e-5, atol=0)


COARSE = torch.linspace(-1, 1, 201).to(BF16).view(1, 1, 1, -1)


@pytest.mark.parametrize("likelihood", ALL)
def test_means_of_bfloat16_parameters_are_as_precise_as_bfloat16(likelihood):
    """Which has three digits: an error of 0.02 at most, of values in [-1, 1]."""
    got, want = likelihood().mean(COARSE), likelihood().mean(COARSE.double())
    assert_close(got.double(), want, rtol=0, atol=0.02)


def test_samples_with_bfloat16_parameters_are_images():
    x = ContinuousBernoulli().sample(COARSE.expand(100, -1, -1, -1), generator=generator(0))
    require_images("the sample", x)


@pytest.mark.parametrize("likelihood", ALL)
def test_samples_follow_the_generator(likelihood):
    draw = lambda seed: likelihood().sample(normal(), generator=generator(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("likelihood", ALL)
def test_images_are_summed_one_by_one_and_left_as_they_were(likelihood):
    params, x = normal(), black_and_white()
    before = params.clone(), x.clone()
    whole = likelihood().log_prob(params, x)
    singly = torch.cat([likelihood().log_prob(p[None], v[None]) for p, v in zip(params, x, strict=True)])
    assert_close(whole, singly) and len(whole.unique()) == 4
    assert torch.equal(params, before[0]) and torch.equal(x, before[1])


@pytest.mark.parametrize("x", [1.01, -2.0, 1e30])
def test_no_image_outside_the_range_has_a_density(x):
    params, pixel = torch.zeros(1, 1, 1, 1, requires_grad=True), torch.full((1, 1, 1, 1), x)
    for likelihood in (Bernoulli(), ContinuousBernoulli()):
        value = likelihood.log_prob(params, pixel)
        assert value == -math.inf
        value.backward()
        assert params.grad.isfinite()


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 3, 3), (2, 9), (2, 1, 3, 1)])
@pytest.mark.parametrize("likelihood", ALL)
def test_parameters_of_another_shape_are_refused(likelihood, shape):
    """Broadcast, they would give a number."""
    with pytest.raises(ValueError, match=r"params must have the shape of x, \(2, 1, 3, 3\); got \("):
        likelihood().log_prob(torch.ones(shape), ONES)


@pytest.mark.parametrize("likelihood", ALL)
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_modules_in_half_precision_keep_their_digits(likelihood, dtype):
    """σ is rounded with the weights; nothing else is, though images come in half precision too."""
    x, params = black_and_white(dtype=dtype), normal(dtype=dtype)
    module = likelihood().to(dtype)
    got = module.log_prob(params, x)
    assert got.dtype == torch.float32
    assert_close(got.double(), likelihood().log_prob(params.double(), x.double()), rtol=1e-5, atol=1e-5)


# Dequantization and bits


def levels(L, shape=(8, 1, 25, 25), seed=0, dtype=F64):
    """Images of grey levels, and their numbers from 0 to L − 1."""
    k = torch.randint(L, shape, generator=generator(seed))
    k.view(-1)[:2] = torch.tensor([0, L - 1])
    return (-1 + 2 * k.to(F64) / (L - 1)).to(dtype), k


@pytest.mark.parametrize("L", [2, 3, 17, 256])
@pytest.mark.parametrize("seed", SEEDS)
def test_dequantized_pixels_are_uniform_in_their_cells(seed, L):
    x, k = levels(L, seed=seed)
    y = dequantize(x, L, generator=generator(seed))
    assert y.shape == x.shape and y.dtype == F64 and y.min() >= -1 and y.max() <= 1
    place = (y + 1) / 2 * L
    assert torch.equal(place.floor().long(), k)  # the level can be read off
    inside = (place - k).flatten().numpy()
    n = len(inside)
    counts = np.histogram(inside, 10, (0, 1))[0]
    assert (np.abs(counts / n - 0.1) < 5 * math.sqrt(0.09 / n)).all()
    assert abs(np.corrcoef(inside[:-1], inside[1:])[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(inside, k.flatten())[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("L", [2, 17, 256])
def test_dequantize_in_float32(L):
    x, k = levels(L, dtype=torch.float32)
    y = dequantize(x, L, generator=generator(0))
    assert y.dtype == torch.float32 and y.min() >= -1 and y.max() <= 1
    centre = -1 + (2 * k.double() + 1) / L
    assert (y.double() - centre).abs().max() < 1 / L + 1e-6


@pytest.mark.parametrize("L", [2, 17, 256])
def test_dequantize_stays_in_the_image_whatever_is_drawn(monkeypatch, L):
    x, _ = levels(L, dtype=torch.float32)
    for u in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *shape, u=u, **options: torch.full_like(x, u))
        require_images("y", dequantize(x, L))


def test_dequantize_follows_the_generator_and_leaves_its_input():
    x, _ = levels(5)
    before = x.clone()
    draw = lambda seed: dequantize(x, 5, generator=generator(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype, L", [(torch.float32, 2**16), (torch.float16, 256), (BF16, 256), (BF16, 64)])
def test_dequantize_finds_the_level_that_was_meant(dtype, L):
    """All there are, out of a type that rounds them; and half precision has no room for the noise."""
    k = torch.arange(L).view(1, 1, 1, L)
    y = dequantize((-1 + 2 * k.double() / (L - 1)).to(dtype), L, generator=generator(0))
    assert y.dtype == torch.float32
    within = (y.double() + 1) / 2 * L - k
    assert within.min() > -0.02 and within.max() < 1.02 and (within - 0.5).abs().max() > 0.4


@pytest.mark.parametrize("bad", [0.3, 1.5, -1.125, math.nan, math.inf])
def test_what_is_no_level_becomes_no_number(bad):
    """So that nothing computed from it passes for a right number; and without asking the device."""
    x, _ = levels(17, shape=(2, 1, 3, 3))
    x[1, 0, 1, 2] = bad
    y = dequantize(x, 17)
    assert y.isnan().sum() == 1 and y[1, 0, 1, 2].isnan()
    assert dequantize(dequantize(levels(17)[0], 17), 17).isnan().any()  # twice


def test_dequantize_refuses_a_single_level():
    with pytest.raises(ValueError, match="levels must be an integer of at least 2; got 1"):
        dequantize(ONES, 1)


@pytest.mark.parametrize("L", [2, 17, 256])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 5, 7)])
def test_a_uniform_density_takes_log2_of_the_levels(L, shape):
    """It says nothing, so a pixel costs as many bits as its number has; logits of 0 are uniform."""
    x, _ = levels(L, (4, *shape))
    y = dequantize(x, L, generator=generator(0))
    log_prob = ContinuousBernoulli().log_prob(torch.zeros_like(y), y)
    got = bits_per_dim(log_prob, math.prod(shape), L)
    assert got.shape == (4,) and got.dtype == F64
    assert_close(got, torch.full_like(got, math.log2(L)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("centre, sigma", [(0.1, 0.15), (-0.4, 0.4)])
@pytest.mark.parametrize("seed", SEEDS)
def test_bits_of_dequantized_pixels_bound_the_bits_of_the_levels(seed, centre, sigma):
    r"""Against the mass :math:`\int p` of each cell; the cost itself, −log₂ p averaged, by quadrature."""
    n, L = 4000, 5
    likelihood = Gaussian(sigma).double()
    of, gap = norm(centre, math.exp(likelihood.log_sigma.item())), []
    for k in range(L):
        low, high = -1 + 2 * k / L, -1 + 2 * (k + 1) / L
        mass = of.cdf(high) - of.cdf(low)
        nats = quad(lambda v: -of.logpdf(v), low, high)[0] / (high - low)
        want = nats / math.log(2) - math.log2(high - low)
        y = dequantize(pixels([-1 + 2 * k / (L - 1)] * n), L, generator=generator(10 * seed + k))
        bits = bits_per_dim(likelihood.log_prob(torch.full_like(y, centre), y), 1, L).detach().numpy()
        assert within(bits, want)
        error = bits.std() / math.sqrt(n)
        assert bits.mean() > -math.log2(mass) - 5 * error
        gap.append(bits.mean() + math.log2(mass) > 5 * error)
    assert gap[0] and gap[-1]  # it is a bound, and no equality: the density bends in these cells
