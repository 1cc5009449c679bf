"""Parts of a network that only some images of a batch pass through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_exporting", "picked", "rest"]


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing.

    A graph's shapes can't depend on what a tensor holds. So while a model is exported all images
    pass, and :func:`picked` keeps what was made of the right ones.
    """
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def picked(chosen: Tensor, made: Tensor, images: Tensor) -> Tensor:
    """``made`` in the chosen rows, ``images`` in the others.

    Args:
        chosen: (B,) bool.
        made, images: (B, ...); the result is of ``images``' type.
    """
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), made.to(images.dtype), images)


def rest(model: nn.Module) -> None:
    """Take its gradients from every part that nothing passed, so that its optimiser leaves it as it
    is: weight decay and momentum would move it all the same.

    A module that may be passed by nothing has the attribute ``may_rest``, True. To be called after
    several processes have added up their gradients, which are 0 then.
    """
    for module in model.modules():
        if not getattr(module, "may_rest", False):
            continue
        if not any(p.grad is not None and bool(p.grad.any()) for p in module.parameters()):
            module.zero_grad(set_to_none=True)
