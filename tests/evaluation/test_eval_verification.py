from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lrreid_ext.evaluation import distance_matrix
from lrreid_ext.evaluation.verification import FARS, tar_at_far


def pairs(distances: np.ndarray, labels: tuple[Any, ...]) -> list[tuple[int, float, bool]]:
    """Query, distance, and whether it is genuine, of all pairs that count."""
    q_pids, g_pids, q_camids, g_camids = labels
    found = []
    for i in range(len(q_pids)):
        for j in range(len(g_pids)):
            q, g = q_pids[i], g_pids[j]
            if q < 0 or g < 0 or q == g == 0 or (q == g and q_camids[i] == g_camids[j]):
                continue
            found.append((i, distances[i, j], bool(q == g)))
    return found


def naive(
    distances: np.ndarray, labels: tuple[Any, ...], fars: list[float]
) -> tuple[list[float], list[float], list[float], int, int]:
    """TAR, thresholds, shares accepted and numbers of pairs, from lists of all pairs."""
    counted = pairs(distances, labels)
    genuine = [d for _, d, same in counted if same]
    impostors = [d for _, d, same in counted if not same]
    impostors.sort()
    tar, thresholds, accepted = [], [], []
    for far in fars:
        # Try every threshold that changes anything.
        best = -np.inf
        for candidate in [*impostors, np.inf]:
            share = sum(d < candidate for d in impostors) / len(impostors) if impostors else 0
            if share <= far + 1e-12:
                best = max(best, candidate)
        thresholds.append(best)
        tar.append(sum(d < best for d in genuine) / max(1, len(genuine)))
        accepted.append(sum(d < best for d in impostors) / max(1, len(impostors)))
    return tar, thresholds, accepted, len(genuine), len(impostors)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    queries, images = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    values = draw(st.sampled_from([st.integers(-2, 2).map(float), st.floats(-3, 3, width=32)]))
    array = lambda n: draw(npst.arrays(np.float32, (n, 2), elements=values))  # noqa: E731
    numbers = lambda n, low, high: np.array(  # noqa: E731
        draw(st.lists(st.integers(low, high), min_size=n, max_size=n))
    )
    g_pids = numbers(images, -1, 3)
    g_pids[0] = abs(g_pids[0])  # not junk alone
    return (
        torch.from_numpy(array(queries)),
        torch.from_numpy(array(images)),
        (numbers(queries, -1, 3), g_pids, numbers(queries, 0, 1), numbers(images, 0, 1)),
    )


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from(["cosine", "euclidean"]), st.integers(1, 3))
def test_equals_lists_of_all_pairs(case: tuple[Any, ...], metric: str, chunk: int) -> None:
    query, gallery, labels = case
    fars = [0.0, 0.01, 0.1, 0.25, 0.5, 1.0]
    matrix = distance_matrix(query, gallery, metric)
    tar, threshold, far, genuine, impostors = naive(matrix.numpy(), labels, fars)
    chunks = [(slice(k, k + 1), matrix[k : k + 1]) for k in range(len(matrix))]
    if not genuine or not impostors:
        with pytest.raises(ValueError, match=r"there is no (genuine|impostor) pair"):
            tar_at_far(query, gallery, *labels, fars=fars, metric=metric)
        return
    found = tar_at_far(query, gallery, *labels, fars=fars, distances=chunks)
    np.testing.assert_array_equal(found.threshold, np.float32(threshold))
    np.testing.assert_allclose(found.tar, tar, atol=1e-12)
    np.testing.assert_allclose(found.far, far, atol=1e-12)
    assert (found.genuine, found.impostors) == (genuine, impostors)
    assert found.left_out == len(query) * len(gallery) - genuine - impostors
    right = [(i, d) for i, d, same in pairs(matrix.numpy(), labels) if same]
    for i in range(len(query)):
        mine = np.array([d for k, d in right if k == i])
        assert found.genuine_by_query[i] == len(mine)
        below = (mine[:, None] < found.threshold).sum(axis=0)
        assert found.accepted_by_query[i].tolist() == below.tolist()
    own = tar_at_far(query, gallery, *labels, fars=fars, metric=metric, chunk=chunk)
    assert (own.far <= found.fars + 1e-12).all() and (np.diff(own.tar) >= 0).all()


def test_more_pairs_than_a_rate_needs() -> None:
    rng = np.random.default_rng(0)
    q_pids, g_pids = np.arange(1, 41), np.tile(np.arange(1, 51), 6)
    centres = rng.normal(size=(51, 8))
    query = torch.tensor(centres[q_pids] + rng.normal(size=(40, 8)), dtype=torch.float32)
    gallery = torch.tensor(centres[g_pids] + rng.normal(size=(300, 8)), dtype=torch.float32)
    labels = q_pids, g_pids, np.zeros(40), np.ones(300)
    found = tar_at_far(query, gallery, *labels, chunk=7)
    distances = distance_matrix(query, gallery).numpy()
    same = q_pids[:, None] == g_pids
    impostors = np.sort(distances[~same])
    assert (found.genuine, found.impostors) == (240, 11760)
    for k, far in enumerate(FARS):
        threshold = impostors[int(far * 11760)]
        assert found.threshold[k] == threshold
        assert found.tar[k] == np.mean(distances[same] < threshold)
        assert found.far[k] == np.mean(impostors < threshold)
    assert found.far[0] == found.far[1] == 0 < found.far[4]
    assert found.tar[0] < found.tar[-1] <= 1


def test_what_cannot_be_verified_is_refused() -> None:
    ones, bad = torch.eye(3), torch.full((3, 3), float("nan"))
    labels = [1, 2, 3], [1, 2, 3], [0] * 3, [1] * 3
    assert tar_at_far(ones, ones, *labels).tar.tolist() == [1] * 6
    with pytest.raises(ValueError, match="gallery: 3 of 3 features hold NaN"):
        tar_at_far(ones, bad, *labels)
    with pytest.raises(ValueError, match="no genuine pair"):  # one camera only
        tar_at_far(ones, ones, [1, 2, 3], [1, 2, 3], [0] * 3, [0] * 3)
    with pytest.raises(ValueError, match="no impostor pair"):
        tar_at_far(ones[:1], ones[:1], [1], [1], [0], [1])
    with pytest.raises(ValueError, match="rates must lie from 0 to 1"):
        tar_at_far(ones, ones, *labels, fars=[2.0])
    with pytest.raises(ValueError, match="not an iterator"):
        tar_at_far(ones, ones, *labels, distances=iter([(slice(0, 3), ones)]))
    with pytest.raises(ValueError, match="given for 2 of 3 queries"):
        tar_at_far(ones, ones, *labels, distances=[(slice(0, 2), ones[:2].clone())])
