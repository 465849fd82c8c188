"""tools.strip: what a commit keeps of a notebook, and what it drops."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]


def run(*paths):
    command = [sys.executable, "-m", "tools.strip", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def executed(*tags, **metadata):
    outputs = [
        new_output("stream", text="✓ eq-one | autograd | equal\n"),
        new_output("execute_result", data={"text/plain": "1"}, execution_count=7),
    ]
    return new_code_cell("1", execution_count=7, outputs=outputs, metadata={"tags": list(tags), **metadata})


def store(path, *cells, **metadata):
    nbformat.write(new_notebook(cells=list(cells), metadata=metadata), path)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "π.ipynb"


def test_only_check_cells_keep_outputs_and_counts(path):
    before = store(path, new_markdown_cell("text"), executed(), executed("check"), executed("hide-input"))
    assert run(path).returncode == 1
    text, plain, check, hidden = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert text == before["cells"][0]
    assert check == before["cells"][2]
    assert [output["output_type"] for output in check["outputs"]] == ["stream", "execute_result"]
    assert check["execution_count"] == check["outputs"][1]["execution_count"] == 7
    for cell in (plain, hidden):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_no_other_mark_keeps_an_output(path):
    store(path, executed("keep_output"), executed(keep_output=True), executed(init_cell=True))
    run(path)
    assert [cell["outputs"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]] == [[], [], []]


def test_run_time_metadata_goes_and_the_rest_stays(path):
    noise = {"execution": {"iopub.execute_input": "2020"}, "papermill": {"duration": 1.0}, "scrolled": True}
    store(
        path,
        executed("check", **noise),
        papermill={"version": "2"},
        kernelspec={"name": "x", "display_name": "X"},
    )
    run(path)
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["metadata"] == {"kernelspec": {"name": "x", "display_name": "X"}}
    assert after["cells"][0]["metadata"] == {"tags": ["check"]}
    assert len(after["cells"][0]["outputs"]) == 2


def test_ids_and_sources_never_change(path):
    before = store(path, executed(), executed("check"), new_markdown_cell("a\n\nb"))
    run(path)
    after = json.loads(path.read_text(encoding="utf-8"))
    for key in ("id", "source", "cell_type"):
        assert [cell[key] for cell in after["cells"]] == [cell[key] for cell in before["cells"]]


def test_a_notebook_without_ids_gets_none(path):
    notebook = store(path, executed())
    del notebook["cells"][0]["id"]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert run(path).returncode == 1
    assert "id" not in json.loads(path.read_text(encoding="utf-8"))["cells"][0]


def test_a_stripped_notebook_is_not_written_again(path):
    store(path, executed(), executed("check"))
    assert run(path).returncode == 1
    stripped = path.read_bytes()
    nbformat.validate(nbformat.read(path, as_version=4))
    assert stripped.endswith(b"}\n") and "✓".encode() in stripped
    path.chmod(0o444)
    modified = path.stat().st_mtime_ns
    second = run(path)
    assert (second.returncode, second.stdout) == (0, "")
    assert path.stat().st_mtime_ns == modified and path.read_bytes() == stripped


def test_the_format_is_jupyters_own(path):
    store(path, executed("check"), new_markdown_cell("text"))
    written = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata["scrolled"] = True
    nbformat.write(notebook, path)
    run(path)
    assert path.read_text(encoding="utf-8") == written


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}", '{"nbformat": 3, "worksheets": []}'])
def test_what_is_no_notebook_is_named_and_left_alone(path, text):
    path.write_text(text, encoding="utf-8")
    other = path.with_name("other.ipynb")
    store(other, executed())
    result = run(path, other)
    assert result.returncode == 1 and f"{path.name} must be a notebook" in result.stderr
    assert path.read_text(encoding="utf-8") == text
    assert f"stripped {other}" in result.stdout
