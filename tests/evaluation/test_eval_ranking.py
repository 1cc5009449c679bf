from __future__ import annotations

import math
from typing import Any

import fastreid.evaluation.rank as host_rank
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import average_precision_score

from lrreid_ext.evaluation import cmc, distance_matrix, rank_statistics


def naive(
    distances: np.ndarray, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any
) -> list[tuple[int, float, float] | None]:
    """First rank, AP and INP of each query by walking down its sorted gallery."""
    found: list[tuple[int, float, float] | None] = []
    for i in range(len(distances)):
        ranked = []
        for j in range(len(g_pids)):
            same = g_pids[j] == q_pids[i]
            if g_pids[j] < 0 or (same and g_camids[j] == q_camids[i]):
                continue
            ranked.append((distances[i, j], same and g_pids[j] > 0))
        ranked.sort()  # False before True: wrong matches first on equal distances
        hits, precisions, ranks = 0, [], []
        for position, (_, right) in enumerate(ranked, start=1):
            if right:
                hits += 1
                ranks.append(position)
                precisions.append(hits / position)
        found.append((ranks[0], sum(precisions) / hits, hits / ranks[-1]) if hits else None)
    return found


def random_case(seed: int, grid: bool) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(-1, 2, (n, 3))) if grid else (lambda n: rng.normal(size=(n, 6)))
    query, gallery = draw(23), draw(60)
    return (
        torch.tensor(query, dtype=torch.float32),
        torch.tensor(gallery, dtype=torch.float32),
        rng.integers(-1, 8, 23),
        rng.integers(-1, 8, 60),
        rng.integers(0, 3, 23),
        rng.integers(0, 3, 60),
    )


@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_naive_loop(seed: int, metric: str, grid: bool) -> None:
    query, gallery, *labels = random_case(seed, grid)
    found = rank_statistics(query, gallery, *labels, metric=metric, chunk=8)
    expected = naive(distance_matrix(query, gallery, metric).numpy(), *labels)
    assert found.valid.tolist() == [e is not None for e in expected]
    assert found.unmatched == sum(
        e is None and pid >= 0 for e, pid in zip(expected, labels[0], strict=True)
    )
    assert found.junk.tolist() == (labels[0] < 0).tolist()
    assert found.gallery_junk == (labels[1] < 0).sum()
    assert found.gallery + found.gallery_junk == 60
    right = [e for e in expected if e is not None]
    assert found.first_rank[found.valid].tolist() == [e[0] for e in right]
    np.testing.assert_allclose(found.ap[found.valid], [e[1] for e in right], rtol=1e-12)
    np.testing.assert_allclose(found.inp[found.valid], [e[2] for e in right], rtol=1e-12)
    assert found.mean_ap == pytest.approx(np.mean([e[1] for e in right]))
    assert found.mean_inp == pytest.approx(np.mean([e[2] for e in right]))


def test_hand_worked_four_queries() -> None:
    # Images on a line, so that distances are differences.
    gallery = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [2.0], [0.0]])
    g_pids = [1, 2, 1, 3, 1, 0, -1]
    g_camids = [2, 2, 2, 2, 1, 2, 2]
    query = torch.tensor([[0.0], [2.0], [10.0], [4.5]])
    q_pids, q_camids = [1, 2, 9, 1], [1, 1, 1, 2]
    found = rank_statistics(query, gallery, q_pids, g_pids, q_camids, g_camids, metric="euclidean")
    # Query 1 (at 0, camera 1): 1 right, then 2 and the distractor wrong, 3 right; 5 is left out.
    # Query 2 (at 2): its match at 2 ties with the distractor at 2, which goes first.
    # Query 3: nobody of identity 9. Query 4 (at 4.5, camera 2): 3 at 4 and 1 at 5 tie, the wrong
    # one first; the other images of identity 1 are of its own camera.
    assert found.first_rank.tolist() == [1, 2, 0, 2]
    np.testing.assert_allclose(found.ap, [(1 + 2 / 4) / 2, 1 / 2, np.nan, 1 / 2])
    np.testing.assert_allclose(found.inp, [2 / 4, 1 / 2, np.nan, 1 / 2])
    assert (found.unmatched, found.gallery, found.gallery_junk) == (1, 6, 1)
    np.testing.assert_allclose(found.cmc((1, 2)), [1 / 3, 1])
    assert found.mean_ap == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert found.subset([0, 2]).cmc((1,)).tolist() == [1.0]
    assert found.subset([0, 2]).unmatched == 1


