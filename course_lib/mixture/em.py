r"""Expectation-maximization for Gaussian mixtures.

One pass over the data does both steps: the E-step gives a chunk's responsibilities, and the
M-step needs of them only sums. Second moments are summed in each component's own coordinates
(see `gaussian`), where a narrow component far from the origin loses no digits.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.mixture.gaussian import GaussianMixture, within_range
from course_lib.mixture.kmeans import seeds, wide
from course_lib.points import nearest
from course_lib.require import require_count, require_points, require_weight

COVARIANCES = ("full", "tied", "diag", "spherical")
MISSING = 1e-3  # a component with less than this much of one point is missing


class EStep(NamedTuple):
    """Mean log-likelihood of a point (nats), and log-responsibilities (N, K)."""

    log_likelihood: float
    log_responsibilities: Tensor


def e_step(mixture: GaussianMixture, x: Tensor) -> EStep:
    """The E-step: every point's posterior over the components. x: (N, D).

    Examples:
        >>> mixture = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(2))
        >>> e_step(mixture, torch.tensor([[0.0], [9.0]])).log_responsibilities.exp().round(decimals=3)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    joint = torch.cat([mixture.log_joint(mixture.whiten(c)).T for c in mixture.chunks(x)])
    evidence = torch.logsumexp(joint, 1, keepdim=True)
    return EStep(evidence.mean(dtype=wide(x)).item(), within_range(joint - evidence))


def m_step(
    x: Tensor, responsibilities: Tensor, *, covariance: str = "full", reg: float = 1e-6
) -> GaussianMixture:
    r"""The M-step: the mixture that maximizes the expected complete log-likelihood.

    Args:
        x: points, (N, D).
        responsibilities: :math:`\gamma`, (N, K), rows summing to one.
        covariance: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        reg: floor added to every variance, in squared units of x.

    Raises:
        ValueError: a row is not a distribution, a component is responsible for no point, or its
            covariance is singular (``reg=0``).

    Examples:
        >>> x = torch.tensor([[0.0], [2.0], [10.0]])
        >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> m_step(x, sure, covariance="diag").means
        tensor([[ 1.],
                [10.]])
    """
    require_points("x", x)
    _require_options(covariance, reg)
    r = responsibilities
    if not (r >= 0).all() or (r.sum(1) - 1).abs().max() > 1e-4:
        raise ValueError("responsibilities must be at least 0, and each row must sum to one")
    counts = r.sum(0)
    if not (counts > 0).all():
        raise ValueError("responsibilities must give each component some part of a point")
    means = r.T @ x / counts[:, None]
    K, D = means.shape
    unit = torch.ones_like(means) if covariance in ("diag", "spherical") else _eye(x).expand(K, D, D)
    frame = GaussianMixture(counts / counts.sum(), means, unit)
    moments = _Moments.zeros(frame)
    chunks = frame.split(x)
    for chunk, weight in zip(chunks, r.split(len(chunks[0])), strict=True):
        moments.add(chunk, frame.whiten(chunk), weight.T)
    return _maximize(frame, moments, covariance, reg)


class _Moments(NamedTuple):
    """Sums over points: r (K,), r x (K, D), and r y yᵀ (K, D, D), or of diagonal ones r y² (K, D)."""

    counts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def zeros(cls, frame: GaussianMixture) -> "_Moments":
        K, D = frame.means.shape
        like = {"dtype": wide(frame.means), "device": frame.means.device}
        return cls(*(torch.zeros(s, **like) for s in ((K,), (K, D), frame.inverse.shape)))

    def add(self, x: Tensor, y: Tensor, r: Tensor) -> None:
        """Add a chunk: x (n, D), y (K, D, n) and r (K, n)."""
        self.counts.add_(r.sum(1))
        self.sums.add_(r @ x)
        weighted = y * r[:, None]
        self.squares.add_(weighted @ y.mT if self.squares.ndim == 3 else (weighted * y).sum(2))


