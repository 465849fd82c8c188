r"""Results that are computed once: an experiment's table, stored in the package with where it came from.

``make results NAME=em_starts`` makes the runs of `course_lib.book.experiments.em_starts` and stores
``stored/em_starts.csv``, with its provenance and its arrays beside it. A page reads it:

>>> table = read("em_starts")
>>> len(table.select(init="random"))
20

A table belongs to the code that made it: `course_lib.book.fingerprint` follows that from the experiment's
settings, seeds and `run`. A table of other code is read with a warning, and the library's tests refuse it.
"""

import csv
import importlib
import json
import math
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from tqdm import tqdm

from course_lib.book import runs
from course_lib.book.fingerprint import Code, fingerprint
from course_lib.book.runs import Job, Row
from course_lib.require import require_count
from course_lib.training.device import random_states, set_random_states

EXPERIMENTS = "course_lib.book.experiments"
STORED = Path(__file__).parents[1] / "stored"
FOLDER = Path("runs/results")
LEVEL = 1e-4  # how often a figure that is computed again may differ by chance more than is allowed
IMPORTED = time.time()


class Results(NamedTuple):
    """The rows of an experiment's runs, and where they come from.

    A row has its setting, its seed, what the run returned, the `processor_seconds` that the whole run took,
    and its `status`: ``"ok"``, or why the run failed; then it has no figures.
    """

    name: str
    rows: list[Row]
    about: dict[str, Any]

    def select(self, **wanted: Any) -> list[Row]:
        """The rows with these values, without those of failed runs.

        Examples:
            >>> rows = [{"a": 1, "b": 2, "status": "ok"}, {"a": 2, "b": 3, "status": "ok"}]
            >>> Results("toy", rows, {}).select(a=2)
            [{'a': 2, 'b': 3, 'status': 'ok'}]
        """
        good = (row for row in self.rows if row["status"] == "ok")
        return [row for row in good if all(row.get(name) == value for name, value in wanted.items())]

    @property
    def provenance(self) -> str:
        """When, where and with what it was computed, as a sentence."""
        about, seeds = self.about, sorted({row["seed"] for row in self.rows})
        told = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
        return (
            f"Computed on {about['date']}: {about['runs']} runs, seeds {told}, "
            f"{_long(about['processor_seconds'])} of processor time on {about['machine']}, "
            f"threads a run: {about['threads']}. "
            f"Commit {about['commit'] or 'unknown'}, code {about['code']}, Python {about['python']}, "
            + ", ".join(f"{name} {about[name]}" for name in runs.VERSIONS)
            + "."
        )


def names() -> list[str]:
    """All experiments that there are."""
    home = importlib.import_module(EXPERIMENTS)
    return sorted(found.name for found in pkgutil.iter_modules(home.__path__))


def experiment(name: str) -> ModuleType:
    """The module of an experiment.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}; got {name!r}")
    return importlib.import_module(f"{EXPERIMENTS}.{name}")


def code(name: str) -> Code:
    """The hash of all that an experiment's runs depend on."""
    module = experiment(name).__name__
    package = sys.modules[module.partition(".")[0]]
    return fingerprint(module, ("SETTINGS", "SEEDS", "run"), Path(package.__file__).parent)


