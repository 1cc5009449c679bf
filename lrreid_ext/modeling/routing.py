"""Parts of a network that only some images of a batch pass through."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_exporting", "picked"]


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
