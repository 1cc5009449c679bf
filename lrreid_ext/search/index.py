"""Vectors and distances; exact search, and HNSW graphs by faiss that reach a stated recall.

A graph only proposes candidates; their distances are then measured exactly on the stored vectors.
It ranks by Euclidean distance: with the cosine metric all stored vectors are equally long, so that
this is the order of their inner products with any query. It holds its vectors once, as float16.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import EPSILON, distance_chunks

__all__ = [
    "EF_BUILD",
    "EF_SEARCH",
    "KINDS",
    "LINKS",
    "Floats",
    "Graph",
    "Ids",
    "Queries",
    "Recall",
    "Space",
    "Vectors",
    "choose_kind",
    "fit",
    "nearest",
    "rescore",
]

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]

KINDS = ("exact", "hnsw")

# An exact search is fast enough up to this many bytes of vectors.
EXACT_BYTES = 2**27

# HNSW: links of a node, and how many nodes are visited when one is inserted.
LINKS, EF_BUILD = 32, 200
# How many nodes a search visits; the first setting that reaches the recall is taken.
EF_SEARCH = (16, 32, 64, 128, 256, 512, 1024, 2048)
# Candidates measured exactly for each match asked for: float16 swaps close neighbours.
CANDIDATES = 4

# Recall is measured with so many queries, on so many neighbours of each; see Space.probes.
PROBES, NEIGHBOURS = 256, 10

# Vectors compared with their own candidates at a time.
_CHUNK = 2**14

logger = logging.getLogger(__name__)


class Queries(NamedTuple):
    """Vectors (Q, K * D) as :meth:`Space.stored` makes them, and weights (Q, K) of the parts."""

    vectors: Floats
    weights: Floats


@dataclass(frozen=True)
class Space:
    """Vectors of K parts side by side: one part for each of a model's anchors (SING), or one part.

    A distance is the sum of the parts' distances, weighted by the query's weights (SING, Eq. 6).
    With the cosine metric the stored parts have length 1, and ``sum_k w_k (1 - q_k.g_k)`` is
    ``sum_k w_k`` minus one inner product of the stored vector and the query's weighted parts. So
    an index of single vectors ranks as the fusion does, for any weights.

    Attributes:
        metric: ``cosine`` or ``euclidean``.
        parts: K.
        width: D, values of each part.
    """

    metric: str
    parts: int
    width: int

    @property
    def dim(self) -> int:
        """Values of a stored vector."""
        return self.parts * self.width

    @property
    def indexable(self) -> bool:
        """Whether the distance of whole vectors gives the ranking."""
        return self.metric == "cosine" or self.parts == 1

    def stored(self, features: Tensor) -> Floats:
        """Vectors (N, K * D) to keep, from features (N, K, D) or, for one part, (N, D)."""
        parts = features.detach().to("cpu", torch.float32).reshape(-1, self.parts, self.width)
        if self.metric == "cosine":
            parts = parts / parts.norm(dim=2, keepdim=True).clamp(min=EPSILON)
        return np.ascontiguousarray(parts.flatten(1).numpy())

    def index_queries(self, queries: Queries) -> Floats:
        """Vectors (Q, K * D) to search an index with: for the cosine metric, each part times its
        weight."""
        vectors, weights = queries
        if self.metric == "euclidean":
            return vectors
        parts = vectors.reshape(-1, self.parts, self.width) * weights[:, :, None]
        return np.ascontiguousarray(parts.reshape(len(vectors), self.dim))

    def probes(self, vectors: Floats, neighbours: Floats) -> Queries:
        """Queries to measure recall with: each vector (Q, K * D) moved as far from its nearest
        neighbour as that is from it.

        An index finds its own vectors too easily. These queries lie as far from the vectors as
        another image of the same people would, and among them.
        """
        moved = self.stored(torch.from_numpy(2 * vectors - neighbours))
        return Queries(moved, np.ones((len(vectors), self.parts), np.float32))

    def distances(self, queries: Queries, candidates: Floats) -> Floats:
        """Distances (Q, C) of each query to its own candidates (Q, C, K * D)."""
        vectors, weights = queries
        if self.metric == "cosine":
            products = np.einsum("qd,qcd->qc", self.index_queries(queries), candidates)
            return weights.sum(axis=1, keepdims=True) - products
        offsets = candidates - vectors[:, None]
        parts = offsets.reshape(*candidates.shape[:2], self.parts, self.width)
        lengths = np.sqrt(np.einsum("qckd,qckd->qck", parts, parts))
        return np.einsum("qk,qck->qc", weights, lengths)

    def nearest_rows(self, queries: Queries, stored: Floats, k: int) -> Ids:
        """Rows (Q, k) of the nearest of ``stored`` (G, K * D), by an exact search; k <= G."""
        if self.indexable:
            inner = self.metric == "cosine"
            kind = faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2
            _, rows = faiss.knn(self.index_queries(queries), stored, k, kind)
            return np.asarray(rows, dtype=np.int64)
        shape = (-1, self.parts, self.width)
        blocks = distance_chunks(
            torch.from_numpy(queries.vectors.reshape(shape)),
            torch.from_numpy(stored.reshape(shape)),
            self.metric,
            max(2, 2**24 // len(stored)),  # 64 MB of distances at a time
            torch.from_numpy(queries.weights),
        )
        return np.concatenate(
            [block.topk(k, dim=1, largest=False).indices.numpy() for _, block in blocks]
        )


class Vectors(Protocol):
    """A store's vectors by id."""

    space: Space

    def ids(self) -> Ids:
        """All ids, ascending."""

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        """Ids (N,) above ``after``, ascending, and their vectors (N, K * D), a part at a time."""

    def take(self, ids: Ids) -> tuple[Ids, Floats]:
        """Those of ``ids`` that are stored, ascending, and their vectors."""


