"""Figures that compare runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrreid_ext.analysis.plots import COLOURS, MARKERS, legends_below, line, new_figure

__all__ = ["Point", "cmc_figure", "cost_figure", "factor_figure"]


@dataclass(frozen=True)
class Point:
    """One run in the plane of cost and accuracy.

    Attributes:
        cost: GMACs.
        accuracy: in percent.
        spread: standard deviation of the accuracy, or None.
    """

    cost: float
    accuracy: float
    spread: float | None = None


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
        far = np.isin(np.asarray(factors), list(unseen[name]))
        axis.plot(
            np.asarray(factors)[far], values[far], linestyle="none", marker="o", markersize=10,
            markerfacecolor="none", markeredgecolor=COLOURS[k % len(COLOURS)], markeredgewidth=0.9,
        )  # fmt: skip
        ring = ring or ("ringed: not trained on" if far.any() else "")
    axis.set_xlabel("query reduced by")
    axis.set_ylabel("Rank-1 (%)")
    axis.set_ylim(bottom=0)
    axis.set_xticks(list(factors), [_factor(f) for f in factors])
    if ring:
        axis.plot(
            [], [], linestyle="none", marker="o", markersize=10, markerfacecolor="none",
            markeredgecolor="#888888", label=ring,
        )  # fmt: skip
    legends_below(figure, axes)
    return figure


def _factor(factor: float) -> str:
    return "HR" if factor == 1 else f"x{factor:g}"


def cost_figure(points: Mapping[str, Point], accuracy: str) -> Any:
    """Accuracy against the cost of one image.

    Args:
        points: by run.
        accuracy: what the vertical axis is called.
    """
    figure, axes = new_figure(1)
    (axis,) = axes
    figure.set_size_inches(5.2, 3.2)
    for k, (name, point) in enumerate(points.items()):
        axis.errorbar(
            [point.cost], [point.accuracy], yerr=point.spread, label=name, linestyle="none",
            color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=7,
            capsize=3,
        )  # fmt: skip
    costs = [point.cost for point in points.values()]
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
