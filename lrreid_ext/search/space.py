"""How features become stored vectors, and how far queries are from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import EPSILON, METRICS, distance_chunks

__all__ = ["Floats", "Ids", "Queries", "Space"]

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]


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

    def __post_init__(self) -> None:
        if self.metric not in METRICS or min(self.parts, self.width) < 1:
            raise ValueError(f"{self}: metric is one of {', '.join(METRICS)}, sizes from 1")

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

    def probes(self, vectors: Floats, nearest: Floats) -> Queries:
        """Queries to measure recall with: each vector (Q, K * D) moved as far from its nearest
        neighbour as that is from it.

        An index finds its own vectors too easily. These queries lie as far from the vectors as
        another image of the same people would, and among them.
        """
        moved = self.stored(torch.from_numpy(2 * vectors - nearest))
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
            import faiss

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
        near = [block.topk(k, dim=1, largest=False).indices.numpy() for _, block in blocks]
        return np.concatenate(near)
