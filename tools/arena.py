"""Run what is missing of the arena: `python -m tools.arena [--profile …] [--workers …]`."""

import argparse
import sys

from course_lib.arena.run import arena
from course_lib.book.profiles import PROFILES
from tools.notebooks import ROOT


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make arena", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES)
    parser.add_argument("--workers", type=int)
    chosen = parser.parse_args(arguments)
    folder = ROOT / "notebooks" / "runs" / "arena"  # where its chapter looks
    try:
        found = arena(chosen.profile, folder=folder, workers=chosen.workers, progress=True)
    except ValueError as error:
        parser.error(str(error))
    failed = [row for row in found.rows if row["status"] != "ok"]
    table = (found.folder / "rows.csv").relative_to(ROOT)
    print(f"{table}: {len(found.rows)} rows, {len(failed)} of runs that failed")
    for row in failed:
        print(f"{row['family']} on {row['place']}, seed {row['seed']}: {row['status']}")


if __name__ == "__main__":
    main(sys.argv[1:])