def _eye(x: Tensor) -> Tensor:
    """The identity that acts on points (N, D), in their dtype and on their device."""
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _maximize(frame: GaussianMixture, moments: _Moments, covariance: str, reg: float) -> GaussianMixture:
    """Turn moments, the second ones in the frame's coordinates, into the new mixture."""
    counts, sums, squares = moments
    weights, means = counts / counts.sum(), sums / counts[:, None]
    scale, shift = frame.scale.to(means), means - frame.means
    if scale.ndim == 3:
        shift = torch.linalg.solve_triangular(scale, shift[:, :, None], upper=False)  # (K, D, 1)
        cov = scale @ (squares / counts[:, None, None] - shift @ shift.mT) @ scale.mT
        cov = (cov + cov.mT) / 2 + reg * _eye(cov[0])
    else:
        cov = scale**2 * squares / counts[:, None] - shift**2 + reg
    cov = _shared(weights, cov, covariance)
    return GaussianMixture(weights.to(frame.means), means.to(frame.means), cov.to(frame.means))


class Fit(NamedTuple):
    """What `fit` found.

    `log_likelihood` has one entry an iteration, the mean of log p(x) in nats under the
    parameters that entered it, and a last one for the mixture returned. `revived` lists
    (iteration, component) for each component that had lost all its points.
    """

    mixture: GaussianMixture
    log_likelihood: list[float]
    converged: bool
    revived: list[tuple[int, int]]
    n_parameters: int

    def bic(self, n: int) -> float:
        r"""Bayesian information criterion on the `n` points fitted: lower is better."""
        return self.n_parameters * math.log(n) - 2 * n * self.log_likelihood[-1]


@torch.no_grad()
def fit(
    x: Tensor,
    n_components: int,
    *,
    covariance: str = "full",
    init: str | GaussianMixture = "k-means++",
    n_init: int = 1,
    reg: float = 1e-6,
    tol: float = 1e-6,
    max_iter: int = 200,
    generator: torch.Generator | None = None,
) -> Fit:
    r"""Fit a mixture by EM (Dempster, Laird and Rubin 1977; Bishop 2006, section 9.2.2).

    Args:
        x: points, (N, D), float32 or float64. Along a column that is constant the density is as narrow
            as `reg` alone makes it.
        n_components: K, at most N.
        covariance: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        init: seeds by ``"k-means++"``, ``"k-means"`` or ``"random"`` (see `kmeans`), or the
            mixture to start from.
        n_init: independent starts; the best final log-likelihood is returned.
        reg: floor added to every variance, in squared units of x.
        tol: stop when the mean log-likelihood changes by less, in nats.
        max_iter: stop after so many iterations in any case.
        generator: randomness of the start, on x's device.

    Raises:
        ValueError: an argument is out of range, or a component collapsed (``reg=0``).

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> x = torch.cat([torch.randn(500, 1, generator=draw), 10 + 2 * torch.randn(500, 1, generator=draw)])
        >>> found = fit(x, 2, generator=draw)
        >>> found.converged, found.mixture.means.sort(0).values.flatten().round().tolist()
        (True, [0.0, 10.0])
    """
    _require_options(covariance, reg)
    require_points("x", x)
    require_count("n_components", n_components)
    require_count("n_init", n_init)
    if not torch.isfinite((x.amax(0) - x.amin(0)).square().sum() * len(x)):
        raise ValueError(f"x must not span so wide a range that squares overflow in {x.dtype}: scale it down")
    if isinstance(init, GaussianMixture) and init.means.shape != (n_components, x.shape[1]):
        raise ValueError(f"init must have means ({n_components}, D); got {tuple(init.means.shape)}")
    _keep_pages()
    best = None
    for _ in range(n_init):
        if isinstance(init, GaussianMixture):
            start = _shaped(init.weights, init.means, init.covariances, covariance)
        else:
            start = _start(x, n_components, covariance, init, reg, generator)
        found = _run(x, start, covariance, reg, tol, max_iter)
        if best is None or found.log_likelihood[-1] > best.log_likelihood[-1]:
            best = found
    return best


