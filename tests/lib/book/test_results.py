"""Experiments that are computed once: their runs, their stored tables, and what is refused."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats

from course_lib.book import checks, results, runs

pytestmark = pytest.mark.slow

EXPERIMENTS = {
    "draws": '''
        """Random numbers of all kinds."""
        import random
        import numpy as np
        import torch
        SETTINGS = [{"scale": 1.0, "kind": "a, b"}, {"scale": 2.0, "kind": "a b"}]
        SEEDS = range(3)

        def run(seed, scale, kind):
            x = scale * torch.rand(5)
            return [{"sampler": name, "x": x[i], "python": random.random(), "numpy": np.random.rand(),
                     "none": None, "nan": float("nan"), "rows": len(x), "path": x if i else None}
                    for i, name in enumerate(("first", "second"))]
        ''',
    "faulty": """
        import os, signal
        from pathlib import Path
        SETTINGS = [{"fault": f} for f in ("none", "error", "killed", "left", "object", "reserved", "empty")]
        SEEDS = [1]

        def run(seed, fault):
            if Path("mended").exists():
                return [{"x": 1}]
            if fault == "error":
                raise ZeroDivisionError("by nothing")
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "left":
                os._exit(3)
            rows = {"object": [{"x": object()}], "reserved": [{"seed": 2}], "empty": []}
            return rows.get(fault, [{"x": 1}])
        """,
    "slow": """
        import time
        from pathlib import Path
        SETTINGS = [{"log": "log.txt"}]
        SEEDS = range(3)

        def run(seed, log):
            with Path(log).open("a") as file:
                file.write(f"{seed}\\\\n")
            if len(Path(log).read_text().split()) > 1 and not Path("fast").exists():
                time.sleep(600)
            return [{"x": seed}]
        """,
}
SCRIPT = """
import sys
sys.path.insert(0, {home!r})
from course_lib.book import results
results.EXPERIMENTS = "trials"
results.compute("slow", folder="runs", workers=1)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of experiments, as old as a package is that was installed before the program began."""
    package = tmp_path_factory.mktemp("home") / "trials"
    package.mkdir()
    for name, text in {"__init__": "", **EXPERIMENTS}.items():
        lines = text.replace("\\\\n", "\\n").split("\n")
        (package / f"{name}.py").write_text("\n".join(line.removeprefix("        ") for line in lines))
        os.utime(package / f"{name}.py", (0, 0))
    return package.parent


@pytest.fixture(autouse=True)
def trials(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr(results, "EXPERIMENTS", "trials")
    monkeypatch.setattr(results, "STORED", tmp_path)
    monkeypatch.chdir(tmp_path)


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("processor_seconds", "path")} for row in rows]


def same(rows: list[dict], others: list[dict]) -> bool:
    return json.dumps(without_time(rows)) == json.dumps(without_time(others))  # where NaN is NaN


# Runs


def test_runs_are_those_of_a_function_called_with_its_seed(tmp_path: Path) -> None:
    found = results.compute("draws", folder=tmp_path, workers=2)
    assert [(row["scale"], row["seed"]) for row in found.rows[::2]] == [
        (c, s) for c in (1, 2) for s in range(3)
    ]
    row = found.rows[-1]
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    x, first = 2 * torch.rand(5), (random.random(), np.random.rand())
    assert row["x"] == x[1].item() and np.array_equal(row["path"], x.numpy()) and row["rows"] == 5
    assert found.rows[-2]["python"] == first[0] and found.rows[-2]["numpy"] == first[1]
    assert row["sampler"] == "second" and row["status"] == "ok" and row["processor_seconds"] > 0
    assert "none" not in row and math.isnan(row["nan"]) and "path" not in found.rows[0]
    about = found.about
    assert about["threads"] == "1" and about["torch"] == version("torch") and about["runs"] == 6
    assert about["processor_seconds"] == pytest.approx(
        sum(r["processor_seconds"] for r in found.rows[::2]), abs=0.1
    )
    assert about["code"] in next(tmp_path.iterdir()).name and "seeds 0 to 2" in found.provenance


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    before = results.compute("draws", folder=tmp_path, workers=1)
    files = sorted(tmp_path.glob("*/*.npz"))
    stamps = {path: path.stat().st_mtime_ns for path in files}
    files[2].unlink()
    files[3].write_bytes(files[3].read_bytes()[:-20])  # as a full disk leaves it
    after = results.compute("draws", folder=tmp_path, workers=1)
    assert [path for path in files if path.stat().st_mtime_ns != stamps[path]] == files[2:4]
    assert same(before.rows, after.rows)
    more = results.compute(
        "draws", seeds=[7], settings=[{"scale": 3, "kind": "c"}], folder=tmp_path, workers=1
    )
    assert [row["kind"] for row in more.rows] == ["c", "c"] and len(list(tmp_path.iterdir())) == 1


def test_a_failure_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    found = results.compute("faulty", folder=tmp_path / "runs", workers=2)
    status = {row["fault"]: row["status"] for row in found.rows}
    assert status == {
        "none": "ok",
        "error": "ZeroDivisionError: by nothing",
        "killed": "killed by SIGKILL",
        "left": "ended with exit code 3",
        "object": status["object"],
        "reserved": "ValueError: run must return rows without the columns ['seed']",
        "empty": "ValueError: run must return rows; it has returned none",
    }
    assert status["object"].startswith("TypeError: x must be a number")
    assert found.select() == found.select(x=1) == [row for row in found.rows if "x" in row]
    (trace,) = tmp_path.glob("runs/*/error-*.txt")
    assert 'raise ZeroDivisionError("by nothing")' in trace.read_text()
    Path("mended").touch()
    again = results.compute("faulty", folder=tmp_path / "runs", workers=2)
    assert [row["x"] for row in again.select()] == [1] * 7


def test_a_program_that_is_killed_goes_on_where_it_was(home: Path, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(home=str(home))], cwd=tmp_path, start_new_session=True
    )
    log, end = tmp_path / "log.txt", time.monotonic() + 300
    begun = lambda: log.read_text().split() if log.exists() else []
    while len(begun()) < 2 and program.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(program.pid, signal.SIGKILL)  # with the run that goes on, and the server of processes
    program.wait()
    done, cut = begun()
    (tmp_path / "fast").touch()
    found = results.compute("slow", folder=tmp_path / "runs", workers=1)
    assert [row["x"] for row in found.select()] == [0, 1, 2]
    assert begun().count(done) == 1 and begun().count(cut) == 2 and len(begun()) == 4


def test_a_torn_file_is_not_read(tmp_path: Path) -> None:
    job = runs.Job("trials.draws", {"scale": 1.0}, 0)
    runs.save(tmp_path / "whole.npz", job, [{"x": 1.0, "path": np.arange(3)}])
    whole = (tmp_path / "whole.npz").read_bytes()
    assert runs.load(tmp_path / "whole.npz").rows[0]["x"] == 1
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        (tmp_path / "torn.npz").write_bytes(whole[:length])
        assert runs.load(tmp_path / "torn.npz") is None, length
    assert runs.load(tmp_path / "none.npz") is None


def test_a_script_that_computes_is_not_run_again_by_its_processes(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "script.py").write_text("open(__file__ + '.ran', 'w')")
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert results.compute("draws", seeds=[0], folder=tmp_path, workers=1).rows[0]["status"] == "ok"
    assert not (tmp_path / "script.py.ran").exists()


def test_files_of_settings_differ() -> None:
    jobs = [runs.Job("m", s, 0) for s in ({"a": "x, y"}, {"a": "x y"}, {"b": "x y"}, {"a": 1}, {"a": "1"})]
    assert len({job.file for job in jobs}) == 5
    assert not any(set(job.file) & set(" ,/") for job in jobs)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    assert runs._commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs._commit() == ""


def test_bad_calls_are_refused(home: Path) -> None:
    for bad, said in (
        ({"name": "none"}, "name must be one of draws, faulty, slow; got 'none'"),
        ({"workers": 0}, "workers must be an integer"),
        ({"seeds": []}, "settings and seeds must not be empty"),
        ({"settings": []}, "settings and seeds must not be empty"),
    ):
        with pytest.raises(ValueError, match=said):
            results.compute(**{"name": "draws", "folder": "never", **bad})
    (home / "trials" / "slow.py").touch()
    with pytest.raises(RuntimeError, match=r"slow\.py has changed since it was imported"):
        results.compute("slow", folder="never")
    os.utime(home / "trials" / "slow.py", (0, 0))
    assert not Path("never").exists()


# Tables


@pytest.fixture
def table(tmp_path: Path) -> results.Results:
    found = results.compute("draws", folder=tmp_path, workers=1)
    assert results.store(found).read_text().startswith("scale,kind,seed,sampler,x,")
    return found


def test_a_table_comes_back(table: results.Results) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = results.read("draws")
    assert back.name == "draws" and back.about == table.about and back.provenance == table.provenance
    for row, kept in zip(table.rows, back.rows, strict=True):
        assert row.keys() == kept.keys() and kept["x"] == float(f"{row['x']:.6g}")
        assert {k: row[k] for k in ("seed", "kind", "rows", "sampler")}.items() <= kept.items()
        assert "path" not in row or np.array_equal(row["path"], kept["path"])
    assert len(back.select(kind="a, b", sampler="first")) == 3


def test_a_table_of_other_code_is_told(table: results.Results, home: Path) -> None:
    file = home / "trials" / "draws.py"
    text = file.read_text()
    try:
        file.write_text(text.replace('"""Random', '"""Quite random'))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.read("draws")
        file.write_text(text.replace("scale * torch", "scale + torch"))
        with pytest.warns(UserWarning, match="`make results NAME=draws` makes it again"):
            results.read("draws")
    finally:
        file.write_text(text)
        os.utime(file, (0, 0))


def test_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="'slow' is not stored; `make results NAME=slow` makes it"):
        results.read("slow")


# A small part again


def test_recomputed_runs_are_the_same_and_leave_no_trace(table: results.Results) -> None:
    torch.set_default_dtype(torch.float64)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    try:
        rows = results.recompute("draws", settings=[{"scale": 2.0, "kind": "a b"}], seeds=[1, 2])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    kept = [{k: v for k, v in row.items() if k != "status"} for row in without_time(table.rows[8:])]
    assert same(rows, kept)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (5, 2)])
def test_new_figures_differ_by_more_than_allowed_as_often_as_said(monkeypatch, n: int, k: int) -> None:
    monkeypatch.setattr(results, "LEVEL", 0.05)
    rng, repeats, apart = np.random.default_rng(0), 3000, 0
    for x in rng.normal(3, 2, (repeats, n + k)):
        rows = [{"seed": i, "x": v, "status": "ok"} for i, v in enumerate(x)]
        got, want, se = results.compare(results.Results("", rows[:n], {}), rows[n:], of=[], columns=["x"])
        apart += abs(got - want)[0] > 5 * se[0]
    assert stats.binomtest(apart, repeats, 0.05).pvalue > 1e-5


def test_comparison_of_entries(table: results.Results) -> None:
    fresh = results.recompute("draws", settings=[{"scale": 2.0, "kind": "a b"}], seeds=[8])
    found = results.compare(table, fresh, of=["scale", "sampler"], columns=["x", "rows", "nan"])
    assert found.got.tolist() == [fresh[0]["x"], 5, fresh[1]["x"], 5]  # what has no figure is left out
    checks.check("draws", *found[:2], by="the table", se=found.se)
    fresh[1]["rows"] = 5.1  # what never varies must be the same
    with pytest.raises(checks.CheckFailed):
        checks.check("draws", *results.compare(table, fresh, of=["scale", "sampler"], columns=["rows"])[:2],
                     by="the table", se=found.se[1::2])  # fmt: skip
    for rows, of in ((fresh, ["kind"]), (fresh, ["scale", "sampler", "none", "x"]), (table.rows, ["scale"])):
        with pytest.raises(ValueError, match="table must have at least two seeds"):
            results.compare(table, rows, of=of, columns=["x"])
