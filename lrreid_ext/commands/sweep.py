"""Train, evaluate and compare variants, random splits or seeds of a config.

lrreid sweep projects/RAIN/table3.yml DATASETS.ROOT /path/to/sets
lrreid sweep projects/SING/caviar.yml --splits 0-9 OUTPUT_DIR logs/caviar
lrreid sweep configs/osnet_copies.yml --seeds 0-4 OUTPUT_DIR logs/copies
lrreid sweep --mean logs/a/results_caviar.json logs/b/results_caviar.json --out logs/mean

Every training has its own folder. What has been done is kept, what was interrupted is resumed: run
the command again. A folder with a training by another config is refused; results by other TEST keys
or weights are made again (evaluated.json tells).

A file of variants:

  CONFIG: mlr_cuhk03.yml              # of every variant, seen from this file
  OUT: logs/RAIN/table3               # a folder for each training below it
  OPTIONS: {SOLVER.IMS_PER_BATCH: 32} # overrides of every training, by config key
  VARIANTS:                           # in the order of the table
    RAIN: {}
    no adversary: {OPTIONS: {RAIN.LEVELS: []}}
    HR only: {CONFIG: mlr_cuhk03_hr.yml}
  COLUMNS: [single_shot/query/Rank-1] # of the table: protocol/group/figure; [] the usual ones
  DRAW: [single_shot/query/Rank-1]    # a panel each; [] the first column

With an axis, each variant is trained at each value of one key, and gets a curve:

  AXIS: {KEY: DATASETS.LABELLED, VALUES: [0, 0.5, 1], LABEL: share of labelled people}
  VARIANTS:
    RAIN: {}
    HR only: {CONFIG: mlr_cuhk03_hr.yml, VALUES: [0.5, 1]}   # at 0 there is nothing to train on

Writes sweep.md, .csv, .json, .svg and .png into OUT. With --splits or --seeds, a variant's figures
are the mean and standard deviation over its repetitions (and over the trials of each). A file
without VARIANTS is an ordinary config; its repetitions are in OUTPUT_DIR, and so is their mean, in
results_<test set>.json.

--mean averages results files of several splits, or of trainings that differ by their SEED. It
refuses results of other data, galleries or protocols, and of networks trained by other configs.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrreid_ext.config import load_cfg
from lrreid_ext.engine.sweep import Training, average, complete, repetitions
from lrreid_ext.errors import ConfigError, suggest
from lrreid_ext.files import write_text
from lrreid_ext.options import add_overrides, add_processes, pairs
from lrreid_ext.report.plots import bars, line, new_figure, write_figure
from lrreid_ext.results import (
    FigureName,
    Results,
    default_columns,
    group_table,
    provenance,
    results_table,
)

#: Columns of the CSV.
COLUMNS = ("variant", "value", "protocol", "group", "figure", "mean", "std")

INTERRUPTED = "the same command goes on"


@dataclass(frozen=True)
class Entry:
    """One row of the table: a variant, at one value of the axis (None without an axis)."""

    variant: str
    value: Any
    training: Training


@dataclass(frozen=True)
class Sweep:
    """A file of variants.

    Attributes:
        entries: in the order of the table.
        folder: of all trainings.
        label: what the axis is called, or "" without one.
        columns: of the table; []: the usual ones.
        drawn: figures with a panel each; []: the first column.
    """

    entries: list[Entry]
    folder: Path
    label: str
    columns: list[str]
    drawn: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.yml", help="variants, or a config"
    )
    add_overrides(parser, "overrides of every training's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: the file's OUT)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="VARIANT", help="train and show these alone"
    )
    parser.add_argument(
        "--splits", type=numbers, default=[], metavar="N", help="repeat on these splits, as in 0-9"
    )
    parser.add_argument(
        "--seeds", type=numbers, default=[], metavar="N", help="repeat with these SEEDs, as in 0,3"
    )
    parser.add_argument(
        "--eval-only", action="store_true",
        help="train nothing; evaluate MODEL.WEIGHTS, trained on another data set",
    )  # fmt: skip
    add_processes(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check all configs and list the trainings"
    )
    parser.add_argument(
        "--mean", nargs="+", type=Path, default=[], metavar="FILE",
        help="average these results files, train nothing",
    )  # fmt: skip


def numbers(text: str) -> list[int]:
    """``"0-3,7"`` as 0, 1, 2, 3, 7."""
    out: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise argparse.ArgumentTypeError(f"{text}: write numbers and ranges, as in 0-9 or 0,3")
        out += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(out)) < len(out):
        raise argparse.ArgumentTypeError(f"{text}: a number twice")
    return out


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, average, print and write."""
    if bool(args.mean) == bool(args.file):
        raise ConfigError("name either a FILE.yml or results files with --mean")
    if args.mean:
        if not args.out:
            raise ConfigError("--mean needs --out, the folder to write into")
        print_mean(args.mean, args.out)
        return
    content = read_yaml(args.file)
    if "VARIANTS" not in content and not args.only:
        sweep = plain_config(args)
    else:
        sweep = read_sweep(args.file, content, args.out, args.opts, args.eval_only)
    variants = list(dict.fromkeys(entry.variant for entry in sweep.entries))
    if unknown := sorted(set(args.only) - set(variants)):
        raise ConfigError(f"--only: no variant {unknown[0]!r}; there are {', '.join(variants)}")
    entries = [e for e in sweep.entries if not args.only or e.variant in args.only]
    plan = [(e, repetitions(e.training, args.splits, args.seeds)) for e in entries]
    # Check all of them before the first is trained for hours.
    tests = [trainings[0].cfg().DATASETS.TESTS for _, trainings in plan]
    for _, trainings in plan:
        for training in trainings:
            training.cfg()
            if args.dry_run:
                print(f"{training.name}: {training.config} {' '.join(training.overrides)}")
    compared = "VARIANTS" in content
    if compared and (bad := next((list(names) for names in tests if len(names) != 1), None)):
        raise ConfigError(f"DATASETS.TESTS: a sweep compares results on one data set, not on {bad}")
    if args.dry_run:
        return
    for entry, trainings in plan:
        for training in trainings:
            complete(training, args.processes)
        if args.splits or args.seeds:
            for test in trainings[0].cfg().DATASETS.TESTS:
                print_mean([t.results(test) for t in trainings], entry.training.folder)
    if compared:
        results = [
            Results.load(e.training.results(t[0])) for e, t in zip(entries, tests, strict=True)
        ]
        write(sweep, entries, results)