@functools.cache
def _keep_pages() -> None:
    """On Linux malloc gives freed blocks of a chunk's size back to the system, and every chunk would wait for
    new pages. Freeing a block of 31 MiB once makes it keep them (mallopt(3), M_MMAP_THRESHOLD)."""
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _expect(x: Tensor, mixture: GaussianMixture) -> tuple[_Moments, float]:
    """The E-step, chunk by chunk: what the M-step needs, and the mean log-likelihood."""
    moments, total = _Moments.zeros(mixture), 0.0
    for chunk in mixture.split(x):
        y = mixture.whiten(chunk)  # (K, D, n)
        log_f = mixture.log_joint(y)  # (K, n)
        largest = log_f.amax(0)  # log-sum-exp and softmax, with one exponential for both
        f = (log_f - largest).exp_()
        evidence = f.sum(0)
        moments.add(chunk, y, f.div_(evidence))
        total += (largest + evidence.log()).sum(dtype=wide(x)).item()
    return moments, total / len(x)


def _run(x: Tensor, mixture: GaussianMixture, covariance: str, reg: float, tol: float, max_iter: int) -> Fit:
    history, revived, missing, converged = [], [], [], False
    for iteration in range(max_iter):
        moments, log_likelihood = _expect(x, mixture)
        history.append(log_likelihood)
        if iteration and abs(history[-1] - history[-2]) < tol and not missing:
            converged = True
            break
        missing = (moments.counts < MISSING).nonzero().flatten().tolist()
        try:
            if missing:
                revived += [(iteration, k) for k in missing]
                mixture = _revive(x, mixture, moments, missing, covariance, reg)
            else:
                mixture = _maximize(mixture, moments, covariance, reg)
        except ValueError as error:
            raise ValueError(
                f"a component collapsed at iteration {iteration}; raise reg above {reg:g}: {error}"
            ) from error
    if not converged:
        history.append(mixture.log_prob(x).mean(dtype=wide(x)).item())
    K, D = mixture.means.shape
    free = {"full": K * D * (D + 1) // 2, "tied": D * (D + 1) // 2, "diag": K * D, "spherical": K}
    return Fit(mixture, history, converged, revived, K - 1 + K * D + free[covariance])


def _start(
    x: Tensor, n_components: int, covariance: str, init: str, reg: float, generator: torch.Generator | None
) -> GaussianMixture:
    """Equal weights, means at the seeds, and for all the covariance about the nearest seed."""
    means = seeds(x, n_components, init=init, generator=generator)
    residual = x - means[nearest(x, means)]
    pooled = residual.T @ residual / len(x) + reg * _eye(x)
    weights = torch.full_like(means[:, 0], 1 / n_components)
    return _shaped(weights, means, pooled.expand(n_components, -1, -1), covariance)


def _shaped(weights: Tensor, means: Tensor, cov: Tensor, covariance: str) -> GaussianMixture:
    """The mixture with covariances as the fit wants them: matrices or diagonals, tied or spherical."""
    if covariance in ("full", "tied") and cov.ndim == 2:
        cov = torch.diag_embed(cov)
    if covariance in ("diag", "spherical") and cov.ndim == 3:
        cov = cov.diagonal(dim1=1, dim2=2)
    return GaussianMixture(weights, means, _shared(weights, cov, covariance))


def _shared(weights: Tensor, cov: Tensor, covariance: str) -> Tensor:
    """One covariance for all where they are tied, one variance for all columns where spherical."""
    if covariance == "tied":
        return torch.einsum("k,kij->ij", weights, cov).expand_as(cov)
    if covariance == "spherical":
        return cov.mean(1, keepdim=True).expand_as(cov)
    return cov


def _revive(
    x: Tensor, mixture: GaussianMixture, moments: _Moments, missing: list[int], covariance: str, reg: float
) -> GaussianMixture:
    """Move each missing component to a point that the mixture explains worst."""
    moments.counts[missing] = 1.0  # one point's weight, at the old place, of the old shape
    moments.sums[missing] = mixture.means[missing].to(moments.sums)
    moments.squares[missing] = _eye(moments.sums) if moments.squares.ndim == 3 else 1.0
    new = _maximize(mixture, moments, covariance, reg)
    worst = mixture.log_prob(x).topk(len(missing), largest=False).indices
    means, cov = new.means.clone(), new.covariances.clone()
    means[missing] = x[worst]
    cov[missing] = torch.tensordot(new.weights, new.covariances, dims=1)
    return GaussianMixture(new.weights, means, cov)


def _require_options(covariance: str, reg: float) -> None:
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}; got {covariance!r}")
    require_weight("reg", reg)
