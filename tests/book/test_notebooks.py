"""The contract of a chapter: rules that every notebook keeps, and proof that each rule bites."""

import ast
import copy
import importlib
import inspect
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib.book import exercises, show
from tools.notebooks import PARAMETERS, ROOT, Chapter, address, calls, parse, read_all, tags, text

CHAPTERS = read_all()
TITLES = {chapter.name: chapter.title for chapter in CHAPTERS}
PROOFS = ("algorithm", "corollary", "definition", "lemma", "proof", "proposition", "remark", "theorem")
DIRECTIVES = {f"prf:{kind}" for kind in PROOFS} | {"exercise", "solution"}
PLOT = {"close", "figure", "subplots", "subplot_mosaic"}  # of pyplot: what draws nothing by itself
FIGURES = {"figure", "images", "live", "slider"}  # of course_lib.book.show: all that take alt


def fixed_cells(chapter: Chapter) -> Iterator[str]:
    """The set-up and the parameters are the same everywhere, and Colab opens the right file."""
    here, code = address(), chapter.cells("code")
    if (code[0].source, tags(code[0])) != (here.setup(), ["hide-cell"]):
        yield "the first code cell is not the set-up cell; `make address` writes it"
    if (code[1].source, tags(code[1])) != (PARAMETERS, ["parameters"]):
        yield "the second code cell is not the parameters cell"
    if here.badge(chapter.name) not in chapter.cells("markdown")[0].source.splitlines():
        yield "the first cell has no line that opens it in Colab; `make address` mends it"


def labels(chapter: Chapter) -> Iterator[str]:
    """What is claimed is checked, and what is checked is displayed."""
    shown = {display.label for display in chapter.displays() if display.label}
    checked = {line.label for line in chapter.verified()}
    for label in sorted(shown):
        if not label.startswith(("eq-", "def-")):
            yield f"label {label} begins with neither eq- nor def-"
        if label.startswith("eq-") and label not in checked:
            yield f"{label} is displayed but not checked"
    for label in sorted(checked - shown):
        if label.startswith(("eq-", "def-")):
            yield f"{label} is checked but not displayed"


def figures(chapter: Chapter) -> Iterator[str]:
    """Every figure goes through `course_lib.book.show` and says in words what it shows."""
    for cell in chapter.cells("code"):
        for name, call in calls(parse(cell)):
            module, _, function = name.rpartition(".")
            if name == "display" or (module == "plt" and function not in PLOT):
                yield f"{name} shows a figure without alt text; use course_lib.book.show"
            if module == "show" and function in FIGURES:
                place = list(inspect.signature(getattr(show, function)).parameters).index("alt")
                given = {k.arg: k.value for k in call.keywords} | dict(enumerate(call.args))
                alt = given.get("alt", given.get(place))
                if alt is None or (isinstance(alt, ast.Constant) and not str(alt.value or "").strip()):
                    yield f"{name} has no alt text"
        now = [s for s in parse(cell).body if not isinstance(s, ast.FunctionDef)]
        names = {name for statement in now for name, _ in calls(statement)}
        if names & {f"plt.{f}" for f in PLOT} and not names & {f"show.{f}" for f in FIGURES}:
            yield f"a figure is opened that no call of course_lib.book.show takes: {cell.source[:40]!r}"
    for cell in chapter.cells("markdown"):
        if re.search(r"!\[\s*\]\(", text(cell)) or "<img" in text(cell):
            yield "an image in the text has no alt text"


def size(chapter: Chapter) -> Iterator[str]:
    """A cell is short enough to be one idea."""
    lengths = [len(cell.source.splitlines()) for cell in chapter.cells("code")]
    for cell, length in zip(chapter.cells("code"), lengths, strict=True):
        if length > 25:
            yield f"a cell has {length} lines, more than 25; it begins {cell.source[:40]!r}"
    if statistics.median(lengths) >= 10:
        yield f"the median cell has {statistics.median(lengths)} lines; it must be under 10"


