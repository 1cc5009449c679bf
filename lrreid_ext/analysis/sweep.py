"""Named variants of a config, trained and compared: what a sweep's file says, and what it shows.

::

    CONFIG: mlr_cuhk03.yml              # of every variant, seen from this file
    OUT: logs/RAIN/table3               # a folder for each run below it
    OPTIONS: {SOLVER.IMS_PER_BATCH: 32} # overrides in every run, by config key
    VARIANTS:                           # in the order of the table
      RAIN: {}
      no adversary: {OPTIONS: {RAIN.LEVELS: []}}
      HR only: {CONFIG: mlr_cuhk03_hr.yml}
    COLUMNS: [single_shot/query/Rank-1] # of the table: protocol/group/figure; [] the usual ones
    DRAW: [single_shot/query/Rank-1]    # a panel each; [] the first column

A sweep along one key trains every variant at each of its values, and draws a curve of each::

    AXIS: {KEY: DATASETS.LABELLED, VALUES: [0, 0.5, 1], LABEL: share of labelled people}
    VARIANTS:
      RAIN: {}
      HR only: {CONFIG: mlr_cuhk03_hr.yml, VALUES: [0.5, 1]}   # there is nothing to train on at 0
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest
from lrreid_ext.report.plots import bars, line, new_figure
from lrreid_ext.results import FigureName, Results, default_columns, results_table

__all__ = ["COLUMNS", "Sweep", "SweepRun", "draw", "read_sweep", "table", "to_csv"]

#: Columns of the CSV.
COLUMNS = ("variant", "value", "protocol", "group", "figure", "mean", "std")


@dataclass(frozen=True)
class SweepRun:
    """One training.

    Attributes:
        variant: its name.
        value: of the axis, or None.
        config: YAML to run.
        options: overrides, by key.
        out: its folder.
    """

    variant: str
    value: Any
    config: Path
    options: dict[str, Any]
    out: Path

    @property
    def name(self) -> str:
        """What screen and table call it."""
        return self.variant if self.value is None else f"{self.variant}, {self.value}"

    def words(self) -> list[str]:
        """The overrides as ``KEY VALUE`` words of a command line."""
        given = {**self.options, "OUTPUT_DIR": str(self.out)}
        return [
            word
            for key, value in given.items()
            for word in (key, value if isinstance(value, str) else repr(value))
        ]


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, read.

    Attributes:
        runs: all trainings, variant by variant.
        label: what the axis is called, or "" without one.
        columns: of the table; none: the usual ones.
        drawn: figures with a panel each; none: the first column.
    """

    runs: list[SweepRun]
    label: str
    columns: list[str]
    drawn: list[str]


