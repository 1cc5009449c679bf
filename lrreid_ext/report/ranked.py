"""Ranked galleries: the first matches of a query, right and wrong, by one model or several.

The ranking itself is :func:`lrreid_ext.evaluation.ranking.nearest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lrreid_ext.data.paired import sample_image
from lrreid_ext.data.samples import Sample
from lrreid_ext.evaluation.matching import Side
from lrreid_ext.evaluation.ranking import Matches, nearest, rank_statistics
from lrreid_ext.files import csv_text, write_text
from lrreid_ext.report.blocks import Block, Gallery, Match, Note, Table, picture_of
from lrreid_ext.report.context import PRIVACY, Content, Context, Rows, have_factor, size_label
from lrreid_ext.report.plots import COLOURS, save
from lrreid_ext.results import factor_name

__all__ = ["COLUMNS", "draw", "draw_queries", "failures", "galleries", "hardest", "table"]

#: Columns of the CSV.
COLUMNS = (
    "query", "person", "camera", "factor", "run", "rank", "match", "match_person", "match_camera",
    "distance", "right",
)  # fmt: skip

# Frames: a right match's is blue and solid, a wrong one's vermilion and dashed.
RIGHT, WRONG = COLOURS[0], COLOURS[1]


def draw_queries(
    factors: ArrayLike, valid: ArrayLike, count: int, seed: int = 0
) -> NDArray[np.int64]:
    """Draw queries at random, from each factor in turn.

    Args:
        factors: (Q,) of each query; NaN, unknown, counts as one more factor.
        valid: (Q,) bool, queries that may be drawn.
        count: at most this many.
        seed: of the draw.

    Returns:
        Positions, by factor and then in order.
    """
    factor, allowed = np.asarray(factors, dtype=np.float64), np.asarray(valid, dtype=bool)
    generator = np.random.default_rng(seed)
    piles = [
        list(generator.permutation(np.flatnonzero(allowed & have_factor(factor, value))))
        for value in np.unique(factor[allowed])
    ]
    drawn: list[int] = []
    while len(drawn) < count and any(piles):
        for pile in piles:
            if pile and len(drawn) < count:
                drawn.append(int(pile.pop()))
    return np.array(sorted(drawn, key=lambda i: (factor[i], i)), dtype=np.int64)


def hardest(first_ranks: Sequence[ArrayLike], count: int) -> NDArray[np.int64]:
    """Queries that all runs together rank worst.

    Args:
        first_ranks: each run's (Q,) rank of the first right match, from 1; 0 for queries without.
        count: at most this many.

    Returns:
        Positions by falling geometric mean of the ranks, without queries that have no right match
        and those that every run matches at rank 1.
    """
    ranks = np.stack([np.asarray(r, dtype=np.float64) for r in first_ranks])
    failed = np.flatnonzero((ranks > 0).all(0) & (ranks > 1).any(0))
    mean = np.log(ranks[:, failed]).mean(0)
    return failed[np.argsort(-mean, kind="stable")][:count]


# ---------------------------------------------------------------- files
def table(query: Side, gallery: Side, runs: Mapping[str, Matches]) -> str:
    """CSV with a row per query, run and match.

    Args:
        query, gallery: the two sides, with their images.
        runs: each run's matches of these queries.
    """
    rows = []
    for q, sample in enumerate(query.samples):
        for name, matches in runs.items():
            for rank, place in enumerate(matches.order[q], start=1):
                if place < 0:
                    continue
                match = gallery.samples[place]
                rows.append(
                    [
                        Path(sample.path).name, sample.pid, sample.camid, f"{sample.factor:g}",
                        name, rank, Path(match.path).name, match.pid, match.camid,
                        f"{matches.distance[q, rank - 1]:.6g}", int(matches.right[q, rank - 1]),
                    ]
                )  # fmt: skip
    return csv_text(COLUMNS, rows)


def draw(query: Side, gallery: Side, runs: Mapping[str, Matches]) -> Any:
    """A matplotlib figure: a row per query and run, the query first, then its matches.

    Right matches are framed in blue with a solid line and a tick, wrong ones in vermilion with a
    dashed line and a cross. Arguments: see :func:`table`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(matches.order.shape[1] for matches in runs.values())
    rows = len(query) * len(runs)
    figure = Figure(figsize=(0.62 * (count + 1) + 1.4, 1.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, count + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    lines = [(q, name) for q in range(len(query)) for name in runs]
    for row, (q, name) in zip(axes, lines, strict=True):
        sample = query.samples[q]
        _show(row[0], sample_image(sample), f"person {sample.pid}\n{factor_name(sample.factor)}")
        row[0].text(
            -0.25, 0.5, name, rotation=90, ha="right", va="center", fontsize="small",
            transform=row[0].transAxes,
        )  # fmt: skip
        matches = runs[name]
        for k, place in enumerate(matches.order[q]):
            if place < 0:
                continue
            match, right = gallery.samples[place], bool(matches.right[q, k])
            _show(row[k + 1], sample_image(match), f"{'✓' if right else '✗'} {match.pid}")
            _frame(row[k + 1], right)
    return figure


def _show(axis: Any, image: Image.Image, title: str) -> None:
    # All crops are drawn equally tall; small ones show their pixels.
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


# ---------------------------------------------------------------- sections
def galleries(context: Context) -> Content:
    """What each run ranks first, for queries drawn at random."""
    matching = context.runs[0].matching
    valid = rank_statistics(matching).valid
    drawn = draw_queries(matching.query.factors, valid, context.queries, context.seed)
    rankings = _rankings(context, "galleries", drawn)
    if not context.images:
        return PRIVACY
    return [
        Note(
            f"LR queries, drawn at random from each factor in turn (seed {context.seed}), and the "
            "gallery images that each run ranks first. ✓ and a solid blue frame: the right person. "
            "✗ and a dashed vermilion frame: another person. Numbers are distances; sizes are "
            "height x width."
        ),
        *rankings,
    ]


def failures(context: Context) -> Content:
    """The queries that all runs together rank worst."""
    ranks = [rank_statistics(run.matching).first_rank for run in context.runs]
    worst = hardest(ranks, context.queries)
    if not len(worst):
        return "every LR query that has a right match is matched rightly at rank 1"
    queries = context.runs[0].matching.query.samples
    rows: Rows = [
        [
            f"person {sample.pid}", f"camera {sample.camid}", factor_name(sample.factor),
            *(str(r[i]) for r in ranks),
        ]
        for i, sample in ((i, queries[i]) for i in worst)
    ]  # fmt: skip
    names = [run.name for run in context.runs]
    of_all = "geometric mean over the runs" if len(names) > 1 else "rank"
    ranks_table = Table(
        f"LR queries whose first right match ranks last ({of_all}); multi-shot.",
        ["query", "camera", "factor", *(f"rank, {n}" for n in names)],
        rows,
        words=[1, 2],
    )
    rankings = _rankings(context, "failures", worst)
    if not context.images:
        return [ranks_table, Note(f"No pictures: {PRIVACY}.")]
    return [ranks_table, *rankings]


def _rankings(context: Context, name: str, index: NDArray[np.int64]) -> list[Block]:
    """What each run ranks first for some of the queries.

    Args:
        context: the runs. Its folder ``files`` gets the table, and the figure if pictures may be
            shown.
        name: of the files.
        index: positions of the queries among all.

    Returns:
        Nothing if no pictures may be shown.
    """
    first = context.runs[0]
    queries, gallery = first.matching.part(index).query, first.gallery.samples
    nearest_of = {r.name: nearest(r.matching.part(index), context.depth) for r in context.runs}
    if context.files:
        write_text(context.files / f"{name}.csv", table(queries, first.gallery, nearest_of))
    if not context.images:
        return []
    if context.files:
        figure = draw(queries, first.gallery, nearest_of)
        save(figure, context.files / f"{name}.png")
    blocks: list[Block] = []
    for q, query in enumerate(queries.samples):
        small = sample_image(query)
        title = f"Person {query.pid}, camera {query.camid}, {factor_name(query.factor)}"
        size = size_label(small)
        picture = picture_of(small, f"query: {title}, {size}", [size], lossless=True)
        runs = []
        for run_name, matches in nearest_of.items():
            row = [
                _match(gallery[place], k + 1, bool(matches.right[q, k]),
                       float(matches.distance[q, k]))
                for k, place in enumerate(matches.order[q]) if place >= 0
            ]  # fmt: skip
            rank = int(matches.first_rank[q])
            if rank > len(row):
                sample = gallery[matches.first_right[q]]
                row.append(_match(sample, rank, True, float(matches.first_distance[q])))
            note = f"right at rank {rank}" if rank else "no right match in the gallery"
            runs.append((run_name, note, row))
        blocks.append(Gallery(title, picture, runs))
    return blocks


def _match(sample: Sample, rank: int, right: bool, distance: float) -> Match:
    word = "right" if right else "wrong"
    alt = f"rank {rank}, {word}: person {sample.pid}, camera {sample.camid}, distance "
    image = sample_image(sample)
    if image.height > 128:
        image = image.resize((max(round(image.width * 128 / image.height), 1), 128))
    return Match(picture_of(image, f"{alt}{distance:.3f}"), right, rank, f"{distance:.3f}")
