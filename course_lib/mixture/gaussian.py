r"""Gaussian mixtures: density, responsibilities, score and samples.

Each component sees the data in its own coordinates, :math:`y = L^{-1}(x - \mu)` with
:math:`\Sigma = L L^\top`, where its density is a standard normal: all that follows needs only
:math:`\|y\|^2` and the determinant of L. Points come in chunks that fit a processor's cache.
"""

import math

import torch
from torch import Tensor

from course_lib.require import require_count, require_points

LOG_2PI = math.log(2 * math.pi)
CHUNK_BYTES = 2**22  # of one chunk in every component's coordinates: about a core's cache


class GaussianMixture:
    r"""The density :math:`p(x) = \sum_k \pi_k\, \mathcal N(x \mid \mu_k, \Sigma_k)`.

    Args:
        weights: :math:`\pi`, shape (K,), positive, summing to one.
        means: :math:`\mu`, shape (K, D).
        covariances: full matrices (K, D, D), variances of diagonal ones (K, D), or one
            variance a component (K,). All three tensors share dtype (float32 or float64)
            and device.

    Raises:
        ValueError: the weights are not a distribution, the means are not finite, shapes do not fit, or
            a covariance is not symmetric and positive definite.

    Examples:
        >>> halves, means = torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]])
        >>> mixture = GaussianMixture(halves, means, torch.ones(2))
        >>> mixture.responsibilities(torch.tensor([[0.0], [2.0]]))
        tensor([[5.0000e-01, 5.0000e-01],
                [3.3535e-04, 9.9966e-01]])
        >>> mixture.score(torch.tensor([[0.0]]))  # between two equal components nothing pulls
        tensor([[0.]])
        >>> points, components = mixture.sample(5, generator=torch.Generator().manual_seed(0))
        >>> points.shape, components.shape
        (torch.Size([5, 1]), torch.Size([5]))
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        require_points("means", means)
        K, D = means.shape
        if weights.shape != (K,) or not (weights > 0).all() or not abs(weights.sum() - 1) < 1e-4:
            raise ValueError(f"weights must be ({K},), positive and sum to one; got sum {weights.sum():g}")
        if covariances.shape == (K,):
            covariances = covariances[:, None].expand(K, D)
        if covariances.shape not in ((K, D), (K, D, D)):
            raise ValueError(f"covariances must have one for each mean; got {tuple(covariances.shape)}")
        self.weights, self.means, self.covariances = weights, means, covariances
        if covariances.ndim == 3:
            size = covariances.abs().amax((1, 2))
            if ((covariances - covariances.mT).abs().amax((1, 2)) > 1e-4 * size).any():
                raise ValueError("covariances must be symmetric")
            # L (K, D, D), lower triangular, and its inverse
            self.scale, failed = torch.linalg.cholesky_ex(covariances)
            eye = torch.eye(D, dtype=means.dtype, device=means.device)
            self.inverse = torch.linalg.solve_triangular(self.scale, eye, upper=False).contiguous()
            diagonal = self.scale.diagonal(dim1=1, dim2=2)
        else:
            failed = 0
            self.scale = diagonal = covariances.sqrt()  # (K, D)
            self.inverse = 1 / self.scale
        self._log_det = diagonal.log().sum(1)  # of L, (K,)
        if (bad := ~torch.isfinite(self._log_det) | (failed != 0)).any():
            bad = bad.nonzero().flatten().tolist()
            raise ValueError(f"covariances must be finite and positive definite; those of {bad} are not")

    def to(self, *args, **kwargs) -> "GaussianMixture":
        """Return this mixture in another dtype or on another device, as `Tensor.to` does."""
        return GaussianMixture(*(v.to(*args, **kwargs) for v in (self.weights, self.means, self.covariances)))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density :math:`\log p(x)` in nats. x: (N, D). Returns (N,)."""
        chunks = [torch.logsumexp(self.log_joint(self.whiten(c)), 0) for c in self.chunks(x)]
        return torch.cat(chunks)

    def responsibilities(self, x: Tensor) -> Tensor:
        r"""Posterior :math:`\gamma_{nk} = p(z = k \mid x_n)`. x: (N, D). Returns (N, K)."""
        chunks = [torch.softmax(self.log_joint(self.whiten(c)), 0).T for c in self.chunks(x)]
        return within_range(torch.cat(chunks))

    def score(self, x: Tensor) -> Tensor:
        r"""Score :math:`\nabla_x \log p(x) = \sum_k \gamma_k(x)\, \Sigma_k^{-1} (\mu_k - x)`.

        x: (N, D). Returns (N, D).
        """
        chunks = []
        for chunk in self.chunks(x):
            y = self.whiten(chunk)
            pull = -y * torch.softmax(self.log_joint(y), 0)[:, None]  # (K, D, n)
            if self.inverse.ndim == 3:
                chunks.append(torch.einsum("kij,kin->nj", self.inverse, pull))
            else:
                chunks.append(torch.einsum("kj,kjn->nj", self.inverse, pull))
        return within_range(torch.cat(chunks))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        r"""Draw `n` points by ancestral sampling: first z, then x given z.

        Returns:
            The points (n, D) and the components (n,) that they came from.
        """
        require_count("n", n)
        z = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=z.device
        )
        if self.scale.ndim == 2:
            return self.means[z] + self.scale[z] * noise, z
        x = torch.empty_like(noise)
        for k in range(len(self.weights)):
            own = z == k
            x[own] = self.means[k] + noise[own] @ self.scale[k].T
        return x, z

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Points (N, D), checked and split."""
        require_points("x", x)
        if x.shape[1] != self.means.shape[1]:  # one column would be taken for all
            raise ValueError(f"x must have as many columns as the means, {self.means.shape[1]}")
        return self.split(x)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        # A GPU wants large chunks; a core wants one that stays in its cache.
        size = CHUNK_BYTES * (1 if x.device.type == "cpu" else 64)
        return x.split(max(64, size // (self.means.numel() * x.element_size())))

    def whiten(self, x: Tensor) -> Tensor:
        """Each component's coordinates of a chunk (n, D). Returns (K, D, n)."""
        # About its own mean, not about one for all: nothing cancels, wherever the component lies.
        apart = x.T.contiguous() - self.means[:, :, None]
        return self.inverse @ apart if self.inverse.ndim == 3 else apart * self.inverse[:, :, None]

    def log_joint(self, y: Tensor) -> Tensor:
        """The terms log π_k + log N(x | k), shape (K, n), from whitened points (K, D, n)."""
        constant = self.weights.log() - self._log_det - 0.5 * self.means.shape[1] * LOG_2PI
        return constant[:, None] - 0.5 * (y * y).sum(1)


def within_range(found: Tensor) -> Tensor:
    """What was found of points; refuse NaN, which is there where no density of a finite point is above 0."""
    if found.isnan().any():
        raise ValueError(f"x must not lie so far from all means that squares overflow in {found.dtype}")
    return found
