"""Multi-shot ranking: CMC, mean average precision and mINP over the whole gallery.

Nothing here needs a compiler, and no distance matrix is held: AP and INP follow from the ranks of
a query's right matches alone, and a right match's rank is its place among the right ones plus the
number of wrong ones at its distance or nearer. Those are counted by sorting only what is nearer
than the farthest right match.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.evaluation.matching import Matching, Pairs

__all__ = ["Matches", "RankStatistics", "cmc", "nearest", "rank_statistics"]

# Distances that a thread looks through at a time.
_TOGETHER = 2**20


@dataclass(frozen=True)
class RankStatistics:
    """Per query, where its right matches ranked.

    Attributes:
        first_rank: (Q,) int64, rank of the first right match, from 1; 0 where there is none.
        ap: (Q,) float64, average precision, 0 to 1; NaN where there is no right match.
        inp: (Q,) float64, inverse negative penalty, 0 to 1; NaN where there is no right match.
        valid: (Q,) bool, queries with a right match.
        junk: (Q,) bool, queries that are junk themselves (pid below 0).
        gallery: number of gallery images without junk.
    """

    first_rank: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    valid: NDArray[np.bool_]
    junk: NDArray[np.bool_]
    gallery: int

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
        index, fields = np.asarray(queries), ("first_rank", "ap", "inp", "valid", "junk")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})


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


def rank_statistics(matching: Matching) -> RankStatistics:
    """Rank the gallery for every query, under the rules of :mod:`lrreid_ext.evaluation.matching`.

    Raises:
        ValueError: a gallery of junk alone, or sides that
            :func:`~lrreid_ext.evaluation.distance.distance_chunks` can't compare.
    """
    query, gallery = matching.query, matching.gallery
    pairs = Pairs(query, gallery)
    first_rank = np.zeros(len(query), dtype=np.int64)
    ap, inp = np.full(len(query), np.nan), np.full(len(query), np.nan)
    for rows, block in matching.distances():
        right = pairs.split(rows, block)
        matches = torch.isfinite(right).sum(dim=1).cpu().numpy()
        valid = np.flatnonzero(matches)
        if not len(valid):
            continue
        matches = matches[valid]
        place = np.arange(1, right.shape[1] + 1)
        rank = (_nearer(block, right).cpu().numpy() + place)[valid]
        filled = place <= matches[:, None]
        index = rows.start + valid
        first_rank[index] = rank[:, 0]
        ap[index] = np.where(filled, place / rank, 0).sum(axis=1) / matches
        inp[index] = matches / rank[np.arange(len(valid)), matches - 1]
    ranked = int((~gallery.is_junk).sum())
    return RankStatistics(first_rank, ap, inp, first_rank > 0, query.is_junk, ranked)


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


def nearest(matching: Matching, count: int = 10) -> Matches:
    """Rank the gallery for every query and keep the first ``count`` images.

    Raises:
        ValueError: what :func:`rank_statistics` refuses.
    """
    queries, gallery = len(matching.query), len(matching.gallery)
    pairs, count = Pairs(matching.query, matching.gallery), min(count, gallery)
    out = Matches(
        np.full((queries, count), -1, dtype=np.int64),
        np.full((queries, count), np.inf, dtype=np.float32),
        np.zeros((queries, count), dtype=bool),
        np.full(queries, -1, dtype=np.int64),
        np.zeros(queries, dtype=np.int64),
        np.full(queries, np.inf, dtype=np.float32),
    )
    for rows, block in matching.distances():
        for i, row in enumerate(block.cpu().numpy(), start=rows.start):
            ranked, right = pairs.of_query(i)
            order = np.lexsort((right, row[ranked]))  # wrong ones first at the same distance
            ranked, right = ranked[order], right[order]
            kept = min(count, len(ranked))
            out.order[i, :kept] = ranked[:kept]
            out.distance[i, :kept] = row[ranked[:kept]]
            out.right[i, :kept] = right[:kept]
            if right.any():
                out.first_rank[i] = right.argmax() + 1
                out.first_right[i] = ranked[right.argmax()]
                out.first_distance[i] = row[out.first_right[i]]
    return out


def _nearer(block: Tensor, right: Tensor) -> Tensor:
    """How many distances of each row are at most each of some others of that row.

    Args:
        block: (R, G) distances; may be written into.
        right: (R, P), ascending, infinite after the last.

    Returns:
        (R, P) int64; where ``right`` is infinite it means nothing.
    """
    if block.device.type != "cpu":
        return torch.searchsorted(block.sort(dim=1).values, right, right=True)
    counts = np.zeros(right.shape, dtype=np.int64)
    columns, limits = block.numpy(), right.numpy()
    last = np.where(np.isfinite(limits), limits, -np.inf).max(axis=1)

    def work(start: int) -> None:
        rows = slice(start, start + step)
        is_near = columns[rows] <= last[rows, None]
        # Several times as fast as indexing.
        near = np.compress(is_near.ravel(), columns[rows].ravel())
        ends = np.count_nonzero(is_near, axis=1).cumsum()
        for i, row in enumerate(np.split(near, ends[:-1]), start):
            row.sort()
            counts[i] = row.searchsorted(limits[i], side="right")

    # NumPy lets go of the interpreter's lock while it compares and sorts; it has to be much at a
    # time, or threads only wait for each other.
    step = max(1, _TOGETHER // columns.shape[1])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, range(0, len(counts), step)))
    return torch.from_numpy(counts)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
