r"""Runs of an experiment: each in a process of its own, several at a time, each with a file that is whole.

A run that is killed, or that fails, is one row, whose `status` says why; the others go on. Files are kept, so
that runs which are there already are not made again.
"""

import importlib
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_lib.training.device import seed_everything

VERSIONS = ("torch", "torchvision", "accelerate", "numpy", "scipy", "scikit-learn", "torchdiffeq")

Row = dict[str, Any]


class Job(NamedTuple):
    """One run: a setting of an experiment, with a seed."""

    module: str
    setting: dict[str, Any]
    seed: int

    @property
    def words(self) -> str:
        """What is run, to be read."""
        return ", ".join([*(str(value) for value in self.setting.values()), f"seed {self.seed}"])

    @property
    def file(self) -> str:
        """The name of its file. Settings whose words are alike differ in the number."""
        number = zlib.crc32(json.dumps(self.setting, sort_keys=True).encode())
        return f"{re.sub('[^a-z0-9]+', '-', self.words.lower())}-{number:08x}.npz"


class Made(NamedTuple):
    """A run's rows, and where they come from."""

    rows: list[Row]
    about: dict[str, Any]

    @property
    def failed(self) -> bool:
        return any(row["status"] != "ok" for row in self.rows)


def compute(job: Job) -> list[Row]:
    """Make a run in this process, which it seeds; returns its rows, with plain values."""
    seed_everything(job.seed)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # a run a core; and a clock adds up the seconds of all threads
    rows = list(importlib.import_module(job.module).run(job.seed, **job.setting))
    if not rows:
        raise ValueError("run must return rows; it has returned none")
    if taken := {"seed", "status", "processor_seconds", *job.setting} & set().union(*rows):
        raise ValueError(f"run must return rows without the columns {sorted(taken)}")
    return [{k: plain(k, v) for k, v in row.items() if v is not None and str(v)} for row in rows]


def plain(name: str, value: Any) -> Any:
    """A number, a text or an array of a row, as Python's or NumPy's own.

    Raises:
        TypeError: it is something else, or a text that a table would give back as a number.
    """
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    value = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    value = int(value) if isinstance(value, bool) else value
    if isinstance(value, int | float | np.ndarray) or (isinstance(value, str) and number(value) == value):
        return value
    raise TypeError(f"{name} must be a number, a text that is no number, or an array; got {value!r}")


def split(rows: list[Row]) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows without their arrays, and these by their place, such as ``"3 samples"``."""
    is_array = lambda value: isinstance(value, np.ndarray)
    arrays = {f"{i} {k}": v for i, row in enumerate(rows) for k, v in row.items() if is_array(v)}
    return [{k: v for k, v in row.items() if not is_array(v)} for row in rows], arrays


def join(rows: list[Row], arrays: Mapping[str, np.ndarray]) -> None:
    """Put arrays back to where `split` took them from."""
    for place, value in arrays.items():
        i, _, column = place.partition(" ")
        rows[int(i)][column] = value


def number(text: str) -> int | float | str:
    """What a text of a table stands for."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def work(jobs: list[Job], folder: Path, workers: int) -> Iterator[tuple[int, list[Job]]]:
    """Make all of these runs; yields how many have ended since it last did, and those that are going on.

    Each run has a process of its own, forked from one that has imported the libraries: they take longer to
    import than a small run takes. The order is shuffled, so that no two runs are neighbours on the machine
    with every seed.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(sorted({__name__, *(job.module for job in jobs)}))
    waiting, going, ended = random.Random(0).sample(jobs, len(jobs)), {}, []
    try:
        while waiting or going:
            while waiting and len(going) < workers:
                job = waiting.pop(0)
                process = context.Process(target=run_one, args=(job, folder / job.file))
                # A new process runs the file of `__main__` again, to find there what it is to call. That is
                # in this module, and the file may be a script that calls this function: hide it.
                main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
                try:
                    process.start()
                finally:
                    sys.modules["__main__"] = main
                going[process.sentinel] = job, process
            yield len(ended), [job for job, _ in going.values()]
            ended = wait(list(going))
            for sentinel in ended:
                job, process = going.pop(sentinel)
                process.join()
                if code := process.exitcode:
                    killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
                    save(folder / job.file, job, [{"status": killed or f"ended with exit code {code}"}])
        yield len(ended), []
    finally:
        for _, process in going.values():
            process.terminate()


def run_one(job: Job, path: Path) -> None:
    """Make a run and write its file; where it fails, its row says why, and a text beside it where."""
    begin = time.process_time()
    try:
        rows = compute(job)
    except Exception as error:
        path.with_suffix(".txt").write_text(traceback.format_exc(), "utf8")
        rows = [{"status": f"{type(error).__name__}: {error}"}]
    save(path, job, rows, time.process_time() - begin)


def save(path: Path, job: Job, rows: list[Row], seconds: float = 0.0) -> None:
    """Write a run's file, whole or not at all."""
    about = {"job": job._asdict(), "processor_seconds": round(seconds, 3), **here()}
    rest, arrays = split(rows)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, rows=json.dumps([rest, about]), **arrays)
    part.replace(path)


def load(path: Path) -> Made | None:
    """Read a run's file; None where there is none, or where it is torn."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, about = json.loads(file["rows"].item())
            join(rows, {name: file[name] for name in file.files if name != "rows"})
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    begin = about["job"]["setting"] | {"seed": about["job"]["seed"]}
    end = {"processor_seconds": about["processor_seconds"], "status": "ok"}
    return Made([begin | end | row if "status" in row else begin | row | end for row in rows], about)


def here() -> dict[str, Any]:
    """What this process runs on, and with."""
    machine = f"{_processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "machine": machine,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The library's commit; empty where it is no checkout, or where there is no git."""
    describe = ["git", "describe", "--always", "--dirty= with changes", "--abbrev=12"]
    try:
        said = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def _processor() -> str:
    """Its name, where Linux tells it, or its kind."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", told.read_text() if told.exists() else "", re.M)
    return names[0] if names else platform.processor() or platform.machine()
