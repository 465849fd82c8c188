"""The notebooks as data: cells, labels, checks, exercises, and the page of verified results.

`python -m tools.notebooks` writes the cells that all chapters share, with the repository's address.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]

PARAMETERS = """\
profile = None  # "smoke", "book" or "full"; None: see "How to run the book"
seed = 0
dataset = None  # None: "digits", or "mnist" in the full profile"""

_CODE = re.compile(r"^(`{3,}).*?^\1|`[^`\n]+`", re.M | re.S)
_DISPLAY = re.compile(r"\$\$(.*?)\$\$(?:[ \t]*\(([\w-]+)\))?", re.S)
_LINE = re.compile(r"^✓ (.+?) \| (.+) \| (.+)$", re.M)
_EXERCISE = re.compile(r"^:::+\{exercise\}.*\n:label: (\S+)$", re.M)
_SOLUTION = re.compile(r"^:::+\{solution\} (\S+)$", re.M)
_BADGE = re.compile(r"^\[Open in Colab\]\(.*\)$", re.M)


class Address(NamedTuple):
    """Where the repository lives, and the tag that Colab takes."""

    url: str
    tag: str

    def setup(self) -> str:
        """The set-up cell, the same in every chapter."""
        return (
            "# In Colab, install the course's package at a pinned tag; elsewhere, do nothing.\n"
            'import sys\n\nif "google.colab" in sys.modules:\n'
            f'    %pip install --quiet "course-lib[notebook] @ git+{self.url}@{self.tag}"'
        )

    def badge(self, name: str) -> str:
        """The line that opens a chapter in Colab."""
        repository = self.url.removeprefix("https://github.com/")
        colab = "https://colab.research.google.com/github"
        return f"[Open in Colab]({colab}/{repository}/blob/{self.tag}/notebooks/{name}.ipynb)"


def address(root: Path = ROOT) -> Address:
    """The address in ``_config.yml``, and the tag of the version in ``pyproject.toml``."""
    config = yaml.safe_load((root / "_config.yml").read_text("utf8"))
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    return Address(config["repository"]["url"], f"v{project['version']}")


class Display(NamedTuple):
    """A displayed formula in LaTeX; the label is empty where it has none."""

    math: str
    label: str


class Verified(NamedTuple):
    """The line that a check printed."""

    label: str
    by: str
    tolerance: str


class Chapter(NamedTuple):
    """A notebook and its name, such as ``gmm_em``."""

    name: str
    notebook: NotebookNode

    @property
    def title(self) -> str:
        return next(m[1] for c in self.cells("markdown") if (m := re.search(r"^# (.+)$", c.source, re.M)))

    def cells(self, kind: str, tag: str | None = None) -> list[NotebookNode]:
        """The cells of a kind, ``"code"`` or ``"markdown"``; with a tag, those that carry it."""
        return [
            cell
            for cell in self.notebook.cells
            if cell.cell_type == kind and (tag is None or tag in tags(cell))
        ]

    def displays(self) -> list[Display]:
        """Every displayed formula, in order."""
        return [
            Display(m[1].strip(), m[2] or "")
            for c in self.cells("markdown")
            for m in _DISPLAY.finditer(text(c))
        ]

    def verified(self) -> list[Verified]:
        """The stored line of every check, in order."""
        printed = "".join(o.get("text", "") for cell in self.cells("code") for o in cell.outputs)
        return [Verified(*found) for found in _LINE.findall(printed)]

    def exercises(self) -> list[str]:
        """The labels of the exercises, such as ``ex-gmm_em-bic``."""
        return [label for c in self.cells("markdown") for label in _EXERCISE.findall(c.source)]

    def solutions(self) -> dict[str, NotebookNode]:
        """The cell that solves each exercise."""
        return {label: c for c in self.cells("markdown") for label in _SOLUTION.findall(c.source)}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(self.notebook, path, version=nbformat.NO_CONVERT)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def text(cell: NotebookNode) -> str:
    """A Markdown cell without its code."""
    return _CODE.sub("", cell.source)


def parse(cell: NotebookNode) -> ast.Module:
    """The syntax tree of a code cell, which may hold IPython's magics."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a tree, with the called name as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def read(path: Path) -> Chapter:
    return Chapter(path.stem, nbformat.read(path, as_version=nbformat.NO_CONVERT))


def read_all(root: Path = ROOT) -> list[Chapter]:
    """Every chapter, in the order of ``_toc.yml``."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [read(root / f"{file}.ipynb") for file in files if file.startswith("notebooks/")]


def verified_page(chapters: list[Chapter]) -> str:
    """The page that lists every verified equation: statement, means, tolerance and link."""
    page = [
        "# Verified results",
        "Every displayed result of the course is checked where it is stated, by means that do not use it. "
        "This page is made from the lines that the checks print. They are stored in the notebooks, "
        "and `make test` compares them with a fresh run.",
    ]
    for chapter in chapters:
        lines = chapter.verified()
        page.append(f"## {chapter.title}")
        page.append(f"[Open the chapter](../notebooks/{chapter.name}.ipynb)")
        for math, label in chapter.displays():
            if label.startswith("eq-"):
                means = dict.fromkeys(f"{v.by}, {v.tolerance}" for v in lines if v.label == label)
                page.append(f"{{eq}}`{label}` `{label}`: {'; '.join(means) or '**not verified**'}")
                page.append(f"$$\n{math}\n$$")
    return "\n\n".join(page) + "\n"


def main() -> None:
    here = address()
    for chapter in read_all():
        chapter.cells("code")[0].source = here.setup()
        chapter.cells("code")[1].source = PARAMETERS
        first = chapter.cells("markdown")[0]
        first.source = _BADGE.sub(lambda _, c=chapter: here.badge(c.name), first.source)
        chapter.write(ROOT / "notebooks" / f"{chapter.name}.ipynb")
        print(f"notebooks/{chapter.name}.ipynb: {here.url} at {here.tag}")


if __name__ == "__main__":
    main()
