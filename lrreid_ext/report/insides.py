"""Sections that look into the models: feature space, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrreid_ext.errors import ConfigError
from lrreid_ext.report import history, tsne
from lrreid_ext.report.blocks import Block, Note, figure_of
from lrreid_ext.report.context import Context, Found

__all__ = ["planes", "training"]


def planes(context: Context) -> Found:
    """t-SNE by identity and by factor."""
    blocks: list[Block] = []
    for k, run in enumerate(context.runs):
        try:
            found = tsne.embed(run, context.people, context.seed)
        except (ConfigError, ValueError) as error:
            return str(error)
        alt = (
            f"t-SNE of {run.name}: {len(found.points)} images of "
            f"{len(np.unique(found.pids))} persons, once by person and once by factor"
        )
        blocks.append(figure_of(tsne.draw(found, run.name), f"tsne{k}", alt))
    blocks.append(
        Note(
            "Each point is an image: gallery, and the queries at each factor, of persons drawn at "
            f"random (seed {context.seed}). Where resolution does not disturb a network, a "
            "person's points lie together whatever their factor. t-SNE shows neighbourhoods alone: "
            "axes, sizes and distances of clusters mean nothing."
        )
    )
    return blocks


def training(context: Context) -> Found:
    """Losses, training accuracy and learning rate over the iterations."""
    blocks: list[Block] = []
    missing = []
    for k, run in enumerate(context.runs):
        path = Path(run.cfg.OUTPUT_DIR) / history.METRICS_FILE
        if not path.is_file():
            missing.append(run.name)
            continue
        found = history.read_history(path)
        if "total_loss" not in found:
            missing.append(run.name)
            continue
        last = float(found["total_loss"][0][-1])
        done = (path.parent / "model_final.pth").is_file()
        starts = history.phase_starts(run.cfg, last) if done else []
        told = run.run.training
        if starts and told.get("epochs", 0) < told.get("of", 0):
            # The folder's training went on behind this checkpoint.
            last = (last + 1) * told["epochs"] / told["of"] - 1
            found = history.until(found, last)
            starts = [(phase, at) for phase, at in starts if at < last]
        losses = found["total_loss"][1]
        alt = (
            f"Training of {run.name}: total loss from {losses[0]:.2f} to {losses[-1]:.2f} in "
            f"{last + 1:.0f} iterations"
        )
        blocks.append(figure_of(history.draw(found, starts, run.name), f"training{k}", alt))
    if not blocks:
        return f"no {history.METRICS_FILE} in the runs' folders"
    caption = "Smoothed over a twenty-fifth of the training. Dotted lines: a phase begins."
    blocks.append(Note(caption))
    if missing:
        blocks.append(Note(f"No {history.METRICS_FILE}: {', '.join(missing)}."))
    return blocks
