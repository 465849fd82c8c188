"""What the tests of this folder share: paths, targets, exact denoisers, and exact networks."""

import math

import torch

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, Linear
from course_lib.diffusion.tabulated import Tabulated
from course_lib.mixture.gaussian import GaussianMixture

F64 = torch.float64
PATHS = {
    "vp": VP(),
    "cosine": Cosine(),
    "linear": Linear(),
    "ve": VE(0.1, 3.0),
    "table": Tabulated.schedule("linear", 100),
}
TARGETS = {
    "vp": ("x0", "eps", "score", "v", "velocity", "edm"),
    "cosine": ("x0", "eps", "score", "v", "velocity", "edm"),
    "linear": ("x0", "eps", "score", "velocity", "edm"),
    "ve": ("x0", "eps", "score", "velocity", "edm"),
    "table": ("x0", "eps", "score", "v", "edm"),
}
CASES = [(name, target) for name in PATHS for target in TARGETS[name]]
SIGMA_DATA = 0.7


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def mixture(seed=0, K=3, D=2, shape="full"):
    g = generator(seed)
    weights = torch.softmax(torch.randn(K, generator=g, dtype=F64), 0)
    means = torch.randn(K, D, generator=g, dtype=F64)
    factor = torch.randn(K, D, D, generator=g, dtype=F64)
    full = 0.2 * factor @ factor.mT + 0.15 * torch.eye(D, dtype=F64)
    covariances = {"full": full, "diag": full.diagonal(dim1=1, dim2=2), "spherical": full[:, 0, 0]}[shape]
    return GaussianMixture(weights, means, covariances)


MU, VARIANCE = 0.7, 0.4  # of Gaussian data


def gaussian():
    return GaussianMixture(*(torch.tensor(v, dtype=F64) for v in ([1.0], [[MU]], [VARIANCE])))


def numbers(path, t):
    """a and b at a time, as numbers."""
    return tuple(f(torch.tensor([t], dtype=F64)).item() for f in (path.a, path.b))


def wide(t, x):
    """Times (B,) against samples (B, …)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def nonlinear(x, t):
    """Any network."""
    return 0.6 * torch.sin(2 * x) + 0.3 * x * wide(t, x) - 0.1


def exact(oracle, target):
    """A `Denoiser` whose network returns the mean of the target, by formulas written out here."""
    path = oracle.path

    def net(x, t, **condition):
        if target == "edm":  # the network sees the scaled sample, and log σ / 4
            sigma = torch.exp(4 * t)
            t, whole = path.time(sigma), (sigma**2 + SIGMA_DATA**2).sqrt()
            xhat = wide(whole, x) * x
            x = wide(path.a(t), x) * xhat
            skip, out = SIGMA_DATA**2 / whole**2, sigma * SIGMA_DATA / whole
            return (oracle(x, t, **condition) - wide(skip, x) * xhat) / wide(out, x)
        a, b = (wide(f(t), x) for f in (path.a, path.b))
        x0 = oracle(x, t, **condition)
        eps = (x - a * x0) / b
        if target == "velocity":
            return wide(path.da(t), x) * x0 + wide(path.db(t), x) * eps
        return {"x0": x0, "eps": eps, "score": -eps / b, "v": a * eps - b * x0}[target]

    return Denoiser(net, path, target, sigma_data=SIGMA_DATA if target == "edm" else None)


def has_moments(x, mean, variance):
    """Whether Gaussian samples (n, 1) have this mean and variance within 5 standard errors."""
    n = len(x)
    got = x.mean().item(), x.var().item()
    near = abs(got[0] - mean) < 5 * math.sqrt(variance / n)
    return near and abs(got[1] - variance) < 5 * variance * math.sqrt(2 / (n - 1))


def moment_errors(x, m):
    """Errors of the mean and of the second moments of samples (n, D), and their standard errors."""
    want = m.weights @ m.means
    dense = m.covariances if m.covariances.ndim == 3 else torch.diag_embed(m.covariances)
    second = torch.einsum("k,kij->ij", m.weights, dense + m.means[:, :, None] * m.means[:, None])
    values = torch.cat([x, (x[:, :, None] * x[:, None]).flatten(1)], 1)
    error = (values.mean(0) - torch.cat([want, second.flatten()])).abs()
    return error, values.std(0) / math.sqrt(len(x))


def gaussian_flow(path, x, t, s):
    """The flow of Gaussian data moves x along its quantile."""
    (a, b), (a_s, b_s) = numbers(path, t), numbers(path, s)
    scale = math.sqrt((a_s**2 * VARIANCE + b_s**2) / (a**2 * VARIANCE + b**2))
    return a_s * MU + scale * (x - a * MU)


def oracle_of(path, **kind):
    return MixtureOracle(mixture(**kind), path)
