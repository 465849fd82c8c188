"""The package as a whole: importing it is free, arrows point down, and all that is imported is declared."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import course_lib

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "course_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
INSTALLED_AS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}  # else under the name of the module
ON_TOP = {"arena", "book"}
BELOW = {"nets", "scenes", "training"}  # these know no family


class Import(NamedTuple):
    """A line that imports: its file, the module, and whether a function holds it."""

    file: Path
    module: str
    inside: bool

    @property
    def folder(self) -> str:
        """The first folder of the library, such as ``nets``, or a file that is in none."""
        return self.file.relative_to(LIBRARY).parts[0]

    @property
    def package(self) -> str:
        """What to install; empty for what comes with Python, and for the library itself."""
        name = self.module.partition(".")[0]
        own = name in sys.stdlib_module_names or name == "course_lib"
        return "" if own else INSTALLED_AS.get(name, name.lower().replace("_", "-"))


def imports(file: Path, tree: ast.AST, inside: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(file, f"{node.module}.{alias.name}", inside) for alias in node.names)
        yield from imports(file, node, inside or isinstance(node, ast.FunctionDef))


def declared(requirements: list[str]) -> set[str]:
    return {Requirement(wanted).name.lower() for wanted in requirements}


FILES = sorted(LIBRARY.rglob("*.py"))
IMPORTS = [found for file in FILES for found in imports(file, ast.parse(file.read_text("utf8")))]
CORE = declared(PROJECT["dependencies"])
NOTEBOOK = declared(PROJECT["optional-dependencies"]["notebook"])
OPTIONAL = NOTEBOOK | declared(PROJECT["optional-dependencies"]["test"])


def test_everything_imported_is_declared() -> None:
    for found in IMPORTS:
        allowed = CORE | (NOTEBOOK if found.folder in ON_TOP else OPTIONAL if found.inside else set())
        assert found.package in {"", *allowed}, found


def test_everything_declared_is_imported() -> None:
    assert CORE | NOTEBOOK <= {found.package for found in IMPORTS}


def test_arrows_point_down() -> None:
    families = {file.relative_to(LIBRARY).parts[0] for file in FILES} - ON_TOP - BELOW - {"require.py"}
    for found in IMPORTS:
        if found.folder in BELOW | families | {"require.py"}:
            above = ON_TOP | (set() if found.folder in families else families)
            assert not any(f"{found.module}.".startswith(f"course_lib.{name}.") for name in above), found


def test_importing_the_package_imports_nothing_large() -> None:
    look = "import sys, course_lib; print(course_lib.__version__, *sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    number, *loaded = said.split()
    assert number == version("course-lib")
    assert not {"torch", "numpy", "scipy", "matplotlib"} & {*loaded}


def test_the_names_that_most_programs_want_are_there() -> None:
    for name in course_lib.__all__:
        assert getattr(course_lib, name).__name__ == name and name in dir(course_lib)
    with pytest.raises(AttributeError, match="'course_lib' has no attribute 'Path'"):
        _ = course_lib.Path


GLOBALS = """
import importlib, random, sys, numpy, torch
plt = importlib.import_module("matplotlib.pyplot") if {styled} else None
state = lambda: str([torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
    torch.get_num_threads(), torch.get_default_dtype(), plt and dict(plt.rcParams)])
before = state()
for name in {names}:
    importlib.import_module(name)
assert state() == before
"""


def test_importing_every_module_changes_nothing_global() -> None:
    everything = all(find_spec(name) for name in ("ipywidgets", "matplotlib", "papermill"))
    files = [file for file in FILES if everything or file.relative_to(LIBRARY).parts[0] not in ON_TOP]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    script = GLOBALS.format(names=[name.removesuffix(".__init__") for name in names], styled=everything)
    subprocess.run([sys.executable, "-c", script], check=True)
