#!/usr/bin/env python3
"""The whole project in a few minutes on a CPU: data, two trainings, evaluation, one table.

Builds the embedded data set of synthetic pedestrians; trains a small PS-HRNet in its two phases,
the first of which, HRNet-ReID on HR images, is the HR-only baseline; trains the same network on HR
and LR copies; and compares the three on LR queries. Whatever has been done already is kept: run it
again and only the table is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from lrreid_ext.cli import run_command
from lrreid_ext.engine.sweep import Training, complete
from lrreid_ext.options import add_overrides, pairs
from lrreid_ext.results import Results, results_file, results_table

PROJECT = Path(__file__).resolve().parent.parent / "projects" / "PSHRNet"
DATA_SET = "synth_pedestrians"

# Config, and folder below --out.
TRAININGS = (("synth.yml", "pshrnet"), ("synth_copies.yml", "copies"))

# Name in the table, and folder of its results.
ROWS = (
    ("HR only", "pshrnet/teacher"),
    ("HR and LR copies", "copies"),
    ("PS-HRNet", "pshrnet"),
)

INTERRUPTED = "the same command goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--out", type=Path, default=Path("logs/demo"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder of data sets")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Train, evaluate and print the table."""
    start = time.perf_counter()
    options = {"DATASETS.ROOT": str(args.data), **pairs(args.opts)}
    for config, folder in TRAININGS:
        complete(Training(config, PROJECT / config, options, args.out / folder))
    paths = [args.out / folder / results_file(DATA_SET) for _, folder in ROWS]
    results = [Results.load(path) for path in paths]
    print(f"\n{results_table(results, names=[name for name, _ in ROWS], style='plain')}\n")
    for line in verdict(results):
        print(line)
    print(f"\nFigures: {', '.join(map(str, paths))}")
    print(f"This took {(time.perf_counter() - start) / 60:.1f} minutes.")


def verdict(results: Sequence[Results]) -> list[str]:
    """What the table says of PS-HRNet against each baseline, in words."""
    shots = [r.figure("single_shot/query/Rank-1") for r in results]
    ours = shots[-1]
    lines = []
    for (name, _), other in zip(ROWS, shots[:-1], strict=False):
        assert ours and other  # the demo's set has queries with right answers
        gain = ours.value - other.value
        spread = max(ours.std or 0.0, other.std or 0.0)
        word = "more than" if abs(gain) > spread else "within"
        lines.append(
            f"PS-HRNet against {name}: {gain:+.1f} points of Rank-1 on LR queries, {word} the "
            f"spread over trials ({spread:.1f})"
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(run_command("__main__", "demo.py"))
