from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import distance_matrix, draw_gallery, rank_statistics, single_shot


def case(seed: int, grid: bool, cameras: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(-1, 2, (n, 3))) if grid else (lambda n: rng.normal(size=(n, 6)))
    return (
        torch.tensor(draw(31), dtype=torch.float32),
        torch.tensor(draw(70), dtype=torch.float32),
        rng.integers(-1, 10, 31),
        rng.integers(-1, 9, 70),
        rng.integers(0, cameras, 31),
        rng.integers(0, cameras, 70),
    )


@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("cameras", [2, 4])
def test_equals_naive_loop_with_the_same_draws(cameras: int, metric: str, grid: bool) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case(cameras, grid, cameras)
    seen = sorted(set(q_camids.tolist()))
    identities, picks = draw_gallery(g_pids, g_camids, seen, trials=4, seed=5)
    distances = distance_matrix(query, gallery, metric).numpy()
    expected = np.zeros((4, 31), dtype=int)
    for trial in range(4):
        for i in range(31):
            shown = [int(j) for j in picks[trial, seen.index(q_camids[i])] if j >= 0]
            for j in shown:
                if g_pids[j] == q_pids[i]:
                    ahead = [
                        k for k in shown if k != j and distances[i, k] <= distances[i, j]
                    ]  # ties go first
                    expected[trial, i] = 1 + len(ahead)
    found = single_shot(
        query,
        gallery,
        q_pids,
        g_pids,
        q_camids,
        g_camids,
        trials=4,
        seed=5,
        metric=metric,
        chunk=6,
    )
    np.testing.assert_array_equal(found.first_rank, expected)
    assert found.valid.tolist() == (expected[0] > 0).tolist()
    assert found.identities == len(identities)
    assert found.unmatched == ((expected[0] == 0) & (q_pids >= 0)).sum() > 0
    # The curves, from their definition.
    valid = expected[0] > 0
    curves = np.array([[(row[valid] <= k).mean() for k in (1, 5)] for row in expected])
    np.testing.assert_allclose(found.cmc((1, 5)), curves)
    np.testing.assert_allclose(found.mean((1, 5)), curves.mean(0))
    np.testing.assert_allclose(found.std((1, 5)), curves.std(0, ddof=1))


def test_draws_follow_the_rules() -> None:
    _, _, _, g_pids, _, g_camids = case(1, False, 3)
    g_pids[:3], g_camids[:3] = 50, 2  # an identity that only camera 2 saw
    identities, picks = draw_gallery(g_pids, g_camids, [0, 1, 2], trials=6, seed=0)
    assert identities.tolist() == sorted({p for p in g_pids.tolist() if p > 0})
    for camera in range(3):
        for column, identity in enumerate(identities):
            eligible = set(np.flatnonzero((g_pids == identity) & (g_camids != camera)).tolist())
            drawn = set(picks[:, camera, column].tolist())
            assert drawn <= eligible if eligible else drawn == {-1}
    assert (picks[:, 2, identities.tolist().index(50)] == -1).all()


def test_disjoint_cameras_share_one_draw() -> None:
    pids = np.repeat(np.arange(1, 9), 5)
    _, picks = draw_gallery(pids, np.full(40, 7), [0, 1, 2], trials=5, seed=3)
    assert (picks == picks[:, :1]).all()
    assert len({tuple(p) for p in picks[:, 0].tolist()}) == 5  # while trials differ


def test_draws_are_uniform_and_seeded() -> None:
    pids = np.repeat([1, 2], 4)
    _, picks = draw_gallery(pids, np.zeros(8), [1], trials=2000, seed=0)
    counts = np.bincount(picks[:, 0, 0], minlength=4)
    # 500 each; five standard deviations are 97.
    assert abs(counts[:4] - 500).max() < 97
    assert (draw_gallery(pids, np.zeros(8), [1], trials=5, seed=0)[1] == picks[:5]).all()
    assert (draw_gallery(pids, np.zeros(8), [1], trials=50, seed=1)[1] != picks[:50]).any()


def test_one_image_per_identity_is_multi_shot() -> None:
    rng = np.random.default_rng(0)
    query, gallery = torch.randn(12, 5), torch.randn(12, 5)
    pids, order = np.arange(1, 13), rng.permutation(12)
    args = (query, gallery, pids, pids[order], np.zeros(12), np.ones(12))
    shots, ranked = single_shot(*args, trials=3), rank_statistics(*args)
    assert (shots.first_rank == ranked.first_rank).all()
    assert shots.std().tolist() == [0, 0, 0, 0]


def test_distractors_and_global_generators_change_nothing() -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case(2, False, 2)
    torch.manual_seed(1)
    np.random.seed(1)
    one = single_shot(query, gallery, q_pids, g_pids, q_camids, g_camids)
    torch.manual_seed(2)
    np.random.seed(2)
    two = single_shot(
        query,
        torch.cat([gallery, query]),
        q_pids,
        np.append(g_pids, np.zeros(31, dtype=int)),
        q_camids,
        np.append(g_camids, q_camids),
    )
    assert (one.first_rank == two.first_rank).all()


def test_one_point_for_all_scores_nothing() -> None:
    point = torch.randn(1, 37)
    pids = np.repeat(np.arange(1, 31), 3)
    found = single_shot(
        point.repeat(30, 1), point.repeat(90, 1), pids[::3], pids, np.zeros(30), np.ones(90)
    )
    assert (found.first_rank == 30).all()
    assert found.mean((1, 20)).tolist() == [0, 0]


def test_subset_keeps_the_draws() -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case(3, False, 2)
    all_of_them = single_shot(query, gallery, q_pids, g_pids, q_camids, g_camids)
    some = np.flatnonzero(q_camids == 1)
    alone = single_shot(query[some], gallery, q_pids[some], g_pids, q_camids[some], g_camids)
    part = all_of_them.subset(some)
    assert (part.first_rank == alone.first_rank).all()
    assert (part.valid == alone.valid).all()
    assert part.unmatched == alone.unmatched


def test_one_trial_has_no_deviation() -> None:
    args = case(4, False, 2)
    assert np.isnan(single_shot(*args, trials=1).std()).all()


def test_errors() -> None:
    ones, labels = torch.ones(2, 3), [1, 2]
    with pytest.raises(ValueError, match="at least one trial"):
        single_shot(ones, ones, labels, labels, labels, labels, trials=0)
    with pytest.raises(ValueError, match="seed"):
        single_shot(ones, ones, labels, labels, labels, labels, seed=-1)
    with pytest.raises(ConfigError, match=r"no identity to draw for.* Check the identities"):
        single_shot(ones, ones, labels, [0, -1], labels, labels)
    with pytest.raises(ValueError, match="gallery: 1 of 2 features hold NaN"):
        bad = torch.tensor([[1.0, 0.0, float("nan")], [0.0, 0.0, 1.0]])
        single_shot(ones, bad, labels, labels, labels, labels)
