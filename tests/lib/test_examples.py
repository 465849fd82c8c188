"""Every public entry has an example in its docstring, and all examples run."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import course_lib

FOLDERS = ("training", "scenes", "style", "mixture", "vae", "vq", "gan", "diffusion", "metrics")
SKIPPED = {"stored"}


def modules(package: ModuleType = course_lib) -> Iterator[str]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield found.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name: str, tmp_path, monkeypatch) -> None:
    if name.startswith(("course_lib.book", "course_lib.arena")):
        for package in ("IPython", "matplotlib", "papermill"):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def entries(folder: str) -> Iterator[tuple[str, object]]:
    """Functions and classes that a folder offers; results (tuples) and constants need no example."""
    module = importlib.import_module(f"course_lib.{folder}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, tuple)):
            yield name, value


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_entry_has_an_example(folder: str) -> None:
    finder = doctest.DocTestFinder()
    without = []
    for name, value in entries(folder):
        home = importlib.import_module(value.__module__)
        if not any(found.examples for found in finder.find(value, name, home)):
            without.append(name)
    assert without == []