def print_mean(files: Sequence[Path], out: Path) -> None:
    """Average results files into ``out``, and print the mean."""
    mean, notes = average(files, out)
    table = results_table([mean], names=["mean"], style="plain")
    print("\n".join([f"{group_table(mean)}\n\n{table}", *notes]))


def write(sweep: Sweep, entries: Sequence[Entry], results: Sequence[Results]) -> None:
    """Print the table; write it, the figures, and where they came from."""
    names, out = [entry.training.name for entry in entries], sweep.folder / "sweep"
    columns = sweep.columns or None
    print(f"\n{results_table(results, columns, names=names, style='plain')}")
    runs = [
        {
            "variant": entry.variant,
            "value": entry.value,
            "config": str(entry.training.config),
            "options": dict(entry.training.options),
            "results": each.to_json(),
        }
        for entry, each in zip(entries, results, strict=True)
    ]
    write_text(f"{out}.md", results_table(results, columns, names=names))
    content = {"axis": sweep.label, "runs": runs, **provenance()}
    write_figure(out, to_csv(entries, results), content, draw(sweep, entries, results))


# ---------------------------------------------------------------- the file
def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a file of variants, or of a config."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping, not {content!r}")
    return content


def plain_config(args: argparse.Namespace) -> Sweep:
    """An ordinary config as its only variant."""
    if not (args.splits or args.seeds):
        raise ConfigError(f"{args.file}: has no VARIANTS; give --splits or --seeds, or train it")
    overrides = pairs(args.opts)
    folder = args.out or Path(load_cfg(str(args.file), args.opts).OUTPUT_DIR)
    training = Training(args.file.stem, args.file, overrides, folder, args.eval_only)
    return Sweep([Entry(training.name, None, training)], folder, "", [], [])


