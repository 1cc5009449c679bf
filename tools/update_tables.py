#!/usr/bin/env python3
"""Collect measured results into the repository, and write them as tables into Markdown files.

tools/update_tables.py add logs/demo/hr --to projects/PSHRNet/results/hr.json --title "HR only"
tools/update_tables.py write projects/PSHRNet/README.md
tools/update_tables.py write projects/PSHRNet/README.md --check

A table is between two lines of the Markdown file. It is made of the files that match the pattern,
seen from the Markdown file's folder:

  <!-- table: results/*.json -->
  <!-- /table -->

or with chosen figures, several of them between commas:

  <!-- table: results/*.json columns=single_shot/query/Rank-5,multi_shot/x4/mAP -->
  <!-- /table -->

A word more, brief, leaves out remarks, sources and commands, for a page that names another page on
which the same files stand in full:

  <!-- table: results/*.json brief -->
  <!-- /table -->
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrreid_ext.cli import run_command
from lrreid_ext.errors import UserError
from lrreid_ext.files import write_text
from lrreid_ext.results import RESULTS_FILES, Results, Training, results_table

# A results file above this many bytes leaves its per-trial figures behind.
MOST_BYTES = 20_000

_OPEN = re.compile(r"<!-- table: (?P<glob>\S+)(?: columns=(?P<columns>\S+))?(?P<brief> brief)? -->")
_CLOSE = "<!-- /table -->"
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


class TableError(UserError):
    """A run, file or marker that can't be used; the message names the file."""


# ---------------------------------------------------------------- add
def collect(
    run: Path, to: Path, title: str, *, note: str | None = None, order: int | None = None
) -> Results:
    """Copy a run's results to ``to``, without paths of this machine.

    Args:
        run: a run's folder, which holds one ``results_<test set>.json``, or such a file.
        to: JSON file to write; its folder is made if need be.
        title: the row's name in tables.
        note: a remark to be shown under the tables.
        order: the row's place in tables; rows without one come last.

    Returns:
        What was written.

    Raises:
        TableError: no results file in the folder or several, a title or note of more than a line,
            or a ``to`` that isn't a JSON file.
        ResultsError: a results file that can't be used.
    """
    for name, text in (("title", title), ("note", note)):
        if text is not None and (not text.strip() or "\n" in text):
            raise TableError(f"--{name} {text!r}: write one line")
    if to.suffix != ".json":
        raise TableError(f"--to {to}: must end in .json")
    results = Results.load(_results_file(run)).portable()
    results = replace(results, title=title, note=note or "", order=order)
    if len(json.dumps(results.to_json(), indent=2)) > MOST_BYTES:
        for group in results.groups.values():
            for figures in group.protocols.values():
                figures.trials = None
    results.save(to)
    return results


def _results_file(run: Path) -> Path:
    if run.is_file():
        return run
    files = sorted(run.glob(RESULTS_FILES))
    if not files:
        raise TableError(f"{run}: holds no {RESULTS_FILES}; has this run been evaluated?")
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise TableError(f"{run}: holds {names}; name one of these files instead of the folder")
    return files[0]


# ---------------------------------------------------------------- write
def updated(path: Path) -> tuple[str, str]:
    """A Markdown file's text, and the same text with all its tables made anew.

    Raises:
        TableError: markers that don't match, a pattern without files, a file that wasn't added by
            this tool, or a column that no row has.
        ResultsError: a results file that can't be used.
    """
    text = path.read_text(encoding="utf-8")
    out: list[str] = []
    fence, inside = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        word = line.strip()
        if inside:
            if _OPEN.fullmatch(word):
                raise TableError(f"{path}:{inside}: no {_CLOSE} before the next table")
            if word != _CLOSE:
                continue
            inside = 0
        elif not fence and word == _CLOSE:
            raise TableError(f"{path}:{number}: {_CLOSE} without a table before it")
        out.append(line)
        edge = _FENCE.match(line)
        if edge and (not fence or word.startswith(fence)):
            fence = "" if fence else edge[1]
        if fence or not word.startswith("<!-- table"):
            continue
        marker = _OPEN.fullmatch(word)
        if not marker:
            raise TableError(
                f"{path}:{number}: write <!-- table: PATTERN --> or "
                "<!-- table: PATTERN columns=protocol/group/figure,... brief -->"
            )
        columns = marker["columns"].split(",") if marker["columns"] else None
        try:
            rows = matching(path.parent, marker["glob"])
            table = make_table(rows, columns, brief=bool(marker["brief"]))
        except ValueError as error:
            raise TableError(f"{path}:{number}: {error}") from error
        out.append(f"\n{table}\n")
        inside = number
    if inside:
        raise TableError(f"{path}:{inside}: no {_CLOSE} after this")
    return text, "".join(out)


def matching(folder: Path, pattern: str) -> list[Results]:
    """The collected results that match a pattern, by their ``order`` and then by file name.

    Raises:
        TableError: a pattern that isn't relative or that nothing matches, or a file without title.
        ResultsError: a results file that can't be used.
    """
    if Path(pattern).is_absolute():
        raise TableError(f"{pattern}: write the pattern relative to the Markdown file's folder")
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise TableError(f"no file matches {pattern}; tools/update_tables.py add makes them")
    rows = []
    for path in paths:
        results = Results.load(path)
        if not results.title:
            raise TableError(f"{path}: no title; add it with tools/update_tables.py add")
        order = float("inf") if results.order is None else results.order
        rows.append((order, path.name, results))
    return [results for _, _, results in sorted(rows, key=lambda row: row[:2])]


