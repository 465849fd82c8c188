"""`grade`, on an exercise made up for the purpose."""

import sys
import types

import pytest
import torch

from course_lib.book.exercises import Exercise, find, grade

POINTS = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
WEIGHT = torch.tensor(2.0, requires_grad=True)


@pytest.fixture(autouse=True)
def chapter(monkeypatch):
    """A chapter `toy`, whose exercises are the mean of the rows and a count."""
    module = types.ModuleType("course_lib.book.exercises.toy")
    module.EXERCISES = {
        "toy-mean": Exercise(
            reference=lambda x: x.mean(0),
            cases=lambda: [(POINTS,), (POINTS.repeat(3, 1) * 2,)],
            mistakes={
                "averaged each row": lambda x: x.mean(1),
                "forgotten to divide": lambda x: x.sum(0),
                "divided by zero": lambda x: x.sum(0) * torch.nan,
            },
        ),
        "toy-loss": Exercise(
            reference=lambda x: (WEIGHT * x).sum(),
            cases=lambda: [(POINTS,)],
            mistakes={"detached it": lambda x: (WEIGHT * x).sum().detach()},
        ),
        "toy-count": Exercise(lambda x: torch.tensor(len(x)), lambda: [(POINTS,)], {}),
    }
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def verdict(capsys):
    def of(answer, exercise="toy-mean"):
        assert grade(exercise, answer) is None
        return capsys.readouterr().out

    return of


def todo(x):
    raise NotImplementedError


def fails(x):
    raise KeyError("x")


def test_not_attempted(verdict):
    assert verdict(todo) == "toy-mean: not attempted\n"


@pytest.mark.parametrize("answer", [
    lambda x: x.mean(0),
    lambda x: x.sum(0) / len(x),
    lambda x: x.double().mean(0),
    lambda x: x.mean(0).requires_grad_(),
    lambda x: x.mean(0) * (1 + 1e-7),
])  # fmt: skip
def test_correct(verdict, answer):
    assert verdict(answer) == "toy-mean: correct\n"


def test_a_loss_must_have_a_gradient(verdict):
    assert verdict(lambda x: WEIGHT * x.sum(), "toy-loss") == "toy-loss: correct\n"
    said = "toy-loss: not yet. Case 1 cannot be differentiated; as a loss it trains nothing."
    assert verdict(lambda x: 2.0 * x.sum(), "toy-loss") == f"{said} You may have detached it.\n"


@pytest.mark.parametrize("answer, said", [
    (lambda x: x.mean(0) + 0.5, "toy-mean: not yet. Case 1 is off by up to 0.5.\n"),
    (lambda x: x.mean(0) * (1 + 1e-4), "toy-mean: not yet. Case 1 is off by up to 0.0004.\n"),
    (lambda x: x.sum(0), "toy-mean: not yet. Case 1 is off by up to 4. You may have forgotten to divide.\n"),
    (lambda x: x.mean(), "toy-mean: not yet. Case 1 returns shape (); (2,) is wanted.\n"),
    (lambda x: x.mean(0, keepdim=True), "toy-mean: not yet. Case 1 returns shape (1, 2); (2,) is wanted.\n"),
    (lambda x: 2.0, "toy-mean: not yet. Case 1 returns float; a tensor is wanted.\n"),
    (lambda x: None, "toy-mean: not yet. Case 1 returns NoneType; a tensor is wanted.\n"),
    (lambda x: x.mean(0).numpy(), "toy-mean: not yet. Case 1 returns ndarray; a tensor is wanted.\n"),
    (fails, "toy-mean: case 1 raises KeyError in line 2 of your function: 'x'\n"),
    (lambda: None, "toy-mean: case 1 raises TypeError: <lambda>() takes 0 positional"),
    (None, "toy-mean: case 1 raises TypeError: 'NoneType' object is not callable\n"),
    (lambda x: x.mean(0) * torch.nan, "toy-mean: not yet. Case 1 contains NaN. You may have divided"),
    (lambda x: x.mean(0) + torch.inf, "toy-mean: not yet. Case 1 is off by up to inf.\n"),
])  # fmt: skip
def test_wrong(verdict, answer, said):
    assert verdict(answer).startswith(said)


def test_the_second_case_counts(verdict):
    """Rows and columns agree in number in the first case only."""
    assert verdict(lambda x: POINTS.mean(0)) == "toy-mean: not yet. Case 2 is off by up to 4.\n"
    assert "Case 1 is off by up to 0.5. You may have averaged each row." in verdict(lambda x: x.mean(1))
    assert "Case 2 returns shape (6,)" in verdict(lambda x: x.mean(0) if len(x) == 2 else x.mean(1))


def test_a_hint_may_have_another_shape_than_the_reference(verdict, chapter):
    mistakes = {"kept the dimension": lambda x: x.mean(0, keepdim=True)}
    chapter.EXERCISES["toy-mean"] = chapter.EXERCISES["toy-mean"]._replace(mistakes=mistakes)
    assert verdict(lambda x: x.mean(0, keepdim=True)).endswith("You may have kept the dimension.\n")


def test_fractions_are_not_cut_to_the_reference_s_integers(verdict):
    assert verdict(lambda x: torch.tensor(len(x)), "toy-count") == "toy-count: correct\n"
    assert (
        verdict(lambda x: torch.tensor(2.7), "toy-count")
        == "toy-count: not yet. Case 1 is off by up to 0.7.\n"
    )


def test_an_answer_that_changes_its_input_cannot_cheat(verdict):
    before = POINTS.clone()
    assert "not yet" in verdict(lambda x: x.zero_().mean(0))
    assert torch.equal(POINTS, before)
    assert verdict(lambda x: x.mul_(0.5).sum(0) * 2 / len(x)) == "toy-mean: correct\n"


@pytest.mark.parametrize("identity, said", [
    ("toy-median", "must be one of toy-mean, toy-loss, toy-count; got 'toy-median'"),
    ("none-mean", "no chapter has the exercise 'none-mean'"),
    ("mean", "no chapter has the exercise 'mean'"),
    ("", "no chapter has the exercise ''"),
])  # fmt: skip
def test_unknown_exercise(identity, said):
    with pytest.raises(ValueError, match=f"exercise_id.*{said}"):
        grade(identity, todo)


def test_an_import_that_fails_inside_a_chapter_is_not_hidden(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="other"):
        find("toy-mean")
