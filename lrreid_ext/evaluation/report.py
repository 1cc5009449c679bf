"""Tables of evaluation results, for the screen and for Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lrreid_ext.data.samples import QUERY, QUERY_HR
from lrreid_ext.errors import ConfigError, ResultsError

NEEDED = ("test_set", "manifest_hash", "protocols", "trials", "seed", "metric", "groups")
STYLES = ("markdown", "plain")

Results = Mapping[str, Any]


def lr_gallery(*runs: Results) -> bool:
    """Whether the gallery of any of these results holds low-resolution images."""
    return any((run.get("counts") or {}).get("gallery_lr") for run in runs)


def group_label(group: str, lr_gallery: bool = False) -> str:
    """How a group is called in tables: ``MLR``, ``HR -> HR``, ``x2``, ``MLR @2``; and ``HR
    queries`` where the gallery isn't all HR."""
    if group == QUERY_HR:
        return "HR queries" if lr_gallery else "HR -> HR"
    return group.replace(f"{QUERY}@", "MLR @") if group != QUERY else "MLR"


def draw_label(results: Results) -> str:
    """How the single-shot galleries were drawn: ``10 trials``, ``100 trials per query``, ``10
    splits x 10 trials``."""
    per_query = " per query" if results.get("draw") == "per_query" else ""
    parts = f"{len(results['parts'])} {results['over']} x " if results.get("parts") else ""
    return f"{parts}{results['trials']} trials{per_query}"


def multi_shot_label(results: Results) -> str:
    """``multi-shot``, and what changes its ranks and not those of single-shot."""
    return " with ".join(["multi-shot", *(f for f in ("aqe", "rerank") if results.get(f))])


def load_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``results_<test set>.json``.

    Raises:
        ResultsError: no such file, not JSON, or not a results file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ResultsError(
            f"{path}: no such file; tools/train_net.py --eval-only writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: can't be read as JSON: {error}") from error
    return _checked(content, str(path))


