"""Losses of a generator and of its adversary, image by image chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lrreid_ext.modeling.losses.functional import widen

__all__ = ["fool", "mean_over", "tell_apart"]


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of some images' values; 0, with a gradient of 0, if none is chosen.

    Args:
        values: (B, ...) floating point; an image's value is the mean of its own.
        chosen: (B,) bool.

    Returns:
        Scalar tensor, float32 or wider.
    """
    each = widen(values).reshape(len(values), -1).mean(1)
    return torch.where(chosen, each, 0.0).sum() / chosen.sum().clamp(min=1)


def fool(logits: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: that its images be taken for real ones (label flipped, not saturating).

    Args:
        logits: (B, ...) of the adversary, high for real.
        fake: (B,) bool, the images that are to pass for real; the others don't count.
    """
    return mean_over(F.softplus(-widen(logits)), fake)


def tell_apart(logits: Tensor, fake: Tensor) -> Tensor:
    """The adversary's loss: binary cross entropy of real and fake, each a mean, added up.

    With logits of :func:`fool`; the negative of RAIN's Eq. 1.

    Args:
        logits: (B, ...), high for real.
        fake: (B,) bool.
    """
    logits = widen(logits)
    return mean_over(F.softplus(-logits), ~fake) + mean_over(F.softplus(logits), fake)
