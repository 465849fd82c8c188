r"""What `Denoiser.loss` is given: densities of the times, and weights of the errors.

A density is a function ``times(path, u)`` of uniform numbers u (B,) in [0, 1), which returns times (B,). A
weight is a function ``weight(model, t)`` of times (B,), in units of the target's squared error.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.path import GaussianPath
from course_lib.diffusion.tabulated import Tabulated

Times = Callable[[GaussianPath, Tensor], Tensor]
Weight = Callable[[Denoiser, Tensor], Tensor]


def _normal(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones; minus infinity from 0."""
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def logit_normal(path: GaussianPath, u: Tensor, *, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Times whose logit is normal: more in the middle (Esser et al., 2024, eq. 19).

    >>> from course_lib.diffusion.path import Linear
    >>> logit_normal(Linear(), torch.tensor([0.5])).item()
    0.5
    """
    return torch.sigmoid(mean + deviation * _normal(u))


def log_normal_sigma(path: GaussianPath, u: Tensor, *, mean: float = -1.2, deviation: float = 1.2) -> Tensor:
    r"""Times at which :math:`\log \sigma`, :math:`\sigma = b / a`, is normal (Karras et al., 2022, table 1).

    >>> from course_lib.diffusion.path import VE
    >>> path = VE(0.002, 80.0)
    >>> round(path.sigma(log_normal_sigma(path, torch.tensor([0.5]))).log().item(), 3)
    -1.2
    """
    return path.time(torch.exp(mean + deviation * _normal(u)))


def as_x0(model: Denoiser, t: Tensor) -> Tensor:
    r"""The weight that equals weight 1 on the error of :math:`x_0`.

    Since :math:`x_t` is given, an error in :math:`x_0` is one in the target that is
    :math:`(a c_1 - b c_0) / b` times as large.

    >>> from course_lib.diffusion.path import Linear
    >>> as_x0(Denoiser(lambda x, t: x, Linear(), "velocity"), torch.tensor([0.5]))
    tensor([0.2500])
    """
    return (model.path.b(t) / _determinant(model, t)) ** 2


def as_eps(model: Denoiser, t: Tensor) -> Tensor:
    r"""The weight that equals weight 1 on the error of :math:`\varepsilon`: DDPM's :math:`L_\text{simple}`.

    (Ho et al., 2020, eq. 14.)

    >>> from course_lib.diffusion.path import VP
    >>> as_eps(Denoiser(lambda x, t: x, VP(), "eps"), torch.tensor([0.3]))
    tensor([1.])
    """
    return (model.path.a(t) / _determinant(model, t)) ** 2


def _determinant(model: Denoiser, t: Tensor) -> Tensor:
    c0, c1 = model.coefficients(t)
    return model.path.a(t) * c1 - model.path.b(t) * c0


def min_snr(gamma: float = 5.0) -> Weight:
    r"""The weight :math:`\min(\text{SNR}, \gamma)` on the error of :math:`x_0` (Hang et al., 2023).

    On that of :math:`\varepsilon` it is :math:`\min(\gamma / \text{SNR}, 1)`, whatever the network predicts.

    >>> from course_lib.diffusion.path import Linear
    >>> weight = min_snr(5.0)(Denoiser(lambda x, t: x, Linear(), "x0"), torch.tensor([0.1, 0.5]))
    >>> [round(w, 6) for w in weight.tolist()]  # the signal-to-noise ratios are 81 and 1
    [5.0, 1.0]
    """
    return lambda model, t: (model.path.a(t) / model.path.b(t)).square().clamp(max=gamma) * as_x0(model, t)


def bound(model: Denoiser, t: Tensor) -> Tensor:
    r"""The exact weight of the error of :math:`\varepsilon` at step n in the bound, times T (Ho, eq. 12).

    With the variance :math:`\tilde\beta_n` it is
    :math:`T \beta_n^2 / (2 \tilde\beta_n \alpha_n (1 - \bar\alpha_n))`. Step 1 has no such term; it gets that
    of step 2.

    Raises:
        ValueError: the path is no table.

    >>> model = Denoiser(lambda x, t: x, Tabulated.schedule("linear", 1000), "eps")
    >>> bound(model, torch.tensor([0.002, 0.35])) > 1  # large at step 2
    tensor([True, True])
    """
    path = model.path
    if not isinstance(path, Tabulated):
        raise ValueError("model must have a path that is a table: the bound is a sum over its steps")
    t = t.clamp(min=2 / path.T)
    alpha_bar = lambda t: path.look_up("alpha_bar", t)  # in float64
    beta, bar, before = path.look_up("betas", t), alpha_bar(t), alpha_bar(t - 1 / path.T)
    posterior = (1 - before) / (1 - bar) * beta
    return (path.T * beta**2 / (2 * posterior * (1 - beta) * (1 - bar))).to(t) * as_eps(model, t)
