"""Parts of a network that only some images of a batch pass through."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["is_exporting", "picked", "rest"]


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing.

    A graph's shapes can't depend on what a tensor holds. So while a model is exported all images
    pass, and :func:`picked` keeps the results of the chosen ones.
    """
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def picked(chosen: Tensor, restored: Tensor, images: Tensor) -> Tensor:
    """``restored`` in the chosen rows, ``images`` in the others.

    Args:
        chosen: (B,) bool.
        restored, images: (B, ...); the result is of ``images``' type.
    """
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), restored.to(images.dtype), images)


def rest(modules: Iterable[nn.Module]) -> None:
    """Drop the gradients of modules that no image passed, so that optimisers leave them as they
    are: weight decay and momentum would move them all the same.

    To be called after several processes have added up their gradients, which are 0 then.

    Args:
        modules: those that may be passed by nothing; see
            :class:`~lrreid_ext.modeling.contract.MayRest`.
    """
    for module in modules:
        if not any(p.grad is not None and bool(p.grad.any()) for p in module.parameters()):
            module.zero_grad(set_to_none=True)
