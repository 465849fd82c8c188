r"""Three losses that fit a score to data without knowing the data's density, and their divergences.

Each is, up to a constant that the model cannot change, half the mean squared distance to the true score.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]  # from points (B, …) to scores of the same shape


def hyvarinen(score: Field, x: Tensor) -> Tensor:
    r"""Implicit score matching, :math:`\frac12 \lVert s \rVert^2 + \nabla \cdot s`, (B,).

    Hyvärinen (2005), theorem 1. It takes one gradient for each value of a point, and can be differentiated
    by the parameters of `score`. x: points (B, …) of the data.

    >>> hyvarinen(lambda x: -x, torch.tensor([[1.0, 2.0]]))  # ½ · 5 − 2
    tensor([0.5000], grad_fn=<AddBackward0>)
    """
    s, x = _at(score, x)
    return s.square().flatten(1).sum(1) / 2 + divergence(s, x, create_graph=True)


def sliced(score: Field, x: Tensor, direction: Tensor) -> Tensor:
    r"""Sliced score matching, :math:`\frac12 \lVert s \rVert^2 + \xi^\top J \xi` with :math:`J = \partial s /
    \partial x`, (B,).

    Song and others (2019), eq. 8, the form with reduced variance. x: points (B, …); direction: random
    :math:`\xi` of the same shape with :math:`\mathbb E[\xi \xi^\top] = I`, such as random signs.

    >>> sliced(lambda x: -x, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]])).item()
    0.5
    """
    s, x = _at(score, x)
    return s.square().flatten(1).sum(1) / 2 + along(s, x, direction, create_graph=True)


def denoising(score: Field, x: Tensor, sigma: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Denoising score matching, :math:`\frac12 \lVert s(x + \sigma \varepsilon) + \varepsilon / \sigma
    \rVert^2`, (B,).

    Vincent (2011), eq. 11. It fits the score of the data with noise of standard deviation `sigma`.
    x: points (B, …) of the data.

    >>> denoising(lambda x: 0 * x, torch.zeros(3, 2), 0.5).shape
    torch.Size([3])
    """
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    s = score(x + sigma * eps)
    _require_shape(s, x)
    return (s + eps / sigma).square().flatten(1).sum(1) / 2


def divergence(u: Tensor, x: Tensor, *, create_graph: bool = False) -> Tensor:
    """The divergence (B,) of a field with the values u at x (B, …): one gradient for each value of a point.

    u must have been computed from x with gradients. `create_graph` if the result is to be differentiated.

    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> divergence(x**2, x)  # 2 x₁ + 2 x₂
    tensor([6.])
    """
    flat = u.flatten(1)  # (B, D)
    columns = [_gradient(flat[:, i].sum(), x, create_graph).flatten(1)[:, i] for i in range(flat.shape[1])]
    return torch.stack(columns).sum(0)


def along(u: Tensor, x: Tensor, direction: Tensor, *, create_graph: bool = False) -> Tensor:
    r""":math:`\xi^\top J \xi` (B,) of the Jacobian J of u at x, by one gradient.

    Its mean over random directions :math:`\xi` with :math:`\mathbb E[\xi \xi^\top] = I`, of the shape of x,
    is the divergence (Hutchinson, 1990).

    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> along(x**2, x, torch.tensor([[1.0, -1.0]]))
    tensor([6.])
    """
    return (_gradient((u * direction).sum(), x, create_graph) * direction).flatten(1).sum(1)


def _gradient(total: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    if not total.requires_grad:
        raise ValueError("the field must depend on x through operations that PyTorch can differentiate")
    return torch.autograd.grad(
        total, x, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )[0]


def _at(score: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """The score at x, with x ready to be differentiated by."""
    x = x.detach().requires_grad_()
    s = score(x)
    _require_shape(s, x)
    return s, x


def _require_shape(s: Tensor, x: Tensor) -> None:
    if s.shape != x.shape:
        raise ValueError(f"score must return the shape of x, {tuple(x.shape)}; got {tuple(s.shape)}")
