"""Train a model of `course_lib.pretrained` and store its weights: `python -m tools.weights NAME`."""

import argparse
import sys
import time

import torch

from course_lib import pretrained
from course_lib.book.runs import here
from tools.notebooks import ROOT


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make weights", description=__doc__)
    parser.add_argument("name", choices=pretrained.NAMES)
    parser.add_argument("--data", default=ROOT / "data", help="the folder that downloaded data are in")
    chosen = parser.parse_args(arguments)
    module, partial = pretrained.module(chosen.name), ROOT / "runs" / "weights" / f"{chosen.name}.pt"
    partial.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    begin = time.process_time()
    model = module.fit(chosen.data, checkpoint=partial).eval()
    about = {"processor seconds": round(time.process_time() - begin), **here()}
    about |= module.measure(model, chosen.data)
    path = pretrained.store(chosen.name, model, about)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")
    for name, value in about.items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
