"""Multi-shot ranking: CMC, mean average precision and mINP over the whole gallery.

Rules:

* **Same camera** (Market-1501): gallery images of the query's identity *and* camera are left out.
* **Distractors** (pid 0) are never a right answer; **junk** (pid below 0) is left out.
* **Ties**: a wrong match at exactly the distance of a right one ranks before it. So the figures
  don't depend on the gallery's order, and a network that maps every image to one point scores 0.
  The order among right matches of one distance changes nothing.
* A query without a right answer is counted as unmatched and has no part in the means.

Nothing here needs a compiler, and no distance matrix is held: AP and INP follow from the ranks of
a query's right matches alone, and a right match's rank is its place among the right ones plus the
number of wrong ones at its distance or nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import check_features, distance_chunks

TIE_RULE = "a wrong match at the distance of a right one ranks before it"


@dataclass(frozen=True)
class RankStatistics:
    """Per query, where its right matches ranked.

    Attributes:
        first_rank: (Q,) int64, rank of the first right match, from 1; 0 where there is none.
        ap: (Q,) float64, average precision, 0 to 1; NaN where there is no right match.
        inp: (Q,) float64, inverse negative penalty, 0 to 1; NaN where there is no right match.
        valid: (Q,) bool, queries with a right match.
        junk: (Q,) bool, queries that are junk themselves (pid below 0).
        gallery: number of gallery images ranked.
        gallery_junk: number of gallery images left out as junk.
    """

    first_rank: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    valid: NDArray[np.bool_]
    junk: NDArray[np.bool_]
    gallery: int
    gallery_junk: int

    @property
    def unmatched(self) -> int:
        """Queries, junk aside, without a right match in the gallery."""
        return int((~self.valid & ~self.junk).sum())

    @property
    def mean_ap(self) -> float:
        """Mean of ``ap`` over the valid queries, 0 to 1; NaN without any."""
        return _mean(self.ap[self.valid])

    @property
    def mean_inp(self) -> float:
        """Mean of ``inp`` over the valid queries, 0 to 1; NaN without any."""
        return _mean(self.inp[self.valid])

    def cmc(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> NDArray[np.float64]:
        """Cumulative match characteristic over the valid queries; see :func:`cmc`."""
        return cmc(self.first_rank[self.valid], ranks)

    def subset(self, queries: ArrayLike) -> RankStatistics:
        """The statistics of some queries: a mask or positions."""
        index = np.asarray(queries)
        return RankStatistics(
            self.first_rank[index],
            self.ap[index],
            self.inp[index],
            self.valid[index],
            self.junk[index],
            self.gallery,
            self.gallery_junk,
        )


def cmc(first_ranks: ArrayLike, ranks: Sequence[int] = (1, 5, 10, 20)) -> NDArray[np.float64]:
    """Share of queries whose first right match ranks at or before each of ``ranks``.

    Args:
        first_ranks: (Q,) integers from 1, of queries that have a right match.
        ranks: the ranks to report.

    Returns:
        (len(ranks),) from 0 to 1; NaN if there is no query.

    Raises:
        ValueError: a first rank below 1.
    """
    first = np.asarray(first_ranks)
    if first.size and first.min() < 1:
        raise ValueError("first ranks start at 1; leave out queries without a right match")
    if not first.size:
        return np.full(len(ranks), np.nan)
    return np.array([np.mean(first <= rank) for rank in ranks], dtype=np.float64)


def rank_statistics(
    query: Tensor,
    gallery: Tensor,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    metric: str = "cosine",
    weights: Tensor | None = None,
    chunk: int = 256,
) -> RankStatistics:
    """Rank the gallery for every query, under the rules at the top of this module.

    Args:
        query, gallery: features (Q, D) and (G, D), or (Q, K, D) and (G, K, D) of K models; the
            products are made on their device.
        q_pids, g_pids: (Q,) and (G,) identities.
        q_camids, g_camids: (Q,) and (G,) cameras.
        metric: ``cosine`` or ``euclidean``.
        weights: (Q, K), of the K models' distances; None weighs them alike.
        chunk: queries at a time; the extra memory is ``chunk * G`` numbers.

    Raises:
        ValueError: an empty query or gallery, features that are not finite, or lengths that differ.
    """
    query, gallery = check_features(query, "query"), check_features(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")

    # Everything of a query's identity lies between two places of this order.
    order = np.argsort(g_pids, kind="stable")
    begin = np.searchsorted(g_pids, q_pids, side="left", sorter=order)
    end = np.searchsorted(g_pids, q_pids, side="right", sorter=order)
    junk = torch.from_numpy(np.flatnonzero(g_pids < 0)).to(gallery.device)
    if len(junk) == len(gallery):
        raise ValueError(f"gallery: all {len(junk)} images are junk (pid below 0)")

    first_rank = np.zeros(len(query), dtype=np.int64)
    ap, inp = np.full(len(query), np.nan), np.full(len(query), np.nan)
    for rows, block in distance_chunks(query, gallery, metric, chunk, weights):
        block[:, junk] = torch.inf
        for i, row in enumerate(block.cpu().numpy(), start=rows.start):
            own = order[begin[i] : end[i]]
            right = np.sort(row[own[g_camids[own] != q_camids[i]]])
            if q_pids[i] <= 0 or not len(right):
                continue
            row[own] = np.inf
            # Only what is nearer than the farthest right match bears on the figures.
            near = row[row <= right[-1]]
            near.sort()
            place = np.arange(1, len(right) + 1)
            rank = place + np.searchsorted(near, right, side="right")
            first_rank[i] = rank[0]
            ap[i] = np.mean(place / rank)
            inp[i] = len(right) / rank[-1]
    return RankStatistics(
        first_rank, ap, inp, first_rank > 0, q_pids < 0, len(gallery) - len(junk), len(junk)
    )


def labels(
    pids: ArrayLike, camids: ArrayLike, count: int, group: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Identities and cameras as (count,) int64.

    Raises:
        ValueError: they are not one per feature.
    """
    arrays = np.asarray(pids, dtype=np.int64), np.asarray(camids, dtype=np.int64)
    for array, name in zip(arrays, ("identities", "cameras"), strict=True):
        if array.shape != (count,):
            raise ValueError(f"{group}: {count} features but {name} of shape {array.shape}")
    return arrays


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
