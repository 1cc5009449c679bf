"""XQDA against its formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from projects.SING.classical import XQDA, difference_covariances


def views(dims: int, people: int = 9, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Query and gallery features and labels; not every person has as many images."""
    rng = np.random.default_rng(seed)
    who = rng.normal(size=(people, dims))
    q_labels = np.concatenate([np.arange(people), rng.integers(0, people, 6)])
    g_labels = np.concatenate([np.arange(1, people), rng.integers(0, people, 9)])
    noise = rng.uniform(0.2, 1.5, dims)
    query = who[q_labels] + rng.normal(size=(len(q_labels), dims)) * noise
    gallery = who[g_labels] + rng.normal(size=(len(g_labels), dims)) * noise + 0.3
    return query, gallery, q_labels, g_labels


def naive_covariances(
    query: np.ndarray, gallery: np.ndarray, q_labels: np.ndarray, g_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sums = [np.zeros((query.shape[1],) * 2), np.zeros((query.shape[1],) * 2)]
    counts = [0, 0]
    for x, a in zip(query, q_labels, strict=True):
        for z, b in zip(gallery, g_labels, strict=True):
            sums[int(a != b)] += np.outer(x - z, x - z)
            counts[int(a != b)] += 1
    return sums[0] / counts[0], sums[1] / counts[1]


def test_covariances_equal_a_loop_over_pairs():
    data = views(dims=4)
    for found, expected in zip(
        difference_covariances(*data), naive_covariances(*data), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("dims", [6, 60], ids=["few dimensions", "more than images"])
@pytest.mark.parametrize("dim", [None, 2])
def test_distance_equals_the_formula(dims: int, dim: int | None):
    data = views(dims)
    within, between = naive_covariances(*data)
    within += 0.01 * np.eye(dims)
    values, vectors = linalg.eig(np.linalg.inv(within) @ between)
    order = np.argsort(-values.real)
    kept = [k for k in order if values[k].real > 1][:dim]
    w = vectors[:, kept].real
    m = np.linalg.inv(w.T @ within @ w) - np.linalg.inv(w.T @ between @ w)

    xqda = XQDA(dim=dim, reg=0.01).fit(*data)
    x, z = np.random.default_rng(1).normal(size=(2, 5, dims))
    difference = xqda.embed(x) - xqda.embed(z)
    expected = [(a - b) @ w @ m @ w.T @ (a - b) for a, b in zip(x, z, strict=True)]
    np.testing.assert_allclose((difference**2).sum(1), expected, rtol=1e-6)

    w = xqda.projection
    assert w.shape == (dims, len(kept))
    expected = [(a - b) @ w @ xqda.metric @ w.T @ (a - b) for a, b in zip(x, z, strict=True)]
    np.testing.assert_allclose((difference**2).sum(1), expected, rtol=1e-8)


def test_metric_is_positive_and_the_basis_white():
    data = views(dims=8)
    xqda = XQDA(reg=0.01).fit(*data)
    within, _ = naive_covariances(*data)
    w = xqda.projection
    np.testing.assert_allclose(w.T @ (within + 0.01 * np.eye(8)) @ w, np.eye(w.shape[1]), atol=1e-8)
    assert (np.diag(xqda.metric) > 0).all()
    assert (np.diff(xqda.eigenvalues) <= 0).all()
    assert (xqda.eigenvalues > 1).sum() == w.shape[1]


def test_tells_people_apart_where_euclidean_distance_does_not():
    rng = np.random.default_rng(2)

    def images(people: np.ndarray, view: float) -> np.ndarray:
        # Ten dimensions of identity, ten of much stronger noise, and a shift between the cameras.
        strong = rng.normal(size=(len(people), 10)) * 20 + view
        return np.concatenate([who[people] + rng.normal(size=(len(people), 10)) * 0.2, strong], 1)

    who = rng.normal(size=(120, 10))
    train = np.arange(60).repeat(2)
    xqda = XQDA().fit(images(train, 0), images(train, 5), train, train)
    query, gallery = images(np.arange(60, 120), 0), images(np.arange(60, 120), 5)

    def rank_1(q: np.ndarray, g: np.ndarray) -> float:
        distances = np.linalg.norm(q[:, None] - g[None], axis=2)
        return float((distances.argmin(1) == np.arange(60)).mean())

    assert rank_1(query, gallery) < 0.2
    assert rank_1(xqda.embed(query), xqda.embed(gallery)) > 0.9


def test_input_stays_as_it_is_and_may_be_float32():
    data = views(dims=60)
    copies = [part.copy() for part in data]
    exact = XQDA().fit(*data)
    for part, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
    query, gallery = (part.astype(np.float32) for part in data[:2])
    single = XQDA().fit(query, gallery, *data[2:])
    x, z = data[0][:1], data[1][:1]
    np.testing.assert_allclose(
        np.linalg.norm(single.embed(x) - single.embed(z)),
        np.linalg.norm(exact.embed(x) - exact.embed(z)),
        rtol=1e-3,
    )


def test_faults_are_named():
    query, gallery, q_labels, g_labels = views(dims=4)
    with pytest.raises(ValueError, match=r"one identity \(0 here\)"):
        XQDA().fit(query, gallery, q_labels, g_labels + 100)
    with pytest.raises(ValueError, match=r"of two \(0 here\)"):
        XQDA().fit(query, gallery, q_labels * 0, g_labels * 0)
    alike = np.ones((4, 3))
    with pytest.raises(ValueError, match="no direction"):
        XQDA().fit(alike, alike, [0, 0, 1, 1], [0, 0, 1, 1])
