"""Feature extraction through fastreid's ``inference_on_dataset``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from fastreid.evaluation import DatasetEvaluator, inference_on_dataset
from fastreid.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from lrreid_ext.modeling.modes import evaluating

logger = logging.getLogger(__name__)


class Isolated(nn.Module):
    """A model that can't change its caller's batch.

    Some architectures (fastreid's Baseline and MGN) normalise ``images`` in place; the flip test,
    which uses the batch again, would then normalise it twice. Tensors are moved to the model's
    device on the way.

    Args:
        model: called with a batch, a dict.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> Any:
        """What the model makes of a copy of the batch on its own device."""
        device = device_of(self.model)
        own = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        own["images"] = batch["images"].to(device, copy=True)
        return self.model(own)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU if it has neither."""
    held = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


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
    """A loader with a progress bar, where somebody watches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        hidden = not (comm.is_main_process() and sys.stderr.isatty())
        return iter(tqdm(self.loader, desc="features", unit="batch", disable=hidden, leave=False))
