r"""Exact denoisers :math:`\mathbb E[x_0 \mid x_t]`, for data from a Gaussian mixture or a finite set.

Each is called like a network that predicts ``"x0"``. With them a sampler's error is measured against the
truth, before any network is trained.
"""

import torch
from torch import Tensor

from course_lib.diffusion.path import Path, per_sample
from course_lib.diffusion.target import Pair, combine
from course_lib.mixture.gaussian import GaussianMixture


class Oracle:
    """What both share: a callable that returns the posterior mean of :math:`x_0`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """:math:`\\mathbb E[x_0 \\mid x_t]` of samples (B, …) at times (B,)."""
        raise NotImplementedError

    def predict(self, target: str, xt: Tensor, t: Tensor) -> Tensor:
        """The exact mean of any target given :math:`x_t`; where b = 0 only of ``"x0"``."""
        x0 = self(xt, t)
        if target == "x0":
            return x0
        at = per_sample(t, xt)
        b = self.path.b(at)
        if (b == 0).any():
            raise ValueError(f"target {target!r} is not determined where b = 0: there x_t = a x_0")
        return combine(self.path, target, Pair(x0, (xt - self.path.a(at) * x0) / b), t)


class MixtureOracle(Oracle):
    r"""Data from chapter 04's mixture: then :math:`x_t` is a mixture too, at every t.

    Its components have the means :math:`a \mu_k` and covariances :math:`a^2 \Sigma_k + b^2 I`. Samples
    have shape (B, D).
    """

    def __init__(self, mixture: GaussianMixture, path: Path) -> None:
        super().__init__(path)
        self.mixture = mixture

    def at(self, t: float) -> GaussianMixture:
        """The density of :math:`x_t` at one time, in (0, 1]."""
        if not 0 <= t <= 1:
            raise ValueError(f"t must lie in [0, 1]; got {t}")
        time = torch.tensor([t], dtype=self.mixture.means.dtype, device=self.mixture.means.device)
        a, b = self.path.a(time), self.path.b(time)
        covariances = a**2 * self.mixture.covariances
        if covariances.ndim == 3:
            covariances = covariances + b**2 * torch.eye(covariances.shape[1]).to(covariances)
        else:
            covariances = covariances + b**2
        return GaussianMixture(self.mixture.weights, a * self.mixture.means, covariances)

    def score(self, xt: Tensor, t: Tensor) -> Tensor:
        r""":math:`\nabla \log p_t(x)`, from the density itself, not by Tweedie's formula."""
        return self._by_time(xt, t, lambda x, time: self.at(time).score(x))

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        return self._by_time(xt, t, self._posterior_mean)

    def _posterior_mean(self, x: Tensor, time: float) -> Tensor:
        r"""Of each component :math:`\mu + a \Sigma (a^2 \Sigma + b^2 I)^{-1} (x - a \mu)`, then averaged."""
        now, then = self.at(time), self.mixture
        a = self.path.a(torch.tensor(time, dtype=x.dtype))
        apart = x[:, None] - now.means  # (B, K, D)
        if then.covariances.ndim == 3:
            gain = a * torch.linalg.solve(now.covariances, then.covariances).mT  # (K, D, D)
            moved = torch.einsum("kij,bkj->bki", gain, apart)
        else:
            moved = a * then.covariances / now.covariances * apart
        return torch.einsum("bk,bki->bi", now.responsibilities(x), then.means + moved)

    def _by_time(self, xt: Tensor, t: Tensor, value) -> Tensor:
        """Samplers use one time for all samples; in general go through the times that occur."""
        if xt.ndim != 2 or xt.shape[1] != self.mixture.means.shape[1]:
            raise ValueError(f"xt must have shape (B, {self.mixture.means.shape[1]}); got {tuple(xt.shape)}")
        t = per_sample(t, xt).flatten().expand(len(xt))
        out = torch.empty_like(xt)
        for time in t.unique():
            own = t == time
            out[own] = value(xt[own], time.item())
        return out


class DatasetOracle(Oracle):
    r"""Data that are one of N points, each as likely: the denoiser that memorizes.

    Given :math:`x_t` the weight of point n is the softmax of :math:`-\lVert x_t - a x_n \rVert^2 / 2 b^2`.

    Args:
        points: the data (N, …); samples have the shape of one of them.
    """

    def __init__(self, points: Tensor, path: Path) -> None:
        super().__init__(path)
        if not isinstance(points, Tensor) or points.ndim < 2 or len(points) == 0:
            raise ValueError("points must be a tensor (N, …) of at least one point")
        self.points = points

    def weights(self, xt: Tensor, t: Tensor) -> Tensor:
        """The posterior of the points, (B, N), at times with b > 0."""
        if xt.shape[1:] != self.points.shape[1:]:
            raise ValueError(
                f"xt must have samples of shape {tuple(self.points.shape[1:])}; got {tuple(xt.shape)}"
            )
        t = per_sample(t, xt).view(-1, 1)
        a, b = self.path.a(t), self.path.b(t)
        x, y = xt.flatten(1), self.points.flatten(1)
        # ‖x − a y‖² without the term that is the same for all points
        logits = (a * (x @ y.T) - 0.5 * a**2 * y.square().sum(1)) / b**2
        return torch.softmax(logits, 1)

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        return (self.weights(xt, t) @ self.points.flatten(1)).view_as(xt)
