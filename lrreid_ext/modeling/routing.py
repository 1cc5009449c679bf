"""Parts of a network that only some images of a batch pass through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["is_exporting", "routed"]


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing: then nothing may depend on what a tensor holds."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def routed(chosen: Tensor, images: Tensor, path: Callable[[Tensor | slice], Tensor]) -> Tensor:
    """Images with the chosen ones replaced by what a path makes of them.

    The others don't pass through the path at all, except while a model is exported: a graph's
    shapes can't depend on which images are chosen, so all of them pass and the chosen are kept.

    Args:
        chosen: (B,) bool.
        images: (B, ...), never changed in place.
        path: given the index of the images to take (a mask or a slice), returns (n, ...) for them.
    """
    if is_exporting():
        made = path(slice(None)).to(images.dtype)
        return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), made, images)
    if bool(chosen.all()):
        return path(slice(None))
    out = images.clone()
    if bool(chosen.any()):
        out[chosen] = path(chosen).to(out.dtype)
    return out
