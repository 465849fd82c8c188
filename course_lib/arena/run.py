r"""Run the arena: one notebook for each family, field and seed, several at a time, and one table of it all.

A run's files are in ``<folder>/<profile>-<state of the code>/``: its notebook as it ran, its rows, its looks
during training, and some samples. A run whose rows are there is not run again; one that failed is.
"""

import csv
import hashlib
import multiprocessing
import os
import platform
import random
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import nbformat
import numpy as np
import papermill
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm
from traitlets.config import Config

from course_lib.arena.families import Family
from course_lib.arena.field import FIELDS
from course_lib.arena.yardstick import FAMILIES, Looks, budget, draw, rows
from course_lib.book import profiles
from course_lib.require import require_count

LIBRARY = Path(__file__).resolve().parents[1]
NOTEBOOK = Path(__file__).with_name("run.ipynb")
FIRST_SEED = 100  # lower ones served for tuning, and are not measured
FOLDER = Path("runs/arena")
VERSIONS = ("torch", "torchvision", "accelerate", "numpy", "scipy", "scikit-learn", "torchdiffeq")
KEPT = 500  # samples of the first sampler that are kept for the pictures


class Entry(NamedTuple):
    """One run: a family on a field with a seed."""

    place: str
    family: str
    seed: int

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.place}-{re.sub('[^a-z]+', '-', self.family.lower())}-{self.seed}"


class Results(NamedTuple):
    """All rows, all looks (a look is a row with seconds and quality), and where the runs' files are."""

    rows: list[dict]
    looks: list[dict]
    folder: Path


def arena(
    profile: str | None = None,
    *,
    folder: str | Path = FOLDER,
    fields: Sequence[str] | None = None,
    families: Sequence[str] = tuple(FAMILIES),
    seeds: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Results:
    """Run what has not been run yet, and return the table, which it also writes: ``rows.csv``, ``looks.csv``.

    Args:
        profile: as for `course_lib.book.profiles.start`.
        folder: where the runs are kept.
        fields: names of `course_lib.arena.field.FIELDS`; by default points and digits, in ``full`` points,
            MNIST and Fashion-MNIST.
        families: names of `course_lib.arena.yardstick.FAMILIES`.
        seeds: how many, from `FIRST_SEED`; by default 2 in ``smoke``, 4 in ``book``, 3 in ``full``.
        workers: runs at a time; by default one a core, and one in all with a GPU.
        progress: show a bar on standard output.

    A run that fails is a row whose `status` says why, with no figures.

    Raises:
        ValueError: a name is unknown, or a number is not one of at least 1.
        RuntimeError: the library's files have changed since they were imported.
    """
    profile, device = profiles.start(profile)[:2]
    if fields is None:
        fields = ("points", "mnist", "fashion-mnist") if profile == "full" else ("points", "digits")
    if seeds is None:
        seeds = profiles.Run(profile, device, 0).pick(smoke=2, book=4, full=3)
    if workers is None:
        workers = 1 if device.type == "cuda" else _cores()
    for name, given, known in (("fields", fields, FIELDS), ("families", families, FAMILIES)):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"{name} must be among {', '.join(known)}; got {', '.join(unknown)}")
    require_count("seeds", seeds)
    require_count("workers", workers)
    if fingerprint() != CODE:
        raise RuntimeError("the files of course_lib have changed since their import: restart the kernel")
    here = Path(folder) / f"{profile}-{CODE}"
    here.mkdir(parents=True, exist_ok=True)
    numbers = range(FIRST_SEED, FIRST_SEED + seeds)
    entries = [Entry(p, f, s) for s in numbers for p in fields for f in families]
    random.Random(0).shuffle(entries)  # so that no two families are neighbours on the machine every time
    left = [entry for entry in entries if not finished(here, entry)]
    for _ in tqdm(
        _work(left, profile, here, workers),
        total=len(left), disable=not (progress and left), file=sys.stdout, unit="run",
    ):  # fmt: skip
        pass
    order = lambda row: (fields.index(row["place"]), list(families).index(row["family"]), row["seed"])
    found = [row for entry in entries for row in read(here / f"{entry.name}.csv")]
    looks = [row for entry in entries for row in read(here / f"{entry.name}.looks.csv")]
    results = Results(sorted(found, key=order), sorted(looks, key=order), here)
    write(here / "rows.csv", results.rows)
    write(here / "looks.csv", results.looks)
    return results


