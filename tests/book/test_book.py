"""The book's machinery: execution cache, failed cells, generated page, tools and requirements."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.requirements import Requirement
from sphinx.util.matching import Matcher

from course_lib.arena.run import Results
from tools import arena, handout, run
from tools.notebooks import ROOT, Chapter, read_all, verified_page

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from course_book import fingerprint

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))


def write_notebook(book: Path, source: str) -> None:
    cells = [new_markdown_cell("# One\n\n$$1 = 1$$ (eq-one)"), new_code_cell(source)]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    Chapter("one", new_notebook(cells=cells, metadata=metadata)).write(book / "notebooks" / "one.ipynb")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one small notebook, with this book's configuration and extension."""
    for folder in ("book", "notebooks", "course_lib"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "book" / "_templates", tmp_path / "book" / "_templates")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    local = {"course_book": str(ROOT / "book" / "_ext")}
    config = CONFIG | {"sphinx": CONFIG["sphinx"] | {"local_extensions": local}}
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    parts = [{"caption": "A part", "chapters": [{"file": "notebooks/one"}, {"file": "book/verified"}]}]
    toc = {"format": "jb-book", "root": "book/intro", "parts": parts}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    (tmp_path / "book" / "intro.md").write_text("# Intro\n")
    (tmp_path / "course_lib" / "part.py").write_text("x = 1\n")
    (tmp_path / "requirements.txt").write_text("a==1\n")
    write_notebook(tmp_path, "print('ran')")
    return tmp_path


def build(book: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "-n", "--keep-going", book]
    environment = os.environ | {"NO_COLOR": "1"}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_cache_hits_when_nothing_changed_and_misses_when_the_library_did(book: Path) -> None:
    first = build(book)
    assert first.returncode == 0 and "Executed notebook" in first.stdout, first.stdout
    shutil.rmtree(book / "_build" / ".doctrees")  # so that the second build reads the page again
    second = build(book)
    assert second.returncode == 0 and "Using cached notebook" in second.stdout, second.stdout
    assert "Executed notebook" not in second.stdout
    (book / "course_lib" / "part.py").write_text("x = 2\n")
    third = build(book)
    assert third.returncode == 0 and "Executed notebook" in third.stdout, third.stdout


def test_fingerprint_sees_all_that_outputs_depend_on(book: Path) -> None:
    before = fingerprint(book, "smoke")
    assert fingerprint(book, "smoke") == before != fingerprint(book, "book")
    (book / "requirements.txt").write_text("a==2\n")
    changed = fingerprint(book, "smoke")
    assert changed != before
    (book / "course_lib" / "new.py").touch()
    again = fingerprint(book, "smoke")
    assert again != changed
    (book / "course_lib" / "stored").mkdir()
    (book / "course_lib" / "stored" / "table.json").touch()
    assert fingerprint(book, "smoke") != again
    before = fingerprint(book, "smoke")
    (book / "course_lib" / "run.ipynb").touch()
    assert fingerprint(book, "smoke") != before


def test_a_broken_cell_fails_the_build_each_time_and_is_named(book: Path) -> None:
    write_notebook(book, "broken_name + 1")
    for _ in range(2):  # the second build must not take the page as read
        failed = build(book)
        assert failed.returncode != 0
        assert "notebooks/one.ipynb" in failed.stdout and "broken_name + 1" in failed.stdout
        assert "NameError" in failed.stdout


def test_a_warning_from_a_cell_fails_the_build(book: Path) -> None:
    write_notebook(book, "import warnings\n\nwarnings.warn('stray')")
    failed = build(book)
    assert failed.returncode != 0 and "stderr was found" in failed.stdout, failed.stdout


