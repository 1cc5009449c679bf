"""Figures: how they look, how they are written, and those that compare runs.

Lines can be told apart without colour: each has its own marker and dash as well, so that a figure
also prints in grey. The colours are those of Okabe and Ito ("Color Universal Design"), which
people with the common kinds of colour blindness can tell apart.

Figures are drawn without a display: no part of pyplot is used.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrreid_ext.files import atomic, write_json, write_text
from lrreid_ext.results import Figure, factor_name

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

# Inches: a column of a two-column page.
WIDTH, HEIGHT = 3.5, 2.8

# Dots per inch of pixel images.
DPI = 200


def new_figure(columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of panels side by side.

    Args:
        columns: number of panels, at least 1.

    Returns:
        The matplotlib figure, and its axes from left to right.
    """
    from matplotlib import figure as matplotlib_figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = matplotlib_figure.Figure(figsize=(WIDTH * columns, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(True, linewidth=0.5, color="#dddddd")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def line(
    axis: Any,
    x: ArrayLike | Sequence[str],
    y: ArrayLike,
    label: str,
    index: int,
    spread: ArrayLike | None = None,
) -> None:
    """Draw one curve, with colour, marker and dash by its index.

    Args:
        axis: the panel.
        x, y: (N,) the points; ``x`` may be words. Points whose ``y`` is NaN are left out.
        label: of the legend.
        index: its place, from 0; the first 70 curves all look different.
        spread: (N,) drawn as a band of this much to either side of the curve.
    """
    places, values = np.asarray(x), np.asarray(y, dtype=np.float64)
    colour = COLOURS[index % len(COLOURS)]
    axis.plot(
        places,
        values,
        label=label,
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[index % len(DASHES)],
        markersize=4,
        linewidth=1.4,
    )
    if spread is not None:
        width = np.asarray(spread, dtype=np.float64)
        axis.fill_between(places, values - width, values + width, color=colour, alpha=0.15, lw=0)


def bars(axis: Any, labels: Sequence[str], values: ArrayLike, spread: ArrayLike) -> None:
    """Draw a bar for each label, the first on top, with its value beside it.

    Args:
        axis: the panel.
        labels: (N,) names of the bars.
        values: (N,) lengths.
        spread: (N,) drawn as a line of this much to either side of the bar's end.
    """
    ends, width = np.asarray(values, dtype=np.float64), np.asarray(spread, dtype=np.float64)
    places = np.arange(len(ends))
    axis.barh(places, ends, xerr=width, color=COLOURS[0], height=0.6, error_kw={"linewidth": 1})
    for place, end, more in zip(places, ends, width, strict=True):
        axis.annotate(
            f"{end:.1f}", (end + more, place), (3, 0), textcoords="offset points", va="center",
            fontsize="small",
        )  # fmt: skip
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    axis.set_xlim(right=1.15 * max(float((ends + width).max()), 1e-9))


def legends_below(figure: Any, axes: Sequence[Any]) -> None:
    """Put the legends below the panels, where they hide nothing; the figure grows.

    Args:
        figure: of :func:`new_figure`.
        axes: those of its panels whose curves have labels.
    """
    rows = 0
    for axis in axes:
        labels = axis.get_legend_handles_labels()[1]
        if not labels:
            continue
        # About as many small letters fit below a panel.
        letters = 12 * figure.get_figwidth() / len(figure.axes)
        columns = max(1, min(len(labels), int(letters / (max(map(len, labels)) + 6))))
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize="small", frameon=False,
            ncols=columns,
        )  # fmt: skip
        rows = max(rows, -(-len(labels) // columns))
    figure.set_figheight(figure.get_figheight() + 0.17 * rows)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically. The same figure gives the same bytes: no date is written.

    Args:
        figure: of :func:`new_figure`.
        path: ends in ``.png``, ``.svg`` or ``.pdf``; its folder is created.

    Raises:
        ValueError: another ending.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{os.fspath(path)}: a figure's name ends in .png, .svg or .pdf")
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
    with _fixed(), atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata=metadata)


def svg(figure: Any) -> str:
    """A figure as an ``<svg>`` element without background."""
    text = io.StringIO()
    with _fixed():
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    content = text.getvalue()
    return content[content.index("<svg") :]


def _fixed() -> Any:
    """Settings that keep text as text and make ids reproducible."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lrreid_ext"})


# ---------------------------------------------------------------- figures that compare runs
def cmc_figure(
    panels: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]]],
) -> Any:
    """Cumulative match characteristics: a panel per group of queries, a line per run.

    Args:
        panels: by title and run: shares (K,) at ranks 1 to K, 0 to 1, and their standard deviation
            over the trials, or None.
    """
    figure, axes = new_figure(len(panels))
    for axis, (title, runs) in zip(axes, panels.items(), strict=True):
        for k, (name, (mean, spread)) in enumerate(runs.items()):
            ranks = np.arange(1, len(mean) + 1)
            band = None if spread is None else 100 * np.nan_to_num(spread)
            line(axis, ranks, 100 * mean, name, k, band)
            axis.lines[-1].set_markevery(max(len(mean) // 10, 1))
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("rank")
        axis.set_ylabel("matched (%)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    lowest = min(axis.get_ylim()[0] for axis in axes)
    for axis in axes:
        axis.set_ylim(bottom=max(lowest, 0), top=101)
    legends_below(figure, axes[:1])
    return figure


def factor_figure(
    factors: Sequence[float],
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    unseen: Mapping[str, Sequence[float]],
) -> Any:
    """Rank-1 against the factor that queries are reduced by, a line per run.

    Points at factors that a run wasn't trained on are ringed.

    Args:
        factors: (F,) in rising order; 1 are HR queries.
        runs: each run's Rank-1 (F,) in percent and standard deviation (F,); NaN where unknown.
        unseen: each run's factors that it wasn't trained on.
    """
    figure, axes = new_figure(1)
    (axis,) = axes
    figure.set_size_inches(5.2, 3.2)
    ring = ""
    for k, (name, (mean, spread)) in enumerate(runs.items()):
        values = np.asarray(mean, dtype=np.float64)
        line(axis, factors, values, name, k, np.nan_to_num(np.asarray(spread, dtype=np.float64)))
        untrained = np.isin(np.asarray(factors), list(unseen[name]))
        axis.plot(
            np.asarray(factors)[untrained], values[untrained], linestyle="none", marker="o",
            markersize=10, markerfacecolor="none", markeredgecolor=COLOURS[k % len(COLOURS)],
            markeredgewidth=0.9,
        )  # fmt: skip
        ring = ring or ("ringed: not trained on" if untrained.any() else "")
    axis.set_xlabel("query reduced by")
    axis.set_ylabel("Rank-1 (%)")
    axis.set_ylim(bottom=0)
    axis.set_xticks(list(factors), [factor_name(f) for f in factors])
    if ring:
        axis.plot(
            [], [], linestyle="none", marker="o", markersize=10, markerfacecolor="none",
            markeredgecolor="#888888", label=ring,
        )  # fmt: skip
    legends_below(figure, axes)
    return figure


def cost_figure(points: Mapping[str, tuple[float, Figure]], accuracy: str) -> Any:
    """Accuracy against the cost of one image.

    Args:
        points: GMACs and accuracy by run.
        accuracy: label of the vertical axis.
    """
    figure, axes = new_figure(1)
    (axis,) = axes
    figure.set_size_inches(5.2, 3.2)
    for k, (name, (cost, value)) in enumerate(points.items()):
        axis.errorbar(
            [cost], [value.value], yerr=value.std, label=name, linestyle="none",
            color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=7,
            capsize=3,
        )  # fmt: skip
    costs = [cost for cost, _ in points.values()]
    if min(costs) > 0 and max(costs) > 20 * min(costs):
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, 1.15 * max(costs))
    axis.set_xlabel("GMACs per query")
    axis.set_ylabel(accuracy)
    axis.margins(y=0.3)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 0))
    legends_below(figure, axes)
    return figure


def write_figure(
    base: str | os.PathLike[str], table: str, content: Mapping[str, Any], figure: Any
) -> None:
    """Write ``base.csv``, ``.json``, ``.svg`` and ``.png``, and print their names.

    Args:
        base: the files' path without its ending.
        table: the CSV.
        content: of the JSON.
        figure: of matplotlib.
    """
    write_text(f"{base}.csv", table)
    write_json(f"{base}.json", dict(content))
    for ending in ("svg", "png"):
        save(figure, f"{base}.{ending}")
    print(f"written: {base}.csv, .json, .svg, .png")
