"""A run's features looked at in many ways agree with what the evaluation makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrreid_ext.analysis.runs import Run
from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.evaluation.features import Features
from lrreid_ext.report.scored import Scored


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
    run = Run("one", cfg, torch.nn.Identity(), {})
    return Scored(run, "set", TestSet("set", samples), Features(features, size))


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_fused_anchors_rank_as_in_the_evaluation(sigma: float) -> None:
    run = scored(anchors_cfg(sigma))
    figures = run.results().to_json()["groups"]["query"]
    query = run.groups["query"]
    statistics = run.statistics(query)
    for k in (1, 5):
        multi, single = (figures[p][f"Rank-{k}"] for p in ("multi_shot", "single_shot"))
        assert 100 * statistics.cmc([k])[0] == pytest.approx(multi, abs=1e-5)
        assert 100 * run.shots(query).mean([k])[0] == pytest.approx(single, abs=1e-5)
    np.testing.assert_array_equal(run.nearest(query, 3).first_rank, statistics.first_rank)
    assert run.comparable(query).shape == (20, 2 * 8)


def test_sigma_counts() -> None:
    ranks = [scored(anchors_cfg(s)).statistics(np.arange(0, 60, 3)).first_rank for s in (0, 0.1)]
    assert ranks[0].tolist() != ranks[1].tolist()


def test_a_part_of_the_gallery_is_ranked_alone() -> None:
    run = scored(anchors_cfg(0.0))
    part = run.gallery[run.camids[run.gallery] == 1]
    found = run.statistics(run.groups["query"], part)
    assert found.gallery == 20 and found.valid.all()
