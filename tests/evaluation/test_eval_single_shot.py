"""Single-shot trials against a loop over the same draws, and the draws' rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eval_cases import METRICS, drawn, matrix, naive_shot, side

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import Matching, Side, rank_statistics, single_shot
from lrreid_ext.evaluation.single_shot import DRAWS, draw_for_query, draw_gallery


def drawn_for(
    draw: str, query: Side, gallery: Side, i: int, trials: int, seed: int
) -> list[dict[int, int]]:
    """The image of each identity that a query gets, in each trial."""
    if draw == "shared":
        identities, picks = draw_gallery(gallery, int(query.camids[i]), trials, seed)
        return [dict(zip(identities.tolist(), row.tolist(), strict=True)) for row in picks]
    images: dict[int, list[int]] = {}
    for j in range(len(gallery)):
        if gallery.pids[j] > 0 and gallery.camids[j] != query.camids[i]:
            images.setdefault(int(gallery.pids[j]), []).append(j)
    people = sorted(images)
    units = np.random.default_rng((seed, i)).random((trials, len(people)))
    return [
        {p: images[p][int(row[k] * len(images[p]))] for k, p in enumerate(people)} for row in units
    ]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cameras", [2, 4])
def test_equals_naive_loop_with_the_same_draws(
    cameras: int, metric: str, grid: bool, draw: str
) -> None:
    query, gallery = drawn(cameras, grid, 31, 70, 10, cameras)
    matching = Matching(query, gallery, metric, chunk=6)
    distances = matrix(matching)
    expected = np.zeros((4, 31), dtype=int)
    for i, pid in enumerate(query.pids):
        for trial, images in enumerate(drawn_for(draw, query, gallery, i, 4, 5)):
            if pid in images:
                expected[trial, i] = naive_shot(distances[i], list(images.values()), images[pid])
    found = single_shot(matching, trials=4, seed=5, draw=draw)
    np.testing.assert_array_equal(found.first_rank, expected)
    valid = expected[0] > 0
    assert found.valid.tolist() == valid.tolist()
    assert found.identities == len({p for p in gallery.pids if p > 0})
    assert found.unmatched == (~valid & (query.pids >= 0)).sum() > 0
    # The curves, from their definition.
    curves = np.array([[(row[valid] <= k).mean() for k in (1, 5)] for row in expected])
    np.testing.assert_allclose(found.cmc((1, 5)), curves)
    np.testing.assert_allclose(found.mean((1, 5)), curves.mean(0))
    np.testing.assert_allclose(found.std((1, 5)), curves.std(0, ddof=1))


def test_draws_follow_the_rules() -> None:
    _, gallery = drawn(1, False, cameras=3)
    gallery.pids[:3], gallery.camids[:3] = 50, 2  # an identity that only camera 2 saw
    for camera in range(3):
        identities, picks = draw_gallery(gallery, camera, trials=6, seed=0)
        eligible = (gallery.pids > 0) & (gallery.camids != camera)
        assert identities.tolist() == sorted(set(gallery.pids[eligible].tolist()))
        assert (50 in identities) == (camera != 2)
        assert eligible[picks].all()
        assert (gallery.pids[picks] == identities).all()


def test_disjoint_cameras_share_one_draw() -> None:
    gallery = side(torch.zeros(40, 1), np.repeat(np.arange(1, 9), 5), np.full(40, 7))
    picks = [draw_gallery(gallery, camera, trials=5, seed=3)[1] for camera in range(3)]
    assert (np.array(picks) == picks[0]).all()
    assert len({tuple(p) for p in picks[0].tolist()}) == 5  # while trials differ


def test_draws_are_uniform_and_seeded() -> None:
    gallery = side(torch.zeros(8, 1), np.repeat([1, 2], 4), np.zeros(8))
    starts, counts = np.array([0, 4]), np.array([4, 4])

    def shared(trials: int, seed: int) -> np.ndarray:
        return draw_gallery(gallery, 1, trials, seed)[1]

    def per_query(trials: int, seed: int, query: int = 3) -> np.ndarray:
        return draw_for_query(starts, counts, trials, seed, query)

    for draw in (shared, per_query):
        picks = draw(2000, 0)
        # 500 each; five standard deviations are 97.
        assert abs(np.bincount(picks[:, 0], minlength=4)[:4] - 500).max() < 97
        assert (picks[:, 1] >= 4).all()
        assert (draw(5, 0) == picks[:5]).all()  # another number of trials has the same first ones
        assert (draw(50, 1) != picks[:50]).any()
    assert (per_query(50, 0) != per_query(50, 0, query=4)).any()


def test_the_mean_is_the_same_and_the_spread_smaller_where_each_query_has_its_own_draw() -> None:
    rng = np.random.default_rng(0)
    pids, centres = np.repeat(np.arange(1, 31), 4), rng.normal(size=(31, 4))
    query, gallery = (
        side(centres[pids] + 0.8 * rng.normal(size=(120, 4)), pids, np.full(120, camera))
        for camera in (0, 1)
    )
    shared, per_query = (
        single_shot(Matching(query, gallery), trials=200, draw=draw) for draw in DRAWS
    )
    assert per_query.mean((1,))[0] == pytest.approx(shared.mean((1,))[0], abs=0.01)
    assert per_query.std((1,))[0] < 0.9 * shared.std((1,))[0]


@pytest.mark.parametrize("draw", DRAWS)
def test_one_image_per_identity_is_multi_shot(draw: str) -> None:
    pids, order = np.arange(1, 13), np.random.default_rng(0).permutation(12)
    query, gallery = side(torch.randn(12, 5), pids, np.zeros(12)), torch.randn(12, 5)
    matching = Matching(query, side(gallery, pids[order], np.ones(12)))
    shots = single_shot(matching, trials=3, draw=draw)
    assert (shots.first_rank == rank_statistics(matching).first_rank).all()
    assert shots.std().tolist() == [0, 0, 0, 0]
    assert np.isnan(single_shot(matching, trials=1, draw=draw).std()).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_distractors_and_global_generators_change_nothing(draw: str) -> None:
    query, gallery = drawn(2, False, cameras=2)
    torch.manual_seed(1)
    np.random.seed(1)
    one = single_shot(Matching(query, gallery), draw=draw)
    torch.manual_seed(2)
    np.random.seed(2)
    more = side(
        torch.cat([gallery.features, query.features]),
        np.append(gallery.pids, np.zeros(len(query), dtype=int)),
        np.append(gallery.camids, query.camids),
    )
    two = single_shot(Matching(query, more), draw=draw)
    assert (one.first_rank == two.first_rank).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_one_point_for_all_scores_nothing(draw: str) -> None:
    point, pids = torch.randn(1, 37), np.repeat(np.arange(1, 31), 3)
    query = side(point.repeat(30, 1), pids[::3], np.zeros(30))
    gallery = side(point.repeat(90, 1), pids, np.ones(90))
    found = single_shot(Matching(query, gallery), draw=draw)
    assert (found.first_rank == 30).all()
    assert found.mean((1, 20)).tolist() == [0, 0]


def test_subset_keeps_the_draws() -> None:
    query, gallery = drawn(3, False, cameras=2)
    some = np.flatnonzero(query.camids == 1)
    part = single_shot(Matching(query, gallery)).subset(some)
    alone = single_shot(Matching(query.rows(some), gallery))
    assert (part.first_rank == alone.first_rank).all()
    assert (part.valid == alone.valid).all()
    assert part.unmatched == alone.unmatched


def test_a_gallery_of_distractors_and_junk_is_refused() -> None:
    query, gallery = side(torch.ones(2, 3), [1, 2], [1, 2]), side(torch.ones(2, 3), [0, -1], [1, 2])
    with pytest.raises(ConfigError, match=r"no identity to draw for.* Check the identities"):
        single_shot(Matching(query, gallery))
