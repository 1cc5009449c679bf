from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.utils import comm
from PIL import Image
from torch import nn

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.features import Features, extract, extract_features


class Means(nn.Module):
    """Features that tell the images apart: means of the colours on the left and the right."""

    def __init__(self, anchors: int = 0) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        half = batch["images"].shape[3] // 2
        left = batch["images"][..., :half].mean(dim=(2, 3))
        right = batch["images"][..., half:].mean(dim=(2, 3))
        features = torch.cat([left, 2 * right], 1)
        if self.anchors:
            return torch.stack([(k + 1) * features for k in range(self.anchors)], 1)
        return features


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.SIZE_TEST = [16, 8]
    cfg.TEST.IMS_PER_BATCH = 4
    cfg.TEST.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def test_set(tmp_path: Path) -> TestSet:
    """11 images of as many sizes, some reduced on reading."""
    samples = []
    for k in range(11):
        pixels = np.random.default_rng(k).integers(0, 256, (20 + k, 10 + 2 * k, 3), dtype=np.uint8)
        path = str(tmp_path / f"{k}.png")
        Image.fromarray(pixels).save(path)
        group = "query" if k % 2 else "gallery"
        degrade = 2.0 if k % 3 == 1 else 1.0
        samples.append(Sample(path, k // 2 + 1, k % 2, group, degrade, degrade))
    return TestSet("small", samples)


def one_by_one(cfg: CfgNode, test_set: TestSet, k: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A sample's feature by Means, and its native size, without any of the project's loaders."""
    sample = test_set.samples[k]
    image = Image.open(sample.path)
    if sample.degrade > 1:
        size = round(image.width / sample.degrade), round(image.height / sample.degrade)
        image = image.resize(size, Image.Resampling.BICUBIC)
    native = (image.height, image.width)
    height, width = cfg.INPUT.SIZE_TEST
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    left = pixels[:, : width // 2].mean(axis=(0, 1))
    right = pixels[:, width // 2 :].mean(axis=(0, 1))
    return np.concatenate([left, 2 * right]), native


def test_in_the_order_of_the_set(cfg: CfgNode, test_set: TestSet) -> None:
    found = extract_features(cfg, Means(), test_set)
    assert isinstance(found, Features)
    assert found.features.dtype == torch.float32
    assert found.native_size.dtype == torch.int64
    for k in range(len(test_set.samples)):
        feature, native = one_by_one(cfg, test_set, k)
        np.testing.assert_allclose(found.features[k].numpy(), feature, rtol=1e-4)
        assert tuple(found.native_size[k].tolist()) == native


def test_anchors_are_kept_apart(cfg: CfgNode, test_set: TestSet) -> None:
    one = extract_features(cfg, Means(), test_set)
    several = extract_features(cfg, Means(anchors=3), test_set)
    assert one is not None and several is not None
    assert several.features.shape == (11, 3, 6)
    for k in range(3):
        torch.testing.assert_close(several.features[:, k], (k + 1) * one.features)


def test_flip_is_the_mean_of_two_passes(cfg: CfgNode, test_set: TestSet) -> None:
    plain = extract_features(cfg, Means(), test_set)
    cfg.TEST.FLIP.ENABLED = True
    both = extract_features(cfg, Means(), test_set)
    assert plain is not None and both is not None
    left, right = plain.features[:, :3], plain.features[:, 3:] / 2
    mean = (left + right) / 2
    torch.testing.assert_close(both.features, torch.cat([mean, 2 * mean], 1))


def test_same_features_as_the_evaluator_scores(
    cfg: CfgNode, test_set: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def score(self: Any, features: Features) -> dict[str, Any]:
        seen.append(features.features)
        raise InterruptedError

    monkeypatch.setattr(CrossResolutionEvaluator, "score", score)
    from lrreid_ext.data.loaders import build_test_loader

    evaluator = CrossResolutionEvaluator(cfg, test_set)
    with pytest.raises(InterruptedError):
        extract(Means(), build_test_loader(cfg, test_set), evaluator)
    found = extract_features(cfg, Means(), test_set)
    assert found is not None
    assert torch.equal(found.features, seen[0])


def test_processes_share_the_images(
    cfg: CfgNode, test_set: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extract_features(cfg, Means(anchors=2), test_set)
    assert expected is not None
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    # What each process hands in, in the order of its calls.
    handed: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    now = 0

    def gather(data: Any, dst: int = 0) -> list[Any]:
        handed[now].append(data)
        if now:
            return []
        place = len(handed[0]) - 1
        return [handed[process][place] for process in (2, 0, 1)]

    monkeypatch.setattr(comm, "gather", gather)
    monkeypatch.setattr(comm, "get_rank", lambda: now)
    now = 2
    assert extract_features(cfg, Means(anchors=2), test_set) is None
    now = 1
    assert extract_features(cfg, Means(anchors=2), test_set) is None
    now = 0
    found = extract_features(cfg, Means(anchors=2), test_set)
    assert found is not None
    assert [len(calls) for calls in handed.values()] == [1, 1, 1]
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.native_size, expected.native_size)


def test_nothing_to_look_at(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="'empty' has no images"):
        extract_features(cfg, Means(), TestSet("empty", []))


def test_a_model_that_gives_no_features(cfg: CfgNode, test_set: TestSet) -> None:
    class Pictures(nn.Module):
        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            return batch["images"]

    with pytest.raises(TypeError, match=r"\(B, D\) or \(B, K, D\), not \(4, 3, 16, 8\)"):
        extract_features(cfg, Pictures(), test_set)