def plain_text(chapter: Chapter) -> Iterator[str]:
    """The text reads well where MyST is unknown."""
    for cell in chapter.cells("markdown"):
        if text(cell).count("$$") % 2:
            yield f"a displayed formula is not closed, in {cell.source[:40]!r}"
        if found := re.search(r"`{3,}\{[\w:-]+\}|\{[\w:-]+\}`", cell.source):
            yield f"{found[0]} means nothing in plain Jupyter"
        for name in re.findall(r"^:::+\{([\w:-]+)\}", cell.source, re.M):
            if name not in DIRECTIVES:
                yield f"the directive {name} is not one of {', '.join(sorted(DIRECTIVES))}"
        if re.search(r"^:::+\{.*\n(:\w+:.*\n)*(?!\n|:\w)|(?<!\n)\n:::+$", cell.source, re.M):
            yield f"a directive has no blank line inside its fence, in {cell.source[:40]!r}"
        if found := re.search(r"\b(it can be shown|clearly|obviously|trivially)\b", text(cell), re.I):
            yield f"the text says {found[0]!r}"


def links(chapter: Chapter) -> Iterator[str]:
    """Another chapter is called by its title and never by a number: the order may change."""
    for cell in chapter.cells("markdown"):
        if found := re.search(r"\bchapters? \[?0\d|^# \d", cell.source, re.I | re.M):
            yield f"a chapter has a number: {found[0]!r}"
        for said, name in re.findall(r"\[\(?([^\]()]*)\)?\]\((\w+)\.ipynb\)", text(cell)):
            if not TITLES.get(name, "").startswith(said):
                yield f"the link {said!r} is not the title of {name}.ipynb, {TITLES.get(name)!r}"


def stored_outputs(chapter: Chapter) -> Iterator[str]:
    """Nothing is stored but what the checks print; that is there, for nbval to compare."""
    for cell in chapter.cells("code"):
        stored = bool(cell.outputs), cell.execution_count is not None
        if stored != (("check" in tags(cell)),) * 2:
            yield f"a cell tagged {tags(cell)} has outputs, count: {stored}; `make checks` mends it"
        if any(output.get("name") != "stdout" for output in cell.outputs):
            yield "an output is not printed text"
        if any(name in ("check", "grade") for name, _ in calls(parse(cell))) != ("check" in tags(cell)):
            yield f"the tag check and calls of check or grade do not go together: {cell.source[:40]!r}"


def form(chapter: Chapter) -> Iterator[str]:
    """A valid notebook, with no traces of the machine it was written on."""
    if chapter.notebook.nbformat_minor < 5:
        yield "nbformat is below 4.5, so cells have no ids"
    if any(n > 1 for n in Counter(cell.get("id") for cell in chapter.notebook.cells).values()):
        yield "two cells have the same id"
    try:
        nbformat.validate(copy.deepcopy(chapter.notebook))  # a copy, because it mends what it can
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error}"
    named = {key: value.get("name") for key, value in chapter.notebook.metadata.items()}
    if named != {"kernelspec": "python3", "language_info": "python"}:
        yield f"metadata must name the kernel python3 and the language python, no more; got {named}"


def exercise_cells(chapter: Chapter) -> Iterator[str]:
    """At least four exercises, two in code, each with one solution that folds."""
    asked, solved, coded = chapter.exercises(), chapter.solutions(), graded(chapter)
    if len(asked) < 4 or len(coded) < 2:
        yield f"{len(asked)} exercises, {len(coded)} in code; there must be four, and two in code"
    if sorted(asked) != sorted(solved):
        yield f"exercises {asked} and solutions {list(solved)} do not match"
    for label, cell in solved.items():
        if tags(cell) != ["solution"]:
            yield f"the solution of {label} is not tagged solution alone"
        if not re.search(r"<details>.*<summary>.*</summary>\n\n.*\n\n</details>", cell.source, re.S):
            yield f"the solution of {label} does not fold"
    for exercise in coded:
        if f"ex-{exercise}" not in asked:
            yield f"{exercise} is graded but not asked"


