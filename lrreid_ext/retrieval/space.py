"""How features become stored vectors, and how far queries are from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import EPSILON, METRICS, distance_chunks

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Space:
    """Vectors of K parts side by side, one part for each of a model's anchors (SING), else one.

    A distance is the sum of the parts' distances, weighed by the query's weights (SING, Eq. 6).
    With the cosine metric the stored parts have length 1, and ``sum_k w_k (1 - q_k.g_k)`` is
    ``sum_k w_k`` less one inner product of the stored vector and the query's weighed parts. So an
    index of single vectors ranks as the fusion does, for any weights.

    Attributes:
        metric: ``cosine`` or ``euclidean``.
        parts: K.
        width: values of each part.
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
        """Whether one product or difference of whole vectors ranks as the distance does."""
        return self.metric == "cosine" or self.parts == 1

    def stored(self, features: Tensor) -> Floats:
        """Vectors (N, K * D) to keep, from features (N, K, D) or, of one part, (N, D)."""
        parts = features.detach().to("cpu", torch.float32).reshape(-1, self.parts, self.width)
        if self.metric == "cosine":
            parts = parts / parts.norm(dim=2, keepdim=True).clamp(min=EPSILON)
        return np.ascontiguousarray(parts.flatten(1).numpy())

    def asked(self, vectors: Floats, weights: Floats) -> Floats:
        """What an index is asked with: ``vectors`` (Q, K * D) of :meth:`stored`, and of the cosine
        metric each part times its weight, of ``weights`` (Q, K)."""
        if self.metric == "euclidean":
            return vectors
        parts = vectors.reshape(-1, self.parts, self.width) * weights[:, :, None]
        return np.ascontiguousarray(parts.reshape(len(vectors), self.dim))

    def probes(self, vectors: Floats, nearest: Floats) -> Floats:
        """Queries to measure recall by: each vector (Q, K * D) moved as far away from its nearest
        other one as that is from it.

        An index finds the vectors that it is made of too easily. These lie as far from them as
        another image of the same people would, and among them.
        """
        return self.stored(torch.from_numpy(2 * vectors - nearest))

    def distances(self, vectors: Floats, weights: Floats, found: Floats) -> Floats:
        """Distances (Q, C) of each query to its own C stored vectors.

        Args:
            vectors: (Q, K * D), the queries as :meth:`stored` makes them.
            weights: (Q, K).
            found: (Q, C, K * D).
        """
        if self.metric == "cosine":
            products = np.einsum("qd,qcd->qc", self.asked(vectors, weights), found)
            return weights.sum(axis=1, keepdims=True) - products
        apart = (found - vectors[:, None]).reshape(*found.shape[:2], self.parts, self.width)
        lengths = np.sqrt(np.einsum("qckd,qckd->qck", apart, apart))
        return np.einsum("qk,qck->qc", weights, lengths)

    def nearest(self, vectors: Floats, weights: Floats, stored: Floats, k: int) -> Ids:
        """Rows (Q, k) of ``stored`` (G, K * D), nearest first, every one looked at; k <= G."""
        if self.indexable:
            import faiss

            products = self.metric == "cosine"
            kind = faiss.METRIC_INNER_PRODUCT if products else faiss.METRIC_L2
            _, rows = faiss.knn(self.asked(vectors, weights), stored, k, kind)
            return np.asarray(rows, dtype=np.int64)
        shape = (-1, self.parts, self.width)
        # At most 64 MB of distances at a time.
        chunk = max(2, 2**24 // len(stored))
        blocks = distance_chunks(
            torch.from_numpy(vectors.reshape(shape)),
            torch.from_numpy(stored.reshape(shape)),
            self.metric,
            chunk,
            torch.from_numpy(weights),
        )
        near = [block.topk(k, dim=1, largest=False).indices.numpy() for _, block in blocks]
        return np.concatenate(near)
