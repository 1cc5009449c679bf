"""Exact search, and HNSW graphs by faiss that reach a stated recall.

A graph only proposes candidates; their distances are then measured exactly on the stored vectors.
It ranks by Euclidean distance: with the cosine metric all stored vectors are equally long, so that
this is the order of their inner products with any query. It holds its vectors once, as float16.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from lrreid_ext.search.space import Floats, Ids, Queries, Space

__all__ = [
    "EF_BUILD",
    "EF_SEARCH",
    "KINDS",
    "LINKS",
    "Graph",
    "Recall",
    "Vectors",
    "choose_kind",
    "fit",
    "measure",
    "nearest",
    "rescore",
]

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


class Vectors(Protocol):
    """A store's vectors by id."""

    def ids(self) -> Ids:
        """All ids, ascending."""

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        """Ids (N,) above ``after``, ascending, and their vectors (N, K * D), a part at a time."""

    def take(self, ids: Ids) -> tuple[Ids, Floats]:
        """Those of ``ids`` that are stored, ascending, and their vectors."""


def choose_kind(kind: str, count: int, space: Space) -> str:
    """The kind of index for ``count`` vectors, where ``kind`` may be ``auto``."""
    if count < 2 or not space.indexable:
        return "exact"
    if kind == "auto":
        return "exact" if 4 * space.dim * count <= EXACT_BYTES else "hnsw"
    return kind


class Graph:
    """An HNSW graph over vectors with ids; faiss's index of float16 values."""

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
        count = min(CANDIDATES * k, visited)
        self._hnsw.efSearch = visited
        # One thread works on a query; the others would only delay it on a busy machine.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(min(threads, max(1, len(vectors))))
        try:
            return np.asarray(self._index.search(vectors, count)[1], dtype=np.int64)
        finally:
            faiss.omp_set_num_threads(threads)


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


def rescore(
    space: Space, queries: Queries, candidates: Ids, vectors: Vectors, k: int
) -> tuple[Ids, Floats]:
    """Like :func:`nearest`, among ``candidates`` (Q, C), of which some may not be stored."""
    stored, values = vectors.take(np.unique(candidates[candidates >= 0]))
    if not len(stored):
        return nearest(space, queries, (), k)
    rows = np.searchsorted(stored, candidates).clip(max=len(stored) - 1)
    distances = _measured(space, queries, values, rows)
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


def measure(
    space: Space,
    vectors: Vectors,
    target: float,
    search: Callable[[Queries, int, int], Ids],
) -> Recall:
    """The fastest setting of an HNSW index that reaches a recall, or else the best.

    Args:
        space: of the vectors.
        vectors: at least two.
        target: recall, 0 to 1.
        search: ids (Q, k) that the index finds, given queries, k and a setting.
    """
    ids = vectors.ids()
    drawn = np.random.default_rng(0).permutation(len(ids))[:PROBES]
    own, sample = vectors.take(np.sort(ids[drawn]))
    unweighted = Queries(sample, np.ones((len(own), space.parts), np.float32))
    near = nearest(space, unweighted, vectors.blocks(), 2)[0]
    other = np.where(near[:, 0] == own, near[:, 1], near[:, 0])
    others, neighbours = vectors.take(np.unique(other))
    probes = space.probes(sample, neighbours[np.searchsorted(others, other)])
    k = min(NEIGHBOURS, len(ids))
    exact = nearest(space, probes, vectors.blocks(), k)[0]
    best = Recall("hnsw", -1.0)
    for setting in EF_SEARCH:
        found = search(probes, k, setting)
        hits = sum(np.isin(a, b).sum() for a, b in zip(exact, found, strict=True))
        recall = float(hits / exact.size)
        if recall > best.measured:
            best = Recall("hnsw", recall, setting, len(own), k)
        if recall >= target:
            break
    return best


def fit(
    space: Space, vectors: Vectors, kind: str, target: float, graph: Graph | None, where: str
) -> tuple[Recall, Graph | None]:
    """An index of a kind that reaches a recall; an exact one, with a warning, where HNSW can't.

    Args:
        space: of the vectors.
        vectors: to be indexed.
        kind: ``auto``, ``exact`` or ``hnsw``.
        target: recall, 0 to 1.
        graph: a graph of some of the vectors, which is extended if it holds no others.
        where: names the gallery in the warning.
    """
    ids = vectors.ids()
    if choose_kind(kind, len(ids), space) == "exact":
        return Recall(), None
    # A graph can't forget a vector.
    if graph is None or not bool(np.isin(graph.ids(), ids).all()):
        graph = Graph.new(space.dim)
    for block_ids, block in vectors.blocks(graph.last):
        graph.add(block_ids, block)
    extended = graph

    def search(queries: Queries, k: int, setting: int) -> Ids:
        candidates = extended.propose(space.index_queries(queries), k, setting)
        return rescore(space, queries, candidates, vectors, k)[0]

    recall = measure(space, vectors, target, search)
    if recall.measured < target:
        warn_exact(where, recall, target)
        return Recall(), None
    return recall, graph


def warn_exact(where: str, recall: Recall, target: float) -> None:
    """Say that an exact search takes the place of HNSW."""
    logger.warning(
        "%s: hnsw reaches a recall of %.3f at most, less than %g; the search is exact instead",
        where, recall.measured, target,
    )  # fmt: skip
