"""Tables of results, for the screen and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tabulate import tabulate

from lrreid_ext.data.samples import QUERY, QUERY_HR
from lrreid_ext.results.names import FigureName, group_label
from lrreid_ext.results.results import Figures, Results

_SHORT = {"single_shot": "1-shot", "multi_shot": "multi"}


def tables(results: Results) -> str:
    """All tables of one evaluation: figures, confidence intervals and true accept rates."""
    parts = (group_table(results), interval_table(results), rate_table(results))
    return "\n\n".join(filter(None, parts))


def group_table(results: Results) -> str:
    """Rows: groups; columns: each protocol's figures in percent. At most 100 characters wide.

    If there are queries without a right answer, a column counts them.
    """
    columns = [(p, name) for p in results.protocols for name in _main_figures(results, p)]
    left_out = any(group.left_out for group in results.groups.values())
    headers = ["query", "images"] + ["left\nout"] * left_out
    headers += [f"{_SHORT[protocol]}\n{name}" for protocol, name in columns]
    rows = [
        [group_label(name, results.lr_gallery), str(group.queries)]
        + [str(group.left_out)] * left_out
        + [_cell(results, FigureName(protocol, name, figure)) for protocol, figure in columns]
        for name, group in results.groups.items()
    ]
    return _table(rows, headers)


def interval_table(results: Results) -> str:
    """Confidence intervals in percent of Rank-1 and of multi-shot mAP; "" without any."""
    if not results.ci:
        return ""
    figures = {"single_shot": ["Rank-1"], "multi_shot": ["Rank-1", "mAP"]}
    columns = [
        (protocol, name)
        for protocol in results.protocols
        for name in figures[protocol]
        if name in results.groups[QUERY].protocols[protocol].named
    ]
    headers = ["query"] + [f"{_SHORT[protocol]}\n{name}" for protocol, name in columns]
    rows = [
        [group_label(group, results.lr_gallery)]
        + [f.interval if (f := entry.protocols[p].named[name]) else "" for p, name in columns]
        for group, entry in results.groups.items()
    ]
    return f"{results.ci.label}:\n{_table(rows, headers)}"


def rate_table(results: Results) -> str:
    """True accept rates in percent at each false accept rate; "" without any."""
    entries = {g: e.protocols.get("multi_shot", Figures()) for g, e in results.groups.items()}
    names = entries[QUERY].starting("TAR@")
    if not names:
        return ""
    headers = ["query", "genuine\npairs", "impostor\npairs", *(f"TAR\n{n[3:]}" for n in names)]
    rows = [
        [
            group_label(group, results.lr_gallery),
            str(entry.genuine_pairs),
            str(entry.impostor_pairs),
        ]
        + [_cell(results, FigureName("multi_shot", group, n), interval=True) for n in names]
        for group, entry in entries.items()
    ]
    return f"True accept rates (%) at false accept rates:\n{_table(rows, headers)}"


def results_table(
    results: Sequence[Results],
    columns: Sequence[str] | None = None,
    *,
    names: Sequence[str],
    style: Literal["markdown", "plain"] = "markdown",
) -> str:
    """Compare runs: a row for each, a column for each figure, and a line on what was measured.

    Args:
        results: of each run.
        columns: ``protocol/group/figure``; None is :func:`default_columns`.
        names: of the rows.
        style: ``markdown`` or ``plain``.

    Returns:
        The table. Figures are in percent, with their standard deviation and confidence interval if
        they have them. The cell of a figure that was not measured is empty.

    Raises:
        ConfigError: a column of another form.
    """
    figures = [FigureName.parse(c) for c in columns or map(str, default_columns(results))]
    lr_gallery = any(run.lr_gallery for run in results)
    headers = ["run"] + [figure.label(lr_gallery) for figure in figures]
    # Figures of different data or draws can't be compared, so each row has a reference to a note.
    notes = list(dict.fromkeys(run.measured for run in results))
    headers += ["data"] * (len(notes) > 1)
    sign = "±" if style == "markdown" else "+-"
    rows = [
        [name, *(_cell(run, figure, sign, interval=True) for figure in figures)]
        + [f"({notes.index(run.measured) + 1})"] * (len(notes) > 1)
        for name, run in zip(names, results, strict=True)
    ]
    table = _table(rows, headers, "pipe" if style == "markdown" else "simple")
    if len(notes) > 1:
        notes = [f"({k}) {note}" for k, note in enumerate(notes, start=1)]
    return f"{table}\n\n" + "\n".join(notes) + "\n"


def default_columns(results: Sequence[Results]) -> list[FigureName]:
    """Single-shot Rank-1 of every group that any run has, and multi-shot mAP of the query.

    Without single-shot figures, Rank-1 is that of multi-shot.
    """
    groups = dict.fromkeys(g for run in results for g in run.groups if "@" not in g)
    protocols = {protocol for run in results for protocol in run.protocols}
    shot = "single_shot" if "single_shot" in protocols else "multi_shot"
    columns = [FigureName(shot, group, "Rank-1") for group in sorted(groups, key=_group_order)]
    if "multi_shot" in protocols:
        columns.append(FigureName("multi_shot", QUERY, "mAP"))
    return columns


def _group_order(group: str) -> tuple[int, float, str]:
    if group in (QUERY, QUERY_HR):
        return (0, float(group == QUERY_HR), group)
    try:
        return (1, float(group.removeprefix("x")), group)
    except ValueError:
        return (2, 0.0, group)


def _main_figures(results: Results, protocol: str) -> list[str]:
    """The figures of one protocol that fit the screen."""
    ranks = results.groups[QUERY].protocols[protocol].starting("Rank-")
    if protocol == "single_shot":
        return ranks[:3]
    return [*ranks[: 1 if "single_shot" in results.protocols else 3], "mAP", "mINP"]


def _cell(results: Results, name: FigureName, sign: str = "+-", interval: bool = False) -> str:
    figure = results.figure(name)
    if figure is None:
        return ""
    return f"{figure.text(sign)} {figure.interval if interval else ''}".strip()


def _table(rows: list[list[str]], headers: list[str], style: str = "simple") -> str:
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True)
