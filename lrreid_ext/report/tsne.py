"""t-SNE of features, by identity and by factor: do reduced images stay near their person?

Van der Maaten and Hinton, "Visualizing Data using t-SNE", by scikit-learn. It shows
neighbourhoods and measures nothing: distances between clusters, their sizes and the axes have no
meaning. It starts from the principal components, not from random points, so the same images give
the same figure; the seed matters only to the search for those components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import comparable
from lrreid_ext.evaluation.matching import Side
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.files import csv_text, write_text
from lrreid_ext.report.blocks import Block, Note, figure_of
from lrreid_ext.report.context import PEOPLE, Content, Context, have_factor
from lrreid_ext.report.plots import COLOURS, MARKERS, new_figure, save
from lrreid_ext.results import factor_name

__all__ = ["COLUMNS", "Embedding", "chosen_images", "draw", "embed", "feature_space", "table"]

#: Columns of the CSV.
COLUMNS = ("run", "person", "camera", "group", "factor", "x", "y")

# Points of a neighbourhood, at most: scikit-learn's default.
_PERPLEXITY = 30.0


#: Images, and their points (N, 2) in the plane.
Embedding = tuple[Side, NDArray[np.float64]]


def chosen_images(scored: Scored, people: int = PEOPLE, seed: int = 0) -> NDArray[np.int64]:
    """Positions of all images of some persons: gallery, and queries at every factor.

    If the queries have HR twins, the twins and their reduced versions are taken, so that each
    factor shows the same images; otherwise the queries themselves.

    Args:
        scored: the test set.
        people: how many persons, drawn at random of those in query and gallery.
        seed: of the draw.

    Raises:
        ConfigError: fewer than two persons asked for or there.
    """
    samples = scored.test_set.samples
    in_gallery, in_query = ({s.pid for s in samples if s.group == g} for g in (GALLERY, QUERY))
    both = sorted(pid for pid in in_gallery & in_query if pid > 0)
    if people < 2 or len(both) < 2:
        raise ConfigError(
            f"--people: {people} of the {len(both)} persons in query and gallery; at least two are "
            "needed"
        )
    drawn = np.random.default_rng(seed).permutation(both)[:people]
    left_out = QUERY if QUERY_HR in scored.groups else ""
    return np.array(
        [i for i, s in enumerate(samples) if s.pid in set(drawn.tolist()) and s.group != left_out],
        dtype=np.int64,
    )


def embed(scored: Scored, people: int = PEOPLE, seed: int = 0) -> Embedding:
    """t-SNE of one run's features of :func:`chosen_images`."""
    from sklearn.manifold import TSNE

    images = scored.images(chosen_images(scored, people, seed))
    features = comparable(images.features, scored.cfg.TEST.METRIC).double().numpy()
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return images, np.asarray(points, dtype=np.float64)


# ---------------------------------------------------------------- files
def table(runs: dict[str, Embedding]) -> str:
    """CSV with a row per run and image."""
    return csv_text(
        COLUMNS,
        (
            [name, s.pid, s.camid, s.group, f"{s.factor:g}", f"{x:.5g}", f"{y:.5g}"]
            for name, (images, points) in runs.items()
            for s, (x, y) in zip(images.samples, points, strict=True)
        ),
    )


def draw(embedding: Embedding, title: str = "") -> Any:
    """A matplotlib figure of two panels: the same points by identity and by factor.

    Every identity and every factor has its own pair of colour and marker.
    """
    images, points = embedding
    figure, axes = new_figure(2)
    figure.set_size_inches(9, 3.4)
    people = [(f"{pid}", images.pids == pid) for pid in np.unique(images.pids)]
    factors = images.factors
    reduced = [(factor_name(f), have_factor(factors, f)) for f in np.unique(factors)]
    for axis, label, parts in ((axes[0], "person", people), (axes[1], "factor", reduced)):
        _scatter(axis, points, parts)
        axis.set_title(f"by {label}", fontsize="medium")
        columns = math.ceil(len(parts) / 12)
        axis.legend(
            title=label, fontsize="x-small", title_fontsize="x-small", frameon=False, ncols=columns,
            loc="center left", bbox_to_anchor=(1, 0.5),
        )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def _scatter(
    axis: Any, points: NDArray[np.float64], parts: Sequence[tuple[str, NDArray[np.bool_]]]
) -> None:
    for k, (name, chosen) in enumerate(parts):
        axis.scatter(
            points[chosen, 0], points[chosen, 1], label=name, s=16, alpha=0.85, linewidths=0.6,
            color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)],
        )  # fmt: skip
    # The axes have no unit.
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#888888", linewidth=0.5)


# ---------------------------------------------------------------- section
def feature_space(context: Context) -> Content:
    """t-SNE by identity and by factor."""
    embeddings = {r.name: embed(r, context.people, context.seed) for r in context.runs}
    blocks: list[Block] = []
    for k, (name, embedding) in enumerate(embeddings.items()):
        figure = draw(embedding, name)
        if context.files:
            for ending in ("svg", "png"):
                save(figure, context.files / f"tsne_{name.replace('/', '_')}.{ending}")
        alt = (
            f"t-SNE of {name}: {len(embedding[0])} images of "
            f"{len(np.unique(embedding[0].pids))} persons, once by person and once by factor"
        )
        blocks.append(figure_of(figure, f"tsne{k}", alt))
    if context.files:
        write_text(context.files / "tsne.csv", table(embeddings))
    blocks.append(
        Note(
            "Each point is an image: gallery, and the queries at each factor, of persons drawn at "
            f"random (seed {context.seed}). If resolution does not disturb a network, a person's "
            "points lie together whatever their factor. t-SNE shows only neighbourhoods: axes, "
            "sizes and distances of clusters mean nothing."
        )
    )
    return blocks
