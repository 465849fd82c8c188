r"""The prior over codes: a distribution over grids of integers, learned place by place."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.vq.vqvae import in_own_type


class CodePrior(nn.Module):
    r"""A distribution over grids of codes, place by place: :math:`p(k) = \prod_i p(k_i \mid k_{<i})`.

    Args:
        net: one-hot codes (B, K, H', W') to logits (B, K, H', W'), where the logits of a place depend
            only on places before it in reading order; see `course_lib.nets.pixelcnn`.
        n_codes: K.
        shape: (H', W').

    Raises:
        ValueError: in `forward`, a grid of another shape.

    Examples:
        >>> from course_lib.nets.pixelcnn import pixelcnn
        >>> prior = CodePrior(pixelcnn(16, 2, width=8), 16, (2, 2))
        >>> codes = torch.randint(16, (5, 2, 2))
        >>> prior(codes).shape, prior.loss(codes).shape, prior.sample(3).shape
        (torch.Size([5]), torch.Size([]), torch.Size([3, 2, 2]))
    """

    def __init__(self, net: nn.Module, n_codes: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.n_codes, self.shape = net, n_codes, tuple(shape)

    def forward(self, indices: Tensor) -> Tensor:
        r""":math:`\log p(k)` in nats of whole grids (B, H', W'). Returns (B,)."""
        if indices.shape[1:] != self.shape:
            raise ValueError(f"indices must be grids of shape {self.shape}; got {tuple(indices.shape)}")
        chosen = self._log_probs(indices).gather(1, indices[:, None])  # (B, 1, H', W')
        return chosen.sum((1, 2, 3))

    log_prob = forward

    def loss(self, indices: Tensor) -> Tensor:
        """Minus the mean log-probability of a batch of grids, in nats per code."""
        return -self(indices).mean() / indices[0].numel()

    def _log_probs(self, indices: Tensor) -> Tensor:
        """Of all codes at each place, given those before it, (B, K, H', W'); in float32 at least."""
        B, H, W = indices.shape
        zeros = torch.zeros(B, self.n_codes, H, W, device=indices.device)
        logits = in_own_type(self.net, zeros.scatter_(1, indices[:, None], 1.0))
        return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), 1)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n grids (n, H', W'), one place after the other."""
        device = next(self.net.parameters()).device
        indices = torch.zeros(n, *self.shape, dtype=torch.int64, device=device)
        for row in range(self.shape[0]):
            for column in range(self.shape[1]):
                p = self._log_probs(indices)[:, :, row, column].exp()
                indices[:, row, column] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return indices
