"""A test set's features: extracted batch by batch, put in order, and kept together."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastreid.evaluation import DatasetEvaluator, inference_on_dataset
from fastreid.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_loader
from lrreid_ext.data.samples import Batch, TestSet
from lrreid_ext.modeling.inference import Isolated, evaluating

__all__ = ["FeatureCollector", "Features", "extract", "extract_features", "gather_rows"]


@dataclass(frozen=True)
class Features:
    """A model's features of a test set's images, in their order.

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
    collector = FeatureCollector(test_set)
    extract(model, loader, collector, cfg.TEST.FLIP.ENABLED)
    return collector.gathered()


def extract(
    model: nn.Module, loader: Iterable[Any], evaluator: DatasetEvaluator, flip: bool = False
) -> dict[str, Any]:
    """Run a model over a test loader and let the evaluator score what it returns.

    Args:
        model: maps a batch to features (B, D) in evaluation mode.
        loader: a ``DataLoader`` over the test set; with several processes, each its own share.
        evaluator: receives every batch and its features.
        flip: average the features of each image and of its mirror image.

    Returns:
        The evaluator's figures; an empty dict on all processes but the first.
    """
    with evaluating(model):
        return inference_on_dataset(Isolated(model), _Watched(loader), evaluator, flip_test=flip)


class _Watched:
    """A loader with a progress bar on a terminal."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        hidden = not (comm.is_main_process() and sys.stderr.isatty())
        return iter(tqdm(self.loader, desc="features", unit="batch", disable=hidden, leave=False))


class FeatureCollector(DatasetEvaluator):
    """Keeps every batch's features and native sizes.

    Args:
        test_set: the images, in the order of the batches' ``index``.
    """

    def __init__(self, test_set: TestSet) -> None:
        self.test_set = test_set
        self._rows: list[Tensor] = []  # each image's features, and its native height and width
        self._shape: tuple[int, ...] = ()
        self._indices: list[Tensor] = []

    def reset(self) -> None:
        """Forget the features of an earlier round."""
        self._rows, self._indices = [], []

    def process(self, inputs: Batch, outputs: Tensor) -> None:
        """Keep one batch.

        Args:
            inputs: holds ``index`` (B,) int64, positions in ``test_set.samples``, and
                ``native_size`` (B, 2).
            outputs: features (B, D), or (B, K, D) of K models; any device and type.
        """
        if not isinstance(outputs, Tensor) or outputs.ndim not in (2, 3):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TypeError(
                f"in evaluation a model returns features (B, D) or (B, K, D), not {shape}"
            )
        if len(inputs["index"]) != len(outputs):
            raise ValueError(f"{len(inputs['index'])} images but {len(outputs)} features")
        self._indices.append(inputs["index"].detach().to("cpu", torch.int64))
        parts = (outputs.flatten(1), inputs["native_size"])
        self._rows.append(torch.cat([t.detach().to("cpu", torch.float32) for t in parts], dim=1))
        self._shape = tuple(outputs.shape[1:])

    def evaluate(self) -> dict[str, Any]:
        """No figures: :meth:`gathered` gives the features."""
        return {}

    def gathered(self) -> Features | None:
        """All processes' features in order; None on all processes but the first.

        Raises:
            ValueError: images missing or given twice.
        """
        rows = gather_rows(self._rows, self._indices, self.test_set)
        if rows is None:
            return None
        # The main process has the first images, and so the features' shape.
        features = rows[:, :-2].reshape(-1, *self._shape)
        return Features(features, rows[:, -2:].to(torch.int64))


def gather_rows(
    rows: Sequence[Tensor], indices: Sequence[Tensor], test_set: TestSet, total: int | None = None
) -> Tensor | None:
    """Put every process's rows in order.

    Args:
        rows: batches (B, D) of this process, float32, on the CPU.
        indices: the places (B,) int64 of each batch's rows.
        test_set: what errors name.
        total: how many rows there must be; by default as many as the test set has images.

    Returns:
        Rows (total, D); None on all processes but the first.

    Raises:
        ValueError: rows missing or given twice, or no rows at all.
    """
    # As arrays: pickling a tensor copies the whole storage that it is a view of.
    share = (
        torch.cat(list(rows)).numpy() if rows else None,
        torch.cat(list(indices)).numpy() if indices else None,
    )
    shares = [s for s in comm.gather(share, dst=0) if s[0] is not None]
    if not comm.is_main_process():
        return None
    total, name = len(test_set.samples) if total is None else total, test_set.name
    if not shares:
        raise ValueError(f"test set {name!r}: the loader gave no images")
    places = np.concatenate([index for _, index in shares])
    if places.min() < 0 or places.max() >= total:
        raise ValueError(f"test set {name!r}: an index lies outside its {total} images")
    seen = np.bincount(places, minlength=total)
    if (seen != 1).any():
        raise ValueError(
            f"test set {name!r}: each of its {total} images must come once, but "
            f"{(seen == 0).sum()} are missing and {(seen > 1).sum()} came more than once. "
            "Load it with fastreid.data.samplers.InferenceSampler and drop no batch."
        )
    ordered = torch.empty(total, shares[0][0].shape[1])
    ordered[torch.from_numpy(places)] = torch.from_numpy(np.concatenate([r for r, _ in shares]))
    return ordered
