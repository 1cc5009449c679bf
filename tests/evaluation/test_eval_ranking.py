"""Multi-shot ranks against a loop, scikit-learn and fast-reid, and by hand."""

from __future__ import annotations

import math
from typing import Any

import fastreid.evaluation.rank as host_rank
import numpy as np
import pytest
import torch
from eval_cases import METRICS, drawn, matrix, naive_ranking, naive_statistics, side, tiny_sides
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lrreid_ext.evaluation import Matching, Side, cmc, nearest, rank_statistics


@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_naive_loop(seed: int, metric: str, grid: bool) -> None:
    query, gallery = drawn(seed, grid)
    matching = Matching(query, gallery, metric, chunk=8)
    found, expected = rank_statistics(matching), naive_statistics(matching)
    assert found.valid.tolist() == [e is not None for e in expected]
    assert found.unmatched == ((~found.valid) & (query.pids >= 0)).sum() > 0
    assert found.junk.tolist() == (query.pids < 0).tolist()
    assert found.gallery == (gallery.pids >= 0).sum() < 60
    first_rank, ap, inp = (np.array(v) for v in zip(*filter(None, expected), strict=True))
    assert found.first_rank[found.valid].tolist() == first_rank.tolist()
    np.testing.assert_allclose(found.ap[found.valid], ap, rtol=1e-12)
    np.testing.assert_allclose(found.inp[found.valid], inp, rtol=1e-12)
    assert found.mean_ap == pytest.approx(ap.mean())
    assert found.mean_inp == pytest.approx(inp.mean())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
def test_nearest_equals_naive_loop_and_the_ranks(metric: str, grid: bool) -> None:
    matching = Matching(*drawn(3, grid, people=12), metric)
    found = nearest(matching, 7)
    for i, ranked in enumerate(naive_ranking(matching)):
        # The order among right matches at one distance is the gallery's.
        assert found.order[i].tolist() == [j for _, _, j in ranked[:7]]
        assert found.distance[i].tolist() == [d for d, _, _ in ranked[:7]]
        assert found.right[i].tolist() == [right for _, right, _ in ranked[:7]]
        first = next((at for at, (_, right, _) in enumerate(ranked) if right), None)
        distance, _, place = (math.inf, False, -1) if first is None else ranked[first]
        assert (found.first_right[i], found.first_distance[i]) == (place, distance)
    np.testing.assert_array_equal(found.first_rank, rank_statistics(matching).first_rank)
    assert (found.first_rank == 0).any() and (found.first_rank > 7).any()


def test_a_short_gallery_leaves_places_empty() -> None:
    gallery = side(torch.ones(2, 3), [1, -1], [1, 1])
    matching = Matching(side(torch.ones(1, 3), [1], [0]), gallery)
    found = nearest(matching, 5)
    assert found.order.tolist() == [[0, -1]]
    assert found.distance[0, 1] == np.inf and not found.right[0, 1]


def test_hand_worked_four_queries() -> None:
    # Images on a line, so that distances are differences.
    places = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [2.0], [0.0]])
    gallery = side(places, [1, 2, 1, 3, 1, 0, -1], [2, 2, 2, 2, 1, 2, 2])
    query = side([[0.0], [2.0], [10.0], [4.5]], [1, 2, 9, 1], [1, 1, 1, 2])
    found = rank_statistics(Matching(query, gallery, "euclidean"))
    # Query 1 (at 0, camera 1): 1 right, then 2 and the distractor wrong, 3 right; 5 is left out.
    # Query 2 (at 2): its match at 2 ties with the distractor at 2, which goes first.
    # Query 3: nobody of identity 9. Query 4 (at 4.5, camera 2): 3 at 4 and 1 at 5 tie, the wrong
    # one first; the other images of identity 1 are of its own camera.
    assert found.first_rank.tolist() == [1, 2, 0, 2]
    np.testing.assert_allclose(found.ap, [(1 + 2 / 4) / 2, 1 / 2, np.nan, 1 / 2])
    np.testing.assert_allclose(found.inp, [2 / 4, 1 / 2, np.nan, 1 / 2])
    assert (found.unmatched, found.gallery) == (1, 6)
    np.testing.assert_allclose(found.cmc((1, 2)), [1 / 3, 1])
    assert found.mean_ap == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert found.subset([0, 2]).cmc((1,)).tolist() == [1.0]
    assert found.subset([0, 2]).unmatched == 1


