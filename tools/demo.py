#!/usr/bin/env python3
"""The whole project in a few minutes on a CPU: data, two trainings, evaluation, one table.

Builds the embedded data set of synthetic pedestrians; trains a small PS-HRNet in its two phases,
the first of which, HRNet-ReID on HR images, is the HR-only baseline; trains the same network on HR
and LR copies; and compares the three on LR queries. Whatever has been done already is kept: run it
again and only the table is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lrreid_ext.engine.cli import main as train_net
from lrreid_ext.results import Results, results_file, results_table

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "projects" / "PSHRNet"
DATA_SET = "synth_pedestrians"

# Config, and folder below --out.
RUNS = (("synth.yml", "pshrnet"), ("synth_copies.yml", "copies"))

# Name in the table, and folder of its results.
ROWS = (
    ("HR only", "pshrnet/teacher"),
    ("HR and LR copies", "copies"),
    ("PS-HRNet", "pshrnet"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every training ran, else what the failing one returned."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("logs/demo"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder of data sets")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    for config, folder in RUNS:
        out = args.out / folder
        if (out / "model_final.pth").is_file() and _results(out).is_file():
            print(f"== {config}: done before, kept in {out}")
            continue
        print(f"== {config}, into {out}", flush=True)
        resume = ["--resume"] if (out / "last_checkpoint").is_file() else []
        failed = train_net(
            [
                "--config-file", str(PROJECT / config), *resume,
                "DATASETS.ROOT", str(args.data), "OUTPUT_DIR", str(out), *args.opts,
            ]
        )  # fmt: skip
        if failed:
            return failed
    paths = [_results(args.out / folder) for _, folder in ROWS]
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        print(f"error: no results at {', '.join(missing)}; remove {args.out} and run again")
        return 1
    results = [Results.load(path) for path in paths]
    table = results_table(results, names=[name for name, _ in ROWS], style="plain")
    print(f"\n{table}\n")
    for line in verdict(results):
        print(line)
    print(f"\nFigures: {', '.join(str(p) for p in paths)}")
    print(f"This took {(time.perf_counter() - start) / 60:.1f} minutes.")
    return 0


def _results(out: Path) -> Path:
    return out / results_file(DATA_SET)


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
    sys.exit(main())
