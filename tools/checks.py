"""Run chapters in the smoke profile and store what their checks print, and nothing else.

`python -m tools.checks [NAME…]`: all chapters, or those of these names, such as gmm_em.
"""

import copy
import os
import sys

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.notebooks import ROOT, Chapter, read_all, tags


def store(chapter: Chapter) -> None:
    """Execute a chapter and keep the outputs of the cells tagged ``check``."""
    ran = copy.deepcopy(chapter.notebook)
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(ran, kernel_name="python3", resources=where, coalesce_streams=True).execute()
    for cell, done in zip(chapter.notebook.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            kept = "check" in tags(cell)
            cell.outputs = done.outputs if kept else []
            cell.execution_count = done.execution_count if kept else None
    chapter.write(ROOT / "notebooks" / f"{chapter.name}.ipynb")


def main(names: list[str]) -> None:
    os.environ["COURSE_PROFILE"] = "smoke"
    known = {chapter.name: chapter for chapter in read_all()}
    if unknown := [name for name in names if name not in known]:
        print(f"make checks: CHAPTER must be one of {', '.join(known)}; got {unknown[0]!r}", file=sys.stderr)
        sys.exit(2)
    for name in names or known:
        try:
            store(known[name])
        except CellExecutionError as error:
            sys.exit(f"notebooks/{name}.ipynb, nothing stored: {error}")
        print(f"notebooks/{name}.ipynb: {len(known[name].verified())} checks stored")


if __name__ == "__main__":
    main(sys.argv[1:])
