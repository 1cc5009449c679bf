"""Cross-view quadratic discriminant analysis (XQDA; Liao, Hu, Zhu and Li, CVPR 2015, section 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

Array = NDArray[np.float64]


def difference_covariances(
    query: ArrayLike, gallery: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike
) -> tuple[Array, Array]:
    """Covariances of the cross-view differences within and between identities, about zero.

    The means of ``(x - z)(x - z)^T`` over all pairs of one identity, and over all others, of a
    query feature x and a gallery feature z; from sums per identity, not pair by pair (section 4.3).

    Args:
        query, gallery: (Q, D) and (G, D).
        query_labels, gallery_labels: (Q,) and (G,) identities.

    Returns:
        The two covariances, (D, D) each.

    Raises:
        ValueError: no pair of one identity, or none of two.
    """
    x, z = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    identities, places = np.unique(
        np.concatenate([np.asarray(query_labels), np.asarray(gallery_labels)]), return_inverse=True
    )
    member = np.eye(len(identities))[places.ravel()]
    of_x, of_z = member[: len(x)], member[len(x) :]
    n_x, n_z = of_x.sum(axis=0), of_z.sum(axis=0)
    alike = float(n_x @ n_z)
    unlike = len(x) * len(z) - alike
    if not alike or not unlike:
        raise ValueError(
            f"XQDA needs pairs of one identity ({alike:g} here) and of two ({unlike:g} here), one "
            "image of each pair being a query, the other in the gallery"
        )
    # Each query meets n_z gallery images of its identity, each gallery image n_x queries.
    crossed = (of_x.T @ x).T @ (of_z.T @ z)
    within = _weighted(x, of_x @ n_z) + _weighted(z, of_z @ n_x) - crossed - crossed.T
    crossed = np.outer(x.sum(axis=0), z.sum(axis=0))
    every = len(z) * (x.T @ x) + len(x) * (z.T @ z) - crossed - crossed.T
    return within / alike, (every - within) / unlike


def _weighted(rows: Array, weights: Array) -> Array:
    return rows.T @ (rows * weights[:, None])


class XQDA:
    """A subspace and a metric for features of two views, learned together.

    The subspace maximises the covariance of differences between identities over that within,
    w^T S_E w / w^T S_I w, and its metric is M = (W^T S_I W)^-1 - (W^T S_E W)^-1 (section 4.2). With
    W the generalised eigenvectors, scaled so that W^T S_I W = I, M is diagonal: 1 - 1/l of each
    eigenvalue l. A direction with l <= 1 tells nobody apart, and its weight would be zero or less;
    the paper keeps l > 1 only. So M is positive definite, and its distance is that of
    :meth:`embed`, exactly.

    (The authors' program takes singular vectors of S_I^-1 S_E, which isn't symmetric, in place of
    the eigenvectors that this quotient leads to.)

    Args:
        dim: most directions kept; None keeps all with l > 1.
        reg: added to the diagonal of S_I, for features of length about 1.

    Attributes:
        projection: (D, r), W.
        eigenvalues: (R,) of all directions, largest first; R is D, or the number of training images
            if that is smaller.
        mean: (D,), mean of the training features.
    """

    def __init__(self, dim: int | None = None, reg: float = 1e-3) -> None:
        self.dim = dim
        self.reg = reg
        self.projection: Array
        self.eigenvalues: Array
        self.mean: Array

    def fit(
        self,
        query: ArrayLike,
        gallery: ArrayLike,
        query_labels: ArrayLike,
        gallery_labels: ArrayLike,
    ) -> XQDA:
        """Learn from the two views of the training identities.

        Args:
            query, gallery: (Q, D) and (G, D).
            query_labels, gallery_labels: (Q,) and (G,) identities.

        Raises:
            ValueError: no pair of one identity or none of two, or nothing that tells identities
                apart.
        """
        query, gallery = np.asarray(query), np.asarray(gallery)
        both = np.concatenate([query, gallery]).astype(np.float64, copy=False)
        self.mean = both.mean(axis=0)
        basis = None
        if both.shape[1] > len(both):
            # Nothing is learned outside the span of the training features.
            basis, coordinates = linalg.qr(
                both.T, mode="economic", overwrite_a=True, check_finite=False
            )
            both = coordinates.T
        within, between = difference_covariances(
            both[: len(query)], both[len(query) :], query_labels, gallery_labels
        )
        within[np.diag_indices_from(within)] += self.reg
        values, vectors = linalg.eigh(between, within)
        self.eigenvalues, vectors = values[::-1], vectors[:, ::-1]
        kept = int((self.eigenvalues > 1).sum())
        if not kept:
            raise ValueError(
                "XQDA: no direction in which identities differ more than images of one identity"
            )
        kept = min(kept, self.dim or kept)
        vectors = vectors[:, :kept]
        self.projection = vectors if basis is None else basis @ vectors
        return self

    @property
    def metric(self) -> Array:
        """(r, r), M: diagonal and positive."""
        return np.diag(self._weights())

    def _weights(self) -> Array:
        return 1.0 - 1.0 / self.eigenvalues[: self.projection.shape[1]]

    def embed(self, features: ArrayLike) -> Array:
        """Features whose squared Euclidean distance is (x - z)^T W M W^T (x - z).

        Args:
            features: (N, D).

        Returns:
            (N, r), centred on the training features, which keeps the numbers small.
        """
        shifted = np.asarray(features, np.float64) - self.mean
        return (shifted @ self.projection) * np.sqrt(self._weights())