def test_ap_equals_scikit_learn() -> None:
    query, gallery, *labels = random_case(11, grid=False)
    q_pids, g_pids, q_camids, g_camids = labels
    found = rank_statistics(query, gallery, *labels)
    distances = distance_matrix(query, gallery).numpy()
    assert found.valid.sum() > 10
    for i in np.flatnonzero(found.valid):
        kept = (g_pids >= 0) & ~((g_pids == q_pids[i]) & (g_camids == q_camids[i]))
        expected = average_precision_score(g_pids[kept] == q_pids[i], -distances[i, kept])
        assert found.ap[i] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_fastreid_without_ties(metric: str) -> None:
    rng = np.random.default_rng(3)
    query = torch.tensor(rng.normal(size=(80, 16)), dtype=torch.float32)
    gallery = torch.tensor(rng.normal(size=(300, 16)), dtype=torch.float32)
    labels = (
        rng.integers(1, 31, 80),
        rng.integers(0, 31, 300),
        rng.integers(0, 4, 80),
        rng.integers(0, 4, 300),
    )
    distances = distance_matrix(query, gallery, metric).numpy()
    assert all(len(np.unique(row)) == len(row) for row in distances)
    curve, ap, inp = host_rank.evaluate_rank(distances, *labels, max_rank=20, use_cython=False)
    found = rank_statistics(query, gallery, *labels, metric=metric)
    np.testing.assert_allclose(found.cmc((1, 5, 10, 20)), curve[[0, 4, 9, 19]], atol=1e-6)
    np.testing.assert_allclose(found.ap[found.valid], ap, atol=1e-6)
    np.testing.assert_allclose(found.inp[found.valid], inp, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_one_point_for_all_scores_nothing(metric: str) -> None:
    rng = np.random.default_rng(0)
    point = torch.tensor(rng.normal(size=(1, 37)), dtype=torch.float32)
    g_pids = np.repeat(np.arange(20), 5)
    found = rank_statistics(
        point.repeat(17, 1),
        point.repeat(100, 1),
        np.arange(1, 18),
        g_pids,
        np.zeros(17),
        np.ones(100),
        metric=metric,
        chunk=16,
    )
    assert found.first_rank.tolist() == [96] * 17
    assert found.cmc((1, 5, 10, 20)).tolist() == [0, 0, 0, 0]


# Small integers: distances are exact, and ties are many.
coordinates = st.integers(-2, 2).map(float)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Any, ...]:
    queries, images = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    array = lambda n: draw(npst.arrays(np.float32, (n, 2), elements=coordinates))  # noqa: E731
    numbers = lambda n, low, high: np.array(  # noqa: E731
        draw(st.lists(st.integers(low, high), min_size=n, max_size=n))
    )
    gallery_pids = numbers(images, -1, 3)
    gallery_pids[0] = abs(gallery_pids[0])  # not junk alone
    return (
        torch.from_numpy(array(queries)),
        torch.from_numpy(array(images)),
        numbers(queries, 1, 3),
        gallery_pids,
        numbers(queries, 0, 1),
        numbers(images, 0, 1),
    )


@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from(["cosine", "euclidean"]), st.randoms(use_true_random=False))
def test_order_of_the_gallery_changes_nothing(case: tuple[Any, ...], metric: str, rng: Any) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    order = list(range(len(gallery)))
    rng.shuffle(order)
    one = rank_statistics(query, gallery, q_pids, g_pids, q_camids, g_camids, metric=metric)
    two = rank_statistics(
        query, gallery[order], q_pids, g_pids[order], q_camids, g_camids[order], metric=metric
    )
    np.testing.assert_array_equal(one.first_rank, two.first_rank)
    np.testing.assert_array_equal(one.ap, two.ap)
    np.testing.assert_array_equal(one.inp, two.inp)


@settings(max_examples=60, deadline=None)
@given(grids(), coordinates, coordinates)
def test_a_distractor_never_helps(case: tuple[Any, ...], x: float, y: float) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    before = rank_statistics(query, gallery, q_pids, g_pids, q_camids, g_camids, metric="euclidean")
    after = rank_statistics(
        query,
        torch.cat([gallery, torch.tensor([[x, y]])]),
        q_pids,
        np.append(g_pids, 0),
        q_camids,
        np.append(g_camids, 1),
        metric="euclidean",
    )
    valid = before.valid
    assert (after.valid == valid).all()
    assert (after.first_rank[valid] >= before.first_rank[valid]).all()
    assert (after.first_rank[valid] <= before.first_rank[valid] + 1).all()
    assert (after.ap[valid] <= before.ap[valid] + 1e-12).all()
    assert (after.inp[valid] <= before.inp[valid] + 1e-12).all()


def test_cmc() -> None:
    assert cmc([1, 3, 5, 30], (1, 5, 20)).tolist() == [0.25, 0.75, 0.75]
    assert all(math.isnan(value) for value in cmc([], (1, 5)))
    with pytest.raises(ValueError, match="first ranks start at 1"):
        cmc([1, 0])


def test_errors_name_the_group() -> None:
    ones, labels = torch.ones(2, 3), [1, 1]
    bad = torch.tensor([[1.0, 1.0, 1.0], [1.0, float("nan"), 1.0]])
    with pytest.raises(ValueError, match=r"gallery: 1 of 2 features hold NaN"):
        rank_statistics(ones, bad, labels, labels, labels, labels)
    with pytest.raises(ValueError, match=r"query: 1 of 2 features hold NaN"):
        rank_statistics(bad, ones, labels, labels, labels, labels)
    with pytest.raises(ValueError, match="query: no features"):
        rank_statistics(ones[:0], ones, [], labels, [], labels)
    with pytest.raises(ValueError, match="gallery: no features"):
        rank_statistics(ones, ones[:0], labels, [], labels, [])
    with pytest.raises(ValueError, match="gallery: all 2 images are junk"):
        rank_statistics(ones, ones, labels, [-1, -1], labels, labels)
    with pytest.raises(ValueError, match="gallery: 2 features but cameras"):
        rank_statistics(ones, ones, labels, labels, labels, [1])
