"""Exercises that grade themselves. Each chapter has a module of its name with its `EXERCISES`."""

import copy
import importlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from course_lib.book.checks import say


class Exercise(NamedTuple):
    """What a right answer computes, on which inputs, and which mistakes are known.

    `cases` makes a list of argument tuples. `mistakes` maps a hint, worded to follow
    "You may have", to a function that makes that mistake.
    """

    reference: Callable[..., torch.Tensor]
    cases: Callable[[], list[tuple]]
    mistakes: dict[str, Callable[..., torch.Tensor]]
    tolerance: float = 1e-6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers for the cases of an exercise, the same every time."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def find(exercise_id: str) -> Exercise:
    """Look an exercise up; its id begins with the chapter's name, as in ``gmm_em-bic``."""
    module = f"{__name__}.{exercise_id.partition('-')[0]}"
    try:
        known = importlib.import_module(module).EXERCISES
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"exercise_id: no chapter has the exercise {exercise_id!r}") from None
    if exercise_id not in known:
        raise ValueError(f"exercise_id must be one of {', '.join(known)}; got {exercise_id!r}")
    return known[exercise_id]


def _float64(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().double()


def _agree(got: Any, want: torch.Tensor, tolerance: float) -> bool:
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return False
    # a mistake may be one that gives NaN
    return torch.allclose(_float64(got), _float64(want), rtol=tolerance, atol=tolerance, equal_nan=True)


def _difference(got: Any, want: torch.Tensor, tolerance: float) -> str | None:
    if not isinstance(got, torch.Tensor):
        return f"returns {type(got).__name__}; a tensor is wanted"
    if got.shape != want.shape:
        return f"returns shape {tuple(got.shape)}; {tuple(want.shape)} is wanted"
    if _agree(got, want, tolerance):
        trains = got.requires_grad or not want.requires_grad
        return None if trains else "cannot be differentiated; as a loss it trains nothing"
    if got.isnan().any():
        return "contains NaN"
    return f"is off by up to {(_float64(got) - _float64(want)).abs().max().item():.3g}"


def _line(answer: Callable, error: Exception) -> str:
    """The line of the answer in which the error arose, counted from its `def`."""
    code = getattr(answer, "__code__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return f" in line {lines[0] - code.co_firstlineno + 1} of your function" if lines else ""


def grade(exercise_id: str, answer: Callable[..., torch.Tensor]) -> None:
    """Print "not attempted", "correct", or what differs from the reference.

    Args:
        exercise_id: such as ``gmm_em-bic``.
        answer: the reader's function. One that raises `NotImplementedError` counts as not
            attempted; any other error is reported, not raised.

    Raises:
        ValueError: the exercise does not exist.

    Examples:
        >>> grade("vae-kl", lambda m0, v0, m1, v1: m0)
        vae-kl: not yet. Case 1 returns shape (5, 1); (5,) is wanted.
    """
    exercise, answers = find(exercise_id), []
    cases = exercise.cases()
    for number, case in enumerate(cases, start=1):
        want = exercise.reference(*copy.deepcopy(case))
        try:
            answers.append(answer(*copy.deepcopy(case)))
        except NotImplementedError:
            say(f"{exercise_id}: not attempted")
            return
        except Exception as error:  # a reader's bug is a verdict, not a crash of the notebook
            where = _line(answer, error)
            say(f"{exercise_id}: case {number} raises {type(error).__name__}{where}: {error}")
            return
        difference = _difference(answers[-1], want, exercise.tolerance)
        if difference:
            hints = [
                f" You may have {hint}."
                for hint, mistake in exercise.mistakes.items()
                if all(
                    _agree(got, mistake(*copy.deepcopy(case)), exercise.tolerance)
                    for got, case in zip(answers, cases, strict=False)
                )
            ]
            say(f"{exercise_id}: not yet. Case {number} {difference}.{''.join(hints[:1])}")
            return
    say(f"{exercise_id}: correct")
