"""Single-shot evaluation with a draw of its own for every query.

Much published code (open-reid's and fast-reid's CUHK03 protocol among it) draws a new gallery, one
image per identity, not for each trial alone but for each trial and query, 100 times. Means are
those of the shared draw of :mod:`lrreid_ext.evaluation.single_shot`; the spread over trials is
smaller, since the luck of a draw is no longer shared by all queries, so that the two must never
stand side by side unlabelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import check_features, distance_chunks
from lrreid_ext.evaluation.ranking import labels
from lrreid_ext.evaluation.single_shot import NOBODY, SingleShot

__all__ = ["draw_for_query", "single_shot_per_query"]


def draw_for_query(
    starts: NDArray[np.int64], counts: NDArray[np.int64], trials: int, seed: int, query: int
) -> NDArray[np.int64]:
    """Which of each identity's images one query is shown, in each trial.

    Depends on the seed and the query's position alone, so that the HR twin of a query and its
    degraded copies, which stand at the same place of their groups, are shown the same images.

    Args:
        starts, counts: (I,) where each identity's images begin in a list, and how many there are.
        trials: how many times to draw.
        seed: a number >= 0.
        query: the query's position.

    Returns:
        (trials, I) positions in that list.
    """
    units = np.random.default_rng((seed, query)).random((trials, len(counts)))
    return starts + (units * counts).astype(np.int64)


def single_shot_per_query(
    query: Tensor,
    gallery: Tensor,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    trials: int = 100,
    seed: int = 0,
    metric: str = "cosine",
    weights: Tensor | None = None,
    chunk: int = 256,
) -> SingleShot:
    """Rank one image per identity for every query, drawn anew for each query and trial.

    The rules are those of :func:`lrreid_ext.evaluation.single_shot.single_shot`: images of the
    query's camera, distractors and junk are never drawn, and ties rank before the right match.
    Arguments and errors are the same as well.
    """
    if trials < 1:
        raise ValueError(f"single-shot evaluation needs at least one trial, not {trials}")
    if seed < 0:
        raise ValueError(f"the seed of the single-shot draws must be >= 0, not {seed}")
    query, gallery = check_features(query, "query"), check_features(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")
    if not (g_pids > 0).any():
        raise ConfigError(NOBODY)

    first_rank = np.zeros((trials, len(query)), dtype=np.int64)
    for camera in np.unique(q_camids):
        shown = _Eligible.of(g_pids, g_camids, int(camera))
        asked = np.flatnonzero((q_camids == camera) & np.isin(q_pids, shown.identities))
        if not len(asked):
            continue
        own_weights = None if weights is None else weights[asked]
        near = gallery[torch.from_numpy(shown.positions).to(gallery.device)]
        for rows, block in distance_chunks(query[asked], near, metric, chunk, own_weights):
            for i, distances in zip(asked[rows], block.cpu().numpy(), strict=True):
                picks = draw_for_query(shown.starts, shown.counts, trials, seed, int(i))
                drawn = distances[picks]
                own = drawn[:, np.searchsorted(shown.identities, q_pids[i])]
                first_rank[:, i] = (drawn <= own[:, None]).sum(axis=1)
    identities = len(np.unique(g_pids[g_pids > 0]))
    return SingleShot(first_rank, first_rank[0] > 0, q_pids < 0, identities)


@dataclass(frozen=True)
class _Eligible:
    """The gallery images that queries of one camera may be shown.

    Attributes:
        positions: (E,) in the gallery, those of one identity side by side.
        identities: (I,) ascending.
        starts, counts: (I,) where each identity's images begin in ``positions``, and how many.
    """

    positions: NDArray[np.int64]
    identities: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, pids: NDArray[np.int64], camids: NDArray[np.int64], camera: int) -> _Eligible:
        positions = np.flatnonzero((pids > 0) & (camids != camera))
        positions = positions[np.argsort(pids[positions], kind="stable")]
        identities, starts, counts = np.unique(
            pids[positions], return_index=True, return_counts=True
        )
        return cls(positions, identities, starts, counts)