def make_table(
    rows: Sequence[Results], columns: Sequence[str] | None = None, *, brief: bool = False
) -> str:
    """The table in Markdown with its remarks, where its figures came from, and the commands.

    Args:
        rows: collected results, in the order of the rows.
        columns: ``protocol/group/figure``; by default those of
            :func:`lrreid_ext.results.results_table`.
        brief: the table and what was measured, and no more.

    Raises:
        ValueError: a column of another form, or that no row has.
    """
    for column in columns or ():
        if all(row.figure(column) is None for row in rows):
            raise ValueError(f"no row has a figure for the column {column}")
    titles = [_escaped(row.title) for row in rows]
    blocks = [results_table(rows, columns, names=titles).strip()]
    if brief:
        return blocks[0] + "\n"
    remarks = [
        f"- {title}: {remark}"
        for title, row in zip(titles, rows, strict=True)
        for remark in _remarks(row)
    ]
    if remarks:
        blocks.append("\n".join(remarks))
    blocks.append("\n".join(_sources(titles, rows)))
    blocks += [_details(row) for row in rows]
    return "\n\n".join(blocks) + "\n"


def _remarks(row: Results) -> list[str]:
    remarks = [_escaped(row.note)] if row.note else []
    training = _training(row)
    if training.epochs is not None and training.of and training.epochs < training.of:
        remarks.append(f"weights after {training.epochs} of {training.of} epochs.")
    return remarks


def _sources(titles: Sequence[str], rows: Sequence[Results]) -> list[str]:
    """A line per distinct commit, machine, seed, trials and manifest, with the rows it is of."""
    by_source: dict[str, list[str]] = {}
    for title, row in zip(titles, rows, strict=True):
        hashes = dict.fromkeys([p.manifest_hash for p in row.parts] or [row.manifest_hash])
        source = (
            f"commit {row.commit or 'unknown'}; {_machine(row.machine)}; "
            f"seed {row.seed}, {row.draw_label}, "
            f"manifest {', '.join((h or 'none')[:12] for h in hashes)}."
        )
        by_source.setdefault(source, []).append(title)
    if len(by_source) == 1:
        return [f"Measured at {source}" for source in by_source]
    return [f"- {', '.join(names)}: measured at {source}" for source, names in by_source.items()]


def _details(row: Results) -> str:
    """A collapsed block with the commands that made the weights and the figures."""
    lines = [f"<details><summary>{html.escape(row.title)}: commands</summary>", ""]
    training = _training(row)
    if training != Training():
        how = [f"commit {training.commit or 'unknown'}", _machine(training.machine)]
        how += [] if training.seed is None else [f"seed {training.seed}"]
        how += [f"phase {training.phase}"] if training.phase else []
        if training.epochs is not None:
            of = f" of {training.of}" if training.of is not None else ""
            how.append(f"epochs {training.epochs}{of}")
        if row.parts:
            how.append(f"the first of {len(row.parts)} {row.over}")
        lines += [f"Trained ({'; '.join(how)}):", "", *_code(training.command), ""]
    lines += ["Evaluated:", "", *_code(row.command), "", "</details>"]
    return "\n".join(lines)


def _training(row: Results) -> Training:
    """How the weights were trained; for a mean over several trainings, the first one's."""
    return (row.parts[0] if row.parts else row).training or Training()


def _code(command: str | None) -> list[str]:
    return ["```", command or "unknown", "```"]


def _machine(machine: Mapping[str, Any] | None) -> str:
    if not machine:
        return "machine unknown"
    gpus = [f"{machine.get('gpus', 1)} x {machine['gpu']}"] if "gpu" in machine else []
    processors = f"{machine.get('processors', '?')} x {machine.get('cpu', 'processor')}"
    versions = [f"{k} {machine[k]}" for k in ("torch", "python") if k in machine]
    return ", ".join([*gpus, processors, *versions])


def _escaped(text: str) -> str:
    """Text that stays in its table cell and is no HTML."""
    return html.escape(text, quote=False).replace("|", r"\|")


# ---------------------------------------------------------------- command line
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="collect a run's results file")
    add.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, or results file")
    add.add_argument("--to", type=Path, required=True, metavar="FILE.json", help="file to write")
    add.add_argument("--title", required=True, help="the row's name")
    add.add_argument("--note", help="a remark to be shown under the table")
    add.add_argument("--order", type=int, metavar="N", help="the row's place (default: last)")
    write = actions.add_parser("write", help="make the tables of Markdown files anew")
    write.add_argument("files", type=Path, nargs="+", metavar="FILE.md")
    write.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if a table is stale"
    )


def run(args: argparse.Namespace) -> int:
    """Do the action; returns 1 for a stale table under --check."""
    if args.action == "add":
        collect(args.run, args.to, args.title, note=args.note, order=args.order)
        print(f"written: {args.to}, {args.to.stat().st_size} bytes")
        return 0
    status = 0
    for path in args.files:
        before, after = updated(path)
        if before == after:
            print(f"{path}: up to date")
        elif args.check:
            print(f"{path}: stale; run tools/update_tables.py write {path}", file=sys.stderr)
            status = 1
        else:
            write_text(path, after)
            print(f"written: {path}")
    return status


if __name__ == "__main__":
    raise SystemExit(run_command("__main__", "update_tables.py"))