def test_ap_equals_scikit_learn() -> None:
    query, gallery = drawn(11, grid=False)
    matching = Matching(query, gallery)
    found, distances = rank_statistics(matching), matrix(matching)
    assert found.valid.sum() > 10
    for i in np.flatnonzero(found.valid):
        same = gallery.pids == query.pids[i]
        kept = (gallery.pids >= 0) & ~(same & (gallery.camids == query.camids[i]))
        expected = average_precision_score(same[kept], -distances[i, kept])
        assert found.ap[i] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_fastreid_without_ties(metric: str) -> None:
    rng = np.random.default_rng(3)
    query = side(rng.normal(size=(80, 16)), rng.integers(1, 31, 80), rng.integers(0, 4, 80))
    gallery = side(rng.normal(size=(300, 16)), rng.integers(0, 31, 300), rng.integers(0, 4, 300))
    matching = Matching(query, gallery, metric)
    distances = matrix(matching)
    assert all(len(np.unique(row)) == len(row) for row in distances)
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    curve, ap, inp = host_rank.evaluate_rank(distances, *labels, max_rank=20, use_cython=False)
    found = rank_statistics(matching)
    np.testing.assert_allclose(found.cmc((1, 5, 10, 20)), curve[[0, 4, 9, 19]], atol=1e-6)
    np.testing.assert_allclose(found.ap[found.valid], ap, atol=1e-6)
    np.testing.assert_allclose(found.inp[found.valid], inp, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_one_point_for_all_scores_nothing(metric: str) -> None:
    point = torch.randn(1, 37, generator=torch.Generator().manual_seed(0))
    query = side(point.repeat(17, 1), np.arange(1, 18), np.zeros(17))
    gallery = side(point.repeat(100, 1), np.repeat(np.arange(20), 5), np.ones(100))
    found = rank_statistics(Matching(query, gallery, metric, chunk=16))
    assert found.first_rank.tolist() == [96] * 17
    assert found.cmc((1, 5, 10, 20)).tolist() == [0, 0, 0, 0]


# Small integers: distances are exact, and ties are many.
coordinates = st.integers(-2, 2).map(float)


@settings(max_examples=60, deadline=None)
@given(tiny_sides(coordinates), st.sampled_from(METRICS), st.randoms(use_true_random=False))
def test_order_of_the_gallery_changes_nothing(
    sides: tuple[Side, Side], metric: str, rng: Any
) -> None:
    matching = Matching(*sides, metric)
    order = list(range(len(matching.gallery)))
    rng.shuffle(order)
    one, two = rank_statistics(matching), rank_statistics(matching.part(gallery=order))
    for name in ("first_rank", "ap", "inp"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@settings(max_examples=60, deadline=None)
@given(tiny_sides(coordinates), coordinates, coordinates)
def test_a_distractor_never_helps(sides: tuple[Side, Side], x: float, y: float) -> None:
    query, gallery = sides
    more = side(
        torch.cat([gallery.features, torch.tensor([[x, y]])]),
        np.append(gallery.pids, 0),
        np.append(gallery.camids, 1),
    )
    before = rank_statistics(Matching(query, gallery, "euclidean"))
    after = rank_statistics(Matching(query, more, "euclidean"))
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


NAN, ONES = [[1.0, 1.0], [1.0, math.nan]], [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("features", "pids", "camids", "message"),
    [
        (NAN, [1, 1], [1, 1], "gallery: 1 of 2 features hold NaN"),
        (torch.zeros(0, 2), [], [], "gallery: no features"),
        (ONES, [-1, -1], [1, 1], "gallery: all 2 images are junk"),
        (ONES, [1, 1], [1], "gallery: 2 features but cameras"),
        (ONES, [1], [1, 1], "gallery: 2 features but identities"),
    ],
)
def test_refusals(features: Any, pids: Any, camids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_statistics(
            Matching(side(ONES, [1, 1], [0, 0]), side(features, pids, camids, "gallery"))
        )


def test_rows_keep_all_that_belongs_to_an_image() -> None:
    whole = side(
        torch.arange(12).view(4, 3),
        [1, 2, 3, -1],
        [5, 6, 7, 8],
        "query",
        native_size=torch.arange(8).view(4, 2),
        weights=torch.arange(4.0)[:, None],
    )
    for index, order in (([2, 0], [2, 0]), (np.array([True, False, True, False]), [0, 2])):
        part = whole.rows(index)
        assert torch.equal(part.features, whole.features[order])
        assert part.pids.tolist() == whole.pids[order].tolist()
        assert part.camids.tolist() == whole.camids[order].tolist()
        assert torch.equal(part.native_size, whole.native_size[order])
        assert torch.equal(part.weights, whole.weights[order])
        assert (part.name, part.is_junk.any()) == ("query", False)