def read_sweep(
    path: Path,
    content: Mapping[str, Any],
    out: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate_only: bool = False,
) -> Sweep:
    """Read a file of variants; this module's docstring shows one.

    Args:
        path: the file.
        content: of the file.
        out: folder of the trainings, in OUT's place.
        overrides: words ``KEY VALUE ...`` for every training, which come last.
        evaluate_only: see :class:`~lrreid_ext.engine.sweep.Training`.

    Raises:
        ConfigError: an unknown or missing entry, or two trainings in one folder.
    """
    keys = ("CONFIG", "OUT", "OPTIONS", "AXIS", "VARIANTS", "COLUMNS", "DRAW")
    check_keys(content, keys, str(path))
    axis = content.get("AXIS") or {}
    check_keys(axis, ("KEY", "VALUES", "LABEL"), f"{path}: AXIS")
    if axis and not (axis.get("KEY") and axis.get("VALUES")):
        raise ConfigError(f"{path}: AXIS: needs a KEY and its VALUES")
    if not content.get("VARIANTS"):
        raise ConfigError(f"{path}: VARIANTS: none; name at least one")
    folder = out or Path(content.get("OUT") or f"logs/{path.stem}")
    entries = []
    for name, variant in content["VARIANTS"].items():
        variant, where = variant or {}, f"{path}: VARIANTS: {name}"
        check_keys(variant, ("CONFIG", "OPTIONS", "VALUES"), where)
        if "VALUES" in variant and not axis:
            raise ConfigError(f"{where}: VALUES are those of an AXIS, and there is none")
        config = variant.get("CONFIG") or content.get("CONFIG")
        if not config:
            raise ConfigError(f"{where}: no CONFIG, here or for all")
        config = path.parent / config
        if not config.is_file():
            raise ConfigError(f"{where}: CONFIG {config}: no such file")
        options = {**(content.get("OPTIONS") or {}), **(variant.get("OPTIONS") or {})}
        for value in variant.get("VALUES", axis["VALUES"]) if axis else [None]:
            at = {axis["KEY"]: value} if axis else {}
            training = Training(
                name=f"{name}, {value}" if axis else str(name),
                config=config,
                options={**options, **at, **pairs(overrides)},
                folder=folder / folder_name(name) / (folder_name(value) if axis else ""),
                evaluate_only=evaluate_only,
            )
            entries.append(Entry(str(name), value, training))
    folders = [entry.training.folder for entry in entries]
    for entry in entries:
        if folders.count(entry.training.folder) > 1:
            raise ConfigError(
                f"{path}: two trainings would be in {entry.training.folder}; rename "
                f"{entry.training.name!r}"
            )
    columns, drawn = (list(content.get(key) or ()) for key in ("COLUMNS", "DRAW"))
    for column in columns + drawn:
        try:
            FigureName.parse(column)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return Sweep(entries, folder, str(axis.get("LABEL") or axis.get("KEY") or ""), columns, drawn)


def check_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Refuse what is no mapping, or has other keys."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a mapping, not {entry!r}")
    for key in entry:
        if key not in keys:
            raise ConfigError(f"{where}: {key!r} is not an entry.{suggest(str(key), keys)}")


def folder_name(name: Any) -> str:
    """A name or value as the name of a folder."""
    return re.sub(r"[^\w.]+", "_", str(name)).strip("_").lower() or "_"


# ---------------------------------------------------------------- the output
def to_csv(entries: Sequence[Entry], results: Sequence[Results]) -> str:
    """Every figure in percent, a row each; ``std`` is empty for what has no trials."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry, each in zip(entries, results, strict=True):
        value = "" if entry.value is None else entry.value
        for group, content in each.groups.items():
            for protocol, figures in content.protocols.items():
                for name, figure in figures.named.items():
                    if figure:
                        std = "" if figure.std is None else f"{figure.std:.6g}"
                        row = [protocol, group, name, f"{figure.value:.6g}", std]
                        writer.writerow([entry.variant, value, *row])
    return out.getvalue()


def draw(sweep: Sweep, entries: Sequence[Entry], results: Sequence[Results]) -> Any:
    """Curves along the axis with the spread over trials, or without an axis a bar per variant.

    Raises:
        ConfigError: DRAW names a figure that no training has.
    """
    drawn: list[Any] = sweep.drawn or sweep.columns[:1] or default_columns(results)[:1]
    panels, axes = new_figure(len(drawn))
    for panel, column in zip(axes, drawn, strict=True):
        points = [
            (entry, figure.value, figure.std or 0.0)
            for entry, each in zip(entries, results, strict=True)
            if (figure := each.figure(column))
        ]
        if not points:
            raise ConfigError(f"DRAW: no training has a figure {column}")
        label = f"{str(column).replace('/', ' ')}, %"
        if not sweep.label:
            bars(
                panel,
                [e.variant for e, _, _ in points],
                [p[1] for p in points],
                [p[2] for p in points],
            )
            panel.set_xlabel(label)
            continue
        for index, variant in enumerate(dict.fromkeys(entry.variant for entry in entries)):
            curve = [(e.value, mean, std) for e, mean, std in points if e.variant == variant]
            if curve:
                values, means, spreads = (list(part) for part in zip(*curve, strict=True))
                line(panel, values, means, variant, index, spreads)
        panel.set_xlabel(sweep.label)
        panel.set_ylabel(label)
    if sweep.label:
        axes[0].legend(fontsize="small")
    return panels