def nearest(
    space: Space, queries: Queries, blocks: Iterable[tuple[Ids, Floats]], k: int
) -> tuple[Ids, Floats]:
    """Ids and distances (Q, k), nearest first, by an exact search.

    Equal distances come in the order of ids; where there are fewer vectors, ids are -1 and
    distances infinite.
    """
    ids = np.full((len(queries.vectors), k), -1, np.int64)
    distances = np.full(ids.shape, np.inf, np.float32)
    for block_ids, vectors in blocks:
        rows = space.nearest_rows(queries, vectors, min(k, len(block_ids)))
        ids, distances = _merged(
            np.concatenate([ids, block_ids[rows]], axis=1),
            np.concatenate([distances, _measured(space, queries, vectors, rows)], axis=1),
            k,
        )
    return ids, distances


def rescore(vectors: Vectors, queries: Queries, candidates: Ids, k: int) -> tuple[Ids, Floats]:
    """Like :func:`nearest`, among ``candidates`` (Q, C), of which some may not be stored."""
    stored, values = vectors.take(np.unique(candidates[candidates >= 0]))
    if not len(stored):
        return nearest(vectors.space, queries, (), k)
    rows = np.searchsorted(stored, candidates).clip(max=len(stored) - 1)
    distances = _measured(vectors.space, queries, values, rows)
    missing = stored[rows] != candidates
    return _merged(
        np.where(missing, -1, candidates), np.where(missing, np.float32(np.inf), distances), k
    )


def _measured(space: Space, queries: Queries, vectors: Floats, rows: Ids) -> Floats:
    """Distances (Q, C) to rows (Q, C) of ``vectors``."""
    step = max(1, _CHUNK // rows.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    return np.concatenate(
        [space.distances(Queries(*(q[p] for q in queries)), vectors[rows[p]]) for p in parts]
    )


def _merged(ids: Ids, distances: Floats, k: int) -> tuple[Ids, Floats]:
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)


