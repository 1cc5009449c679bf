"""Ranked galleries: what stands first for a query, right and wrong, of one model or of several.

The rules are those of :mod:`lrreid_ext.evaluation.ranking`: junk and images of the query's own
identity and camera are left out, and of equal distances a wrong match comes first.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from lrreid_ext.data.paired import sample_image
from lrreid_ext.data.samples import Sample
from lrreid_ext.evaluation.distance import check_features, distance_chunks
from lrreid_ext.evaluation.ranking import labels
from lrreid_ext.report.plots import COLOURS

__all__ = [
    "COLUMNS",
    "Matches",
    "draw",
    "draw_queries",
    "hardest",
    "nearest",
    "table",
]

#: Columns of the CSV.
COLUMNS = (
    "query", "person", "camera", "factor", "run", "rank", "match", "match_person", "match_camera",
    "distance", "right",
)  # fmt: skip

# Frames: a right match's is blue and solid, a wrong one's vermilion and dashed.
RIGHT, WRONG = COLOURS[0], COLOURS[1]


@dataclass(frozen=True)
class Matches:
    """The nearest gallery images of Q queries.

    Attributes:
        order: (Q, k) int64, positions in the gallery, nearest first; -1 where there are no more.
        distance: (Q, k) float32, infinite where there are no more.
        right: (Q, k) bool, whether the identity is the query's.
        first_right: (Q,) int64, position in the gallery of the first right match; -1 for none.
        first_rank: (Q,) int64, its rank, from 1; 0 for none.
        first_distance: (Q,) float32, its distance; infinite for none.
    """

    order: NDArray[np.int64]
    distance: NDArray[np.float32]
    right: NDArray[np.bool_]
    first_right: NDArray[np.int64]
    first_rank: NDArray[np.int64]
    first_distance: NDArray[np.float32]


def nearest(
    query: Tensor,
    gallery: Tensor,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    count: int = 10,
    metric: str = "cosine",
    weights: Tensor | None = None,
) -> Matches:
    """Rank the gallery for some queries and keep the first ``count`` images.

    Args:
        query, gallery: features (Q, D) and (G, D), or (Q, K, D) and (G, K, D) of K models.
        q_pids, g_pids, q_camids, g_camids: (Q,) and (G,) identities and cameras.
        count: how many to keep, at least 1.
        metric: ``cosine`` or ``euclidean``.
        weights: (Q, K), of the K models' distances; None weighs them alike.

    Raises:
        ValueError: ``count`` below 1, or what :func:`rank_statistics` refuses.
    """
    if count < 1:
        raise ValueError(f"at least one match is shown, not {count}")
    query, gallery = check_features(query, "query"), check_features(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")
    count = min(count, len(gallery))
    out = Matches(
        np.full((len(query), count), -1, dtype=np.int64),
        np.full((len(query), count), np.inf, dtype=np.float32),
        np.zeros((len(query), count), dtype=bool),
        np.full(len(query), -1, dtype=np.int64),
        np.zeros(len(query), dtype=np.int64),
        np.full(len(query), np.inf, dtype=np.float32),
    )
    for rows, block in distance_chunks(query, gallery, metric, weights=weights):
        for i, row in enumerate(block.cpu().numpy(), start=rows.start):
            same = g_pids == q_pids[i]
            ranked = np.flatnonzero((g_pids >= 0) & ~(same & (g_camids == q_camids[i])))
            right = same[ranked] & (q_pids[i] > 0)
            order = np.lexsort((right, row[ranked]))
            ranked, right = ranked[order], right[order]
            shown = min(count, len(ranked))
            out.order[i, :shown] = ranked[:shown]
            out.distance[i, :shown] = row[ranked[:shown]]
            out.right[i, :shown] = right[:shown]
            if right.any():
                out.first_rank[i] = right.argmax() + 1
                out.first_right[i] = ranked[right.argmax()]
                out.first_distance[i] = row[out.first_right[i]]
    return out


def draw_queries(
    factors: ArrayLike, valid: ArrayLike, count: int, seed: int = 0
) -> NDArray[np.int64]:
    """Queries drawn at random, each factor in its turn.

    Args:
        factors: (Q,) by how much each query is reduced; NaN counts as a factor of its own.
        valid: (Q,) bool, queries that may be drawn.
        count: at most this many.
        seed: of the draw.

    Returns:
        Positions, by factor and then in order.
    """
    factor, allowed = np.asarray(factors, dtype=np.float64), np.asarray(valid, dtype=bool)
    generator = np.random.default_rng(seed)
    piles = [
        list(generator.permutation(np.flatnonzero(allowed & _alike(factor, value))))
        for value in np.unique(factor[allowed])
    ]
    drawn: list[int] = []
    while len(drawn) < count and any(piles):
        for pile in piles:
            if pile and len(drawn) < count:
                drawn.append(int(pile.pop()))
    return np.array(sorted(drawn, key=lambda i: (factor[i], i)), dtype=np.int64)


def _alike(factors: NDArray[np.float64], value: float) -> NDArray[np.bool_]:
    return np.isnan(factors) if math.isnan(value) else factors == value


def hardest(first_ranks: Sequence[ArrayLike], count: int) -> NDArray[np.int64]:
    """Queries that all runs together rank worst.

    Args:
        first_ranks: each run's (Q,) rank of the first right match, from 1; 0 for queries without.
        count: at most this many.

    Returns:
        Positions by falling geometric mean of the ranks; queries without a right match, and those
        that every run ranks right, are not among them.
    """
    ranks = np.stack([np.asarray(r, dtype=np.float64) for r in first_ranks])
    failed = np.flatnonzero((ranks > 0).all(0) & (ranks > 1).any(0))
    mean = np.log(ranks[:, failed]).mean(0)
    return failed[np.argsort(-mean, kind="stable")][:count]


# ---------------------------------------------------------------- what is written
def table(
    samples: Sequence[Sample],
    gallery: NDArray[np.int64],
    index: NDArray[np.int64],
    runs: Mapping[str, Matches],
) -> str:
    """CSV with a row per query, run and match.

    Args:
        samples: all images of the test set.
        gallery: (G,) positions of the gallery in it.
        index: (Q,) positions of the queries in it.
        runs: each run's matches of these queries.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for q, at in enumerate(index):
        query = samples[at]
        for name, found in runs.items():
            for rank, place in enumerate(found.order[q], start=1):
                if place < 0:
                    continue
                match = samples[gallery[place]]
                writer.writerow(
                    [
                        Path(query.path).name, query.pid, query.camid, f"{query.factor:g}",
                        name, rank, Path(match.path).name, match.pid, match.camid,
                        f"{found.distance[q, rank - 1]:.6g}", int(found.right[q, rank - 1]),
                    ]
                )  # fmt: skip
    return out.getvalue()


