"""Run one chapter with parameters into ``runs/``: `python -m tools.run gmm_em [--profile …]`."""

import argparse
import sys
from typing import NoReturn

import papermill
from papermill.exceptions import PapermillExecutionError

from course_lib.book.profiles import PROFILES, start
from course_lib.training.data import NAMES
from tools.notebooks import ROOT, read_all


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"make run: {message}\n")


def seed(value: str) -> int:
    try:
        return start(seed=int(value)).seed
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer in [0, 2**32); got {value!r}") from None


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__)
    names = [chapter.name for chapter in read_all(ROOT)]
    parser.add_argument("chapter", choices=names, metavar="CHAPTER")
    parser.add_argument("--profile", choices=PROFILES, metavar="PROFILE")
    parser.add_argument("--dataset", choices=NAMES, metavar="DATASET")
    parser.add_argument("--seed", type=seed, default=0, metavar="SEED")
    chosen = parser.parse_args(arguments)
    try:
        profile = start(chosen.profile).profile
    except ValueError as error:
        parser.error(f"COURSE_PROFILE: {error}")

    parts = [chosen.chapter, profile, chosen.dataset, f"seed{chosen.seed}"]
    out = ROOT / "runs" / f"{'-'.join(filter(None, parts))}.ipynb"
    out.parent.mkdir(exist_ok=True)
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{chosen.chapter}.ipynb",
            out,
            {"profile": profile, "seed": chosen.seed, "dataset": chosen.dataset},
            kernel_name="python3",
            cwd=ROOT / "notebooks",
        )
    except PapermillExecutionError as error:
        print(
            f"notebooks/{chosen.chapter}.ipynb, code cell {error.exec_count}, which begins with "
            f"{error.source.splitlines()[0]!r}: {error.ename}: {error.evalue}\n"
            f"The part that ran is {out.relative_to(ROOT)}",
            file=sys.stderr,
        )
        sys.exit(1)
    print(f"{out.relative_to(ROOT)}: run in the {profile} profile")


if __name__ == "__main__":
    main(sys.argv[1:])