class Graph:
    """An HNSW graph over vectors with ids: faiss's index of float16 values."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def new(cls, dim: int) -> Graph:
        """A graph without vectors."""
        graph = cls(faiss.index_factory(dim, f"IDMap2,HNSW{LINKS}_SQfp16"))
        graph._hnsw.efConstruction = EF_BUILD
        return graph

    @classmethod
    def read(cls, path: Path) -> Graph | None:
        """A graph that :meth:`write` wrote; None if the file is missing or damaged."""
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError:
            return None

    def write(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def _hnsw(self) -> Any:
        inner: Any = faiss.downcast_index(self._index.index)
        return inner.hnsw

    def ids(self) -> Ids:
        """In the order of insertion, which is ascending."""
        return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)

    @property
    def last(self) -> int:
        """The greatest id; 0 without vectors."""
        return int(self._index.id_map.at(len(self) - 1)) if len(self) else 0

    def add(self, ids: Ids, vectors: Floats) -> None:
        """Insert vectors; deterministic for one thread."""
        self._index.add_with_ids(np.ascontiguousarray(vectors), ids)

    def propose(self, vectors: Floats, k: int, setting: int) -> Ids:
        """Ids (Q, C >= k) of candidates; -1 where there are fewer."""
        visited = max(setting, k)
        self._hnsw.efSearch = visited
        # One thread works on a query; the others would only delay it on a busy machine.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(min(threads, max(1, len(vectors))))
        try:
            candidates = self._index.search(vectors, min(CANDIDATES * k, visited))[1]
        finally:
            faiss.omp_set_num_threads(threads)
        return np.asarray(candidates, dtype=np.int64)


@dataclass(frozen=True)
class Recall:
    """An index's kind, and the share of the exact nearest neighbours that it finds.

    Attributes:
        kind: ``exact`` or ``hnsw``.
        measured: recall, 0 to 1; 1 for an exact search.
        setting: nodes that a search visits; 0 for an exact search.
        queries, neighbours: number of queries in the measurement, and of neighbours of each.
    """

    kind: str = "exact"
    measured: float = 1.0
    setting: int = 0
    queries: int = 0
    neighbours: int = 0


# Ids (Q, k) that an HNSW index finds, given queries, k and a setting.
Search = Callable[[Queries, int, int], Ids]


def choose_kind(kind: str, count: int, space: Space) -> str:
    """The kind of index for ``count`` vectors, where ``kind`` may be ``auto``."""
    if count < 2 or not space.indexable:
        return "exact"
    if kind == "auto":
        return "exact" if 4 * space.dim * count <= EXACT_BYTES else "hnsw"
    return kind


def fit(
    vectors: Vectors, kind: str, target: float, build: Callable[[Ids], Search], where: str
) -> Recall:
    """The index that vectors shall have: HNSW's fastest setting that reaches a recall, or exact.

    Args:
        vectors: to be indexed.
        kind: ``auto``, ``exact`` or ``hnsw``. Where HNSW misses the recall, the search is exact
            all the same, and a warning says so.
        target: recall, 0 to 1.
        build: makes an HNSW index of all vectors, given their ids.
        where: names the gallery in the warning.
    """
    ids = vectors.ids()
    if choose_kind(kind, len(ids), vectors.space) == "exact":
        return Recall()
    recall = _measure(vectors, ids, target, build(ids))
    if recall.measured >= target:
        return recall
    logger.warning(
        "%s: hnsw reaches a recall of %.3f at most, less than %g; the search is exact instead",
        where, recall.measured, target,
    )  # fmt: skip
    return Recall()


def _measure(vectors: Vectors, ids: Ids, target: float, search: Search) -> Recall:
    """The fastest setting that reaches a recall, or else the best; see :meth:`Space.probes`."""
    space = vectors.space
    drawn = np.random.default_rng(0).permutation(len(ids))[:PROBES]
    sample_ids, sample = vectors.take(np.sort(ids[drawn]))
    unweighted = Queries(sample, np.ones((len(sample), space.parts), np.float32))
    two = nearest(space, unweighted, vectors.blocks(), 2)[0]
    neighbour_ids = np.where(two[:, 0] == sample_ids, two[:, 1], two[:, 0])
    taken_ids, taken = vectors.take(np.unique(neighbour_ids))
    probes = space.probes(sample, taken[np.searchsorted(taken_ids, neighbour_ids)])
    k = min(NEIGHBOURS, len(ids))
    exact = nearest(space, probes, vectors.blocks(), k)[0]
    best = Recall("hnsw", -1.0)
    for setting in EF_SEARCH:
        approximate = search(probes, k, setting)
        hits = sum(np.isin(a, b).sum() for a, b in zip(exact, approximate, strict=True))
        recall = float(hits / exact.size)
        if recall > best.measured:
            best = Recall("hnsw", recall, setting, len(sample), k)
        if recall >= target:
            break
    return best
