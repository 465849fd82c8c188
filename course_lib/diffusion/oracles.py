r"""Exact denoisers :math:`\mathbb E[x_0 \mid x_t]`, for data from a Gaussian mixture or a finite set.

With them a sampler's error is measured against the truth, before any network is trained.
"""

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.path import GaussianPath
from course_lib.diffusion.target import Pair
from course_lib.mixture.gaussian import GaussianMixture


class MixtureOracle(BaseDenoiser):
    r"""Data from a Gaussian mixture: then :math:`x_t` is a mixture too, at every t.

    Its components have the means :math:`a \mu_k` and covariances :math:`a^2 \Sigma_k + b^2 I`: in the
    eigenvectors of :math:`\Sigma_k`, found once, all of these are diagonal. Samples have shape (B, D). The
    condition ``y=``, components (B,), asks for data of that component alone.

    >>> from course_lib.diffusion.path import VP
    >>> means, half = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5])
    >>> two = GaussianMixture(half, means, torch.tensor([0.1, 0.1]))
    >>> oracle = MixtureOracle(two, VP())
    >>> oracle(torch.zeros(1, 1), 0.5).abs().item() < 1e-6  # halfway between both
    True
    >>> oracle(torch.zeros(1, 1), 1.0, y=torch.tensor([1])).item() > 0.99
    True
    """

    def __init__(self, mixture: GaussianMixture, path: GaussianPath) -> None:
        super().__init__(path)
        self.mixture = mixture
        if mixture.covariances.ndim == 3:  # in float64, wherever the mixture is
            matrices = mixture.covariances.cpu().double()
            self.variances, self.axes = torch.linalg.eigh(matrices)  # (K, D), (K, D, D)
        else:
            eye = torch.eye(mixture.means.shape[1]).to(mixture.means)
            self.variances, self.axes = mixture.covariances, eye.expand(len(mixture.means), *eye.shape)

    def at(self, t: float) -> GaussianMixture:
        """The density of :math:`x_t` at one time."""
        time = torch.tensor(t, dtype=self.mixture.means.dtype, device=self.mixture.means.device)
        self.path.require(time)
        a, b = self.path.a(time), self.path.b(time)
        covariances = a**2 * self.mixture.covariances
        noise = b**2 if covariances.ndim == 2 else b**2 * torch.eye(covariances.shape[1]).to(covariances)
        return GaussianMixture(self.mixture.weights, a * self.mixture.means, covariances + noise)

    def _inside(
        self, x: Tensor, t: Tensor | float, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Of each component :math:`(a^2 \Sigma + b^2 I)^{-1} (x - a \mu)` along its axes, (B, K, D); the
        posterior of the components, (B, K); a and b (B, 1)."""
        like = lambda v: v.to(x.device, x.dtype)
        at = self.path.expand(t, x)  # (B, 1) or (1, 1)
        a, b = self.path.a(at), self.path.b(at)
        apart = x[:, None] - a[..., None] * like(self.mixture.means)  # (B, K, D)
        with torch.autocast(x.device.type, enabled=False):
            apart = torch.einsum("bki,kij->bkj", apart, like(self.axes))
        spread = a[..., None] ** 2 * like(self.variances) + b[..., None] ** 2
        if y is not None:
            share = torch.nn.functional.one_hot(y, len(self.mixture.weights)).to(x)
        else:
            log_p = -0.5 * (apart.square() / spread + spread.log()).sum(2)  # (B, K), up to a constant
            share = torch.softmax(like(self.mixture.weights).log() + log_p, 1)
        return apart / spread, share, a, b

    def _mean(self, share: Tensor, along: Tensor) -> Tensor:
        """The average over the components of vectors given along their axes (B, K, D): (B, D)."""
        with torch.autocast(share.device.type, enabled=False):
            return torch.einsum("bk,bkj,kij->bi", share, along, self.axes.to(along))

    def predict(self, x: Tensor, t: Tensor | float, *, y: Tensor | None = None) -> Pair:
        r"""Of each component :math:`\mu + a \Sigma (a^2 \Sigma + b^2 I)^{-1} (x - a \mu)`, then averaged; and
        the noise from the score, :math:`-b\, s`: so no digits are lost where b is small."""
        pull, share, a, b = self._inside(x, t, y)
        moved = self._mean(share, a[..., None] * self.variances.to(x) * pull)
        x0 = (share[..., None] * self.mixture.means.to(x)).sum(1) + moved
        return Pair(x0, b * self._mean(share, pull))

    def score(self, x: Tensor, t: Tensor | float, *, y: Tensor | None = None) -> Tensor:
        r""":math:`\nabla \log p_t(x)`, from the density itself, not by Tweedie's formula."""
        pull, share, _, _ = self._inside(x, t, y)
        return -self._mean(share, pull)


class DatasetOracle(BaseDenoiser):
    r"""Data that are one of N points, each as likely: the denoiser that memorizes.

    Given :math:`x_t` the weight of point n is the softmax of :math:`-\lVert x_t - a x_n \rVert^2 / 2 b^2`.

    Args:
        points: the data (N, …); samples have the shape of one of them.
        path: of the noise.

    >>> from course_lib.diffusion.path import Linear
    >>> oracle = DatasetOracle(torch.tensor([[-1.0], [1.0]]), Linear())
    >>> oracle(torch.tensor([[0.4]]), 0.1).item()  # near 0.9 · 1
    1.0
    """

    def __init__(self, points: Tensor, path: GaussianPath) -> None:
        super().__init__(path)
        if points.ndim < 2 or not len(points):
            raise ValueError(f"points must be (N, …), at least one; got {tuple(points.shape)}")
        self.points = points
        self.middle = points.flatten(1).median(0).values  # (D,): one far point does not move it

    def weights(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The posterior of the points, (B, N), at times with b > 0."""
        return self._inside(x, t)[0]

    def _inside(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The posterior of the points (B, N); the points (N, D); a and b (B, 1): in float64."""
        if x.shape[1:] != self.points.shape[1:]:  # (B, 1, 4) would pass for (B, 2, 2)
            raise ValueError(f"x must be samples {tuple(self.points.shape[1:])}; got {tuple(x.shape)}")
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # differences lose digits
        at = self.path.expand(t, x).to(wide).view(-1, 1)
        a, b = self.path.a(at), self.path.b(at)
        points, middle = (v.flatten(1).to(x.device, wide) for v in (self.points, self.middle[None]))
        far, around = x.flatten(1).to(wide) - a * middle, points - middle
        # ‖x − a y‖² without the term that is the same for all points
        logits = (a * (far @ around.T) - 0.5 * a**2 * around.square().sum(1)) / b**2
        return torch.softmax(logits, 1), points, a, b

    def predict(self, x: Tensor, t: Tensor | float) -> Pair:
        weights, points, a, b = self._inside(x, t)
        x0 = weights @ points
        eps = (x.flatten(1).to(x0) - a * x0) / b
        return Pair(*(v.to(x).view_as(x) for v in (x0, eps)))

    def require(self, times: Tensor, *, velocity: bool = False) -> None:
        super().require(times, velocity=velocity)
        if (self.path.b(times) == 0).any():
            raise ValueError("times must leave out those where b = 0: there the posterior is not defined")
