r"""Averages of a model's weights over training, which are often better than the last weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    r"""An exponential moving average of a model's weights.

    :math:`\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta` at each update; the first one copies the
    weights. Buffers, such as the statistics of a batch normalization, are copied always. Nothing is read back
    from the device. Weights in half precision are averaged in float32, where steps of :math:`1 - d` do not
    round to nothing.

    Attributes:
        module: the averaged model, in evaluation mode.
        decay: d, in [0, 1).

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(model, 0.9)
    >>> for value in (1.0, 2.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     ema.update(model)
    >>> round(ema.module.weight.item(), 4)  # 0.9 × 1 + 0.1 × 2
    1.1
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1); got {decay!r}")
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        for weight in self.module.parameters():
            if weight.dtype in (torch.bfloat16, torch.float16):
                weight.data = weight.data.float()
        self.decay, self.updates = decay, 0
        self.register_load_state_dict_pre_hook(_read_torchs_average)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of `model`."""
        own, new = list(self.module.parameters()), list(model.parameters())
        new = [theirs.to(mine.dtype) for mine, theirs in zip(own, new, strict=True)]
        torch._foreach_lerp_(own, new, 1.0 if self.updates == 0 else 1 - self.decay)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The averaged model's output."""
        return self.module(*args, **kwargs)

    def get_extra_state(self) -> int:
        return self.updates

    def set_extra_state(self, updates: int) -> None:
        self.updates = updates


def average(model: nn.Module, decay: float) -> EMA:
    r"""An `EMA` of a model, to be handed to `train`, which updates it at each step. Several are allowed.

    >>> average(nn.Linear(2, 2), 0.999).decay
    0.999
    """
    return EMA(model, decay)


def as_list(ema: EMA | Sequence[EMA]) -> list[EMA]:
    """One or several."""
    return [ema] if isinstance(ema, EMA) else list(ema)


def _read_torchs_average(module: EMA, state: dict, prefix: str, *rest: object) -> None:
    """The state of PyTorch's `AveragedModel`, which counts its updates in a tensor, loads too."""
    if f"{prefix}n_averaged" in state:
        state[f"{prefix}_extra_state"] = int(state.pop(f"{prefix}n_averaged"))
