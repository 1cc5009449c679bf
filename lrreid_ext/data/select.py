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
        RGB 0-255, what the network sees; ``images_hr`` and ``images_lr`` (N, 3, H, W), the twins;
        ``native_size`` (N, 2); ``factor`` (N,), 1 for undegraded images; ``targets``, ``camids``
        (N,).
    """
    hr = batch["images"]
    if train_on == "both":
        batch = {k: _twice(v) for k, v in batch.items()}
        degraded = torch.arange(2 * len(hr), device=hr.device) >= len(hr)
    elif train_on == "mixed":
        degraded = batch["lr_mask"]
    else:
        degraded = torch.full((len(hr),), train_on == "lr", device=hr.device)
    out = {k: batch[k] for k in ("targets", "camids", "img_paths")}
    out["images_hr"], out["images_lr"] = batch["images"], batch["images_lr"]
    out["images"] = torch.where(degraded[:, None, None, None], out["images_lr"], out["images_hr"])
    out["native_size"] = torch.where(
        degraded[:, None], batch["native_size_lr"], batch["native_size"]
    )
    out["factor"] = torch.where(degraded, batch["factor"], 1.0)
    return out


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else [*value, *value]
