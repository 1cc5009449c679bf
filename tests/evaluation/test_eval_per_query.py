from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import distance_matrix, single_shot, single_shot_per_query
from lrreid_ext.evaluation.per_query import draw_for_query


def case(seed: int, grid: bool, cameras: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(-1, 2, (n, 3))) if grid else (lambda n: rng.normal(size=(n, 6)))
    return (
        torch.tensor(draw(23), dtype=torch.float32),
        torch.tensor(draw(50), dtype=torch.float32),
        rng.integers(-1, 10, 23),
        rng.integers(-1, 9, 50),
        rng.integers(0, cameras, 23),
        rng.integers(0, cameras, 50),
    )


@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("cameras", [2, 4])
def test_equals_naive_loop_with_the_same_draws(cameras: int, grid: bool) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case(cameras, grid, cameras)
    distances = distance_matrix(query, gallery, "euclidean").numpy()
    expected = np.zeros((5, 23), dtype=int)
    for i in range(23):
        images: dict[int, list[int]] = {}
        for j in range(50):
            if g_pids[j] > 0 and g_camids[j] != q_camids[i]:
                images.setdefault(int(g_pids[j]), []).append(j)
        people = sorted(images)
        units = np.random.default_rng((7, i)).random((5, len(people)))
        for trial in range(5):
            shown = {p: images[p][int(units[trial, k] * len(images[p]))]
                     for k, p in enumerate(people)}  # fmt: skip
            if q_pids[i] in shown:
                own = distances[i, shown[q_pids[i]]]
                expected[trial, i] = sum(distances[i, j] <= own for j in shown.values())
    found = single_shot_per_query(
        query, gallery, q_pids, g_pids, q_camids, g_camids,
        trials=5, seed=7, metric="euclidean", chunk=4,
    )  # fmt: skip
    np.testing.assert_array_equal(found.first_rank, expected)
    assert found.valid.tolist() == (expected[0] > 0).tolist()
    assert found.unmatched == ((expected[0] == 0) & (q_pids >= 0)).sum()


def test_mean_is_that_of_the_shared_draw_and_the_spread_smaller() -> None:
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(1, 31), 4)
    centres = rng.normal(size=(31, 4))
    query = torch.tensor(centres[pids] + 0.8 * rng.normal(size=(120, 4)))
    gallery = torch.tensor(centres[pids] + 0.8 * rng.normal(size=(120, 4)))
    args = (query, gallery, pids, pids, np.zeros(120), np.ones(120))
    shared = single_shot(*args, trials=200)
    own = single_shot_per_query(*args, trials=200)
    assert own.mean((1,))[0] == pytest.approx(shared.mean((1,))[0], abs=0.01)
    assert own.std((1,))[0] < 0.9 * shared.std((1,))[0]


def test_draws_are_uniform_and_each_querys_own() -> None:
    starts, counts = np.array([0, 4]), np.array([4, 1])
    drawn = draw_for_query(starts, counts, 2000, 0, 3)
    # 500 each; five standard deviations are 97.
    assert abs(np.bincount(drawn[:, 0], minlength=4) - 500).max() < 97
    assert (drawn[:, 1] == 4).all()
    assert (draw_for_query(starts, counts, 2000, 0, 4) != drawn).any()
    assert (draw_for_query(starts, counts, 2000, 1, 3) != drawn).any()
    # Another number of trials has the same first ones.
    assert (draw_for_query(starts, counts, 50, 0, 3) == drawn[:50]).all()


def test_errors() -> None:
    ones, labels = torch.ones(2, 3), [1, 2]
    with pytest.raises(ValueError, match="at least one trial"):
        single_shot_per_query(ones, ones, labels, labels, labels, labels, trials=0)
    with pytest.raises(ValueError, match="seed"):
        single_shot_per_query(ones, ones, labels, labels, labels, labels, seed=-1)
    with pytest.raises(ConfigError, match=r"no identity to draw for.* Check the identities"):
        single_shot_per_query(ones, ones, labels, [0, -1], labels, labels)
