r"""Denoisers say, at any noisy sample and time, what the clean sample, noise, score and velocity are.

A `Denoiser` is a network bound to a path and to what it predicts. Oracles, guided models and other denoisers
made of denoisers have the same interface, `BaseDenoiser`, and samplers take nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_lib.diffusion.path import VE, VP, Cosine, GaussianPath, Linear
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.target import TARGETS, Pair, coefficients, require_apart, solve

PATHS = {path.__name__: path for path in (VP, Cosine, Linear, VE, Tabulated)}


class BaseDenoiser(nn.Module):
    r"""What all denoisers share. Each implements `predict`.

    Everywhere x is (B, …), t is a time in [0, 1], or times (B,), and a condition, such as labels ``y=``, goes
    on to the network. The results have the shape of x.

    >>> class Origin(BaseDenoiser):  # all data are 0
    ...     def predict(self, x, t):
    ...         return Pair(torch.zeros_like(x), x / self.path.b(self.path.expand(t, x)))
    >>> Origin(Linear()).velocity(torch.ones(1, 1), 0.5)
    tensor([[2.]])
    """

    def __init__(self, path: GaussianPath) -> None:
        super().__init__()
        self.path = path

    def predict(self, x: Tensor, t: Tensor | float, **condition: Any) -> Pair:
        r"""The means of :math:`x_0` and of :math:`\varepsilon`, given :math:`x_t = x`."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""The clean sample, :math:`\mathbb E[x_0 \mid x_t]`."""
        return self.predict(x, t, **condition).x0

    def eps(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""The noise, :math:`\mathbb E[\varepsilon \mid x_t]`."""
        return self.predict(x, t, **condition).eps

    def score(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r""":math:`\nabla \log p_t(x) = -\mathbb E[\varepsilon \mid x_t] / b`, Tweedie's formula."""
        return -self.eps(x, t, **condition) / self.path.b(self.path.expand(t, x))

    def velocity(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""Of the probability flow, :math:`a'\, \mathbb E[x_0 \mid x_t] + b'\, \mathbb E[\varepsilon \mid
        x_t]`."""
        x0, eps = self.predict(x, t, **condition)
        at = self.path.expand(t, x)
        return self.path.da(at) * x0 + self.path.db(at) * eps

    def require(self, times: Tensor, *, velocity: bool = False) -> None:
        """Refuse times (S,), on the processor, at which `predict`, or `velocity`, is infinite."""
        self.path.require(times)
        if velocity and not torch.isfinite(self.path.da(times) + self.path.db(times)).all():
            raise ValueError("times must leave out those where the path's velocity is infinite")


class Preconditioning(NamedTuple):
    r"""Karras et al. (2022), table 1: :math:`D = c_\text{skip}\, \hat x + c_\text{out}\, F(c_\text{in}\, \hat
    x, c_\text{noise})` at :math:`\hat x = x_t / a`."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def edm(path: GaussianPath, t: Tensor, sigma_data: float) -> Preconditioning:
    r"""EDM's preconditioning at times t, for data of standard deviation `sigma_data`.

    >>> at = edm(VE(), torch.tensor(0.5), sigma_data=0.5)
    >>> sigma = VE().sigma(torch.tensor(0.5))
    >>> bool((at.skip - 0.25 / (sigma**2 + 0.25)).abs() < 1e-6)
    True
    """
    sigma = path.sigma(t)
    whole = (sigma**2 + sigma_data**2).sqrt()
    skip, out = (sigma_data / whole) ** 2, sigma * sigma_data / whole
    return Preconditioning(skip, out, 1 / whole, sigma.log() / 4)


class Denoiser(BaseDenoiser):
    r"""A network bound to a path and to what it predicts.

    Args:
        net: called as ``net(x, t, **condition)`` with x (B, …) in the network's precision and times (B,) in
            float32 at least; returns the shape of x. A module, or any function.
        path: of the noise.
        target: what the network predicts: ``"x0"``, ``"eps"``, ``"score"``, ``"v"`` (Salimans and Ho, 2022),
            ``"velocity"``, or ``"edm"``: F of `Preconditioning`.
        sigma_data: :math:`\sigma_d`, with ``"edm"`` alone.

    With ``"edm"`` the network's input is :math:`c_\text{in}\, x_t / a`, its time :math:`c_\text{noise}`, and

    .. math:: F = \frac{b\, x_0 - a\, \sigma_d^2\, \varepsilon}{\sigma_d \sqrt{b^2 + a^2 \sigma_d^2}} .

    Its state dict says what it belongs to: weights of another path or target are refused.

    >>> net = nn.Linear(2, 2)
    >>> model = Denoiser(lambda x, t: net(x), Linear(), "velocity")
    >>> x = torch.randn(5, 2)
    >>> x0, eps = model.predict(x, 0.5)
    >>> bool(torch.allclose(0.5 * x0 + 0.5 * eps, x, atol=1e-6))
    True
    >>> model.loss(torch.randn(8, 2)).shape
    torch.Size([])
    """

    def __init__(
        self, net: Callable[..., Tensor], path: GaussianPath, target: str, *, sigma_data: float | None = None
    ) -> None:
        super().__init__(path)
        if (target == "edm") != (sigma_data is not None):
            raise ValueError("sigma_data must be given with the target 'edm', and with no other")
        self.net, self.target = net, target
        self.sigma_data = None if sigma_data is None else float(sigma_data)
        if sigma_data is None:
            coefficients(target, path, torch.ones(1, dtype=torch.float64))  # refuses what is no target

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`c_0` and :math:`c_1` at times of any shape."""
        if self.sigma_data is None:
            return TARGETS[self.target](self.path, t)
        a, b, s = self.path.a(t), self.path.b(t), self.sigma_data
        length = (b**2 + (a * s) ** 2).sqrt()
        return b / (s * length), -a * s / length

    def output(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""What the network says of x at t: :math:`c_0\, x_0 + c_1\, \varepsilon`, in the precision of x."""
        return self._output(x, self.path.expand(t, x), condition)

    def _output(self, x: Tensor, at: Tensor, condition: dict[str, Any]) -> Tensor:
        time, seen = at, x
        if self.sigma_data is not None:
            scale = edm(self.path, at, self.sigma_data)
            time, seen = scale.noise, scale.into / self.path.a(at) * x
        time = time.flatten().expand(len(x))  # (B,)
        kind = self._dtype(x)
        out = self.net(seen.to(kind), time.to(torch.promote_types(kind, torch.float32)), **condition)
        if out.shape != x.shape:  # would be broadcast against x
            raise ValueError(f"net must return the shape of x, {tuple(x.shape)}; got {tuple(out.shape)}")
        return out.to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The network's precision; that of x where it has no weights."""
        weights = self.net.parameters() if isinstance(self.net, nn.Module) else ()
        return next((w.dtype for w in weights if w.is_floating_point()), x.dtype)

    def predict(self, x: Tensor, t: Tensor | float, **condition: Any) -> Pair:
        at = self.path.expand(t, x)
        out = self._output(x, at, condition)
        return solve(self.path.a(at), self.path.b(at), self.coefficients(at), out, x)

    def eps(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        return self.output(x, t, **condition) if self.target == "eps" else super().eps(x, t, **condition)

    def score(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        return self.output(x, t, **condition) if self.target == "score" else super().score(x, t, **condition)

    def velocity(self, x: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        if self.target == "velocity":
            return self.output(x, t, **condition)
        return super().velocity(x, t, **condition)

    def require(self, times: Tensor, *, velocity: bool = False) -> None:
        direct = velocity and self.target == "velocity"
        super().require(times, velocity=velocity and not direct)
        if not direct:
            a, b = self.path.a(times), self.path.b(times)
            require_apart(self.target, a, b, self.coefficients(times), times)
        if self.sigma_data is not None and not torch.isfinite(self.path.sigma(times).log()).all():
            raise ValueError(
                "times must leave out those without noise or without signal, where c_noise is infinite"
            )

    def loss(
        self,
        x0: Tensor,
        *,
        eps: Tensor | None = None,
        times: Callable[[GaussianPath, Tensor], Tensor] | None = None,
        weight: Callable[["Denoiser", Tensor], Tensor] | None = None,
        couple: Callable[[Tensor, Tensor], Tensor] | None = None,
        **condition: Any,
    ) -> Tensor:
        r"""Mean squared error of the target, to be made small: denoising score matching, or flow matching.

        .. math:: \mathbb E_{t, x_0, \varepsilon}\bigl[ w(t)\, \lVert \text{net}(x_t, t) -
            (c_0 x_0 + c_1 \varepsilon) \rVert^2 / D \bigr] .

        Args:
            x0: data (B, …).
            eps: the noise that goes with each, as for reflow; drawn if left out.
            times: the density of t, as ``times(path, u)`` of uniform numbers u (B,): see
                `course_lib.diffusion.loss`; evenly spread if left out.
            weight: w, as ``weight(model, t)`` of times (B,); 1 if left out.
            couple: ``couple(x0, eps)`` returns the noise in another order, such as
                `course_lib.diffusion.coupling.optimal`.
        """
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        u = torch.rand(len(x0), device=x0.device)
        t = self.path.inside(self.path.times(u) if times is None else times(self.path, u))  # (B,)
        eps = torch.randn_like(x0) if eps is None else eps
        if couple is not None:
            eps = couple(x0, eps)
        if eps.shape != x0.shape:  # would be broadcast against x0
            raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}")
        at = t.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))  # (B, 1, …)
        xt = self.path.a(at) * x0 + self.path.b(at) * eps
        c0, c1 = self.coefficients(at)
        errors = (self._output(xt, at, condition) - (c0 * x0 + c1 * eps)).square().flatten(1).mean(1)  # (B,)
        return errors.mean() if weight is None else (weight(self, t) * errors).mean()

    def config(self) -> dict[str, Any]:
        """Path and target in plain values; `from_config` makes the denoiser again."""
        return {"path": self.path.config(), "target": self.target, "sigma_data": self.sigma_data}

    @classmethod
    def from_config(cls, net: Callable[..., Tensor], config: dict[str, Any]) -> "Denoiser":
        """The denoiser that `config` describes, of a network.

        >>> made = Denoiser.from_config(nn.Identity(), Denoiser(nn.Identity(), VP(0.1, 15.0), "v").config())
        >>> made.path.beta_max, made.target
        (15.0, 'v')
        """
        known = dict(config["path"])
        kind = PATHS[known.pop("path")]
        return cls(net, kind(**known), config["target"], sigma_data=config["sigma_data"])

    def get_extra_state(self) -> dict[str, Any]:
        return self.config()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        own = self.config()
        differ = [name for name in own if own[name] != state.get(name)]
        if differ:
            raise ValueError(f"state_dict belongs to a denoiser of another {', '.join(differ)}")
