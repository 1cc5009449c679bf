"""What a network is shown of a paired batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def select(batch: dict[str, Any], train_on: str) -> dict[str, Any]:
    """Choose the twins that the network trains on.

    Args:
        batch: as :class:`lrreid_ext.data.paired.PairedDataset` gives it, B samples.
        train_on: ``hr``, ``lr``, ``mixed`` or ``both`` (see INPUT.LR.TRAIN_ON).

    Returns:
        A new batch of N samples (N = 2B for ``both``, HR first; else B): ``images`` (N, 3, H, W)
        RGB 0-255, what the network sees; ``images_hr`` and ``images_lr`` (N, 3, H, W), the twins,
        with ``native_size_hr`` and ``native_size_lr`` (N, 2), ``factor_hr`` and ``factor_lr`` (N,);
        ``native_size`` (N, 2); ``factor`` (N,), 1 for undegraded images and NaN where it is
        unknown; ``has_hr`` (N,) bool, False for images known only small, both of whose twins are
        that small image; ``targets``, ``camids`` (N,); and what else the data set gives for each
        sample (``masks``, ``images_synthetic`` ...), unchanged.
    """
    hr = batch["images"]
    if "has_hr" not in batch:
        batch = {**batch, "has_hr": torch.ones(len(hr), dtype=torch.bool, device=hr.device)}
    if train_on == "both":
        batch = {k: _twice(v) for k, v in batch.items()}
        degraded = torch.arange(2 * len(hr), device=hr.device) >= len(hr)
    elif train_on == "mixed":
        degraded = batch["lr_mask"]
    else:
        degraded = torch.full((len(hr),), train_on == "lr", device=hr.device)
    # What is known only small stays so, whatever the network is to be shown.
    degraded = degraded | ~batch["has_hr"]
    out = {
        k: v for k, v in batch.items() if k not in ("images", "native_size", "factor", "lr_mask")
    }
    out["images_hr"], out["native_size_hr"] = batch["images"], batch["native_size"]
    out["factor_lr"] = batch["factor"]
    out["factor_hr"] = torch.where(batch["has_hr"], 1.0, batch["factor"])
    for key in ("images", "native_size", "factor"):
        lr, hr = out[f"{key}_lr"], out[f"{key}_hr"]
        out[key] = torch.where(degraded.view(-1, *[1] * (lr.ndim - 1)), lr, hr)
    return out


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else [*value, *value]
