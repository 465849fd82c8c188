r"""Variational autoencoders: plain, conditional and hierarchical.

A model is put together from networks and a likelihood. Called with images it returns the ELBO and its
two terms, image by image, from one draw of the latent; the loss to train on is minus its mean.
An encoder returns means and log-variances side by side, (B, 2 D_z).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.vae.pixels import Bernoulli, ContinuousBernoulli, Gaussian
from course_lib.require import require_count, require_images

Likelihood = Bernoulli | ContinuousBernoulli | Gaussian


class Elbo(NamedTuple):
    """The evidence lower bound of each image and its two terms, (B,) each, in nats.

    ``elbo = reconstruction - kl``: the log-likelihood at the drawn latent, and the divergence of the
    encoder from the prior.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    r""":math:`\operatorname{KL}(\mathcal N(\mu, \operatorname{diag} \sigma^2) \Vert \mathcal N(0, I))`.

    mean, log_var: (B, D_z). Returns (B,), in nats (Kingma and Welling, 2014, appendix B).
    """
    if mean.ndim != 2 or mean.shape != log_var.shape:
        raise ValueError(
            f"mean and log_var must share a shape (B, D_z); got {tuple(mean.shape)}, {tuple(log_var.shape)}"
        )
    return 0.5 * (log_var.exp() + mean**2 - 1 - log_var).sum(1)


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Log-density of :math:`\mathcal N(z \mid \mu, \operatorname{diag} \sigma^2)`, (B, D_z) to (B,)."""
    return -0.5 * ((z - mean) ** 2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(1)


def log_standard_normal(z: Tensor) -> Tensor:
    r"""Log-density of the prior :math:`\mathcal N(0, I)`, (B, D_z) to (B,)."""
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)


def reparameterize(mean: Tensor, log_var: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw :math:`z = \mu + \sigma \odot \varepsilon`, differentiable in :math:`\mu` and :math:`\sigma`."""
    eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + torch.exp(0.5 * log_var) * eps


def _halves(what: str, statistics: Tensor, batch: int, dim: int) -> tuple[Tensor, Tensor]:
    """Split (B, 2 D) into means and log-variances, in float32 at least, also under autocast."""
    if statistics.shape != (batch, 2 * dim):
        raise ValueError(
            f"{what} must return means and log-variances ({batch}, {2 * dim}); got {tuple(statistics.shape)}"
        )
    return statistics.to(torch.promote_types(statistics.dtype, torch.float32)).chunk(2, dim=1)