def test_an_unknown_profile_is_a_clear_error(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    failed = build(book)
    assert failed.returncode != 0 and "COURSE_PROFILE: profile must be one of" in failed.stdout


def test_verified_page_lists_every_equation() -> None:
    page = verified_page(read_all())
    for chapter in read_all():
        for display in chapter.displays():
            assert (f"`{display.label}`" in page) == display.label.startswith("eq-")
    assert "not verified" not in page


def test_every_page_and_notebook_is_in_the_table_of_contents() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    listed = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    pages = [*ROOT.glob("book/*.md"), ROOT / "book" / "verified.md", *ROOT.glob("notebooks/*.ipynb")]
    assert sorted(listed) == sorted({page.relative_to(ROOT).with_suffix("").as_posix() for page in pages})


def test_chapters_come_in_the_order_of_the_table_of_contents() -> None:
    toc = (ROOT / "_toc.yml").read_text("utf8")
    places = [toc.index(f"notebooks/{chapter.name}\n") for chapter in read_all()]
    assert places == sorted(places) and len(places) == len([*(ROOT / "notebooks").glob("*.ipynb")])
    shown = (ROOT / "book" / "intro.md").read_text("utf8")
    told = [shown.index(f"**[{chapter.title.partition(':')[0]}]") for chapter in read_all()]
    assert told == sorted(told)


@pytest.mark.parametrize("page", sorted((ROOT / "book").glob("*.md")), ids=lambda p: p.stem)
def test_no_page_calls_a_chapter_by_a_number(page: Path) -> None:
    assert re.findall(r"chapters? \[?0\d.*", page.read_text("utf8"), re.I) == []


@pytest.mark.parametrize("path", [".venv/lib/a.md", ".pytest_cache/a.md", "runs/gmm_em.ipynb", "tests/a.md"])
def test_what_is_not_the_book_is_excluded(path: str) -> None:
    assert Matcher(CONFIG["exclude_patterns"])(path)


def test_requirements_pin_every_version_within_the_ranges() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf8").splitlines()
    pins = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert [pin for pin in pins if not re.match(r"[\w.-]+==[\w.+]+( ; .+)?$", pin)] == []
    pinned = {}
    for pin in map(Requirement, pins):
        if pin.marker is None or pin.marker.evaluate():
            pinned[pin.name.lower()] = next(iter(pin.specifier)).version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    extras = project["optional-dependencies"]
    wanted_too = [*extras["notebook"], *extras["book"], *extras["test"], *extras["book-test"]]
    for wanted in map(Requirement, project["dependencies"] + wanted_too):
        if wanted.name == project["name"]:
            continue
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), wanted


def test_the_wheel_that_colab_installs_holds_every_module_and_weight(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "course_lib", tmp_path / "course_lib")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*pip, tmp_path], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("course_lib/")}
    files = [p for p in (ROOT / "course_lib").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert held == {str(path.relative_to(ROOT)) for path in files}


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf8"), re.M)
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert len(targets) > 5 and re.findall(r"^make (\w+) +\S", said, re.M) == targets


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vae2"], "invalid choice: 'vae2' (choose from"),
        (["gmm_em", "--profile", "tiny"], "invalid choice: 'tiny' (choose from"),
        (["gmm_em", "--dataset", "imagenet"], "invalid choice: 'imagenet' (choose from"),
        (["gmm_em", "--seed", "-1"], "--seed: must be an integer in [0, 2**32); got '-1'"),
        (["gmm_em", "--seed", "one"], "--seed: must be an integer in [0, 2**32); got 'one'"),
    ],
)
def test_run_refuses_a_bad_parameter(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and said in lines[0]


def test_run_names_the_cell_that_failed_and_keeps_what_ran(book: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "ROOT", book)
    write_notebook(book, "broken_name + 1")
    with pytest.raises(SystemExit) as stopped:
        run.main(["one", "--profile", "smoke", "--dataset", "digits", "--seed", "3"])
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "notebooks/one.ipynb" in said and "broken_name + 1" in said and "NameError" in said
    ran = nbformat.read(book / "runs" / "one-smoke-digits-seed3.ipynb", as_version=4)
    assert 'dataset = "digits"' in "".join(cell.source for cell in ran.cells)


@pytest.mark.parametrize("chapter", read_all(), ids=lambda c: c.name)
def test_handout_has_no_solution_and_its_script_compiles(chapter: Chapter) -> None:
    student = handout.student(chapter)
    assert chapter.solutions() and not student.solutions()
    assert student.exercises() == chapter.exercises()
    script = handout.script(student)
    compile(script, chapter.name, "exec")
    assert "\n%" not in script and "{solution}" not in script


def test_make_arena(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(arena, "arena", lambda *a, **k: Results([], [], tmp_path / "notebooks" / "x"))
    monkeypatch.setattr(arena, "ROOT", tmp_path)
    arena.main(["--profile", "smoke"])
    assert "0 rows, 0 of runs that failed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        arena.main(["--workers", "two"])


def test_the_api_page_holds_every_module() -> None:
    """All but the exercises and experiments of a chapter, which the chapter shows."""
    listed = set(re.findall(r"automodule:: (\S+)", (ROOT / "book" / "api.md").read_text("utf8")))
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "course_lib").rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    own = ("course_lib.book.exercises.", "course_lib.book.experiments.")
    assert listed == {name for name in modules if not name.startswith(own)}


PROGRAMS = re.findall(r"^```python\n(.*?)^```", (ROOT / "book" / "running.md").read_text("utf8"), re.M | re.S)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if "import" in p and "course_lib.training" in p])
def test_a_program_of_the_page_on_running_runs_and_goes_on(program: str, tmp_path: Path) -> None:
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
