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
# On Linux malloc gives freed blocks of this size back to the system, and every chunk would wait
# for new pages. Freeing a block of 31 MiB once makes it keep them (mallopt(3), M_MMAP_THRESHOLD).
torch.empty(31 * 2**20, dtype=torch.uint8)


class GaussianMixture:
    r"""The density :math:`p(x) = \sum_k \pi_k\, \mathcal N(x \mid \mu_k, \Sigma_k)`.

    Args:
        weights: :math:`\pi`, shape (K,), positive, summing to one.
        means: :math:`\mu`, shape (K, D).
        covariances: full matrices (K, D, D), variances of diagonal ones (K, D), or one
            variance a component (K,). All three tensors share dtype (float32 or float64)
            and device.

    Raises:
        ValueError: a shape, a dtype or a device does not fit, a value is not finite, the
            weights are not a distribution, or a covariance is not positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        require_points("means", means)
        K, D = means.shape
        for name, value in (("weights", weights), ("covariances", covariances)):
            if not isinstance(value, Tensor) or value.dtype != means.dtype or value.device != means.device:
                raise ValueError(f"{name} must be a {means.dtype} tensor on {means.device}, as means is")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} must be finite; it holds NaN or infinity")
        if weights.shape != (K,):
            raise ValueError(f"weights must have shape ({K},); got {tuple(weights.shape)}")
        if (weights <= 0).any() or abs(weights.sum().item() - 1) > 1e-4:
            raise ValueError(f"weights must be positive and sum to one; got sum {weights.sum().item():g}")
        if covariances.shape == (K,):
            covariances = covariances[:, None].expand(K, D)
        if covariances.shape not in ((K, D), (K, D, D)):
            raise ValueError(
                f"covariances must have shape ({K}, {D}, {D}), ({K}, {D}) or ({K},); "
                f"got {tuple(covariances.shape)}"
            )
        self.weights, self.means, self.covariances = weights, means, covariances
        if covariances.ndim == 3:
            size = covariances.abs().amax((1, 2))
            if ((covariances - covariances.mT).abs().amax((1, 2)) > 1e-4 * size).any():
                raise ValueError("covariances must be symmetric")
            # L (K, D, D), lower triangular, and its inverse
            self.scale, info = torch.linalg.cholesky_ex(covariances)
            bad = info.nonzero().flatten().tolist()
            eye = torch.eye(D, dtype=means.dtype, device=means.device)
            self.inverse = torch.linalg.solve_triangular(self.scale, eye, upper=False).contiguous()
            # y = L⁻¹(x − c) + L⁻¹(c − μ): about the mixture's mean c few digits cancel
            self._center = weights @ means
            self._shift = (self.inverse @ (self._center - means)[:, :, None]).view(K * D, 1)
            self._log_det = self.scale.diagonal(dim1=1, dim2=2).log().sum(1)  # of L, (K,)
        else:
            bad = (covariances <= 0).any(1).nonzero().flatten().tolist()
            self.scale = covariances.sqrt()  # (K, D)
            self.inverse = 1 / self.scale
            self._log_det = self.scale.log().sum(1)
        if bad:
            raise ValueError(f"covariances must be positive definite; those of components {bad} are not")

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
        return torch.cat(chunks)

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
        return torch.cat(chunks)

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
        require_points("x", x)
        if x.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"x must have {self.means.shape[1]} columns, as the means have; got {x.shape[1]}"
            )
        if x.dtype != self.means.dtype or x.device != self.means.device:
            raise ValueError(
                f"x must be {self.means.dtype} on {self.means.device}; got {x.dtype} on {x.device}"
            )
        return self.split(x)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        # A GPU wants large chunks; a core wants one that stays in its cache.
        size = CHUNK_BYTES * (1 if x.device.type == "cpu" else 64)
        return x.split(max(64, size // (self.means.numel() * x.element_size())))

    def whiten(self, x: Tensor) -> Tensor:
        """Each component's coordinates of a chunk (n, D). Returns (K, D, n)."""
        K, D = self.means.shape
        if self.inverse.ndim == 2:
            return (x.T - self.means[:, :, None]) * self.inverse[:, :, None]
        return torch.addmm(self._shift, self.inverse.view(K * D, D), (x - self._center).T).view(K, D, -1)

    def log_joint(self, y: Tensor) -> Tensor:
        """The terms log π_k + log N(x | k), shape (K, n), from whitened points (K, D, n)."""
        constant = self.weights.log() - self._log_det - 0.5 * self.means.shape[1] * LOG_2PI
        return constant[:, None] - 0.5 * (y * y).sum(1)