def _noise(model: nn.Module, n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    where = next(model.parameters())
    return torch.randn(n, dim, generator=generator, dtype=where.dtype, device=where.device)


class VAE(nn.Module):
    r"""A variational autoencoder (Kingma and Welling, 2014) with the prior :math:`\mathcal N(0, I)`.

    Args:
        encoder: maps images (B, C, H, W) to the means and log-variances of
            :math:`q_\phi(z \mid x)`, (B, 2 D_z).
        decoder: maps latents (B, D_z) to the parameters of :math:`p_\theta(x \mid z)`, (B, C, H, W).
        likelihood: what these parameters mean.
        latent_dim: :math:`D_z`.

    The methods take `given`, what the model is conditioned on: nothing here, labels in `ConditionalVAE`.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, *, latent_dim: int
    ) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim = latent_dim

    def encode(self, x: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the approximate posterior, (B, D_z) each."""
        require_images("x", x)
        if given:
            raise ValueError("given must be empty: this model is not conditioned on anything")
        return _halves("encoder", self.encoder(x), len(x), self.latent_dim)

    def decode(self, z: Tensor, *given: Tensor) -> Tensor:
        """The parameters of the likelihood at latents (B, D_z)."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must have shape (B, {self.latent_dim}); got {tuple(z.shape)}")
        return self.decoder(z)

    def forward(self, x: Tensor, *given: Tensor, generator: torch.Generator | None = None) -> Elbo:
        """The ELBO of each image, from one draw of the latent; the KL term is exact."""
        mean, log_var = self.encode(x, *given)
        z = reparameterize(mean, log_var, generator=generator)
        reconstruction = self.likelihood.log_prob(self.decode(z, *given), x)
        kl = kl_to_standard_normal(mean, log_var)
        return Elbo(reconstruction - kl, reconstruction, kl)

    def log_weight(self, x: Tensor, *given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""One draw of :math:`\log p_\theta(x, z) - \log q_\phi(z \mid x)`, (B,): its mean is the ELBO."""
        mean, log_var = self.encode(x, *given)
        z = reparameterize(mean, log_var, generator=generator)
        joint = self.likelihood.log_prob(self.decode(z, *given), x) + log_standard_normal(z)
        return joint - log_normal(z, mean, log_var)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *given: Tensor) -> Tensor:
        """The decoder's mean at the encoder's mean, (B, C, H, W)."""
        return self.likelihood.mean(self.decode(self.encode(x, *given)[0], *given))

    @torch.no_grad()
    def sample(self, n: int, *given: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The decoder's means at `n` latents from the prior, (n, C, H, W): images without pixel noise."""
        require_count("n", n)
        return self.likelihood.mean(self.decode(_noise(self, n, self.latent_dim, generator), *given))


class ConditionalVAE(VAE):
    r"""A VAE of images given their class (Sohn et al., 2015); the prior does not depend on the class.

    The encoder sees the class as `classes` more channels, one of which holds ones and the others zeros:
    (B, C + classes, H, W). The decoder sees it one-hot behind the latent: (B, D_z + classes).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        latent_dim: int,
        classes: int,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, latent_dim=latent_dim)
        require_count("classes", classes)
        self.classes = classes

    def _one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        """Labels (B,) as zeros and ones, (B, classes)."""
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (len(like),):
            came = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y must be int64 labels of shape ({len(like)},); got {came}")
        if y.min() < 0 or y.max() >= self.classes:
            raise ValueError(f"y must lie in 0 to {self.classes - 1}; got {y.min()} to {y.max()}")
        return F.one_hot(y, self.classes).to(like.dtype)

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        require_images("x", x)
        planes = self._one_hot(y, x)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, classes, H, W)
        return _halves("encoder", self.encoder(torch.cat([x, planes], 1)), len(x), self.latent_dim)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The parameters of the likelihood at latents (B, D_z), for labels (B,)."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must have shape (B, {self.latent_dim}); got {tuple(z.shape)}")
        return self.decoder(torch.cat([z, self._one_hot(y, z)], 1))


class HierarchicalVAE(nn.Module):
    r"""A Markovian hierarchical VAE, whose latents :math:`z_L \to \dots \to z_1 \to x` form a chain.

    The model is :math:`p(z_L)\, p(z_{L-1} \mid z_L) \cdots p(z_1 \mid z_2)\, p(x \mid z_1)`, and the
    approximate posterior runs the other way, :math:`q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots`. All but
    :math:`p(z_L) = \mathcal N(0, I)` and :math:`p(x \mid z_1)` are diagonal Gaussians, learned.

    Args:
        encoders: ``encoders[0]`` maps images to means and log-variances of :math:`z_1`, (B, 2 D_1), and
            ``encoders[l]`` maps :math:`z_l` to those of :math:`z_{l+1}`.
        decoders: ``decoders[0]`` maps :math:`z_1` to the parameters of the likelihood, and
            ``decoders[l]`` maps :math:`z_{l+1}` to means and log-variances of :math:`z_l`.
        likelihood: what the parameters of the images mean.
        latent_dims: :math:`D_1, \dots, D_L`.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        likelihood: Likelihood,
        *,
        latent_dims: Sequence[int],
    ) -> None:
        super().__init__()
        for dim in latent_dims:
            require_count("latent_dims", dim)
        if not len(encoders) == len(decoders) == len(latent_dims) > 0:
            raise ValueError(
                "encoders, decoders and latent_dims must have one entry for each level; "
                f"got {len(encoders)}, {len(decoders)}, {len(latent_dims)}"
            )
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.likelihood, self.latent_dims = likelihood, tuple(latent_dims)

    def _below(self, level: int, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and log-variance of :math:`p(z_l \mid z_{l+1})`, for ``level`` l counted from 1."""
        return _halves(f"decoders[{level}]", self.decoders[level](z), len(z), self.latent_dims[level - 1])

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Elbo:
        """The ELBO of each image from one draw of all latents; its ``kl`` is a one-draw estimate too."""
        require_images("x", x)
        below, latents, log_q = x, [], 0.0
        for level, (encoder, dim) in enumerate(zip(self.encoders, self.latent_dims, strict=True)):
            mean, log_var = _halves(f"encoders[{level}]", encoder(below), len(x), dim)
            below = reparameterize(mean, log_var, generator=generator)
            log_q = log_q + log_normal(below, mean, log_var)
            latents.append(below)
        log_p = log_standard_normal(latents[-1])
        for level in range(1, len(latents)):
            log_p = log_p + log_normal(latents[level - 1], *self._below(level, latents[level]))
        reconstruction = self.likelihood.log_prob(self.decoders[0](latents[0]), x)
        return Elbo(reconstruction - (log_q - log_p), reconstruction, log_q - log_p)

    def log_weight(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        r"""One draw of :math:`\log p(x, z_{1:L}) - \log q(z_{1:L} \mid x)`, (B,)."""
        return self(x, generator=generator).elbo

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` times from the top down, and return the likelihood's means, (n, C, H, W)."""
        require_count("n", n)
        z = _noise(self, n, self.latent_dims[-1], generator)
        for level in range(len(self.latent_dims) - 1, 0, -1):
            z = reparameterize(*self._below(level, z), generator=generator)
        return self.likelihood.mean(self.decoders[0](z))


@torch.no_grad()
def importance_bound(
    model: VAE | HierarchicalVAE,
    x: Tensor,
    *given: Tensor,
    draws: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac1K \sum_k w_k` on the log-evidence, (B,), in nats.

    With K = `draws` weights for each image (Burda et al., 2016, eq. 8). Its mean rises with K towards
    :math:`\log p_\theta(x)`. The weights are added as they come, so memory does not grow with K.
    """
    require_count("draws", draws)
    total = model.log_weight(x, *given, generator=generator)
    for _ in range(draws - 1):
        total = torch.logaddexp(total, model.log_weight(x, *given, generator=generator))
    return total - math.log(draws)
