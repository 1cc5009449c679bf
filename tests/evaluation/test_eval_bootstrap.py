from __future__ import annotations

import numpy as np
import pytest

from lrreid_ext.evaluation import bootstrap_intervals


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("by", ["identity", "query"])
def test_equals_a_naive_loop(by: str, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    people = rng.integers(3, 12, 40)
    values = rng.random((40, 2))
    weights = rng.integers(1, 5, 40) if weighted else None
    units = list(range(40)) if by == "query" else sorted(set(people.tolist()))
    draws = np.random.default_rng((5, 60))
    means = []
    for _ in range(60):
        rows: list[int] = []
        for k in draws.integers(0, len(units), len(units)):
            rows += [k] if by == "query" else [i for i in range(40) if people[i] == units[k]]
        drawn_weights = None if weights is None else weights[rows]
        means.append(np.average(values[rows], axis=0, weights=drawn_weights))
    expected = np.percentile(means, [10, 90], axis=0).T
    intervals = bootstrap_intervals(
        values, people, weights=weights, repeats=60, level=0.8, by=by, seed=5
    )
    np.testing.assert_allclose(intervals, expected)


def test_covers_the_true_mean_as_often_as_it_says() -> None:
    """Of people who all have several queries alike; by query it is far too narrow."""
    rng = np.random.default_rng(0)
    hits = {"identity": 0, "query": 0}
    for k in range(150):
        values = np.repeat(rng.random(40) < 0.6, 5)
        people = np.repeat(np.arange(40), 5)
        for by in hits:
            ((low, high),) = bootstrap_intervals(values, people, repeats=200, by=by, seed=k)
            hits[by] += low <= 0.6 <= high
    # Of 150 draws, 95 % are 142; by query it covers no more than two thirds.
    assert hits["identity"] >= 132
    assert hits["query"] <= 105


def test_one_value_no_query_and_too_few_labels() -> None:
    assert bootstrap_intervals(np.ones(9), np.arange(9)).tolist() == [[1, 1]]
    assert np.isnan(bootstrap_intervals(np.empty((0, 3)), [])).all()

    with pytest.raises(ValueError, match="one a query"):
        bootstrap_intervals([1.0, 2.0], [1])