def read_sweep(path: Path, out: Path | None = None, extra: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file.

    Args:
        path: the file; the module's docstring says what it holds.
        out: folder of the runs, in OUT's place.
        extra: ``KEY VALUE`` overrides of every run, which come last.

    Raises:
        FileNotFoundError: no such file, or a variant's config is none.
        ConfigError: an unknown or missing entry, or two runs in one folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    known = ("CONFIG", "OUT", "OPTIONS", "AXIS", "VARIANTS", "COLUMNS", "DRAW")
    _check_keys(given, known, str(path))
    if len(extra) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; {extra[-1]!r} has no partner")
    last = dict(zip(extra[::2], extra[1::2], strict=True))
    axis = given.get("AXIS") or {}
    _check_keys(axis, ("KEY", "VALUES", "LABEL"), f"{path}: AXIS")
    if axis and not (axis.get("KEY") and axis.get("VALUES")):
        raise ConfigError(f"{path}: AXIS: needs a KEY and its VALUES")
    if not given.get("VARIANTS"):
        raise ConfigError(f"{path}: VARIANTS: none; name at least one")
    folder = out or Path(given.get("OUT") or f"logs/{path.stem}")
    runs = []
    for name, entry in given["VARIANTS"].items():
        entry, here = entry or {}, f"{path}: VARIANTS: {name}"
        _check_keys(entry, ("CONFIG", "OPTIONS", "VALUES"), here)
        if "VALUES" in entry and not axis:
            raise ConfigError(f"{here}: VALUES are those of an AXIS, and there is none")
        config = entry.get("CONFIG") or given.get("CONFIG")
        if not config:
            raise ConfigError(f"{here}: no CONFIG, here or for all")
        config = path.parent / config
        if not config.is_file():
            raise FileNotFoundError(f"{here}: CONFIG {config}: no such file")
        options = {**(given.get("OPTIONS") or {}), **(entry.get("OPTIONS") or {})}
        place = folder / _plain(str(name))
        for value in entry.get("VALUES", axis["VALUES"]) if axis else [None]:
            own, where = dict(options), place
            if axis:
                own[axis["KEY"]] = value
                where = place / _plain(str(value))
            runs.append(SweepRun(str(name), value, config, {**own, **last}, where))
    places = [run.out for run in runs]
    for run in runs:
        if places.count(run.out) > 1:
            raise ConfigError(f"{path}: two runs would be in {run.out}; rename {run.name!r}")
    label = str(axis.get("LABEL") or axis.get("KEY") or "")
    columns, drawn = (list(given.get(key) or ()) for key in ("COLUMNS", "DRAW"))
    for column in columns + drawn:
        try:
            FigureName.parse(column)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return Sweep(runs, label, columns, drawn)


def _check_keys(entry: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a mapping, not {entry!r}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is not an entry.{suggest(str(key), known)}")


def _plain(name: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^\w.]+", "_", name).strip("_").lower() or "_"


# ---------------------------------------------------------------- what is shown
SweepResults = Sequence[tuple[SweepRun, Results]]


def table(sweep: Sweep, results: SweepResults, style: str = "markdown") -> str:
    """A row for each run; see :func:`lrreid_ext.results.results_table`."""
    names = [run.name for run, _ in results]
    return results_table([r for _, r in results], sweep.columns or None, names=names, style=style)


def to_csv(results: SweepResults) -> str:
    """Every figure of every run in percent, a row each; ``std`` is empty for what has no trials."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run, content in results:
        who = [run.variant, "" if run.value is None else run.value]
        for group, entry in content.groups.items():
            for protocol, figures in entry.protocols.items():
                for name, figure in figures.named.items():
                    if figure:
                        std = "" if figure.std is None else f"{figure.std:.6g}"
                        writer.writerow([*who, protocol, group, name, f"{figure.value:.6g}", std])
    return out.getvalue()


def draw(sweep: Sweep, results: SweepResults) -> Any:
    """The figure: curves along the axis with the spread over trials, or a bar for each variant.

    Raises:
        ConfigError: DRAW names a figure that no run has.
    """
    drawn: list[Any] = (
        sweep.drawn or sweep.columns[:1] or default_columns([c for _, c in results])[:1]
    )
    panels, axes = new_figure(len(drawn))
    variants = list(dict.fromkeys(run.variant for run, _ in results))
    for panel, column in zip(axes, drawn, strict=True):
        found = [(run, content.figure(column)) for run, content in results]
        points = [(run, figure) for run, figure in found if figure is not None]
        if not points:
            raise ConfigError(f"DRAW: no run has a figure {column}")
        label = str(column).replace("/", " ")
        if not sweep.label:
            means = [figure.value for _, figure in points]
            spreads = [figure.std or 0.0 for _, figure in points]
            bars(panel, [run.variant for run, _ in points], means, spreads)
            panel.set_xlabel(f"{label}, %")
            continue
        for index, variant in enumerate(variants):
            curve = [
                (run.value, figure.value, figure.std or 0.0)
                for run, figure in points
                if run.variant == variant
            ]
            if curve:
                x, means, spreads = (list(part) for part in zip(*curve, strict=True))
                line(panel, x, means, variant, index, spreads)
        panel.set_xlabel(sweep.label)
        panel.set_ylabel(f"{label}, %")
    if sweep.label:
        axes[0].legend(fontsize="small")
    return panels