def stored_results(
    folder: str | os.PathLike[str], training: Mapping[str, Any], pattern: str = "results_*.json"
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The results files of a run's folder that are of some weights.

    A run keeps the results of its last phase, and in a folder called like it those of an earlier
    one; a checkpoint of one phase is not to be given another's figures.

    Args:
        folder: the run's.
        training: what is known of how the weights came about: ``phase`` and ``epochs``. If nothing
            is, of either side, the files are taken to be theirs.
        pattern: names of files.

    Returns:
        The results by name of file; and of files that are of other weights, of which.

    Raises:
        ResultsError: a file that can't be used.
    """
    folder = Path(folder)
    own = _state(training)
    found: dict[str, dict[str, Any]] = {}
    others: dict[str, str] = {}
    for place in (folder / str(training.get("phase", "")), folder):
        for file in sorted(place.glob(pattern)):
            content = load_results(file)
            theirs = _state(content.get("info", {}).get("training") or {})
            if own and theirs and own != theirs:
                others.setdefault(file.name, theirs)
            else:
                found.setdefault(file.name, content)
    return dict(sorted(found.items())), {k: v for k, v in others.items() if k not in found}


def _state(training: Mapping[str, Any]) -> str:
    if not {"phase", "epochs"} <= training.keys():
        return ""
    return f"phase {training['phase']} after {training['epochs']} epochs"


def figure(results: Results, column: str) -> tuple[float, float | None] | None:
    """One figure in percent and its standard deviation over the trials, if it has one.

    Args:
        results: content of a results file.
        column: ``protocol/group/figure``, for instance ``single_shot/query/Rank-1``.

    Returns:
        None where it wasn't measured.

    Raises:
        ValueError: a column of another form.
    """
    protocol, group, name = _parts(column)
    figures = results["groups"].get(group, {}).get(protocol, {})
    value = figures.get(name)
    return None if value is None else (float(value), figures.get(f"{name}_std"))


def group_table(results: Results) -> str:
    """Rows: groups; columns: each protocol's figures in percent. Fits 100 columns.

    Queries without a right answer, which have no part in the figures, have a column where there
    are any.
    """
    columns = [
        (protocol, name)
        for protocol in results["protocols"]
        for name in _table_figures(results, protocol)
    ]
    short = {"single_shot": "1-shot", "multi_shot": "multi"}
    dropped = {group: _dropped(entry, results) for group, entry in results["groups"].items()}
    lacking = any(dropped.values())
    headers = ["query", "images"] + ["left\nout"] * lacking
    headers += [f"{short[protocol]}\n{name}" for protocol, name in columns]
    rows = [
        [group_label(group, lr_gallery(results)), str(entry["queries"])]
        + [str(dropped[group])] * lacking
        + [_cell(figure(results, f"{protocol}/{group}/{name}"), "+-") for protocol, name in columns]
        for group, entry in results["groups"].items()
    ]
    return _tabulate(rows, headers, "simple")


def interval_table(results: Results) -> str:
    """Confidence intervals in percent of each protocol's Rank-1 and of mAP; "" without any."""
    ci = results.get("ci")
    if not ci:
        return ""
    names = {"single_shot": ("1-shot", ["Rank-1"]), "multi_shot": ("multi", ["Rank-1", "mAP"])}
    columns = [
        (protocol, name, f"{names[protocol][0]}\n{name}")
        for protocol in results["protocols"]
        for name in names[protocol][1]
        if any(f"{name}_ci" in entry[protocol] for entry in results["groups"].values())
    ]
    headers = ["query"] + [header for *_, header in columns]
    rows = [
        [group_label(group, lr_gallery(results))]
        + [_interval(entry[protocol].get(f"{name}_ci")) for protocol, name, _ in columns]
        for group, entry in results["groups"].items()
    ]
    return f"{ci_label(ci)}:\n" + _tabulate(rows, headers, "simple")


def figure_names(figures: Iterable[Mapping[str, Any]], *prefixes: str) -> list[str]:
    """The names in results that begin so, each once, without those of spreads and intervals."""
    names = dict.fromkeys(name for own in figures for name in own)
    return [n for n in names if n.startswith(prefixes) and not n.endswith(("_std", "_ci"))]


def rate_table(results: Results) -> str:
    """True accept rates in percent at each false accept rate; "" without any."""
    multi = {group: entry.get("multi_shot", {}) for group, entry in results["groups"].items()}
    names = figure_names(multi.values(), "TAR@")
    if not names:
        return ""
    headers = ["query", "genuine\npairs", "impostor\npairs", *(f"TAR\n{n[3:]}" for n in names)]
    rows = [
        [
            group_label(group, lr_gallery(results)),
            *(str(figures.get(k, "")) for k in ("genuine_pairs", "impostor_pairs")),
        ]
        + [_with_interval(results, f"multi_shot/{group}/{name}", "+-") for name in names]
        for group, figures in multi.items()
    ]
    return "True accept rates (%) at false accept rates:\n" + _tabulate(rows, headers, "simple")


def ci_label(ci: Mapping[str, Any]) -> str:
    """What an interval is: ``95 % intervals, 1000 bootstrap draws of identities, seed 0``."""
    units = {"identity": "identities", "query": "queries"}[ci["by"]]
    return (
        f"{100 * ci['level']:g} % intervals, {ci['repeats']} bootstrap draws of {units}, "
        f"seed {ci['seed']}"
    )


def results_table(
    results: Sequence[str | os.PathLike[str] | Results],
    columns: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    style: str = "markdown",
) -> str:
    """Compare runs: a row each, a column per figure, and a line that says what was measured.

    Args:
        results: paths of results files, or their contents.
        columns: ``protocol/group/figure``; by default the single-shot Rank-1 of every group that
            any of the runs has, and the multi-shot mAP of the query.
        names: the rows' names; by default a file's folder, or the content's ``name``.
        style: ``markdown`` or ``plain``.

    Returns:
        The table; figures in percent with the standard deviation over the trials, and their
        confidence interval if they have one. A figure that wasn't measured is an empty cell.

    Raises:
        ResultsError: a file that can't be used.
        ValueError: no runs, an unknown style, names that are not one per run, or a column of
            another form.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")
    if not results:
        raise ValueError("no results to compare")
    if names is not None and len(names) != len(results):
        raise ValueError(f"{len(results)} results but {len(names)} names")
    runs: list[Results] = []
    labels: list[str] = []
    for k, item in enumerate(results):
        if isinstance(item, Mapping):
            runs.append(_checked(item, f"results {k + 1}"))
            labels.append(str(item.get("name", f"run {k + 1}")))
        else:
            runs.append(load_results(item))
            labels.append(Path(item).resolve().parent.name)
    labels = list(names) if names is not None else labels
    columns = default_columns(runs) if columns is None else list(columns)
    said = [measured(run) for run in runs]
    headers = ["run"] + [column_label(column, lr_gallery(*runs)) for column in columns]
    # Figures of different data or draws are not comparable: say which is which, row by row.
    notes = list(dict.fromkeys(said))
    if len(notes) > 1:
        headers.append("data")
    sign = "±" if style == "markdown" else "+-"
    rows = [
        [label]
        + [_with_interval(run, column, sign) for column in columns]
        + ([f"({notes.index(note) + 1})"] if len(notes) > 1 else [])
        for label, run, note in zip(labels, runs, said, strict=True)
    ]
    table = _tabulate(rows, headers, "pipe" if style == "markdown" else "simple")
    if len(notes) > 1:
        notes = [f"({k}) {note}" for k, note in enumerate(notes, start=1)]
    return f"{table}\n\n" + "\n".join(notes) + "\n"


def default_columns(runs: Sequence[Results]) -> list[str]:
    """The figures that :func:`results_table` shows unless told: see there."""
    groups = dict.fromkeys(g for run in runs for g in run["groups"] if "@" not in g)
    ordered = sorted(groups, key=_group_order)
    protocols = {protocol for run in runs for protocol in run["protocols"]}
    columns = []
    if "single_shot" in protocols:
        columns += [f"single_shot/{group}/Rank-1" for group in ordered]
    else:
        columns += [f"multi_shot/{group}/Rank-1" for group in ordered]
    if "multi_shot" in protocols:
        columns.append(f"multi_shot/{QUERY}/mAP")
    return columns


def _group_order(group: str) -> tuple[int, float, str]:
    if group in (QUERY, QUERY_HR):
        return (0, float(group == QUERY_HR), group)
    try:
        return (1, float(group.removeprefix("x")), group)
    except ValueError:
        return (2, 0.0, group)


def _table_figures(results: Results, protocol: str) -> list[str]:
    """The figures of one protocol that fit the screen."""
    present = list(dict.fromkeys(f for e in results["groups"].values() for f in e[protocol]))
    ranks = [f for f in present if f.startswith("Rank-") and not f.endswith(("_std", "_ci"))]
    if protocol == "single_shot":
        return ranks[:3]
    shown = ranks[:1] if "single_shot" in results["protocols"] else ranks[:3]
    return [*shown, "mAP", "mINP"]


def column_label(column: str, lr_gallery: bool = False) -> str:
    """How a figure's column is called: ``MLR Rank-1``, ``x4``, ``MLR mAP (multi-shot)``."""
    protocol, group, name = _parts(column)
    label = group_label(group, lr_gallery)
    if protocol == "multi_shot":
        return f"{label} {name} (multi-shot)"
    return f"{label} {name}" if group == QUERY or name != "Rank-1" else label


def measured(run: Results) -> str:
    """What was measured and how, in a line: data, manifest, protocols, distance."""
    data = run["test_set"]
    if run["manifest_hash"]:
        data += f", manifest {run['manifest_hash'][:12]}"
    how = []
    if "single_shot" in run["protocols"]:
        how.append(f"single-shot, {draw_label(run)}, seed {run['seed']}")
    if "multi_shot" in run["protocols"]:
        over = f", {len(run['parts'])} {run['over']}" if run.get("parts") else ""
        how.append(f"{multi_shot_label(run)}{over}")
    flags = ["flip"] if run.get("flip") else []
    trained = ((run.get("info") or {}).get("training") or {}).get("data_sets")
    if trained and not any(run["test_set"].startswith(name) for name in trained):
        flags.append(f"trained on {', '.join(trained)}")
    mixed = (run.get("info") or {}).get("mixed_gallery")
    if mixed:
        factors = ", ".join(f"{f:g}" for f in mixed["factors"])
        flags.append(f"{100 * mixed['share']:g} % of the gallery reduced by {factors}")
    if run.get("ci"):
        flags.append(ci_label(run["ci"]))
    return f"{data}: " + "; ".join([*how, f"{run['metric']} distance", *flags]) + "; percent."


def _cell(value: tuple[float, float | None] | None, sign: str) -> str:
    if value is None:
        return ""
    mean, std = value
    return f"{mean:.1f}" if std is None else f"{mean:.1f} {sign} {std:.1f}"


def _with_interval(run: Results, column: str, sign: str) -> str:
    return f"{_cell(figure(run, column), sign)} {interval(run, column)}".strip()


def interval(results: Results, column: str) -> str:
    """The interval of :func:`figure`, ``[28.1, 33.0]``; "" where none was drawn."""
    protocol, group, name = _parts(column)
    return _interval(results["groups"].get(group, {}).get(protocol, {}).get(f"{name}_ci"))


def _interval(ends: Sequence[float | None] | None) -> str:
    if not ends or ends[0] is None:
        return ""
    return f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _dropped(entry: Mapping[str, Any], results: Results) -> int:
    """Queries of a group that have no part in its figures."""
    return max(entry[p].get("unmatched", 0) for p in results["protocols"]) + entry.get("junk", 0)


def _parts(column: str) -> tuple[str, str, str]:
    parts = column.split("/")
    if len(parts) != 3:
        raise ConfigError(
            f"column {column!r}: protocol/group/figure is needed, such as single_shot/query/Rank-1"
        )
    return parts[0], parts[1], parts[2]


def _tabulate(rows: list[list[str]], headers: list[str], fmt: str) -> str:
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt=fmt, colalign=align, disable_numparse=True)


def _checked(content: Any, name: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ResultsError(f"{name}: a results file holds an object, not {type(content).__name__}")
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise ResultsError(f"{name}: not a results file, it lacks {', '.join(missing)}")
    if not isinstance(content["groups"], Mapping) or QUERY not in content["groups"]:
        raise ResultsError(f"{name}: 'groups' lacks {QUERY!r}")
    return dict(content)


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")
