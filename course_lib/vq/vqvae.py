r"""The VQ-VAE: an autoencoder with a grid of discrete codes.

The quantizer is any module of `course_lib.vq.quantizers` or `course_lib.vq.lookupfree`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.require import require_images
from course_lib.training.modes import evaluating
from course_lib.vq.quantizers import Quantized


class Reconstruction(NamedTuple):
    """A batch put through the model: images (B, C, H, W), and what the quantizer returned."""

    images: Tensor
    codes: Quantized


class VQVAE(nn.Module):
    r"""Encoder, quantizer, decoder (van den Oord and others 2017).

    Encoder and decoder get their input in the type of their weights.

    Args:
        encoder: images (B, C, H, W) to (B, D, H', W').
        quantizer: (B, D, H', W') to a `Quantized`.
        decoder: (B, D, H', W') to images.

    Examples:
        >>> from course_lib.nets.convolutional import ConvDecoder, ConvEncoder
        >>> from course_lib.vq.quantizers import VectorQuantizerEMA
        >>> model = VQVAE(ConvEncoder(1, 4, width=8), VectorQuantizerEMA(16, 4), ConvDecoder(1, 4, width=8))
        >>> x = 2 * torch.rand(5, 1, 8, 8) - 1
        >>> model(x).images.shape, model.loss(x).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([]))
        >>> codes = model.encode(x)
        >>> codes.shape, codes.dtype, model.decode(codes).shape
        (torch.Size([5, 2, 2]), torch.int64, torch.Size([5, 1, 8, 8]))
    """

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.n_codes: int = quantizer.n_codes

    def forward(self, x: Tensor) -> Reconstruction:
        """Encode, quantize and decode x (B, C, H, W)."""
        codes = self.quantizer(in_own_type(self.encoder, x))
        return Reconstruction(in_own_type(self.decoder, codes.quantized), codes)

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error per value of the images, plus the quantizer's loss."""
        out = self(x)
        wide = out.codes.loss.dtype  # float32 at least
        return F.mse_loss(out.images.to(wide), x.to(wide)) + out.codes.loss

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes' numbers (B, H', W') of images; in evaluation mode, so no average moves.

        Raises:
            ValueError: x is no batch (B, C, H, W) in [-1, 1].
        """
        require_images("x", x)
        with evaluating(self):
            return self.quantizer(in_own_type(self.encoder, x)).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Images (B, C, H, W) of codes' numbers (B, H', W')."""
        return in_own_type(self.decoder, self.quantizer.codes(indices))


def in_own_type(net: nn.Module, x: Tensor) -> Tensor:
    """The network's output for an input that is turned into the type of its weights."""
    return net(x.to(next(net.parameters(), x).dtype))
