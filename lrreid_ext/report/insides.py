"""Sections that look into the models: feature space, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrreid_ext.files import write_text
from lrreid_ext.report import history, tsne
from lrreid_ext.report.blocks import Block, Note, figure_of
from lrreid_ext.report.context import Context, Found
from lrreid_ext.report.plots import save

__all__ = ["planes", "training"]


def planes(context: Context) -> Found:
    """t-SNE by identity and by factor."""
    try:
        embeddings = {r.name: tsne.embed(r, context.people, context.seed) for r in context.runs}
    except ValueError as error:
        return str(error)
    blocks: list[Block] = []
    for k, (name, embedding) in enumerate(embeddings.items()):
        figure = tsne.draw(embedding, name)
        if context.files:
            for ending in ("svg", "png"):
                save(figure, context.files / f"tsne_{name.replace('/', '_')}.{ending}")
        alt = (
            f"t-SNE of {name}: {len(embedding.points)} images of "
            f"{len(np.unique(embedding.pids))} persons, once by person and once by factor"
        )
        blocks.append(figure_of(figure, f"tsne{k}", alt))
    if context.files:
        write_text(context.files / "tsne.csv", tsne.table(embeddings))
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
        curves = history.read_history(path)
        if "total_loss" not in curves:
            missing.append(run.name)
            continue
        last = float(curves["total_loss"][0][-1])
        done = (path.parent / "model_final.pth").is_file()
        starts = history.phase_starts(run.cfg, last) if done else []
        info = run.run.training
        if starts and info.get("epochs", 0) < info.get("of", 0):
            # The training in the folder went on after this checkpoint.
            last = (last + 1) * info["epochs"] / info["of"] - 1
            curves = history.until(curves, last)
            starts = [(phase, at) for phase, at in starts if at < last]
        losses = curves["total_loss"][1]
        alt = (
            f"Training of {run.name}: total loss from {losses[0]:.2f} to {losses[-1]:.2f} in "
            f"{last + 1:.0f} iterations"
        )
        blocks.append(figure_of(history.draw(curves, starts, run.name), f"training{k}", alt))
    if not blocks:
        return f"no {history.METRICS_FILE} in the runs' folders"
    caption = "Smoothed over a twenty-fifth of the training. Dotted lines: a phase begins."
    blocks.append(Note(caption))
    if missing:
        blocks.append(Note(f"No {history.METRICS_FILE}: {', '.join(missing)}."))
    return blocks
