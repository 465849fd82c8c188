r"""The VQ-VAE: an autoencoder with a grid of discrete codes, and the prior learned over the codes.

The quantizer is any module of `course_lib.vq.quantizers` or `course_lib.vq.lookupfree`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.vq.quantizers import Quantized, require_indices
from course_lib.require import require_count, require_images


class Reconstruction(NamedTuple):
    """A batch put through the model: images (B, C, H, W), and what the quantizer returned."""

    images: Tensor
    codes: Quantized


class VQVAE(nn.Module):
    r"""Encoder, quantizer, decoder (van den Oord and others 2017).

    Args:
        encoder: images (B, C, H, W) to (B, D, H', W').
        quantizer: (B, D, H', W') to a `Quantized`.
        decoder: (B, D, H', W') to images.

    Raises:
        ValueError: images are no batch in [-1, 1], or do not fit the networks.
    """

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.n_codes: int = quantizer.n_codes

    def forward(self, x: Tensor) -> Reconstruction:
        """Encode, quantize and decode x (B, C, H, W)."""
        require_images("x", x)
        codes = self.quantizer(self.encoder(x))
        return Reconstruction(self.decoder(codes.quantized), codes)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes' numbers (B, H', W') of images; in training mode too, no average moves."""
        was = self.training
        self.eval()
        try:
            return self(x).codes.indices
        finally:
            self.train(was)

    def decode(self, indices: Tensor) -> Tensor:
        """Images (B, C, H, W) of codes' numbers (B, H', W')."""
        return self.decoder(self.quantizer.codes(indices))


def vq_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Mean squared error per value of the images, plus the quantizer's loss. For `train`."""
    out = model(x)
    return F.mse_loss(out.images.float(), x) + out.codes.loss


class CodePrior(nn.Module):
    r"""A distribution over grids of codes, place by place: :math:`p(k) = \prod_i p(k_i \mid k_{<i})`.

    Args:
        net: one-hot codes (B, K, H', W') to logits (B, K, H', W'), where the logits of a place depend
            only on places before it in reading order; see `course_lib.nets.pixelcnn`.
        n_codes: K.
        shape: (H', W').
    """

    def __init__(self, net: nn.Module, n_codes: int, shape: tuple[int, int]) -> None:
        super().__init__()
        for name, value in zip(("n_codes", "shape[0]", "shape[1]"), (n_codes, *shape), strict=True):
            require_count(name, value)
        self.net, self.n_codes, self.shape = net, n_codes, tuple(shape)

    def forward(self, indices: Tensor) -> Tensor:
        r""":math:`\log p(k)` in nats of whole grids (B, H', W'). Returns (B,)."""
        require_indices(indices, self.n_codes)
        if indices.shape[1:] != self.shape:
            raise ValueError(
                f"indices must have shape (B, {self.shape[0]}, {self.shape[1]}); got {tuple(indices.shape)}"
            )
        chosen = self._log_probs(indices).gather(1, indices[:, None])  # (B, 1, H', W')
        return chosen.sum((1, 2, 3))

    log_prob = forward

    def _log_probs(self, indices: Tensor) -> Tensor:
        one_hot = F.one_hot(indices, self.n_codes).permute(0, 3, 1, 2).float()  # (B, K, H', W')
        return F.log_softmax(self.net(one_hot).float(), 1)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n grids (n, H', W'), one place after the other."""
        require_count("n", n)
        device = next(self.net.parameters()).device
        indices = torch.zeros(n, *self.shape, dtype=torch.int64, device=device)
        for row in range(self.shape[0]):
            for column in range(self.shape[1]):
                p = self._log_probs(indices)[:, :, row, column].exp()
                indices[:, row, column] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return indices


def prior_loss(model: nn.Module, indices: Tensor) -> Tensor:
    """Nats per code, for `train`."""
    return -model(indices).mean() / indices[0].numel()
