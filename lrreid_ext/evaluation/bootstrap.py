"""Confidence intervals of means over queries, by the bootstrap.

Queries are drawn again with replacement, and the figure's spread over such draws gives its interval
(Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13: percentiles). The queries of
one identity resemble each other, so by default identities are drawn, each with all of its queries;
drawing single queries gives intervals that are too narrow. An interval says how much the figure
varies with other people of the same kind; gallery, single-shot draws and training stay fixed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["UNITS", "bootstrap_intervals"]

#: What is drawn again.
UNITS = ("identity", "query")


def bootstrap_intervals(
    values: ArrayLike,
    identities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    repeats: int = 1000,
    level: float = 0.95,
    by: str = "identity",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Intervals of the means of some figures over queries.

    Args:
        values: (Q,) or (Q, F), each query's figures; no NaN.
        identities: (Q,) of the queries.
        weights: (Q,) above 0, each query's weight in the mean, such as its number of pairs; None:
            equal weights.
        repeats: draws of the queries, at least 2.
        level: share of the draws' means that lie within the interval, between 0 and 1.
        by: one of :data:`UNITS`.
        seed: of the draws, ``numpy.random.default_rng((seed, repeats))``.

    Returns:
        (F, 2) lower and upper end, (1, 2) for values (Q,); NaN if there is no query.

    Raises:
        ValueError: values and identities of different lengths.
    """
    figures = np.asarray(values, dtype=np.float64)
    figures = figures[:, None] if figures.ndim == 1 else figures
    people = np.asarray(identities)
    if figures.ndim != 2 or people.shape != figures.shape[:1]:
        raise ValueError(f"values {figures.shape} and identities {people.shape} aren't one a query")
    counts = np.ones(len(people)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(figures):
        return np.full((figures.shape[1], 2), np.nan)
    unit = np.arange(len(people)) if by == "query" else np.unique(people, return_inverse=True)[1]
    units = int(unit.max()) + 1
    sizes = np.bincount(unit, counts, units)
    sums = np.stack([np.bincount(unit, counts * column, units) for column in figures.T], axis=1)
    rng = np.random.default_rng((seed, repeats))
    means = np.empty((repeats, figures.shape[1]))
    for k in range(repeats):
        # How often each unit was drawn; the mean is over the queries that came with it.
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        means[k] = times @ sums / (times @ sizes)
    tail = 50 * (1 - level)
    return np.percentile(means, [tail, 100 - tail], axis=0).T
