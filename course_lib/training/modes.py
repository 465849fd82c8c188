r"""Training and evaluation mode of modules, put back submodule by submodule.

``module.train()`` after ``module.eval()`` is no way back: it also unfreezes what was in evaluation mode
before, such as a batch normalization that must not move.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

Flags = list[tuple[nn.Module, bool]]


def flags(module: nn.Module) -> Flags:
    """Which submodules are in training mode."""
    return [(part, part.training) for part in module.modules()]


def training_flags(module: nn.Module) -> Flags:
    """What they are to be during a training step.

    A module in evaluation mode trains as a whole. In one in training mode, submodules that are in evaluation
    mode were put there on purpose, and stay.
    """
    return [(part, part.training or not module.training) for part in module.modules()]


def apply(flags: Flags) -> None:
    for part, training in flags:
        if part.training is not training:  # setting an attribute of a module is slow
            part.training = training


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode in this block; then every submodule is in the mode it was in.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> with evaluating(model):
    ...     model[0].training, model[1].training
    (False, False)
    >>> model[0].training, model[1].training
    (True, False)
    """
    before = flags(module)
    module.eval()
    try:
        yield module
    finally:
        apply(before)
