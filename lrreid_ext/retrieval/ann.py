"""Approximate indexes by faiss: which kind, how made, and how hard each search looks.

An index only proposes candidates; their distances are then measured exactly on the stored vectors.
All indexes rank by Euclidean distance: with the cosine metric all stored vectors are equally long,
so that this is the order of their inner products with any query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np

from lrreid_ext.retrieval.space import Floats, Ids

__all__ = [
    "KINDS",
    "build",
    "bytes_of_code",
    "choose_kind",
    "doubled",
    "ladder",
    "lists_for",
    "looser",
    "propose",
    "recall",
    "tune",
]

KINDS = ("exact", "hnsw", "ivfpq")

# Looking at every vector is fast enough up to this many bytes of them; the graph of HNSW, which
# holds the vectors in memory, serves up to this many.
EXACT_BYTES = 2**27
HNSW_BYTES = 2**32
# Fewer vectors than faiss's k-means asks for (39 for each of 256 centroids) make no good IVF-PQ.
LEAST_IVFPQ = 256 * 39

# HNSW: links of a node, and how many nodes are looked at when one is put in.
LINKS, EF_BUILD = 32, 200
# And in a search, from the fastest on.
EF_SEARCH = (16, 32, 64, 128, 256, 512, 1024, 2048)
# IVF-PQ: values that share a byte, and candidates measured for each match asked for.
VALUES_PER_BYTE = 8
CANDIDATES = 64
# Vectors that k-means looks at for each list.
PER_LIST = 40


def choose_kind(count: int, dim: int) -> str:
    """The kind of index for so many vectors of ``dim`` float32 values."""
    size = 4 * dim * count
    if size <= EXACT_BYTES:
        return "exact"
    return "hnsw" if size <= HNSW_BYTES or count < LEAST_IVFPQ else "ivfpq"


def looser(kind: str) -> str:
    """The next kind to try where one can't be made good enough: it looks at more."""
    return KINDS[KINDS.index(kind) - 1]


def build(kind: str, vectors: Floats, ids: Ids) -> Any:
    """An index of ``vectors`` (N, D) under their ``ids`` (N,), deterministic for one thread.

    Raises:
        ValueError: fewer than ``LEAST_IVFPQ`` vectors for ``ivfpq``.
    """
    dim = vectors.shape[1]
    index: Any
    if kind == "hnsw":
        index = faiss.index_factory(dim, f"IDMap2,HNSW{LINKS},Flat")
        _graph(index).efConstruction = EF_BUILD
    elif kind == "ivfpq":
        if len(vectors) < LEAST_IVFPQ:
            raise ValueError(f"ivfpq: {len(vectors)} vectors are fewer than {LEAST_IVFPQ}")
        lists = lists_for(len(vectors))
        index = faiss.index_factory(dim, f"IVF{lists},PQ{bytes_of_code(dim)}")
        sample = np.random.default_rng(0).permutation(len(vectors))[: PER_LIST * lists]
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    else:
        raise ValueError(f"kind {kind!r} has no index")
    for start in range(0, len(vectors), 2**16):
        part = slice(start, start + 2**16)
        index.add_with_ids(np.ascontiguousarray(vectors[part]), ids[part])
    return index


def _graph(index: Any) -> Any:
    inner: Any = faiss.downcast_index(index.index)
    return inner.hnsw


def lists_for(count: int) -> int:
    """How many lists IVF-PQ divides so many vectors into."""
    return min(int(4 * np.sqrt(count)), count // 39)


def bytes_of_code(dim: int) -> int:
    """Bytes of IVF-PQ's codes: of the numbers that divide ``dim``, the nearest to
    ``dim / VALUES_PER_BYTE``."""
    wanted = max(1, dim / VALUES_PER_BYTE)
    return min((m for m in range(1, dim + 1) if dim % m == 0), key=lambda m: abs(m - wanted))


def ladder(kind: str, index: Any) -> list[int]:
    """The settings to try, from the fastest on: nodes (HNSW) or lists (IVF-PQ) looked at."""
    if kind == "hnsw":
        return list(EF_SEARCH)
    return doubled(int(index.nlist))


def doubled(most: int) -> list[int]:
    """1, 2, 4 ... and ``most``."""
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]


def propose(kind: str, index: Any, asked: Floats, k: int, setting: int) -> Ids:
    """Ids (Q, C >= k) of candidates; -1 where there are fewer."""
    if kind == "hnsw":
        _graph(index).efSearch = max(setting, k)
        # A query is one thread's work; others that only wait would delay it on a busy machine.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(min(threads, max(1, len(asked))))
        try:
            found = index.search(asked, k)[1]
        finally:
            faiss.omp_set_num_threads(threads)
    else:
        index.nprobe = setting
        found = index.search(asked, CANDIDATES * k)[1]
    return np.asarray(found, dtype=np.int64)


def recall(found: Ids, exact: Ids) -> float:
    """Share of ``exact`` (Q, k) that ``found`` (Q, any) names in the same row, 0 to 1."""
    hits = [np.isin(right, row).sum() for right, row in zip(exact, found, strict=True)]
    return float(np.sum(hits) / exact.size)


def tune(
    search: Callable[[int], Ids], exact: Ids, target: float, settings: Sequence[int]
) -> tuple[int, float]:
    """The first setting whose recall reaches ``target``, or else the best; and its recall.

    Args:
        search: ids (Q, k) found with a setting.
        exact: ids (Q, k) that should be found.
        target: from 0 to 1.
        settings: to try, in this order.
    """
    best = (settings[0], -1.0)
    for setting in settings:
        reached = recall(search(setting), exact)
        if reached > best[1]:
            best = (setting, reached)
        if reached >= target:
            break
    return best
