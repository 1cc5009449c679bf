"""Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017), sparse and in chunks.

Two images are near if each is among the other's nearest and their neighbours are alike. Every image
``i`` of query and gallery together gets a sparse row ``V_i``, the softmax of minus its squared
distances to its k-reciprocal neighbours, these extended by the neighbours' own (Eq. 3 and 4), and
averaged over its ``k2`` nearest (Eq. 8). The Jaccard distance of two images is
``1 - sum(min(V_i, V_j)) / sum(max(V_i, V_j))`` (Eq. 7), and the final one its mixture with the
distance that it started from (Eq. 12).

Counts of neighbours are fast-reid's, whose lists hold ``k1`` images, the image itself among them,
and ``round(k1 / 2) + 1`` where they are halved. Which of two equal distances at the end of such a
list counts depends on their order: this is the one place where the gallery's order can matter.

No (Q + G) x (Q + G) matrix is held. The neighbours are searched on the features' device, and the
rest is done on the processor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lrreid_ext.evaluation.distance import (
    EPSILON,
    METRICS,
    check_features,
    chunk_rows,
    distance_chunks,
    squared_lengths,
    tiles,
)

# Numbers in the temporary arrays made at once.
_NUMBERS = 2**22


class ReRanked:
    """Re-ranked distances, made anew whenever they are gone through.

    Iterating yields rows of queries and their distances (rows, G) float32 on the features' device,
    as :func:`~lrreid_ext.evaluation.distance.distance_chunks` does; the memory is used again.

    Args:
        query, gallery: checked features (Q, D) and (G, D) float32.
        codes: (Q + G, Q + G) the sparse rows V of query and gallery.
        weight: share of the distance that re-ranking started from.
        metric: of that distance.
        chunk: queries at a time.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        codes: sparse.csr_matrix,
        weight: float,
        metric: str,
        chunk: int | None,
    ) -> None:
        self._query, self._gallery, self._metric, self._chunk = query, gallery, metric, chunk
        self._weight = weight
        self._own = codes[: len(query)]
        # For each image, which gallery images have it in their rows.
        self._having = codes[len(query) :].T.tocsr()

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        chunk = self._chunk or max(16, chunk_rows(len(self._gallery)) // 4)
        for rows, block in distance_chunks(self._query, self._gallery, self._metric, chunk):
            block.mul_(self._weight)
            for i in range(rows.start, rows.stop):
                jaccard = torch.from_numpy(self._jaccard(i)).to(block.device)
                block[i - rows.start].add_(jaccard, alpha=1 - self._weight)
            yield rows, block

    def _jaccard(self, i: int) -> NDArray[np.float32]:
        """Jaccard distances (G,) of one query."""
        begin, end = self._own.indptr[i : i + 2]
        images, values = self._own.indices[begin:end], self._own.data[begin:end]
        starts = self._having.indptr[images].astype(np.int64)
        counts = self._having.indptr[images + 1] - starts
        place = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        smaller = np.minimum(self._having.data[place], np.repeat(values, counts))
        common = np.bincount(self._having.indices[place], smaller, len(self._gallery))
        # Each row sums to 1, so the larger ones sum to 2 less the smaller ones.
        return np.maximum(1 - common / (2 - common), 0).astype(np.float32)


def k_reciprocal(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    metric: str = "cosine",
    chunk: int | None = None,
) -> ReRanked:
    """Re-rank a gallery; pass what it returns as ``distances`` to ``rank_statistics``.

    Args:
        query, gallery: features (Q, D) and (G, D), on one device.
        k1: images in a list of neighbours; fewer where there are no more images.
        k2: nearest images that rows are averaged over; 1 averages nothing.
        weight: share of the original distance in the final one, 0 to 1 (lambda in the paper).
        metric: of the original distance; ``cosine`` also searches neighbours among features of
            length 1.
        chunk: queries at a time; None: as many as keep the memory small.

    Raises:
        ValueError: features that cannot be ranked or are of several models, or settings outside
            their range.
    """
    query, gallery = check_features(query, "query"), check_features(gallery, "gallery")
    if query.ndim != 2 or gallery.ndim != 2:
        raise ValueError("re-ranking takes features of one model, (N, D)")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} values, gallery features {gallery.shape[1]}"
        )
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    for name, value in (("k1", k1), ("k2", k2)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if k2 > k1:
        raise ValueError(f"k2 must be at most k1, {k1}, not {k2}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie from 0 to 1, not {weight}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    both = torch.cat([query, gallery])
    if metric == "cosine":
        both.div_(both.norm(dim=1).clamp(min=EPSILON)[:, None])
    nearest = _neighbours(both, k1)
    rows = _weighted(both, _reciprocal(nearest, int(np.around(k1 / 2)) + 1))
    if k2 > 1:
        few = nearest[:, :k2]
        pick = sparse.csr_matrix(
            (
                np.full(few.size, 1 / few.shape[1], dtype=np.float32),
                few.ravel(),
                np.arange(0, few.size + 1, few.shape[1]),
            ),
            shape=rows.shape,
        )
        rows = (pick @ rows).tocsr()
    return ReRanked(query, gallery, rows, weight, metric, chunk)


def _neighbours(features: Tensor, k: int) -> NDArray[np.int64]:
    """The ``k`` nearest images of each (N, min(k, N)), ascending by distance.

    Two images' product is made once and serves both: a chunk's rows are compared with themselves
    and those after them, and what is found along its columns joins those images' lists.
    """
    count, k = len(features), min(k, len(features))
    squares = squared_lengths(features)
    away = features.new_full((count, k), torch.inf)
    found = torch.zeros(count, k, dtype=torch.int64, device=features.device)

    def join(images: slice, others: int, distances: Tensor) -> None:
        """Take distances (images, M) to the images from number ``others`` on into the lists."""
        near = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
        both = torch.cat([away[images], near.values], dim=1)
        numbers = torch.cat([found[images], near.indices + others], dim=1)
        away[images], order = both.topk(k, dim=1, largest=False)
        found[images] = numbers.gather(1, order)

    step = chunk_rows(count)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        block = torch.mm(features[rows], features[start:].T).mul_(-2)
        # A constant of each list, its own image's square, is left out.
        for own, part in tiles(rows, block):
            join(own, start, part + squares[start:])
        after = block[:, rows.stop - start :].T
        for own, part in tiles(slice(rows.stop, count), after):
            join(own, start, part.contiguous() + squares[rows])
    return found.cpu().numpy()


def _reciprocal(nearest: NDArray[np.int64], half: int) -> sparse.csr_matrix:
    """Extended k-reciprocal neighbours (N, N): a stored 1 where an image is one of another's.

    Args:
        nearest: (N, K) neighbours, ascending by distance.
        half: length of the halved lists.
    """
    count, k = nearest.shape
    step = max(1, _NUMBERS // (k * k * min(half, k)))
    near = np.empty_like(nearest)  # -1 where a neighbour isn't reciprocal
    near_half = np.empty_like(nearest[:, :half])
    for kept, lists in ((near, nearest), (near_half, nearest[:, :half])):
        for start in range(0, count, step):
            own = np.arange(start, min(start + step, count))
            back = (lists[lists[own]] == own[:, None, None]).any(axis=2)
            kept[own] = np.where(back, lists[own], -1)
    sizes = (near_half >= 0).sum(axis=1)
    sources, targets = [], []
    for start in range(0, count, step):
        mine = near[start : start + step]
        row, place = np.nonzero(mine >= 0)
        candidate = mine[row, place]
        theirs = near_half[candidate]  # (pairs, half)
        shared = (theirs[:, :, None] == mine[row][:, None, :]) & (theirs >= 0)[:, :, None]
        # More than two thirds of the candidate's own, in whole numbers.
        joins = 3 * shared.any(axis=2).sum(axis=1) > 2 * sizes[candidate]
        added = theirs[joins]
        from_row = np.repeat(row[joins], added.shape[1])[(added >= 0).ravel()]
        keys = np.concatenate([row * count + candidate, from_row * count + added[added >= 0]])
        keys = np.unique(keys)
        sources.append(keys // count + start)
        targets.append(keys % count)
    source, target = np.concatenate(sources), np.concatenate(targets)
    ones = np.ones(len(source), dtype=np.float32)
    return sparse.csr_matrix((ones, (source, target)), shape=(count, count))


def _products(features: Tensor, links: sparse.csr_matrix) -> NDArray[np.float32]:
    """Of the two images of each entry of ``links``, in its order."""
    begins, index = (
        torch.from_numpy(part.astype(np.int64)).to(features.device)
        for part in (links.indptr, links.indices)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        wanted = torch.sparse_csr_tensor(
            begins, index, features.new_zeros(len(index)), links.shape, check_invariants=False
        )
    return torch.sparse.sampled_addmm(wanted, features, features.T, beta=0.0).values().cpu().numpy()


def _weighted(features: Tensor, links: sparse.csr_matrix) -> sparse.csr_matrix:
    """Softmax, along each row, of minus the squared distances where ``links`` has an entry."""
    counts = np.diff(links.indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    squares = squared_lengths(features).cpu().numpy()
    products = _products(features, links)
    away = (squares[row] + squares[links.indices] - 2 * products).astype(np.float64)
    nonempty = counts > 0
    begins = links.indptr[:-1][nonempty]
    least = np.zeros(len(counts))
    least[nonempty] = np.minimum.reduceat(away, begins)
    values = np.exp(least[row] - away)
    totals = np.ones(len(counts))
    totals[nonempty] = np.add.reduceat(values, begins)
    data = (values / totals[row]).astype(np.float32)
    return sparse.csr_matrix((data, links.indices, links.indptr), shape=links.shape)
