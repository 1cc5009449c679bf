"""Whether the gates of a dual-stream backbone learned resolution.

lrreid gates logs/FFSR_RIFE/mlr_cuhk01 --out logs/gates

reads the weights wL and wH of both streams (FFSR + RIFE, Eq. 6) off a trained model, block by
block, on the HR twins of the test queries reduced by several factors, and sets them against the
resolution r of each image (Eq. 7). Says in one line whether wL falls and wH rises with r. Writes
gates_<test set>.csv, .svg, .png, and .json with where the figures came from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from lrreid_ext.errors import ConfigError
from lrreid_ext.options import add_data_set, add_run, at_least
from lrreid_ext.report.plots import write_figure
from lrreid_ext.trained import load_model, run_names
from projects.FFSR_RIFE.gates import FACTORS, GateRow, draw, measure, table


def screen(rows: Sequence[GateRow]) -> str:
    """The weights by resolution: a row per factor, two columns per block."""
    blocks = sorted({row.block for row in rows})
    lines = []
    for factor in sorted({row.factor for row in rows}):
        at = {row.block: row for row in rows if row.factor == factor}
        weights = [w for b in blocks for w in (at[b].wL, at[b].wH)]
        lines.append([f"{factor:g}", f"{at[blocks[0]].r:.3f}", *(f"{w:.3f}" for w in weights)])
    headers = ["factor", "r", *(f"{w}\nblock {b}" for b in blocks for w in ("wL", "wH"))]
    align = ["right"] * len(headers)
    return tabulate(lines, headers, "simple", colalign=align, disable_numparse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: each run's folder)")
    add_data_set(parser, "all the run's")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=list(FACTORS), metavar="F",
        help="the HR twins are reduced by each; 1 leaves them as they are "
        f"(default: {' '.join(f'{f:g}' for f in FACTORS)})",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=at_least(0), default=0, metavar="N", help="at most N queries (default: all)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, write and print."""
    for name, text in zip(run_names(args.runs), args.runs, strict=True):
        run = load_model(text, "", args.opts)
        tests = [args.data_set] if args.data_set else run.cfg.DATASETS.TESTS
        if not tests:
            raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
        for data_set in tests:
            rows, facts, line = measure(run.cfg, run.module, data_set, args.factors, args.limit)
            prefix = f"{name}_" if len(args.runs) > 1 else ""
            base = str((args.out or Path(run.cfg.OUTPUT_DIR)) / f"gates_{prefix}{data_set}")
            print(f"{name}\n{screen(rows)}\n\n{line}")
            content = {**facts, "training": run.training}
            write_figure(base, table(rows), content, draw(rows))
