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
number of wrong ones at its distance or nearer. Those are counted by sorting only what is nearer
than the farthest right match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import check_shape, distance_chunks

# Distances that a thread looks through at a time.
_TOGETHER = 2**20

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
    chunk: int | None = None,
    distances: Iterable[tuple[slice, Tensor]] | None = None,
) -> RankStatistics:
    """Rank the gallery for every query, under the rules at the top of this module.

    Args:
        query, gallery: features (Q, D) and (G, D), or (Q, K, D) and (G, K, D) of K models; the
            products are made on their device.
        q_pids, g_pids: (Q,) and (G,) identities.
        q_camids, g_camids: (Q,) and (G,) cameras.
        metric: ``cosine`` or ``euclidean``.
        weights: (Q, K), of the K models' distances; None weighs them alike.
        chunk: queries at a time; the extra memory is ``chunk * G`` numbers and a few per query.
            None: see :func:`~lrreid_ext.evaluation.distance.distance_chunks`.
        distances: distances made elsewhere, such as re-ranked ones, in place of the features':
            consecutive rows and their distances (rows, G), which are written into.

    Raises:
        ValueError: an empty query or gallery, features or distances that are not finite, lengths
            that differ, or distances that don't cover the queries.
    """
    query, gallery = check_shape(query, "query"), check_shape(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")
    pairs = Pairs(q_pids, g_pids, q_camids, g_camids)
    first_rank = np.zeros(len(query), dtype=np.int64)
    ap, inp = np.full(len(query), np.nan), np.full(len(query), np.nan)
    if distances is None:
        chunks = distance_chunks(query, gallery, metric, chunk, weights, check=True)
    else:
        chunks = checked_chunks(distances, len(query), len(gallery))
    for rows, block in chunks:
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
    return RankStatistics(
        first_rank, ap, inp, first_rank > 0, q_pids < 0, len(gallery) - pairs.junk, pairs.junk
    )


class Pairs:
    """Which gallery images are right for a query, and which are left out, under the rules above.

    Args:
        q_pids, q_camids: (Q,) int64 identities and cameras.
        g_pids, g_camids: (G,) int64.

    Attributes:
        junk: number of gallery images that are junk.

    Raises:
        ValueError: the gallery is all junk.
    """

    def __init__(
        self,
        q_pids: NDArray[np.int64],
        g_pids: NDArray[np.int64],
        q_camids: NDArray[np.int64],
        g_camids: NDArray[np.int64],
    ) -> None:
        self._q_pids, self._q_camids, self._g_camids = q_pids, q_camids, g_camids
        # Everything of a query's identity lies between two places of this order.
        self._order = np.argsort(g_pids, kind="stable")
        ordered = g_pids[self._order]
        self._begin = np.searchsorted(ordered, q_pids, side="left")
        self._count = np.searchsorted(ordered, q_pids, side="right") - self._begin
        self._junk = np.flatnonzero(g_pids < 0)
        self.junk = len(self._junk)
        if self.junk == len(g_pids):
            raise ValueError(f"gallery: all {self.junk} images are junk (pid below 0)")

    def split(self, rows: slice, block: Tensor) -> Tensor:
        """Take the right matches out of a chunk of distances.

        Args:
            rows: the queries.
            block: (rows, G) distances. Those of right matches, junk, and what a query's identity
                and camera leave out become infinite: the finite ones are of wrong matches.

        Returns:
            (rows, P) distances of right matches, ascending, infinite after a query's last.
        """
        count = self._count[rows]
        local = np.repeat(np.arange(len(count)), count)
        # Numbers 0, 1, 2 ... of each query's own images.
        within = np.arange(len(local)) - np.repeat(np.cumsum(count) - count, count)
        own = self._order[np.repeat(self._begin[rows], count) + within]
        is_right = self._g_camids[own] != self._q_camids[rows][local]
        is_right &= self._q_pids[rows][local] > 0
        own_rows, own_columns = self._on(block, local), self._on(block, own)
        taken = block[own_rows, own_columns]
        taken[self._on(block, ~is_right)] = torch.inf
        right = block.new_full((len(count), max(1, int(count.max(initial=0)))), torch.inf)
        right[own_rows, self._on(block, within)] = taken
        block[own_rows, own_columns] = torch.inf
        if self.junk:
            block[:, self._on(block, self._junk)] = torch.inf
        return right.sort(dim=1).values

    @staticmethod
    def _on(block: Tensor, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(block.device)


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
    found = np.zeros(right.shape, dtype=np.int64)
    columns, asked = block.numpy(), right.numpy()
    last = np.where(np.isfinite(asked), asked, -np.inf).max(axis=1)

    def work(start: int) -> None:
        rows = slice(start, start + step)
        is_near = columns[rows] <= last[rows, None]
        # Several times as fast as indexing.
        near = np.compress(is_near.ravel(), columns[rows].ravel())
        ends = np.count_nonzero(is_near, axis=1).cumsum()
        for i, own in enumerate(np.split(near, ends[:-1]), start):
            own.sort()
            found[i] = own.searchsorted(asked[i], side="right")

    # NumPy lets go of the interpreter's lock while it compares and sorts; it has to be much at a
    # time, or threads only wait for each other.
    step = max(1, _TOGETHER // columns.shape[1])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, range(0, len(found), step)))
    return torch.from_numpy(found)


def checked_chunks(
    distances: Iterable[tuple[slice, Tensor]], queries: int, gallery: int
) -> Iterator[tuple[slice, Tensor]]:
    """The chunks as they come, if they cover all queries in order with finite distances.

    Raises:
        ValueError: rows missing or out of order, another number of columns, or distances that are
            not finite.
    """
    at = 0
    for rows, block in distances:
        if rows.start != at or block.shape != (rows.stop - rows.start, gallery):
            raise ValueError(
                f"distances {tuple(block.shape)} of queries {rows.start} to {rows.stop} came where "
                f"those from query {at} on to {gallery} gallery images were due"
            )
        if not torch.isfinite(block.sum()) and not torch.isfinite(block).all():
            raise ValueError(f"distances of queries {rows.start} to {rows.stop} are not all finite")
        yield rows, block
        at = rows.stop
    if at != queries:
        raise ValueError(f"distances were given for {at} of {queries} queries")


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
