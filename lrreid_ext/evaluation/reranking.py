"""Distances that take account of other images: re-ranking, and average query expansion.

Re-ranking is k-reciprocal encoding (Zhong et al., CVPR 2017), sparse and in chunks.
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
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from lrreid_ext.evaluation.distance import EPSILON, check_pair, chunk_rows, squared_lengths, tiles
from lrreid_ext.evaluation.matching import Side

__all__ = ["Jaccard", "expand", "k_reciprocal"]

# Numbers in the temporary arrays at a time.
_NUMBERS = 2**22


@dataclass(frozen=True, eq=False)
class Jaccard:
    """The Jaccard distances of queries to a gallery, and how much they count.

    Attributes:
        queries: (Q, N) the queries' sparse rows V, N being all images that were encoded.
        having: (N, G), for each encoded image, which gallery images have it in their rows.
        weight: share of the distance that re-ranking starts from, 0 to 1.
    """

    queries: sparse.csr_matrix
    having: sparse.csr_matrix
    weight: float

    def mix(self, rows: slice, block: Tensor) -> None:
        """Turn a chunk of distances (rows, G) into the final ones, in place."""
        block.mul_(self.weight)
        for i in range(rows.start, rows.stop):
            distances = torch.from_numpy(self._distances(i)).to(block.device)
            block[i - rows.start].add_(distances, alpha=1 - self.weight)

    def part(self, query: ArrayLike | None = None, gallery: ArrayLike | None = None) -> Jaccard:
        """Those of some queries and some of the gallery: positions or masks; None takes all."""
        return Jaccard(
            self.queries if query is None else self.queries[np.asarray(query)],
            self.having if gallery is None else self.having[:, np.asarray(gallery)],
            self.weight,
        )

    def _distances(self, i: int) -> NDArray[np.float32]:
        """Jaccard distances (G,) of one query."""
        begin, end = self.queries.indptr[i : i + 2]
        images, values = self.queries.indices[begin:end], self.queries.data[begin:end]
        starts = self.having.indptr[images].astype(np.int64)
        counts = self.having.indptr[images + 1] - starts
        place = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        smaller = np.minimum(self.having.data[place], np.repeat(values, counts))
        common = np.bincount(self.having.indices[place], smaller, self.having.shape[1])
        # Each row sums to 1, so the larger ones sum to 2 less the smaller ones.
        return np.maximum(1 - common / (2 - common), 0).astype(np.float32)


def k_reciprocal(
    query: Side,
    gallery: Side,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    metric: str = "cosine",
) -> Jaccard:
    """Re-rank a gallery; a :class:`~lrreid_ext.evaluation.matching.Matching` takes the result.

    Junk has no part: it is nobody's neighbour, and its distances mean nothing.

    Args:
        query, gallery: the two sides, features (Q, D) and (G, D).
        k1: images in a list of neighbours; fewer where there are no more images.
        k2: nearest images that rows are averaged over, from 1 (no average) to k1.
        weight: share of the original distance in the final one, 0 to 1 (lambda in the paper).
        metric: of the original distance; ``cosine`` also searches neighbours among features of
            length 1.

    Raises:
        ValueError: an unknown metric, or features of different widths.
    """
    check_pair(query.features, gallery.features, metric)
    counted = np.flatnonzero(~np.concatenate([query.is_junk, gallery.is_junk]))
    both = torch.cat([query.features, gallery.features])[_on(query, counted)]
    if metric == "cosine":
        both.div_(both.norm(dim=1).clamp(min=EPSILON)[:, None])
    nearest = _neighbours(both, k1)
    codes = _weighted(both, _reciprocal(nearest, int(np.around(k1 / 2)) + 1))
    if k2 > 1:
        few = nearest[:, :k2]
        pick = sparse.csr_matrix(
            (
                np.full(few.size, 1 / few.shape[1], dtype=np.float32),
                few.ravel(),
                np.arange(0, few.size + 1, few.shape[1]),
            ),
            shape=codes.shape,
        )
        codes = (pick @ codes).tocsr()
    # Junk gets empty rows.
    counts = np.zeros(len(query) + len(gallery) + 1, dtype=codes.indptr.dtype)
    counts[counted + 1] = np.diff(codes.indptr)
    codes = sparse.csr_matrix(
        (codes.data, codes.indices, np.cumsum(counts)), shape=(len(counts) - 1, len(counted))
    )
    return Jaccard(codes[: len(query)], codes[len(query) :].T.tocsr(), weight)


def expand(
    query: Side,
    gallery: Side,
    times: int = 1,
    neighbours: int = 5,
    alpha: float = 3.0,
    chunk: int = 256,
) -> tuple[Side, Side]:
    """Average query expansion: query and gallery after expansion among all of them.

    Each image's features are replaced by a mean of its nearest neighbours', itself included,
    weighted by similarity to the power alpha (Chum et al., "Total Recall", 2007; Radenovic et al.,
    "Fine-Tuning CNN Image Retrieval with No Human Annotation", section 3.4). The host's ``aqe``
    gives the same features but holds all similarities at once, 1.5 GB for Market-1501.

    Args:
        query, gallery: the two sides, features (Q, D) and (G, D); longer features have more weight.
            Junk has no part and stays as it is.
        times: how often to expand.
        neighbours: how many images are averaged, the image itself being the nearest; at most
            their number.
        alpha: power of the cosine similarity. A negative similarity counts as 0.
        chunk: rows at a time; bounds the memory to ``chunk * (Q + G)`` numbers.
    """
    counted = _on(query, np.flatnonzero(~np.concatenate([query.is_junk, gallery.is_junk])))
    whole = torch.cat([query.features, gallery.features])
    features = whole[counted]
    for _ in range(times):
        unit = normalize(features, dim=1)
        expanded = torch.empty_like(features)
        for start in range(0, len(unit), chunk):
            rows = slice(start, start + chunk)
            similarity, near = (unit[rows] @ unit.T).topk(neighbours, dim=1)
            weights = similarity.clamp(min=0).pow(alpha)
            # A row of weights times its neighbours' features, for all rows of the chunk at once.
            expanded[rows] = torch.einsum("bk,bkd->bd", weights, features[near]) / neighbours
        features = expanded
    whole[counted] = features
    return (
        query.updated(features=whole[: len(query)]),
        gallery.updated(features=whole[len(query) :]),
    )


def _on(side: Side, positions: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(positions).to(side.features.device)


def _neighbours(features: Tensor, k: int) -> NDArray[np.int64]:
    """The ``k`` nearest images of each (N, min(k, N)), ascending by distance.

    Two images' product is computed once and serves both: a chunk's rows are compared with
    themselves and those after them, and its columns join those images' lists.
    """
    count, k = len(features), min(k, len(features))
    squares = squared_lengths(features)
    distance = features.new_full((count, k), torch.inf)
    nearest = torch.zeros(count, k, dtype=torch.int64, device=features.device)

    def join(images: slice, others: int, distances: Tensor) -> None:
        """Take distances (images, M) to the images from number ``others`` on into the lists."""
        near = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
        both = torch.cat([distance[images], near.values], dim=1)
        numbers = torch.cat([nearest[images], near.indices + others], dim=1)
        distance[images], order = both.topk(k, dim=1, largest=False)
        nearest[images] = numbers.gather(1, order)

    step = chunk_rows(count)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        block = torch.mm(features[rows], features[start:].T).mul_(-2)
        # A constant of each list, its own image's square, is left out.
        for images, part in tiles(rows, block):
            join(images, start, part + squares[start:])
        after = block[:, rows.stop - start :].T
        for images, part in tiles(slice(rows.stop, count), after):
            join(images, start, part.contiguous() + squares[rows])
    return nearest.cpu().numpy()


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
            images = np.arange(start, min(start + step, count))
            back = (lists[lists[images]] == images[:, None, None]).any(axis=2)
            kept[images] = np.where(back, lists[images], -1)
    sizes = (near_half >= 0).sum(axis=1)
    sources, targets = [], []
    for start in range(0, count, step):
        neighbours = near[start : start + step]
        row, place = np.nonzero(neighbours >= 0)
        candidate = neighbours[row, place]
        further = near_half[candidate]  # (pairs, half)
        shared = (further[:, :, None] == neighbours[row][:, None, :]) & (further >= 0)[:, :, None]
        # More than two thirds of the candidate's neighbours, in whole numbers.
        joins = 3 * shared.any(axis=2).sum(axis=1) > 2 * sizes[candidate]
        added = further[joins]
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
        pattern = torch.sparse_csr_tensor(
            begins, index, features.new_zeros(len(index)), links.shape, check_invariants=False
        )
    return (
        torch.sparse.sampled_addmm(pattern, features, features.T, beta=0.0).values().cpu().numpy()
    )


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
