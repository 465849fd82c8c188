"""The hash of an experiment's code: what changes a number changes it, and nothing else does."""

import shutil
import warnings
from pathlib import Path

import pytest

import course_lib
from course_lib.book import results
from course_lib.book.fingerprint import fingerprint

pytestmark = pytest.mark.slow

LIBRARY = Path(course_lib.__file__).parent

FILES = {
    "__init__.py": '''
        """A package that serves a name from a map."""
        import importlib
        _HOME = {"served": "deep.served_from"}
        def __getattr__(name):
            return getattr(importlib.import_module(f"lib.{_HOME[name]}"), name)
        ''',
    "experiment.py": '''
        """An experiment."""
        import math
        import lib.tools as tools
        from lib import deep, served
        from lib.deep import exported
        from lib.tools import Child, decorate
        from lib.whole import unknown

        SETTINGS = [{"n": 1}]
        SEEDS = range(5)

        @decorate
        def run(seed: int, n: int = 3) -> list:
            """One run."""
            # a comment
            if n < 0:
                raise ValueError(f"n is {n}")
            local = Child().method(tools.LIMIT) + exported() + served() + deep.other.constant
            return [local, math.pi, unknown]

        def unrelated():
            return 1
        ''',
    "tools.py": '''
        from pathlib import Path
        from lib.base import Base
        TABLE = {}
        TABLE["a"] = 1
        LIMIT = 10
        WEIGHTS = Path(__file__).parent / "stored" / "weights.pt"
        print("imported")

        def decorate(function):
            return function

        class Child(Base):
            """A class."""
            size: int = 4

            def method(self, x, *, scale=2.0):
                from lib.late import late
                return self.inherited(x) * scale + late(WEIGHTS) + TABLE["a"]

        class Idle(Base):
            pass

        if __name__ == "__main__":
            print("main")
        ''',
    "base.py": """
        class Base:
            def inherited(self, x):
                return [y + 1 for y in x]
        """,
    "late.py": """
        try:
            from lib.fast import step
        except ImportError:
            step = None

        def late(x):
            return step(x)

        def never():
            return 0
        """,
    "fast.py": "def step(x):\n    return x\n",
    "deep/__init__.py": "from . import other\nfrom .inner import inside as exported\n",
    "deep/inner.py": "def inside():\n    return 1\n\ndef beside():\n    return 2\n",
    "deep/other.py": "from lib.deep import *\nconstant = 7\nanother = 8\n",
    "deep/served_from.py": "def served():\n    return 5\n",
    "whole.py": "here = 1\n",
    "alone.py": "def run():\n    return 0\n",
    "stored/weights.pt": "1, 2, 3",
    "stored/others.pt": "1, 2, 3",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        depth = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        path.write_text("\n".join(line[depth:] for line in lines))
    return tmp_path / "lib"


def code(package: Path) -> str:
    return fingerprint("lib.experiment", ("SETTINGS", "SEEDS", "run"), package).hash


def edit(package: Path, name: str, old: str, new: str) -> None:
    text = (package / name).read_text()
    assert old in text
    (package / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("experiment.py", "# a comment", "# another\n\n"),
        ("experiment.py", '"""One run."""', '"""A run."""'),
        ("experiment.py", '"""One run."""', ""),
        ("experiment.py", "n: int = 3", "n: float = 3"),
        ("experiment.py", "n is {n}", "n must be at least 0"),
        ("experiment.py", "return 1\n", "return 2\n"),
        ("experiment.py", "local = Child()", "local = (\n            Child())"),
        ("tools.py", '"""A class."""', '"""One class."""'),
        ("tools.py", "class Idle(Base):", "class Idle:"),
        ("tools.py", 'print("main")', 'print("other")'),
        ("late.py", "return 0", "return 3"),
        ("deep/inner.py", "return 2", "return 3"),
        ("alone.py", "return 0", "return 3"),
        ("stored/others.pt", "1", "4"),
    ],
)
def test_what_changes_no_number_changes_no_hash(package: Path, name: str, old: str, new: str) -> None:
    before = code(package)
    edit(package, name, old, new)
    assert code(package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("experiment.py", "n: int = 3", "n: int = 4"),  # a default
        ("experiment.py", '"n": 1', '"n": 2'),  # a setting
        ("experiment.py", "range(5)", "range(6)"),
        ("experiment.py", "n < 0", "n < 1"),
        ("experiment.py", "import math", "import cmath as math"),  # another package's, under one name
        ("experiment.py", "Child().method", "Idle().method"),
        ("tools.py", "LIMIT = 10", "LIMIT = 11"),  # a constant, by its module's name
        ("tools.py", 'TABLE["a"] = 1', 'TABLE["a"] = 2'),
        ("tools.py", "size: int = 4", "size: int = 5"),  # of a class that is reached: all of it
        ("tools.py", "scale=2.0", "scale=3.0"),
        ("tools.py", 'print("imported")', 'print("here")'),  # what runs when it is imported
        ("tools.py", "return function", "return lambda *a: function(*a)"),  # a decorator
        ("base.py", "y + 1", "y + 2"),  # a base class, two modules away
        ("late.py", "return step(x)", "return -step(x)"),  # imported inside a function
        ("fast.py", "return x", "return 2 * x"),  # imported inside a try
        ("deep/__init__.py", "inside as exported", "beside as exported"),
        ("deep/inner.py", "return 1", "return 3"),  # by a relative import of a package's __init__
        ("deep/other.py", "constant = 7", "constant = 8"),
        ("deep/served_from.py", "return 5", "return 6"),  # by a map of names
        ("whole.py", "here = 1", "here = 2"),  # has not the name: all of it
        ("stored/weights.pt", "1", "4"),
    ],
)
def test_what_may_change_a_number_changes_the_hash(package: Path, name: str, old: str, new: str) -> None:
    before = code(package)
    edit(package, name, old, new)
    assert code(package) != before


def test_files_are_those_that_were_reached(package: Path) -> None:
    files = fingerprint("lib.experiment", ["run"], package).files
    unused = {"__init__.py", "alone.py", *(name for name in FILES if name.startswith("stored"))}
    assert {path.relative_to(package).as_posix() for path in files} == FILES.keys() - unused


def test_the_place_of_the_package_does_not_matter(package: Path) -> None:
    before = code(package)
    moved = shutil.move(package, package.parent / "elsewhere" / "lib")
    assert code(Path(moved)) == before


def test_unknown_names_are_refused(package: Path) -> None:
    with pytest.raises(ValueError, match="module must be one of"):
        fingerprint("lib.none", ["run"], package)
    with pytest.raises(ValueError, match=r"names must be defined in lib\.experiment; got 'walk'"):
        fingerprint("lib.experiment", ["walk"], package)


STORED = [name for name in results.names() if results.experiment(name).SETTINGS]


@pytest.mark.parametrize("name", STORED)
def test_the_stored_table_is_whole_and_of_this_code(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fails where the code has changed since
        found = results.read(name)
    module = results.experiment(name)
    made = {(*(row.get(k) for k in module.SETTINGS[0]), row["seed"]) for row in found.rows}
    assert made == {(*s.values(), seed) for s in module.SETTINGS for seed in module.SEEDS}
    assert all(row["status"] == "ok" for row in found.rows) and len(module.SEEDS) >= 5
    assert sum(path.stat().st_size for path in results.STORED.glob(f"{name}.*")) < 500_000
