r"""Losses and gradients that are no numbers: found on the device, reported a few steps later.

To ask the device after each step whether all is well makes the processor wait for it. So the answer is
used on the device at once (the optimizer skips the step), and read back every ten steps.
"""

import torch
from torch import Tensor

EVERY = 10


class Finiteness:
    """Watches losses and norms of gradients. `what` names them in the error.

    >>> watch = Finiteness("the loss")
    >>> for step, loss in enumerate([2.0, torch.nan, 1.0], 1):
    ...     skipped = watch.note(step, torch.tensor(loss), torch.tensor(1.0))
    >>> watch.check()
    Traceback (most recent call last):
    FloatingPointError: the loss is nan and its gradient's norm 1 at step 2; that step was not taken
    """

    def __init__(self, what: str) -> None:
        self.what, self.notes = what, []

    def note(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether the step is bad: 1.0 or 0.0, on the device."""
        self.notes.append((step, loss, norm))
        both = loss + norm
        return (both - both).ne(0).to(torch.float32)  # infinity minus itself is no number; a number's is 0

    def check(self) -> None:
        """Read back what was noted since the last time: a single number where all is well.

        Raises:
            FloatingPointError: a loss or norm is not finite; names the first step.
        """
        notes, self.notes = self.notes, []
        if not notes or torch.stack([loss + norm for _, loss, norm in notes]).isfinite().all().item():
            return
        step, loss, norm = next(n for n in notes if not (n[1] + n[2]).isfinite())
        raise FloatingPointError(
            f"{self.what} is {loss:g} and its gradient's norm {norm:g} at step {step}; "
            "that step was not taken"
        )


def take_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """A step, which the optimizer leaves out where `bad` is 1.0, without asking the processor.

    Fused optimizers of PyTorch's can, as mixed precision needs it; others take the step. Under Accelerate in
    float16 its scaler decides, which meets infinite gradients in the normal course of things.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # within Accelerate's wrapper
    skips = getattr(inner, "_step_supports_amp_scaling", False) and getattr(optimizer, "scaler", None) is None
    if skips:
        inner.found_inf = bad
    optimizer.step()
    if skips:
        del inner.found_inf
