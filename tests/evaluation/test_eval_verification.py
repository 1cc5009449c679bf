"""True accept rates against lists of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eval_cases import METRICS, Given, matrix, naive_pairs, side, tiny_sides
from hypothesis import given, settings
from hypothesis import strategies as st

from lrreid_ext.evaluation import FARS, Matching, NoPairsError, Side, tar_at_far

values = st.one_of(st.integers(-2, 2).map(float), st.floats(-3, 3, width=32))


@settings(max_examples=120, deadline=None)
@given(tiny_sides(values, least_pid=-1), st.sampled_from(METRICS), st.integers(1, 3))
def test_equals_lists_of_all_pairs(sides: tuple[Side, Side], metric: str, chunk: int) -> None:
    query, gallery = sides
    fars = [0.0, 0.01, 0.1, 0.25, 0.5, 1.0]
    matching = Matching(query, gallery, metric, chunk)
    # One by one, distances may be rounded otherwise than in chunks.
    fixed = Given(query, gallery, given=torch.from_numpy(matrix(matching)))
    pairs = naive_pairs(fixed)
    genuine, impostors = ([d for _, d, same in pairs if same == kind] for kind in (True, False))
    if not genuine or not impostors:
        with pytest.raises(NoPairsError, match=r"there is no (genuine|impostor) pair"):
            tar_at_far(matching, fars)
        return
    found = tar_at_far(fixed, fars)
    for k, far in enumerate(fars):
        # Of all thresholds that change anything, the largest that accepts few enough impostors.
        threshold = max(
            t
            for t in [*impostors, np.inf]
            if sum(d < t for d in impostors) / len(impostors) <= far + 1e-12
        )
        assert found.threshold[k] == np.float32(threshold)
        assert found.tar[k] == pytest.approx(np.mean(np.array(genuine) < threshold))
        assert found.far[k] == pytest.approx(np.mean(np.array(impostors) < threshold))
    assert (found.genuine, found.impostors) == (len(genuine), len(impostors))
    for i in range(len(query)):
        mine = np.array([d for k, d, same in pairs if same and k == i])
        assert found.genuine_by_query[i] == len(mine)
        below = (mine[:, None] < found.threshold).sum(axis=0)
        assert found.accepted_by_query[i].tolist() == below.tolist()
    chunked = tar_at_far(matching, fars)
    assert (chunked.far <= chunked.fars + 1e-12).all() and (np.diff(chunked.tar) >= 0).all()


def test_more_pairs_than_a_rate_needs() -> None:
    rng = np.random.default_rng(0)
    q_pids, g_pids = np.arange(1, 41), np.tile(np.arange(1, 51), 6)
    centres = rng.normal(size=(51, 8))
    query = side(centres[q_pids] + rng.normal(size=(40, 8)), q_pids, np.zeros(40))
    gallery = side(centres[g_pids] + rng.normal(size=(300, 8)), g_pids, np.ones(300))
    found = tar_at_far(Matching(query, gallery, chunk=7))
    distances = matrix(Matching(query, gallery))
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


@pytest.mark.parametrize(
    ("rows", "camera", "message"),
    [
        ([0, 1, 2], 0, "no genuine pair"),  # one camera only
        ([0], 1, "no impostor pair"),
        ([], 1, "no genuine pair"),
    ],
)
def test_without_pairs_there_is_no_rate(rows: list[int], camera: int, message: str) -> None:
    query = side(torch.eye(3), [1, 2, 3], [0] * 3)
    matching = Matching(query, side(torch.eye(3), [1, 2, 3], [camera] * 3))
    some = np.array(rows, dtype=int)
    with pytest.raises(NoPairsError, match=message):
        tar_at_far(matching.part(some, some if len(some) else None), [0.1])