def fingerprint() -> str:
    """A short hash of the library and of the versions of what it stands on."""
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in VERSIONS).encode())
    for path in sorted(p for p in LIBRARY.rglob("*") if p.suffix in (".py", ".pt", ".ipynb")):
        digest.update(f"\0{path.relative_to(LIBRARY).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


CODE = fingerprint()  # of what this process runs, whatever becomes of the files


def finished(folder: Path, entry: Entry) -> bool:
    """Whether a run's rows are there, whole, and it had not failed."""
    found = read(folder / f"{entry.name}.csv")
    return bool(found) and all(row.get("status") == "ok" for row in found)


def save(model: Family, looks: Looks, folder: str | Path, entry: Entry) -> list[dict]:
    """Measure a trained family, write its looks, its samples and its rows, and return the rows."""
    base, about = Path(folder) / entry.name, _about(entry, model.run.profile)
    about |= {f"budget_{name}": value for name, value in budget(model.field, model.run)._asdict().items()}
    about["threads"] = torch.get_num_threads()
    found = [{**about, **row, "status": "ok"} for row in rows(model, looks)]  # a cut row has no status
    np.save(base.with_suffix(".npy"), draw(model, next(iter(model.samplers())), KEPT).numpy())
    told = [dict(zip(Looks._fields, look, strict=True)) for look in zip(*looks, strict=True)]
    write(base.with_suffix(".looks.csv"), [{**entry._asdict(), **look} for look in told])
    write(base.with_suffix(".csv"), found)
    return found


def write(path: Path, table: list[dict]) -> None:
    """Write a table, whole or not at all; a column that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in table for name in row))
    part = path.with_suffix(f".{os.getpid()}.part")  # another process may write the same table
    with part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(table)
    part.replace(path)


def read(path: Path) -> list[dict]:
    """Read a table; a number is a number again, and what is empty or cut off is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf8") as file:
        return [{k: _number(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    """The library's commit; empty where it is no checkout, or where there is no git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        said = subprocess.run(describe, cwd=LIBRARY, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _about(entry: Entry, profile: str) -> dict:
    """What a row says of its run."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        **entry._asdict(),
        "profile": profile,
        "code": CODE,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in VERSIONS},
        "machine": machine,
    }


class Here(Engine):
    """Papermill's engine that runs cells in this process: what they import is imported already."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name: str, **options) -> None:
        shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != "code":
                continue
            nb_man.cell_start(cell, index)
            with capture_output() as told:
                done = shell.run_cell(cell.source)
            said = {"stdout": told.stdout, "stderr": told.stderr}
            output = nbformat.v4.new_output
            cell.outputs = [output("stream", name=name, text=text) for name, text in said.items() if text]
            cell.outputs += [
                output("display_data", data=o.data, metadata=o.metadata or {}) for o in told.outputs
            ]
            if error := done.error_before_exec or done.error_in_exec:
                trace = traceback.format_exception(error)
                cell.outputs.append(
                    output("error", ename=type(error).__name__, evalue=str(error), traceback=trace)
                )
                nb_man.cell_exception(cell, index)
                return
            nb_man.cell_complete(cell, index)


def run_one(entry: Entry, profile: str, folder: Path) -> None:
    """One run, in a process of its own; where it fails, its row says why."""
    papermill_engines.register("here", Here)
    try:
        papermill.execute_notebook(
            NOTEBOOK,
            folder / f"{entry.name}.ipynb",
            {**entry._asdict(), "profile": profile, "folder": str(folder)},
            engine_name="here",
            kernel_name="python3",
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        _failed(entry, profile, folder, f"{error.ename}: {error.evalue}")


def _failed(entry: Entry, profile: str, folder: Path, why: str) -> None:
    write(folder / f"{entry.name}.csv", [{**_about(entry, profile), "status": why}])


def _work(left: list[Entry], profile: str, folder: Path, workers: int) -> Iterator[Entry]:
    """Run all of these, so many at a time; yields each when it has ended.

    Each run has a process of its own, forked from one that has imported the libraries: they take longer to
    import than a small run takes.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["course_lib.arena.run", "course_lib.book.show"])
    waiting, going = list(left), {}
    while waiting or going:
        while waiting and len(going) < workers:
            entry = waiting.pop(0)
            process = context.Process(target=run_one, args=(entry, profile, folder))
            # A new process runs the file of `__main__` again, to find there what it is to call. What it is
            # to call is in this module, and the file may be a script that calls `arena`: hide it.
            with patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
                process.start()
            going[process.sentinel] = entry, process
        for sentinel in wait(list(going)):
            entry, process = going.pop(sentinel)
            process.join()
            if process.exitcode:
                code = process.exitcode
                killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
                _failed(entry, profile, folder, killed or f"ended with exit code {code}")
            yield entry
