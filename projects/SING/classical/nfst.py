"""Null Foley-Sammon transform (NFST; Zhang, Xiang and Gong, CVPR 2016), in its kernel form."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

Array = NDArray[np.float64]


class NFST:
    """A space in which all training images of an identity are one point.

    Its directions have no within-identity scatter but some in all (w^T S_w w = 0, w^T S_t w > 0),
    are of length one and orthogonal; c identities have c - 1 of them if the training images are
    linearly independent in the kernel's space. Distances are Euclidean.

    Args:
        kernel: ``rbf``, exp(-d^2 / (2 s^2)), or ``linear``.
        bandwidth: s; None takes the mean distance between two training images, as in the paper.

    Attributes:
        bandwidth: s as used; None for the linear kernel.
        coefficients: (N, r), the directions as sums of the training images.
    """

    def __init__(self, kernel: str = "rbf", bandwidth: float | None = None) -> None:
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.coefficients: Array
        self._train: Array
        self._mean: Array

    def fit(self, features: ArrayLike, labels: ArrayLike) -> NFST:
        """Learn from training features (N, D) of the identities ``labels`` (N,).

        Raises:
            ValueError: fewer than two identities, or no direction without within-identity scatter.
        """
        train, labels = np.asarray(features, np.float64), np.asarray(labels)
        _, identity = np.unique(labels, return_inverse=True)
        classes = int(identity.max()) + 1
        if classes < 2:
            raise ValueError("NFST needs training images of at least two identities")
        self._train = train
        if self.kernel == "rbf" and self.bandwidth is None:
            pairs = len(train) * (len(train) - 1)
            self.bandwidth = float(np.sqrt(_squared_distances(train, train)).sum() / pairs)
        gram = self._kernel(train)
        self._mean = gram.mean(axis=0)
        gram = gram - self._mean - self._mean[:, None] + self._mean.mean()

        # An orthonormal basis of what the centred training images span, and their coordinates.
        values, vectors = linalg.eigh(gram)
        spans = values > _rounding(values)
        lengths = np.sqrt(values[spans])
        basis, places = vectors[:, spans] / lengths, vectors[:, spans] * lengths

        # Within the span, the directions in which no image leaves its identity's mean.
        sizes = np.bincount(identity)
        means = np.stack([np.bincount(identity, c) / sizes for c in places.T], axis=1)
        off = places - means[identity]
        values, vectors = linalg.eigh(off.T @ off)
        # Means of c identities about their common mean: no more directions are without scatter.
        null = vectors[:, values <= _rounding(values)][:, : classes - 1]
        if not null.shape[1]:
            raise ValueError(
                f"NFST: {len(train)} training images of {train.shape[1]} dimensions leave no "
                f"direction without within-identity scatter in the {self.kernel} kernel's space; "
                "use fewer images, or the rbf kernel"
            )
        coefficients = basis @ null
        self.coefficients = coefficients - coefficients.mean(axis=0)
        return self

    def embed(self, features: ArrayLike) -> Array:
        """Features (N, D) in the null space: (N, r), about the training images' mean."""
        gram = self._kernel(np.asarray(features, np.float64))
        return (gram - self._mean) @ self.coefficients

    def _kernel(self, features: Array) -> Array:
        """(N, number of training images)."""
        if self.kernel == "linear":
            return features @ self._train.T
        assert self.bandwidth
        return np.exp(_squared_distances(features, self._train) / (-2 * self.bandwidth**2))


def _squared_distances(x: Array, z: Array) -> Array:
    squares = (x**2).sum(axis=1)[:, None] + (z**2).sum(axis=1) - 2 * (x @ z.T)
    return np.maximum(squares, 0.0, out=squares)


def _rounding(eigenvalues: Array) -> float:
    """Eigenvalues up to here are zero give or take what rounding adds to them."""
    return float(np.abs(eigenvalues).max() * len(eigenvalues) * np.finfo(np.float64).eps)
