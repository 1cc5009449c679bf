"""SING's adaptive fusion against loops and hand-worked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_cases import matrix, side

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.samples import GALLERY, QUERY, Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import distance_chunks, distance_matrix
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.fusion import (
    anchor_weights,
    chosen_anchors,
    trained_anchors,
    weighed,
)
from lrreid_ext.evaluation.matching import Matching
from lrreid_ext.evaluation.ranking import rank_statistics
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.evaluation.single_shot import single_shot


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_those_of_equations_7_and_8_up_to_a_factor_for_each_query() -> None:
    probe = torch.tensor([50.0 * 20, 25.0 * 10, 100.0 * 40])
    gallery = torch.tensor([100.0 * 40, 100.0 * 40, 120.0 * 60, 80.0 * 10])
    found = anchor_weights(probe, gallery, [2, 3, 4], sigma=0.3)
    mean = (4000 + 4000 + 7200 + 800) / 4
    for row, area in zip(found.tolist(), (1000, 250, 4000), strict=True):
        r = math.sqrt(area / mean)
        expected = [math.exp(-((r - 1 / f) ** 2) / 0.3**2) for f in (2, 3, 4)]
        assert [w / max(row) for w in row] == pytest.approx(
            [w / max(expected) for w in expected], rel=1e-5
        )


def test_a_query_at_an_anchors_ratio_gives_it_the_greatest_weight() -> None:
    gallery = torch.full((5,), 6400.0)
    for k, factor in enumerate((2, 3, 4)):
        row = anchor_weights(torch.tensor([6400.0 / factor**2]), gallery, [2, 3, 4], 0.05)[0]
        assert row[k] == 1 and (row.argsort(descending=True)[0] == k)
        others = [1 / f - 1 / factor for f in (2, 3, 4)]
        assert row.tolist() == pytest.approx([math.exp(-(d**2) / 0.05**2) for d in others], 1e-4)


def test_no_query_loses_all_its_weights_and_sigma_0_weighs_alike() -> None:
    far = anchor_weights(torch.tensor([1e6]), torch.tensor([1.0]), [2, 4], sigma=1e-3)
    assert far.max() == 1 and far.isfinite().all()
    assert anchor_weights(torch.ones(3), torch.ones(2), [2, 4], 0.0).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("alike", [True, False])
def test_fused_distances_against_a_loop(metric: str, alike: bool) -> None:
    query, gallery = features(7, 3, 5), features(9, 3, 5, seed=1)
    weights = features(7, 3, seed=2).abs() if not alike else None
    found = distance_matrix(query, gallery, metric, weights)
    for q in range(7):
        for g in range(9):
            total = 0.0
            for k in range(3):
                a, b = query[q, k].double(), gallery[g, k].double()
                if metric == "cosine":
                    distance = 1 - float(a @ b / (a.norm() * b.norm()))
                else:
                    distance = float((a - b).norm())
                total += distance * (float(weights[q, k]) if weights is not None else 1.0)
            assert found[q, g].item() == pytest.approx(total, rel=1e-4, abs=1e-5)
    chunked = torch.cat(
        [block.clone() for _, block in distance_chunks(query, gallery, metric, 2, weights)]
    )
    torch.testing.assert_close(chunked, found)


def test_ranks_follow_the_fused_distances() -> None:
    weights, pids = features(12, 2, seed=3).abs(), np.arange(20) % 5 + 1
    query = side(features(12, 2, 4), pids[:12], np.ones(12), weights=weights)
    gallery = side(features(20, 2, 4, seed=1), pids, np.full(20, 2))
    matching = Matching(query, gallery, "euclidean")
    distances = matrix(matching)
    expected = distance_matrix(query.features, gallery.features, "euclidean", weights)
    np.testing.assert_array_equal(distances, expected.numpy())
    found = rank_statistics(matching)
    for q in range(12):
        order = np.argsort(distances[q])
        assert found.first_rank[q] == 1 + np.flatnonzero(pids[order] == pids[q])[0]

    def first_ranks(weights: torch.Tensor | None) -> np.ndarray:
        return single_shot(replace(matching, query=replace(query, weights=weights))).first_rank

    assert (first_ranks(weights) == first_ranks(7 * weights)).all()
    assert (first_ranks(weights) != first_ranks(None)).any()


def test_weighed_by_the_gallerys_mean_without_junk() -> None:
    query = side(features(2, 2, 3), [1, 2], [0, 0], native_size=torch.tensor([[40, 20], [80, 40]]))
    sizes = torch.tensor([[160, 80], [80, 40], [9999, 9999]])
    gallery = side(features(3, 2, 3), [1, 2, -1], [1, 1, 1], native_size=sizes)
    expected = anchor_weights(
        torch.tensor([800.0, 3200.0]), torch.tensor([12800.0, 3200.0]), [2, 4], 0.2
    )
    found = weighed(query, gallery, [2, 4], 0.2).weights
    assert found is not None and torch.equal(found, expected)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.TEST.TRIALS = 2
    cfg.TEST.PROTOCOLS = ["single_shot", "multi_shot"]
    return cfg


def evaluate(cfg: CfgNode, rows: torch.Tensor, sizes: torch.Tensor) -> dict[str, float]:
    count = len(rows) // 2
    samples = [
        Sample(f"{role}{i}.png", i % 6 + 1, camera, role, factor)
        for role, camera, factor in ((QUERY, 1, 4.0), (GALLERY, 2, 1.0))
        for i in range(count)
    ]
    check_config(cfg)
    return dict(Scored(cfg, TestSet("demo", samples), Features(rows, sizes)).results.flat())


def test_the_evaluator_weights_anchors_by_the_querys_resolution(cfg: CfgNode) -> None:
    # Anchor 0 (x2) tells people apart; anchor 1 (x4) is noise with large distances.
    people = torch.eye(6)[torch.arange(24) % 6]
    rows = torch.stack([people, 100 * features(24, 6)], dim=1)
    sizes = torch.tensor([[64, 32]] * 12 + [[128, 64]] * 12)
    cfg.MODEL.ANCHORS.FACTORS = [2, 4]
    cfg.TEST.METRIC = "euclidean"
    cfg.TEST.FUSION.SIGMA = 0.02
    assert evaluate(cfg, rows, sizes)["single_shot/query/Rank-1"] == 100
    cfg.TEST.FUSION.SIGMA = 0.0
    assert evaluate(cfg, rows, sizes)["single_shot/query/Rank-1"] < 60
    cfg.TEST.FUSION.ANCHORS = [2]
    assert evaluate(cfg, rows, sizes)["single_shot/query/Rank-1"] == 100
    assert evaluate(cfg, rows, sizes) == evaluate(cfg, rows[:, 0], sizes)


def test_untrained_anchors_are_left_out(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.MODEL.ANCHORS.FACTORS = [2, 3, 4]
    rows = features(5, 3, 4)
    assert chosen_anchors(cfg, rows) == [0, 1, 2]
    rows[:, 1] = torch.nan
    assert chosen_anchors(cfg, rows) == trained_anchors(rows) == [0, 2]
    cfg.TEST.FUSION.ANCHORS = [4, 3]
    assert chosen_anchors(cfg, rows) == [2]
    assert "not trained, and left out: x3" in caplog.text
    cfg.TEST.FUSION.ANCHORS = [3]
    assert chosen_anchors(cfg, rows) == [0, 2]
    with pytest.raises(ConfigError, match=r"names 3 anchors, but .* features of 5"):
        chosen_anchors(cfg, features(4, 5, 2))
