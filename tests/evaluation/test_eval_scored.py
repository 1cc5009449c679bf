"""What the report ranks through is what the evaluation scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.evaluation import Scored, nearest, rank_statistics
from lrreid_ext.evaluation.features import Features


def anchors_cfg(sigma: float) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.ANCHORS.FACTORS = [2, 3, 4]
    cfg.TEST.FUSION.ANCHORS = [2, 4]
    cfg.TEST.FUSION.SIGMA = sigma
    return cfg


def scored(cfg: CfgNode) -> Scored:
    """Random features of three anchors, the second of which was never trained."""
    samples = [
        Sample(
            f"{p}_{c}.png", p, c, "query" if c == 0 else "gallery", factor=2.0 if c == 0 else 1.0
        )
        for p in range(1, 21)
        for c in range(3)
    ]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, 8, generator=generator)
    features[:, 1] = torch.nan
    size = torch.tensor([[32, 16] if s.camid == 0 else [64, 32] for s in samples])
    return Scored(cfg, TestSet("set", samples), Features(features, size))


@pytest.mark.parametrize(
    ("sigma", "options"),
    [
        (0.0, []),
        (0.2, []),
        (None, ["TEST.AQE.ENABLED", True]),
        (None, ["TEST.RERANK.ENABLED", True, "TEST.RERANK.K1", 6, "TEST.RERANK.K2", 2]),
        (0.0, ["TEST.DRAW", "per_query"]),
    ],
)
def test_ranks_are_the_evaluations(sigma: float | None, options: list[Any]) -> None:
    """With fused anchors, query expansion and re-ranking."""
    cfg = anchors_cfg(sigma or 0.0)
    cfg.merge_from_list(options)
    run = scored(cfg)
    if sigma is None:
        run = replace(run, features=replace(run.features, features=run.features.features[:, 0]))
    results = run.results.to_json()
    figures = results["groups"]["query"]
    statistics, shots = rank_statistics(run.matching), run.single_shot(run.query())
    for k in (1, 5):
        multi, single = (figures[p][f"Rank-{k}"] for p in ("multi_shot", "single_shot"))
        assert 100 * statistics.cmc([k])[0] == pytest.approx(multi, abs=1e-5)
        assert 100 * shots.mean([k])[0] == pytest.approx(single, abs=1e-5)
    chosen = [7, 3, 12]
    matches = nearest(run.matching.part(chosen), 3)
    np.testing.assert_array_equal(matches.first_rank, statistics.first_rank[chosen])


def test_what_differs_from_plain_ranking_counts() -> None:
    run = scored(anchors_cfg(0.0))
    cfg = anchors_cfg(0.1)
    assert (first_ranks(run) != first_ranks(replace(run, cfg=cfg))).any()
    run = replace(run, features=replace(run.features, features=run.features.features[:, 0]))
    for key in ("AQE", "RERANK"):
        cfg = anchors_cfg(0.0)
        cfg.TEST[key].ENABLED = True
        assert (first_ranks(run) != first_ranks(replace(run, cfg=cfg))).any()


def first_ranks(run: Scored) -> np.ndarray:
    return rank_statistics(run.matching).first_rank


def test_groups_are_those_of_the_config() -> None:
    cfg = anchors_cfg(0.0)
    cfg.TEST.FACTOR_BINS = [1, 2.5]
    run = scored(cfg)
    samples = [replace(s, factor=2.0 + s.pid % 2) for s in run.test_set.samples]
    run = replace(run, test_set=replace(run.test_set, samples=samples))
    assert list(run.groups) == ["query", "query@1-2.5", "query@2.5+"]
    assert len(run.query("query@2.5+")) == 10
    assert (run.query("query@2.5+").factors == 3).all()


def test_a_part_of_the_gallery_is_ranked_alone() -> None:
    matching = scored(anchors_cfg(0.0)).matching
    found = rank_statistics(matching.part(gallery=matching.gallery.camids == 1))
    assert found.gallery == 20 and found.valid.all()
