"""The protocols on recipes of every kind: which groups there are, and of what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mini_sets
import numpy as np
import pytest
import torch

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import Features
from lrreid_ext.evaluation.groups import query_groups
from lrreid_ext.evaluation.scored import Scored


def config(root: Path, name: str, options: dict[str, Any], **test: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.ROOT = str(root)
    cfg.DATASETS.OPTIONS[name] = CfgNode(options)
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def scored(cfg: CfgNode, test_set: TestSet) -> dict[str, float]:
    features = torch.randn(len(test_set.samples), 4, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((len(features), 2), 8)
    return Scored(cfg, test_set, Features(features, sizes)).results.flat()


def factors(test_set: TestSet, at: np.ndarray) -> list[float]:
    return [test_set.samples[i].factor for i in at]


SYNTH = {"identities": 24, "cameras": 2, "shots": 1, "height": 32, "width": 16}


def test_continuous_factors_are_in_the_bins_of_the_config(tmp_path: Path) -> None:
    cfg = config(tmp_path, "synth_pedestrians", {**SYNTH, "span": [1.0, 6.0]})
    cfg.TEST.FACTOR_BINS, cfg.TEST.FACTORS = [1, 2.5, 5], [6, 8]
    test_set = build_test_set(cfg, "synth_pedestrians")
    groups = query_groups(test_set, cfg.TEST.FACTOR_BINS)
    bins = {"query@1-2.5": (1, 2.5), "query@2.5-5": (2.5, 5), "query@5+": (5, math.inf)}
    # Every query in one bin; factors that nothing was trained with, and the undegraded twins.
    assert list(groups) == ["query", *bins, "query_hr", "x6", "x8"]
    for name, (low, high) in bins.items():
        assert all(low <= factor < high for factor in factors(test_set, groups[name]))
    assert sum(len(groups[name]) for name in bins) == len(groups["query"]) == 12
    found = scored(cfg, test_set)
    for name in groups:
        assert f"single_shot/{name}/Rank-1" in found
        assert f"multi_shot/{name}/mAP" in found


def test_varied_widths(tmp_path: Path) -> None:
    mini_sets.market(tmp_path / "market1501")
    cfg = config(tmp_path, "vr_market1501", {"seed": 2})
    cfg.DATASETS.SOURCE = str(tmp_path / "market1501")
    test_set = build_test_set(cfg, "vr_market1501")
    groups = query_groups(test_set)
    parts = [name for name in groups if name.startswith("query@")]
    assert sum(len(groups[name]) for name in parts) == len(groups["query"]) == 6
    for name in parts:
        (factor,) = set(factors(test_set, groups[name]))
        assert name == f"query@{factor:g}"
    assert "multi_shot/query_hr/mAP" in scored(cfg, test_set)


def test_low_resolution_galleries_are_parted_by_the_answer(tmp_path: Path) -> None:
    options = {"identities": 8, "train_identities": 3, "seed": 7}
    cfg = config(tmp_path, "salr_viper", options)
    cfg.DATASETS.SOURCE = str(mini_sets.viper(tmp_path / "source"))
    test_set = build_test_set(cfg, "salr_viper")
    groups = query_groups(test_set)
    parts = [name for name in groups if "@" in name]
    assert all(name.startswith("query@gallery") for name in parts)
    assert sum(len(groups[name]) for name in parts) == len(groups["query"]) == 5
    own = {s.pid: s.factor for s in test_set.samples if s.group == "gallery"}
    for name in parts:
        for i in groups[name]:
            assert name == f"query@gallery{own[test_set.samples[i].pid]:g}"
    assert all(f"multi_shot/{name}/Rank-1" in scored(cfg, test_set) for name in parts)
    # Nothing there to reduce further.
    cfg.TEST.GALLERY.LR_SHARE = 0.5
    with pytest.raises(ConfigError, match="salr_viper's gallery has no HR image"):
        build_test_set(cfg, "salr_viper")


def test_low_resolution_by_nature(tmp_path: Path) -> None:
    options = {"identities": 6, "train_identities": 3, "split": 1}
    cfg = config(tmp_path, "caviar", options)
    cfg.DATASETS.SOURCE = str(mini_sets.caviar(tmp_path / "source"))
    assert list(query_groups(build_test_set(cfg, "caviar"))) == ["query"]
    cfg.TEST.GALLERY.LR_SHARE = 1.0
    test_set = build_test_set(cfg, "caviar")
    # Now the gallery's factors are known and vary, and part the queries.
    assert {s.factor for s in test_set.samples if s.group == "gallery"} == {2.0, 3.0, 4.0}
    assert test_set.info["split"] == 1
    assert "multi_shot/query/mAP" in scored(cfg, test_set)


def test_a_mixed_gallery_keeps_the_recipes_kernel(tmp_path: Path) -> None:
    options = {**SYNTH, "kernel": "area"}
    cfg = config(tmp_path, "synth_pedestrians", options)
    plain = build_test_set(cfg, "synth_pedestrians")
    cfg.TEST.GALLERY.LR_SHARE, cfg.TEST.GALLERY.LR_FACTORS = 0.5, [3]
    mixed = build_test_set(cfg, "synth_pedestrians")
    reduced = [s for s in mixed.samples if s.group == "gallery" and s.degrade > 1]
    assert 0 < len(reduced) < sum(s.group == "gallery" for s in mixed.samples)
    assert {(s.degrade, s.kernel) for s in reduced} == {(3.0, "area")}
    others = [s for s in plain.samples if s.group != "gallery"]
    assert [s for s in mixed.samples if s.group != "gallery"] == others
    assert mixed.manifest_hash == plain.manifest_hash
