"""What adversarial training needs of a model; see :mod:`lrreid_ext.engine.optimizers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["held"]


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Look through a module without moving it.

    What is computed inside passes gradients to the module's inputs and none to its parameters, and
    its batch norms, while they normalise by the batch in training, leave their running statistics
    as they are. So the generator's loss is computed; the adversary's own is computed outside, of
    detached inputs.
    """
    learning = [p for p in module.parameters() if p.requires_grad]
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for norm in tracking:
            norm.track_running_stats = True
