"""Running a model without changing it or what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lrreid_ext.data.samples import Batch

__all__ = ["Isolated", "Restoring", "device_of", "evaluating"]


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

    def forward(self, batch: Batch) -> Any:
        """What the model makes of a copy of the batch on its own device."""
        device = device_of(self.model)
        moved = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        moved["images"] = batch["images"].to(device, copy=True)
        return self.model(moved)


class Restoring(nn.Module):
    """A network whose ``forward`` is another's ``restore``.

    Args:
        model: see :class:`lrreid_ext.modeling.contract.Restores`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Batch) -> Any:
        """The front-end's output."""
        return self.model.restore(batch)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU if it has neither."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in its own mode again.

    fastreid's evaluation switches all modules to the outermost one's mode, frozen parts too.
    """
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