def read(name: str) -> Results:
    """Read a stored table.

    Warns:
        UserWarning: it was made by other code than this.

    Raises:
        ValueError: there is no such experiment, or its table has not been made.
    """
    experiment(name)
    base = STORED / name
    if not base.with_suffix(".json").exists():
        raise ValueError(f"name: the table of {name!r} is not stored; `make results NAME={name}` makes it")
    about = json.loads(base.with_suffix(".json").read_text("utf8"))
    with base.with_suffix(".csv").open(newline="", encoding="utf8") as file:
        rows = [{k: runs.number(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    if base.with_suffix(".npz").exists():
        with np.load(base.with_suffix(".npz"), allow_pickle=False) as arrays:
            runs.join(rows, arrays)
    if about["code"] != code(name).hash:
        warnings.warn(
            f"the table of {name!r} was made by other code; `make results NAME={name}` makes it again",
            stacklevel=2,
        )
    return Results(name, rows, about)


def compute(
    name: str,
    *,
    settings: Iterable[Mapping[str, Any]] | None = None,
    seeds: Sequence[int] | None = None,
    folder: str | Path = FOLDER,
    workers: int | None = None,
    progress: bool = False,
) -> Results:
    """Make the runs of an experiment that have not been made yet, and return all rows.

    Args:
        name: of a module in `course_lib.book.experiments`.
        settings: of the runs; by default the experiment's own.
        seeds: each setting is run with each of them; by default the experiment's own.
        folder: where each experiment's runs are kept, in a folder for each state of the code.
        workers: runs at a time; by default one a core, and one in all with a GPU.
        progress: show a bar on standard output, with what is running.

    A run that failed is made again.

    Raises:
        ValueError: there is no such experiment, or no run to make, or a number is not one of at least 1.
        RuntimeError: the experiment's code has changed since it was imported.
    """
    module, made_by = experiment(name), code(name)
    settings = list(module.SETTINGS if settings is None else settings)
    seeds = list(module.SEEDS if seeds is None else seeds)
    workers = (1 if torch.cuda.is_available() else _cores()) if workers is None else workers
    require_count("workers", workers)
    if not settings or not seeds:
        raise ValueError(f"settings and seeds must not be empty; got {settings} and {seeds}")
    if late := [file for file in made_by.files if file.stat().st_mtime > IMPORTED]:
        raise RuntimeError(f"{late[0]} has changed since it was imported: restart the program, or the kernel")
    folder = Path(folder) / f"{name}-{made_by.hash}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [Job(module.__name__, dict(setting), int(seed)) for setting in settings for seed in seeds]
    left = [job for job in jobs if (made := runs.load(folder / job.file)) is None or made.failed]
    bar = {"total": len(jobs), "initial": len(jobs) - len(left), "unit": "run", "file": sys.stdout}
    with tqdm(**bar, disable=not (progress and left)) as shown:
        for ended, going in runs.work(left, folder, workers):
            shown.set_postfix_str("; ".join(job.words for job in going), refresh=False)
            shown.update(ended)
    made = [runs.load(folder / job.file) for job in jobs]
    told = [run.about for run in made if not run.failed] or [run.about for run in made]
    about = {"code": made_by.hash, "runs": len(jobs)}
    about["processor_seconds"] = round(sum(run.about["processor_seconds"] for run in made), 1)
    for key in told[0].keys() - {"job", "processor_seconds"}:  # where runs differ, all that they say
        about[key] = " and ".join(sorted({str(run[key]) for run in told}))
    return Results(name, [row for run in made for row in run.rows], about)


def store(results: Results) -> Path:
    """Write a table into the package: the rows with six digits, their arrays, and where they come from.

    Returns the table's file.
    """
    base = STORED / results.name
    rows, arrays = runs.split(results.rows)
    for kind in (".json", ".npz"):  # until all is written there is no table
        base.with_suffix(kind).unlink(missing_ok=True)
    if arrays:
        np.savez_compressed(base.with_suffix(".npz"), **arrays)
    rows = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    columns = dict.fromkeys(name for row in rows for name in row)
    with base.with_suffix(".csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    about = json.dumps(results.about, indent=1, ensure_ascii=False, sort_keys=True)
    base.with_suffix(".json").write_text(about + "\n", "utf8")
    return base.with_suffix(".csv")


def recompute(name: str, *, settings: Iterable[Mapping[str, Any]], seeds: Iterable[int]) -> list[Row]:
    """Make a few runs here and now, in this process, whose random numbers stay what they were.

    Nothing is read and nothing is kept. Seeds that the table has not give figures to compare with it.
    """
    module = experiment(name).__name__
    jobs = [Job(module, dict(setting), seed) for setting in settings for seed in seeds]
    state, threads, kind = random_states(), torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return [{**job.setting, "seed": job.seed, **row} for job in jobs for row in runs.compute(job)]
    finally:
        torch.set_default_dtype(kind)
        torch.set_num_threads(threads)
        set_random_states(state)


class Comparison(NamedTuple):
    """Figures of new runs, those of the table, and how far they may be apart: see `compare`."""

    got: np.ndarray
    want: np.ndarray
    se: np.ndarray


def compare(table: Results, fresh: Sequence[Row], *, of: Sequence[str], columns: Sequence[str]) -> Comparison:
    r"""New runs beside a table's, for `course_lib.book.checks.check`: their means over seeds, and the error.

    With n seeds in the table, k new ones and the deviation s of the table's, the difference of two means of
    normal numbers stays within :math:`t_{n-1}\, s \sqrt{1/n + 1/k}`, but for one time in 10,000: `se` is a
    fifth of that, so that `check`, which allows five of it, allows as much. A ten-thousandth of the figure
    is added, since the table has six digits and machines round differently.

    Args:
        table: what was stored.
        fresh: what `recompute` returned, with seeds that the table has not.
        of: the columns that say of what a row is, such as ``["family", "sampler"]``.
        columns: of figures. What has no figure, there and here, is left out.

    Raises:
        ValueError: the table has a seed of the new ones, or not two seeds of what they are of, or several
            rows of one seed.

    Examples:
        >>> rows = [{"a": "b", "seed": seed, "x": 2.0 + seed % 2, "status": "ok"} for seed in range(6)]
        >>> new = [{"a": "b", "seed": 9, "x": 2.8}]
        >>> found = compare(Results("toy", rows, {}), new, of=["a"], columns=["x"])
        >>> found.got, found.want, bool(abs(found.got - found.want) < 5 * found.se)
        (array([2.8]), array([2.5]), True)
    """
    found = []
    for entry in dict.fromkeys(tuple(row.get(name) for name in of) for row in fresh):
        wanted = dict(zip(of, entry, strict=True))
        stored = table.select(**wanted)
        new = [row for row in fresh if all(row.get(name) == value for name, value in wanted.items())]
        seeds = {row["seed"] for row in stored}
        if len(seeds) < max(2, len(stored)) or seeds & {row["seed"] for row in new}:
            raise ValueError(
                f"table must have at least two seeds of {wanted}, a row for each, and none of the new ones; "
                f"got {len(stored)} rows of seeds {sorted(seeds)}"
            )
        found += [_compared(stored, new, column) for column in columns]
    got, want, se = np.array(found).T
    known = ~(np.isnan(got) & np.isnan(want))
    return Comparison(got[known], want[known], se[known])


def _compared(stored: list[Row], new: list[Row], column: str) -> tuple[float, float, float]:
    old, now = (np.array([row.get(column, math.nan) for row in rows]) for rows in (stored, new))
    t = special.stdtrit(len(old) - 1, 1 - LEVEL / 2)  # Student's quantile
    allowed = t * old.std(ddof=1) * math.sqrt(1 / len(old) + 1 / len(now)) + 1e-4 * abs(old).max() + 1e-12
    return now.mean(), old.mean(), allowed / 5


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _long(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
