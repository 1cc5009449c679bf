"""Features of a test set: each image's own, in order, whoever extracts them."""

from __future__ import annotations

import sys
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
from lrreid_ext.evaluation import Features, extract_features
from lrreid_ext.evaluation.features import FeatureCollector
from lrreid_ext.modeling.inference import Isolated


class Means(nn.Module):
    """Means of the colours on the left and the right. Like fastreid's Baseline, it normalises its
    input in place."""

    def __init__(self, anchors: int = 0) -> None:
        super().__init__()
        self.anchors = anchors
        self.norm = nn.BatchNorm1d(6)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        batch["images"].div_(2)
        half = batch["images"].shape[3] // 2
        left = batch["images"][..., :half].mean(dim=(2, 3))
        right = batch["images"][..., half:].mean(dim=(2, 3))
        features = self.norm(torch.cat([left, 2 * right], 1)) * (1 + self.norm.eps) ** 0.5
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


def features_of(cfg: CfgNode, test_set: TestSet, anchors: int = 0) -> Features:
    features = extract_features(cfg, Means(anchors), test_set)
    assert features is not None
    return features


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
    return np.concatenate([left, 2 * right]) / 2, native


def test_in_the_order_of_the_set(cfg: CfgNode, test_set: TestSet) -> None:
    extracted = features_of(cfg, test_set)
    assert (extracted.features.dtype, extracted.native_size.dtype) == (torch.float32, torch.int64)
    for k in range(len(test_set.samples)):
        feature, native = one_by_one(cfg, test_set, k)
        np.testing.assert_allclose(extracted.features[k].numpy(), feature, rtol=1e-4)
        assert tuple(extracted.native_size[k].tolist()) == native
    several = features_of(cfg, test_set, anchors=3)
    assert several.features.shape == (11, 3, 6)
    for k in range(3):
        torch.testing.assert_close(several.features[:, k], (k + 1) * extracted.features)


def test_flip_is_the_mean_of_two_passes(cfg: CfgNode, test_set: TestSet) -> None:
    plain = features_of(cfg, test_set).features
    cfg.TEST.FLIP.ENABLED = True
    mean = (plain[:, :3] + plain[:, 3:] / 2) / 2
    both = features_of(cfg, test_set).features
    torch.testing.assert_close(both, torch.cat([mean, 2 * mean], 1))


def test_processes_share_the_images(
    cfg: CfgNode, test_set: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features_of(cfg, test_set, anchors=2)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    shares: list[Any] = []
    rank = 0

    def gather(data: Any, dst: int = 0) -> list[Any]:
        shares.append(data)
        return [shares[1], shares[2], shares[0]] if rank == 0 else []

    monkeypatch.setattr(comm, "gather", gather)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    for rank in (2, 1):  # noqa: B007 - read by gather
        assert extract_features(cfg, Means(anchors=2), test_set) is None
    rank = 0
    extracted = features_of(cfg, test_set, anchors=2)
    assert len(shares) == 3
    assert torch.equal(extracted.features, expected.features)
    assert torch.equal(extracted.native_size, expected.native_size)


def collected(places: list[list[int]], count: int) -> torch.Tensor | None:
    """Features that are their own places, processed in batches."""
    collector = FeatureCollector(TestSet("demo", [Sample("a", 1, 1, "query")] * count))
    for _ in range(2):  # a second round starts anew
        collector.reset()
        for batch in places:
            index = torch.tensor(batch)
            sizes = torch.ones(len(batch), 2)
            collector.process({"index": index, "native_size": sizes}, index[:, None].float())
        features = collector.gathered()
    return None if features is None else features.features


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([[0, 1, 2]], "'demo'.* 2 are missing and 0 came more than once"),
        ([[0, 1, 2], [3, 4, 2]], "0 are missing and 1 came more than once"),
        ([], "no images"),
        ([[0, 5]], "outside"),
    ],
)
def test_missing_and_repeated_images(places: list[list[int]], message: str) -> None:
    in_order = collected([[4, 1], [2], [0, 3]], 5)
    assert in_order is not None and in_order.flatten().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=message):
        collected(places, 5)


INDEX = {"index": torch.arange(3)}


@pytest.mark.parametrize(
    ("batch", "outputs", "error", "message"),
    [
        (INDEX, {"features": 1}, TypeError, "not dict"),
        (INDEX, torch.zeros(3), TypeError, r"\(B, D\) or \(B, K, D\), not \(3,\)"),
        (INDEX, torch.zeros(3, 3, 8, 4), TypeError, r"not \(3, 3, 8, 4\)"),
        (INDEX, torch.zeros(2, 4), ValueError, "3 images but 2 features"),
    ],
)
def test_what_a_model_returns_is_checked(
    batch: Any, outputs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FeatureCollector(TestSet("demo", [])).process(batch, outputs)


def test_a_test_set_without_images_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="'empty' has no images"):
        extract_features(cfg, Means(), TestSet("empty", []))


# ---------------------------------------------------------------- running a model
def test_the_batch_stays_as_it_was_and_reaches_the_models_device() -> None:
    class Where(nn.Module):
        def __init__(self, device: str) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device=device))

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch["images"].zero_()
            return {k: v.device.type for k, v in batch.items() if isinstance(v, torch.Tensor)}

    batch = {"images": torch.ones(1, 3, 2, 2), "native_size": torch.ones(1, 2), "img_paths": ["a"]}
    for device in ("cpu", "meta"):
        assert Isolated(Where(device))(batch) == {"images": device, "native_size": device}
    assert batch["images"].min() == 1 and batch["img_paths"] == ["a"]


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_put_back(cfg: CfgNode, test_set: TestSet, fails: bool) -> None:
    class Watched(Means):
        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            assert not any(module.training for module in self.modules())
            assert not torch.is_grad_enabled()
            if fails and int(batch["index"][0]) > 0:
                raise RuntimeError("in the middle")
            return super().forward(batch)

    model = Watched().train()
    model.norm.eval()  # frozen
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            extract_features(cfg, model, test_set)
    else:
        extract_features(cfg, model, test_set)
    assert (model.training, model.norm.training) == (True, False)


def test_progress_only_where_somebody_watches(
    cfg: CfgNode,
    test_set: TestSet,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for watched in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda watched=watched: watched)
        features_of(cfg, test_set)
        assert ("features: " in capsys.readouterr().err) == watched
