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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import nn

from lrreid_ext.analysis.gates import (
    FACTORS,
    LEARNED,
    GateRow,
    degraded_twins,
    draw,
    dual_stream_of,
    read_gates,
    rows,
    table,
    trends,
    verdict,
)
from lrreid_ext.analysis.runs import changed, load_run, run_names
from lrreid_ext.commands.common import add_data_set, add_run, at_least, write_figure
from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.provenance import provenance


def measure(
    cfg: CfgNode, model: nn.Module, data_set: str, factors: Sequence[float], limit: int = 0
) -> tuple[list[GateRow], dict[str, Any], str]:
    """One test set's figures.

    Args:
        cfg, model: of :func:`lrreid_ext.engine.trainer.load_trained`.
        data_set: the test set's name.
        factors: the HR twins are reduced by each; at least two different ones.
        limit: at most this many twins; 0 means all.

    Returns:
        The rows, what stands beside them, and the verdict in one line.

    Raises:
        ConfigError: another backbone, a data set without HR twins, or factors that don't do.
    """
    above = [f for f in factors if f > 1]
    cfg = changed(cfg, ("TEST.HR", True), ("TEST.FACTORS", above))
    test_set = degraded_twins(build_test_set(cfg, data_set), factors, limit)
    records = read_gates(cfg, model, test_set)
    found = trends(records)
    beside = {
        "test_set": test_set.name,
        "manifest_hash": test_set.manifest_hash,
        "images": len(test_set.samples),
        "widest": int(dual_stream_of(model).widest),
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        "spearman": [{**asdict(trend), "learned": trend.learned} for trend in found],
        "learned_from": LEARNED,
        **provenance(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE),
    }
    return rows(records), beside, verdict(found)


def screen(found: Sequence[GateRow]) -> str:
    """The weights by resolution: a row per factor, two columns per block."""
    blocks = sorted({row.block for row in found})
    lines = []
    for factor in sorted({row.factor for row in found}):
        own = {row.block: row for row in found if row.factor == factor}
        weights = [w for b in blocks for w in (own[b].wL, own[b].wH)]
        lines.append([f"{factor:g}", f"{own[blocks[0]].r:.3f}", *(f"{w:.3f}" for w in weights)])
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
        run = load_run(text, args.opts)
        tests = [args.data_set] if args.data_set else run.cfg.DATASETS.TESTS
        if not tests:
            raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
        for data_set in tests:
            found, beside, line = measure(run.cfg, run.model, data_set, args.factors, args.limit)
            own = f"{name}_" if len(args.runs) > 1 else ""
            base = str((args.out or Path(run.cfg.OUTPUT_DIR)) / f"gates_{own}{data_set}")
            print(f"{name}\n{screen(found)}\n\n{line}")
            content = {**beside, "training": run.training}
            write_figure(base, table(found), content, draw(found))