RULES = (fixed_cells, labels, figures, size, plain_text, links, stored_outputs, form, exercise_cells)


def faults(chapter: Chapter) -> list[str]:
    return [fault for rule in RULES for fault in rule(chapter)]


def graded(chapter: Chapter) -> dict[str, str]:
    """The code exercises, and the name of the function that answers each."""
    found = (c.args for cell in chapter.cells("code") for name, c in calls(parse(cell)) if name == "grade")
    return {exercise.value: answer.id for exercise, answer in found}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_contract(chapter: Chapter, rule: Callable[[Chapter], Iterator[str]]) -> None:
    assert list(rule(chapter)) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_file_is_as_the_tools_write_it(chapter: Chapter) -> None:
    stored = (ROOT / "notebooks" / f"{chapter.name}.ipynb").read_text("utf8")
    assert stored == nbformat.writes(chapter.notebook, version=nbformat.NO_CONVERT) + "\n"


def test_labels_are_unique_in_the_book() -> None:
    found = [d.label for c in CHAPTERS for d in c.displays() if d.label]
    found += [label for c in CHAPTERS for label in c.exercises()]
    assert [label for label, n in Counter(found).items() if n > 1] == []


def imports(chapter: Chapter) -> dict:
    """The names that the notebook imports."""
    names = {}
    for cell in chapter.cells("code")[1:]:  # the set-up cell has a magic
        for statement in ast.parse(cell.source).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(ast.unparse(statement), names)
    return names


def verdict(capsys: pytest.CaptureFixture, exercise: str, answer: Callable) -> str:
    capsys.readouterr()
    exercises.grade(exercise, answer)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_exercises_grade_stub_solution_and_mistakes(chapter: Chapter, capsys) -> None:
    known = importlib.import_module(f"course_lib.book.exercises.{chapter.name}").EXERCISES
    assert graded(chapter).keys() == known.keys()
    stubs = "\n\n".join(cell.source for cell in chapter.cells("code", "exercise"))
    for exercise, name in graded(chapter).items():
        space = imports(chapter)
        exec(stubs, space)
        assert verdict(capsys, exercise, space[name]) == f"{exercise}: not attempted"
        solution = chapter.solutions()[f"ex-{exercise}"].source
        exec("\n".join(re.findall(r"^```python\n(.*?)^```", solution, re.M | re.S)), space)
        assert verdict(capsys, exercise, space[name]) == f"{exercise}: correct"
        assert known[exercise].mistakes, f"{exercise} knows no mistake"
        for hint, mistake in known[exercise].mistakes.items():
            said = verdict(capsys, exercise, mistake)
            assert "not yet" in said and hint in said


def a_chapter() -> Chapter:
    """A small chapter that keeps the contract."""
    md, here = new_markdown_cell, address()

    def code(source: str, *names: str, printed: str = ""):
        stored = {"outputs": [new_output("stream", text=printed)], "execution_count": 1} if printed else {}
        return new_code_cell(source, metadata={"tags": [*names]}, **stored)

    cells = [
        md(f"# A chapter\n\n{here.badge('toy')}"),
        code(here.setup(), "hide-cell"),
        code(PARAMETERS, "parameters"),
        md(":::{prf:definition} A\n\n$$\na = 1\n$$ (def-a)\n\n:::\n\n$$b = 2$$ (eq-b)\n\n![A cat](cat.png)"),
        code('check("eq-b", 2, 1 + 1, by="hand")', "check", printed="✓ eq-b | hand | equal\n"),
        code('fig, ax = plt.subplots()\nshow.figure(fig, alt="Empty axes")'),
    ]
    for i in range(4):
        cells.append(md(f":::{{exercise}} Title\n:label: ex-toy-{i}\n\nDo.\n\n:::"))
        if i < 2:
            cells.append(code(f"def f{i}():\n    raise NotImplementedError", "exercise"))
            cells.append(code(f'grade("toy-{i}", f{i})', "check", printed=f"toy-{i}: not attempted\n"))
        folded = "<details><summary>Show the solution</summary>\n\nDone.\n\n</details>"
        cells.append(md(f":::{{solution}} ex-toy-{i}\n\n{folded}\n\n:::", metadata={"tags": ["solution"]}))
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return Chapter("toy", new_notebook(cells=cells, metadata=metadata))


