"""`check` passes with one stable line, and fails on every kind of disagreement."""

import io
import sys

import numpy as np
import pytest
import torch

from course_lib.book.checks import CheckFailed, check


@pytest.mark.parametrize("tolerance, said", [
    ({}, "equal"),
    ({"rtol": 1e-6}, "within 1e-06 relative"),
    ({"atol": 0.01}, "within 0.01 absolute"),
    ({"atol": 1e-8, "rtol": 1e-5}, "within 1e-08 absolute + 1e-05 relative"),
    ({"se": 0.1}, "within 5 standard errors"),
    ({"se": torch.tensor([0.1, 0.2])}, "within 5 standard errors"),
])  # fmt: skip
def test_the_line(capsys, tolerance, said):
    assert check("eq-x", torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]), by="autograd", **tolerance) is None
    assert capsys.readouterr().out == f"✓ eq-x | autograd | {said}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf8"])
def test_a_console_without_the_sign_gets_another(monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", console)
    check("eq-ε", 1, 1, by="hand")
    console.flush()
    said = console.buffer.getvalue().decode(encoding)
    assert said == ("✓ eq-ε | hand | equal\n" if encoding == "utf8" else "ok eq-? | hand | equal\n")


@pytest.mark.parametrize("got, want", [
    (3, 3.0),
    (True, torch.tensor(True)),
    ([1, 2], (1, 2)),
    (torch.ones(2, 3), 1),
    (torch.ones(2, requires_grad=True), torch.ones(2)),
    (torch.ones(2, dtype=torch.bfloat16), torch.ones(2)),
    (np.float32(0.5), torch.tensor(0.5, dtype=torch.float64)),
])  # fmt: skip
def test_numbers_of_every_kind(got, want):
    check("eq-x", got, want, by="hand")


def test_the_failure_names_label_means_place_and_error(capsys):
    got = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.5, 6.25]])
    want = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    with pytest.raises(CheckFailed) as failure:
        check("eq-x", got, want, by="quadrature", atol=0.125)
    message = str(failure.value)
    for part in ("eq-x", "quadrature", "2 of 6", "(1, 1)", "5.5 where 5 was", "off by 0.5", "allowed 0.125"):
        assert part in message
    assert capsys.readouterr().out == ""


def test_a_failure_is_an_assertion_error():
    with pytest.raises(AssertionError, match="eq-x"):
        check("eq-x", 1, 2, by="hand")


@pytest.mark.parametrize("tolerance", [{}, {"rtol": 0.5}, {"atol": 1e9}, {"se": 1e9}])
@pytest.mark.parametrize("got, want", [
    (np.nan, 1.0),
    (1.0, np.nan),
    (np.nan, np.nan),
    (1.0, np.inf),
    (np.inf, 1.0),
    (-np.inf, np.inf),
    ([1.0, np.nan], [1.0, 1.0]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_fails(got, want, tolerance):
    with pytest.raises(CheckFailed):
        check("eq-x", got, want, by="hand", **tolerance)


def test_a_nan_is_the_worst_value():
    with pytest.raises(CheckFailed, match=r"2 of 3 .* index \(2,\)"):
        check("eq-x", [1.0, 9.0, np.nan], [1.0, 1.0, 1.0], by="hand", atol=0.5)


@pytest.mark.parametrize("got, passes", [(1.5, True), (0.5, True), (1.5000001, False), (0.4999999, False)])
def test_five_standard_errors_is_the_limit(got, passes):
    if passes:
        check("eq-x", got, 1.0, by="sampling", se=0.1)
    else:
        with pytest.raises(CheckFailed, match="5 standard errors"):
            check("eq-x", got, 1.0, by="sampling", se=0.1)


def test_each_value_has_its_own_standard_error():
    check("eq-x", [0.0, 0.0], [0.4, 4.0], by="sampling", se=[0.1, 1.0])
    with pytest.raises(CheckFailed, match=r"1 of 2 .* index \(0,\)"):
        check("eq-x", [0.0, 0.0], [0.6, 4.0], by="sampling", se=[0.1, 1.0])


@pytest.mark.parametrize("want, passes", [(100.0, True), (-100.0, False), (90.0, False)])
def test_the_relative_tolerance_is_of_the_reference(want, passes):
    """109 differs from 100 by 9 % of 100; the limit is 9.5 % of what was wanted."""
    if passes:
        check("eq-x", 109.0, want, by="hand", rtol=0.095)
    else:
        with pytest.raises(CheckFailed):
            check("eq-x", 109.0, want, by="hand", rtol=0.095)


@pytest.mark.parametrize("got, want", [
    (torch.ones(2), torch.ones(3)),
    (torch.ones(1), torch.ones(1, 1)),
    (torch.ones(2, 1), torch.ones(1, 2)),
    (1.0, torch.ones(2)),
    (torch.ones(0), torch.ones(0)),
    (torch.ones(0), 1.0),
    ([], []),
    ("one", "one"),
    (None, None),
    (1j, 1.0),
])  # fmt: skip
def test_what_cannot_be_compared(got, want):
    with pytest.raises(ValueError, match="eq-x"):
        check("eq-x", got, want, by="hand", atol=1.0)


@pytest.mark.parametrize("tolerance", [
    {"se": 0.0},
    {"se": -1.0},
    {"se": np.nan},
    {"se": np.inf},
    {"se": [0.1, 0.0]},
    {"se": []},
    {"se": 0.1, "rtol": 0.1},
    {"se": 0.1, "atol": 0.1},
    {"rtol": -0.1},
    {"rtol": 1.0},
    {"rtol": np.nan},
    {"atol": -0.1},
    {"atol": np.inf},
    {"atol": np.nan},
])  # fmt: skip
def test_tolerances_that_make_no_sense(tolerance):
    with pytest.raises(ValueError, match="eq-x"):
        check("eq-x", [1.0, 1.0], [1.0, 1.0], by="hand", **tolerance)


def test_standard_errors_of_another_shape():
    with pytest.raises(ValueError):
        check("eq-x", [1.0, 1.0], [1.0, 1.0], by="hand", se=[0.1, 0.1, 0.1])