def draw(
    samples: Sequence[Sample],
    gallery: NDArray[np.int64],
    index: NDArray[np.int64],
    runs: Mapping[str, Matches],
) -> Any:
    """A matplotlib figure: a row per query and run, the query first, then its matches.

    Right matches are framed in blue with a solid line and a tick, wrong ones in vermilion with a
    dashed line and a cross. Arguments: see :func:`table`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(found.order.shape[1] for found in runs.values())
    rows = len(index) * len(runs)
    figure = Figure(figsize=(0.62 * (count + 1) + 1.4, 1.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, count + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    lines = [(q, name) for q in range(len(index)) for name in runs]
    for row, (q, name) in zip(axes, lines, strict=True):
        query = samples[index[q]]
        _show(row[0], sample_image(query), f"person {query.pid}\n{_reduced(query)}")
        row[0].text(
            -0.25, 0.5, name, rotation=90, ha="right", va="center", fontsize="small",
            transform=row[0].transAxes,
        )  # fmt: skip
        found = runs[name]
        for k, place in enumerate(found.order[q]):
            if place < 0:
                continue
            match, right = samples[gallery[place]], bool(found.right[q, k])
            _show(row[k + 1], sample_image(match), f"{'✓' if right else '✗'} {match.pid}")
            _frame(row[k + 1], right)
    return figure


def _reduced(sample: Sample) -> str:
    return "LR" if math.isnan(sample.factor) else f"x{sample.factor:g}"


def _show(axis: Any, image: Image.Image, title: str) -> None:
    # All crops stand as tall; one that has fewer pixels shows them.
    axis.imshow(np.asarray(image), aspect="auto", interpolation="nearest")
    axis.set_title(title, fontsize="x-small", pad=3)


def _frame(axis: Any, right: bool) -> None:
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        # Square ends would fill the gaps of the dashes.
        spine.set(
            color=RIGHT if right else WRONG,
            linewidth=2.5,
            linestyle="-" if right else (0, (2, 1)),
            capstyle="projecting" if right else "butt",
        )
