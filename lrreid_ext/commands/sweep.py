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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lrreid_ext.config import load_cfg
from lrreid_ext.engine.sweep import Training, average, complete, repetitions
from lrreid_ext.errors import ConfigError, suggest
from lrreid_ext.files import csv_text, write_text
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


class _Entries(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Axis(_Entries):
    KEY: str
    VALUES: Annotated[list[Any], Field(min_length=1)]
    LABEL: str = ""


class Variant(_Entries):
    CONFIG: str = ""
    OPTIONS: dict[str, Any] = {}
    VALUES: list[Any] | None = None


Column = Annotated[str, AfterValidator(lambda text: str(FigureName.parse(text)))]


class Sweep(_Entries):
    """A file of variants; this module's docstring shows one."""

    CONFIG: str = ""
    OUT: Path
    OPTIONS: dict[str, Any] = {}
    AXIS: Axis | None = None
    VARIANTS: Annotated[dict[str, Variant], Field(min_length=1)]
    COLUMNS: list[Column] = []
    DRAW: list[Column] = []


@dataclass(frozen=True)
class Entry:
    """One row of the table: a variant, at one value of the axis (None without an axis)."""

    variant: str
    value: Any
    training: Training


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
    sweep = None
    if "VARIANTS" in content or args.only:
        sweep = read_sweep(args.file, content, args.out)
        entries = entries_of(sweep, args.file, args.opts, args.eval_only)
        variants = list(dict.fromkeys(entry.variant for entry in entries))
        if unknown := sorted(set(args.only) - set(variants)):
            raise ConfigError(f"--only: no variant {unknown[0]!r}; there are {', '.join(variants)}")
        entries = [e for e in entries if not args.only or e.variant in args.only]
    else:
        entries = [plain_config(args)]
    plan = [(e, repetitions(e.training, args.splits, args.seeds)) for e in entries]
    # Check all of them before the first is trained for hours.
    for entry, trainings in plan:
        for training in trainings:
            tests = list(training.cfg().DATASETS.TESTS)
            if args.dry_run:
                print(f"{training.name}: {training.config} {' '.join(training.overrides)}")
        if sweep and len(tests) != 1:
            raise ConfigError(
                f"{entry.training.name}: DATASETS.TESTS: a sweep compares results on one data "
                f"set, not on {tests}"
            )
    if args.dry_run:
        return
    results = []
    for entry, trainings in plan:
        for training in trainings:
            tests = complete(training, args.processes)
        if args.splits or args.seeds:
            for test in tests:
                print_mean([t.results(test) for t in trainings], entry.training.folder)
        if sweep:
            results.append(Results.load(entry.training.results(tests[0])))
    if sweep:
        write(sweep, entries, results)


def print_mean(files: Sequence[Path], out: Path) -> None:
    """Average results files into ``out``, and print the mean."""
    mean, notes = average(files, out)
    table = results_table([mean], names=["mean"], style="plain")
    print("\n".join([f"{group_table(mean)}\n\n{table}", *notes]))


def write(sweep: Sweep, entries: Sequence[Entry], results: Sequence[Results]) -> None:
    """Print the table; write it, the figures, and where they came from."""
    names, out = [entry.training.name for entry in entries], sweep.OUT / "sweep"
    columns = sweep.COLUMNS or None
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
    content = {"axis": label_of(sweep), "runs": runs, **provenance()}
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


def plain_config(args: argparse.Namespace) -> Entry:
    """An ordinary config as the only variant."""
    if not (args.splits or args.seeds):
        raise ConfigError(f"{args.file}: has no VARIANTS; give --splits or --seeds, or train it")
    folder = args.out or Path(load_cfg(str(args.file), args.opts).OUTPUT_DIR)
    name = args.file.stem
    return Entry(name, None, Training(name, args.file, pairs(args.opts), folder, args.eval_only))


def read_sweep(path: Path, content: Mapping[str, Any], out: Path | None = None) -> Sweep:
    """Check the content of a file of variants.

    Args:
        path: the file.
        content: of the file.
        out: folder of the trainings, in OUT's place.

    Raises:
        ConfigError: an unknown or missing entry, or one of the wrong type.
    """
    try:
        return Sweep.model_validate(
            {"OUT": f"logs/{path.stem}", **content, **({"OUT": out} if out else {})}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where, what = ".".join(map(str, problem["loc"])), problem["msg"]
        if problem["type"] == "extra_forbidden":
            entries = [*Sweep.model_fields, *Axis.model_fields]
            what = f"is not an entry.{suggest(str(problem['loc'][-1]), entries)}"
        raise ConfigError(f"{path}: {where}: {what}") from None


def entries_of(
    sweep: Sweep, path: Path, overrides: Sequence[str] = (), evaluate_only: bool = False
) -> list[Entry]:
    """The trainings of a file of variants, in the order of the table.

    Args:
        sweep: its content.
        path: the file, which configs are seen from.
        overrides: words ``KEY VALUE ...`` for every training, which come last.
        evaluate_only: see :class:`~lrreid_ext.engine.sweep.Training`.

    Raises:
        ConfigError: a variant without config, or two trainings in one folder.
    """
    entries: list[Entry] = []
    axis = sweep.AXIS
    for name, variant in sweep.VARIANTS.items():
        where = f"{path}: VARIANTS.{name}"
        if variant.VALUES is not None and not axis:
            raise ConfigError(f"{where}: VALUES are those of an AXIS, and there is none")
        config = path.parent / (variant.CONFIG or sweep.CONFIG)
        if not config.is_file():
            raise ConfigError(f"{where}: CONFIG: {config}: no such file")
        options = {**sweep.OPTIONS, **variant.OPTIONS}
        values = (variant.VALUES or axis.VALUES) if axis else [None]
        for value in values:
            training = Training(
                name=f"{name}, {value}" if axis else name,
                config=config,
                options={**options, **({axis.KEY: value} if axis else {}), **pairs(overrides)},
                folder=sweep.OUT / folder_name(name) / (folder_name(value) if axis else ""),
                evaluate_only=evaluate_only,
            )
            if any(training.folder == entry.training.folder for entry in entries):
                raise ConfigError(
                    f"{path}: two trainings would be in {training.folder}; rename {training.name!r}"
                )
            entries.append(Entry(name, value, training))
    return entries


def label_of(sweep: Sweep) -> str:
    """The name of the axis, or "" without one."""
    return sweep.AXIS.LABEL or sweep.AXIS.KEY if sweep.AXIS else ""


def folder_name(name: Any) -> str:
    """A name or value as the name of a folder."""
    return re.sub(r"[^\w.]+", "_", str(name)).strip("_").lower() or "_"


# ---------------------------------------------------------------- the output
def to_csv(entries: Sequence[Entry], results: Sequence[Results]) -> str:
    """Every figure in percent, a row each; ``std`` is empty for what has no trials."""
    rows = [
        [
            entry.variant, "" if entry.value is None else entry.value, protocol, group, name,
            f"{figure.value:.6g}", "" if figure.std is None else f"{figure.std:.6g}",
        ]
        for entry, each in zip(entries, results, strict=True)
        for group, content in each.groups.items()
        for protocol, figures in content.protocols.items()
        for name, figure in figures.named.items()
        if figure
    ]  # fmt: skip
    return csv_text(COLUMNS, rows)


def draw(sweep: Sweep, entries: Sequence[Entry], results: Sequence[Results]) -> Any:
    """Curves along the axis with the spread over trials, or without an axis a bar per variant.

    Raises:
        ConfigError: DRAW names a figure that no training has.
    """
    columns: list[Any] = sweep.DRAW or sweep.COLUMNS[:1] or default_columns(results)[:1]
    panels, axes = new_figure(len(columns))
    for panel, column in zip(axes, columns, strict=True):
        points = [
            (entry, figure.value, figure.std or 0.0)
            for entry, each in zip(entries, results, strict=True)
            if (figure := each.figure(column))
        ]
        if not points:
            raise ConfigError(f"DRAW: no training has a figure {column}")
        label = f"{str(column).replace('/', ' ')}, %"
        if not sweep.AXIS:
            names, means, stds = zip(*((e.variant, *p) for e, *p in points), strict=True)
            bars(panel, names, means, stds)
            panel.set_xlabel(label)
            continue
        for index, variant in enumerate(dict.fromkeys(entry.variant for entry in entries)):
            curve = [(e.value, mean, std) for e, mean, std in points if e.variant == variant]
            if curve:
                values, means, stds = zip(*curve, strict=True)
                line(panel, values, means, variant, index, stds)
        panel.set_xlabel(label_of(sweep))
        panel.set_ylabel(label)
    if sweep.AXIS:
        axes[0].legend(fontsize="small")
    return panels