def replace(old: str, new: str) -> Callable[[Chapter], None]:
    def spoil(chapter: Chapter) -> None:
        for cell in chapter.notebook.cells:
            cell.source = cell.source.replace(old, new)

    return spoil


def lengthen(chapter: Chapter) -> None:
    for cell in chapter.cells("code"):
        cell.source = "\n" * 12 + cell.source


def store_an_image(chapter: Chapter) -> None:
    chapter.notebook.cells[5].outputs = [new_output("display_data", {"image/png": "AAAA"})]


def forget_a_line(chapter: Chapter) -> None:
    chapter.notebook.cells[4].outputs = []


def drop_a_solution(chapter: Chapter) -> None:
    del chapter.notebook.cells[-1]


def repeat_an_id(chapter: Chapter) -> None:
    chapter.notebook.cells[1]["id"] = chapter.notebook.cells[2]["id"]


def test_a_good_chapter_has_no_fault() -> None:
    assert faults(a_chapter()) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (replace("import sys", "import os"), "not the set-up cell"),
        (replace("seed = 0", "seed = 1"), "not the parameters cell"),
        (replace("blob/v", "blob/w"), "Colab"),
        (replace("(def-a)", "(eq-a)"), "eq-a is displayed but not checked"),
        (replace("(eq-b)", "(eq-c)"), "eq-b is checked but not displayed"),
        (replace("(def-a)", "(a)"), "begins with neither"),
        (replace(', alt="Empty axes"', ""), "no alt text"),
        (replace("Empty axes", " "), "no alt text"),
        (replace("show.figure(fig", "plt.plot([1], label=str(fig)); dict(f=fig"), "plt.plot"),
        (replace("show.figure", "print"), "no call of course_lib.book.show"),
        (replace("![A cat]", "![]"), "an image in the text"),
        (replace("fig, ax", "\n" * 30 + "fig, ax"), "more than 25"),
        (lengthen, "the median cell"),
        (replace("$$ (eq-b)", ""), "not closed"),
        (replace("$$b = 2$$", "```{math}\nb\n```"), "{math}"),
        (replace("$$b = 2$$", "{eq}`def-a`\n\n$$b = 2$$"), "{eq}"),
        (replace("prf:definition", "note"), "directive note"),
        (replace("(def-a)\n\n:::", "(def-a)\n:::"), "no blank line"),
        (
            replace(":label: ex-toy-3\n\n", ":label: ex-toy-3\n"),
            "no blank",
        ),
        (replace("![A cat]", "Clearly. ![A cat]"), "Clearly"),
        (replace("![A cat]", "See chapter 04. ![A cat]"), "chapter 04"),
        (replace("# A chapter", "# 07 · A chapter"), "# 0"),
        (replace("![A cat]", "See [Flow](vae.ipynb). ![A cat]"), "not the title of vae.ipynb"),
        (replace("![A cat]", "See [DDPM](none.ipynb). ![A cat]"), "not the title of none.ipynb"),
        (store_an_image, "not printed text"),
        (forget_a_line, "make checks"),
        (replace("check(", "print("), "do not go together"),
        (repeat_an_id, "same id"),
        (drop_a_solution, "do not match"),
        (replace("<details>", ""), "does not fold"),
    ],
)
@pytest.mark.filterwarnings("ignore::nbformat.validator.DuplicateCellId")
def test_the_contract_refuses(spoil: Callable[[Chapter], None], said: str) -> None:
    chapter = a_chapter()
    spoil(chapter)
    assert any(said in fault for fault in faults(chapter)), faults(chapter)
