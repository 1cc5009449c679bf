"""Train, evaluate, tabulate and draw named variants of a config: an ablation, or a curve.

tools/sweep.py projects/RAIN/table3.yml --opts DATASETS.ROOT /path/to/sets

Each variant is trained into a folder of its own. What has been done is kept, what was interrupted
goes on: run the command again. A run that was made with another config is not taken for this one's.
Writes sweep.md, .csv, .json (with where the figures came from), .svg and .png beside the runs.
lrreid_ext/analysis/sweep.py says what the file holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrreid_ext.analysis.runs import check_same
from lrreid_ext.analysis.sweep import Sweep, SweepRun, draw, read_sweep, table, to_csv
from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.engine.cli import main as train_net
from lrreid_ext.errors import USER_ERRORS, ConfigError
from lrreid_ext.files import write_json, write_text
from lrreid_ext.report.plots import save
from lrreid_ext.results import Results, provenance, results_file


def check(run: SweepRun) -> CfgNode:
    """The config of a run.

    Raises:
        ConfigError: it can't be used, tests no data set or several, or its folder holds a run that
            was made with another config.
    """
    cfg = load_cfg(str(run.config), run.words())
    if len(cfg.DATASETS.TESTS) != 1:
        raise ConfigError(
            f"{run.name}: DATASETS.TESTS: a sweep compares results on one data set, not on "
            f"{list(cfg.DATASETS.TESTS)}"
        )
    check_same(run.out, cfg, run.name, "name another with --out")
    return cfg


def results_of(run: SweepRun, cfg: CfgNode) -> Path:
    """Where a run's results are written."""
    return run.out / results_file(cfg.DATASETS.TESTS[0])


def make(run: SweepRun, cfg: CfgNode) -> int:
    """Train and evaluate what has not been; the exit status of the last thing done."""
    trained, results = run.out / "model_final.pth", results_of(run, cfg)
    if trained.is_file() and results.is_file():
        print(f"== {run.name}: done before, kept in {run.out}", flush=True)
        return 0
    print(f"== {run.name}, into {run.out}", flush=True)
    words = ["--config-file", str(run.config), *run.words()]
    if not trained.is_file():
        resume = ["--resume"] if (run.out / "last_checkpoint").is_file() else []
        status = train_net([*resume, *words])
        if status or results.is_file():
            return status
    return train_net(["--eval-only", *words])


def record(run: SweepRun, results: Results) -> dict[str, Any]:
    """What the JSON says of a run."""
    return {
        "variant": run.variant,
        "value": run.value,
        "config": str(run.config),
        "options": run.options,
        "results": results.to_json(),
    }


def write(sweep: Sweep, results: list[tuple[SweepRun, Results]], out: Path) -> None:
    """Write table, figures and where they came from."""
    write_text(out / "sweep.md", table(sweep, results))
    write_text(out / "sweep.csv", to_csv(results))
    content = {"axis": sweep.label, "runs": [record(*pair) for pair in results], **provenance()}
    write_json(out / "sweep.json", content)
    panels = draw(sweep, results)
    for ending in ("svg", "png"):
        save(panels, out / f"sweep.{ending}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    out = argparse.ArgumentParser(
        prog="lrreid sweep",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("sweep", type=Path, metavar="FILE.yml", help="what to train")
    out.add_argument("--out", type=Path, help="folder of the runs (default: the file's OUT)")
    out.add_argument(
        "--only", nargs="+", default=[], metavar="VARIANT", help="train and show these alone"
    )
    out.add_argument(
        "--dry-run", action="store_true", help="check all configs and list the runs, train nothing"
    )
    out.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of every run's config"
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, write; 0, 2 for what a user can put right, or a failed training's status."""
    args = parser().parse_args(argv)
    try:
        sweep = read_sweep(args.sweep, args.out, args.opts)
        names = {run.variant for run in sweep.runs}
        if unknown := sorted(set(args.only) - names):
            raise ConfigError(f"--only: no variant {unknown[0]!r}; there are {', '.join(names)}")
        runs = [run for run in sweep.runs if not args.only or run.variant in args.only]
        # All of them before the first is trained for hours.
        configs = [check(run) for run in runs]
        out = Path(runs[0].out).parents[1 if sweep.label else 0]
        if args.dry_run:
            for run in runs:
                print(f"{run.name}: {run.config} {' '.join(run.words())}")
            return 0
        for run, cfg in zip(runs, configs, strict=True):
            failed = make(run, cfg)
            if failed:
                print(f"error: {run.name} failed; run this again to go on", file=sys.stderr)
                return failed
        results = [
            (run, Results.load(results_of(run, cfg)))
            for run, cfg in zip(runs, configs, strict=True)
        ]
        write(sweep, results, out)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(sweep, results, 'plain')}")
    print(f"{out}: sweep.md, .csv, .json, .svg and .png written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
