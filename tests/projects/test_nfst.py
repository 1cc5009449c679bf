"""NFST: its defining properties, and the transform written out in explicit features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from projects.SING.classical import NFST


def people(count: int, images: int, dims: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count).repeat(images)[: count * images - 1]  # the last has one fewer
    return rng.normal(size=(count, dims))[labels] + rng.normal(size=(len(labels), dims)), labels


def distances(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - z[None], axis=2)


def naive_transform(train: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(D, r): orthonormal, without within-identity scatter, inside what the images span."""
    centred = train - train.mean(0)
    spanned = linalg.orth(centred.T)
    off = np.concatenate([train[labels == k] - train[labels == k].mean(0) for k in set(labels)])
    return spanned @ linalg.null_space(off @ spanned)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_identities_collapse_to_points(kernel: str):
    train, labels = people(7, 4, dims=50)
    nfst = NFST(kernel).fit(train, labels)
    placed = nfst.embed(train)
    assert placed.shape == (27, 6)
    means = np.stack([placed[labels == k].mean(0) for k in range(7)])
    np.testing.assert_allclose(placed, means[labels], atol=1e-9)
    apart = distances(means, means)[~np.eye(7, dtype=bool)]
    assert apart.min() > 0.1
    np.testing.assert_allclose(placed.mean(0), 0, atol=1e-9)


def test_linear_kernel_equals_the_explicit_transform():
    train, labels = people(5, 3, dims=30)
    new = np.random.default_rng(1).normal(size=(8, 30))
    nfst = NFST("linear").fit(train, labels)
    w = naive_transform(train, labels)
    assert w.shape == (30, 4)
    expected = distances(new @ w, train @ w)
    np.testing.assert_allclose(distances(nfst.embed(new), nfst.embed(train)), expected, atol=1e-9)
    assert nfst.bandwidth is None


def test_rbf_kernel_equals_the_explicit_transform():
    train, labels = people(5, 3, dims=4)
    new = np.random.default_rng(2).normal(size=(6, 4))
    both = np.concatenate([train, new])
    pairs = distances(train, train)[np.triu_indices(len(train), 1)]
    gram = np.exp(-(distances(both, both) ** 2) / (2 * pairs.mean() ** 2))
    # Vectors whose scalar products are the kernel's values.
    values, vectors = np.linalg.eigh(gram)
    explicit = vectors * np.sqrt(values.clip(0))
    w = naive_transform(explicit[: len(train)], labels)
    placed = explicit @ w
    nfst = NFST().fit(train, labels)
    assert nfst.bandwidth == pytest.approx(pairs.mean())
    found = distances(nfst.embed(new), nfst.embed(train))
    np.testing.assert_allclose(
        found, distances(placed[len(train) :], placed[: len(train)]), rtol=1e-5
    )


def test_the_same_image_twice():
    train, labels = people(6, 3, dims=40)
    train[1] = train[0]
    for kernel in ("rbf", "linear"):
        nfst = NFST(kernel).fit(train, labels)
        assert nfst.coefficients.shape[1] == 5
        placed = nfst.embed(train)
        np.testing.assert_allclose(placed[0], placed[2], atol=1e-8)


def test_tells_people_apart_where_euclidean_distance_does_not():
    rng = np.random.default_rng(3)
    who = rng.normal(size=(56, 40))

    def images(ids: np.ndarray) -> np.ndarray:
        strong = rng.normal(size=(len(ids), 12)) * 6
        return np.concatenate([who[ids] + rng.normal(size=(len(ids), 40)) * 0.05, strong], axis=1)

    # Sixteen pairs: their differences span the twelve dimensions of strong noise.
    nfst = NFST("linear").fit(images(np.arange(16).repeat(2)), np.arange(16).repeat(2))
    query, gallery = images(np.arange(16, 56)), images(np.arange(16, 56))

    def rank_1(q: np.ndarray, g: np.ndarray) -> float:
        return float((distances(q, g).argmin(1) == np.arange(40)).mean())

    assert rank_1(query, gallery) < 0.4
    assert rank_1(nfst.embed(query), nfst.embed(gallery)) > 0.9


def test_faults_are_named():
    train, labels = people(5, 3, dims=30)
    with pytest.raises(ValueError, match="two identities"):
        NFST().fit(train, labels * 0)
    with pytest.raises(ValueError, match="no direction"):
        NFST("linear").fit(train[:, :3], labels)
