"""A test set's features, to be scored in more ways than one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_loader
from lrreid_ext.data.samples import TestSet
from lrreid_ext.evaluation.collect import FeatureCollector
from lrreid_ext.evaluation.inference import extract

__all__ = ["Features", "extract_features"]


@dataclass(frozen=True)
class Features:
    """What a model makes of a test set's images, in their order.

    Attributes:
        features: (N, D), or (N, K, D) of a model with K anchors; float32, on the CPU.
        native_size: (N, 2) int64, height and width in pixels as the images are before resizing.
    """

    features: Tensor
    native_size: Tensor


def extract_features(cfg: CfgNode, model: nn.Module, test_set: TestSet) -> Features | None:
    """Run a model over a test set, read and resized as for evaluation.

    With TEST.FLIP, the features of each image and of its mirror image are averaged. All processes
    must call it; each looks at its share of the images.

    Args:
        cfg: the keys INPUT.SIZE_TEST, TEST.IMS_PER_BATCH, NUM_WORKERS and FLIP.
        model: maps a batch to features (B, D) or (B, K, D) in evaluation mode.
        test_set: the images.

    Returns:
        The features; None on all processes but the first.

    Raises:
        TypeError: a model that returns anything else.
        ValueError: images missing or given twice, or a test set without any.
    """
    if not test_set.samples:
        raise ValueError(f"test set {test_set.name!r} has no images")
    loader = build_test_loader(cfg, test_set)
    found = extract(model, loader, _Collector(test_set), cfg.TEST.FLIP.ENABLED)
    return Features(**found) if found else None


class _Collector(FeatureCollector):
    def evaluate(self) -> dict[str, Tensor]:
        """All processes' features and sizes in order; {} on all but the first."""
        gathered = self.gathered()
        if gathered is None:
            return {}
        features, sizes = gathered
        return {"features": features, "native_size": sizes.to(torch.int64)}
