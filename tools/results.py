"""Make an experiment's missing runs and store its table: `python -m tools.results NAME [--workers …]`."""

import argparse
import sys

from course_lib.book import results
from tools.notebooks import ROOT


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make results", description=__doc__)
    parser.add_argument("name", metavar="NAME", choices=results.names())
    parser.add_argument("--workers", type=int)
    chosen = parser.parse_args(arguments)
    try:
        made = results.compute(
            chosen.name, folder=ROOT / results.FOLDER, workers=chosen.workers, progress=True
        )
    except ValueError as error:
        parser.error(str(error))
    table = results.store(made)
    failed = [row for row in made.rows if row["status"] != "ok"]
    print(f"{table.relative_to(ROOT)}: {len(made.rows)} rows. {made.provenance}")
    for row in failed:
        print({name: value for name, value in row.items() if name != "processor_seconds"}, file=sys.stderr)
    if failed:
        sys.exit(f"Runs that failed: {len(failed)}. The same command makes them again.")


if __name__ == "__main__":
    main(sys.argv[1:])
