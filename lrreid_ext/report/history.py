"""Training curves, from the ``metrics.json`` that training writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.config import CfgNode, phases_of
from lrreid_ext.errors import ConfigError
from lrreid_ext.report.blocks import Block, Note, figure_of
from lrreid_ext.report.context import Content, Context
from lrreid_ext.report.plots import legends_below, line, new_figure

__all__ = ["METRICS_FILE", "Curve", "draw", "phase_starts", "read_history", "smooth", "training"]

METRICS_FILE = "metrics.json"

#: Iterations (N,), and the figure at each (N,).
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def read_history(path: Path) -> dict[str, Curve]:
    """Every logged figure over the iterations, by name.

    If an iteration was logged twice, because training was resumed before it, the last line counts.

    Args:
        path: lines of JSON objects, each with an ``iteration``.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: a line that isn't such an object. A last line without a line end was cut off
            while it was written, and is ignored.
    """
    logged: dict[str, dict[int, float]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(True), start=1):
        try:
            row = json.loads(text)
            iteration = int(row["iteration"])
        except (ValueError, KeyError, TypeError) as error:
            if not text.endswith("\n"):
                break
            raise ConfigError(f"{path}, line {number}: not a logged figure: {error}") from error
        for name, value in row.items():
            if name != "iteration" and isinstance(value, (int, float)):
                logged.setdefault(name, {})[iteration] = float(value)
    curves = {name: np.array(sorted(values.items())) for name, values in logged.items()}
    return {name: (points[:, 0], points[:, 1]) for name, points in curves.items()}


def phase_starts(cfg: CfgNode, last_iteration: float) -> list[tuple[str, float]]:
    """Name and first iteration of each phase.

    Args:
        cfg: the run's config.
        last_iteration: of a finished training.

    Returns:
        Nothing if there is one phase, or if epochs may differ in length between phases.
    """
    phases = phases_of(cfg)
    if len(phases) < 2 or any("IMS_PER_BATCH" in phase.solver for phase in phases):
        return []
    per_epoch = (last_iteration + 1) / phases[-1].end
    return [(phase.name, phase.start * per_epoch) for phase in phases]


def until(history: Mapping[str, Curve], last: float) -> dict[str, Curve]:
    """Cut the curves after an iteration, and drop those that start later."""
    return {
        name: (iterations[iterations <= last], values[iterations <= last])
        for name, (iterations, values) in history.items()
        if iterations[0] <= last
    }


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """(N,) running mean over ``width`` neighbours, fewer at both ends."""
    half = max(width, 1) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw(history: Mapping[str, Curve], starts: list[tuple[str, float]], title: str = "") -> Any:
    """A matplotlib figure of losses, training accuracy and learning rate.

    Args:
        history: of :func:`read_history`, with ``total_loss``.
        starts: of :func:`phase_starts`.
        title: above the panels.
    """
    losses = [n for n in history if n.startswith(("loss", "total_loss"))]
    losses.sort(key=lambda n: not n.startswith("total_loss"))
    panels = {
        "loss": losses,
        "accuracy in training (%)": [n for n in history if n.endswith("accuracy")],
        "learning rate": [n for n in history if n == "lr" or n.startswith("lr_")],
    }
    panels = {label: names for label, names in panels.items() if names}
    figure, axes = new_figure(len(panels))
    for axis, (label, names) in zip(axes, panels.items(), strict=True):
        for k, name in enumerate(names):
            iterations, values = history[name]
            values = smooth(
                100 * values if name.endswith("accuracy") else values, len(values) // 25
            )
            line(axis, iterations, values, name.removeprefix("loss_").replace("_", " "), k)
            # A few markers tell the curves apart without hiding them.
            axis.lines[-1].set(markevery=max(len(values) // 6, 1), markersize=3.5)
        axis.set_title(label, fontsize="medium", pad=14 if starts else None)
        axis.set_xlabel("iteration")
        all_values = np.concatenate([history[n][1] for n in names])
        if label == "loss" and all_values.min() > 0 and all_values.max() > 30 * all_values.min():
            axis.set_yscale("log")
        for phase, start in starts:
            axis.axvline(start, color="#888888", linewidth=0.7, linestyle=":")
            axis.text(
                start, 1.01, phase, fontsize="x-small", va="bottom", ha="left", color="#555555",
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
    several = [axis for axis, names in zip(axes, panels.values(), strict=True) if len(names) > 1]
    legends_below(figure, several)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


# ---------------------------------------------------------------- section
def training(context: Context) -> Content:
    """Losses, training accuracy and learning rate over the iterations."""
    blocks: list[Block] = []
    missing = []
    for k, run in enumerate(context.runs):
        path = Path(run.cfg.OUTPUT_DIR) / METRICS_FILE
        curves = read_history(path) if path.is_file() else {}
        if "total_loss" not in curves:
            missing.append(run.name)
            continue
        last = float(curves["total_loss"][0][-1])
        done = (path.parent / "model_final.pth").is_file()
        starts = phase_starts(run.cfg, last) if done else []
        epochs, of = run.training.epochs, run.training.of
        if starts and epochs is not None and of is not None and epochs < of:
            # The training in the folder went on after this checkpoint.
            last = (last + 1) * epochs / of - 1
            curves = until(curves, last)
            starts = [(phase, at) for phase, at in starts if at < last]
        losses = curves["total_loss"][1]
        alt = (
            f"Training of {run.name}: total loss from {losses[0]:.2f} to {losses[-1]:.2f} in "
            f"{last + 1:.0f} iterations"
        )
        blocks.append(figure_of(draw(curves, starts, run.name), f"training{k}", alt))
    if not blocks:
        return f"no {METRICS_FILE} in the runs' folders"
    blocks.append(Note("Smoothed over 1/25 of the training. Dotted lines: a phase begins."))
    if missing:
        blocks.append(Note(f"No {METRICS_FILE}: {', '.join(missing)}."))
    return blocks
