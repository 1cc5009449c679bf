"""Pillow's bicubic resize of 8-bit images in tensor operations, bit for bit.

An exported graph has to see the pixels that the evaluator sees, which Pillow resizes. Pillow
resizes the width first and then the height, rounds to whole grey levels after each, and computes
with coefficients rounded to 22 binary places. All of that is whole numbers, which float64 holds
exactly. (Pillow 13 takes some images' height first.)
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["bicubic", "pillow_may_begin_with_height", "resize_crops"]

# Pillow's kernel (Keys 1981 with a = -0.5) reaches this many pixels to each side.
SUPPORT = 2.0
A = -0.5
# Binary places of Pillow's coefficients.
PRECISION = float(1 << 22)


def bicubic(x: Tensor) -> Tensor:
    """Keys' kernel, 0 from a distance of 2 on."""
    x = x.abs()
    near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * A
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def _coefficients(native: Tensor, extent: int, size: int) -> Tensor:
    """(B, size, extent) float64 of whole numbers: what each pixel of a side counts, times 2^22.

    Args:
        native: (B,) int64, pixels of the side before, at most ``extent``; those after them count 0.
        extent: pixels of the side as the batch holds it.
        size: pixels of the side afterwards.
    """
    count = native.to(torch.float64)[:, None, None]
    scale = count / size
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(size, device=native.device, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(extent, device=native.device, dtype=torch.float64)
    first = (centre - SUPPORT * stretch + 0.5).clamp(min=0.0).floor()
    end = torch.minimum((centre + SUPPORT * stretch + 0.5).floor(), count)
    inside = (pixel >= first) & (pixel < end)
    kernel = bicubic((pixel - centre + 0.5) * (1.0 / stretch))
    kernel = torch.where(inside, kernel, torch.zeros_like(kernel))
    kernel = kernel / kernel.sum(dim=2, keepdim=True) * PRECISION
    # Halves away from zero, as C rounds them.
    return torch.where(kernel < 0, (kernel - 0.5).ceil(), (kernel + 0.5).floor())


def _grey(values: Tensor) -> Tensor:
    """Sums of pixels times coefficients, rounded to grey levels and clipped to 0-255."""
    return ((values + PRECISION / 2) / PRECISION).floor().clamp(0.0, 255.0)


def pillow_may_begin_with_height() -> bool:
    """Whether this Pillow resizes the height first where that leaves less to do.

    Older ones always begin with the width. Between the passes grey levels are rounded and clipped,
    so that the order shows.
    """
    levels = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    image, bicubic_ = Image.fromarray(levels), Image.Resampling.BICUBIC
    at_once = np.asarray(image.resize((40, 20), bicubic_))
    return bool((at_once == image.resize((20, 20), bicubic_).resize((40, 20), bicubic_)).all())


def resize_crops(
    images: Tensor, native_size: Tensor, height: int, width: int, height_first: bool = True
) -> Tensor:
    """Resize crops of different sizes, as Pillow's ``resize`` with ``BICUBIC`` does.

    Args:
        images: (B, 3, H, W) uint8, each crop in the top left corner of its image.
        native_size: (B, 2) int64, height and width of each crop, at most H and W.
        height, width: of the result.
        height_first: :func:`pillow_may_begin_with_height` of the Pillow to agree with.

    Returns:
        (B, 3, height, width) float32 of whole numbers 0-255.
    """
    rows, columns = native_size[:, 0], native_size[:, 1]
    pixels = images.to(torch.float64)
    across = _coefficients(columns, images.shape[3], width)[:, None].transpose(2, 3)
    down = _coefficients(rows, images.shape[2], height)[:, None]
    out = _grey(down @ _grey(pixels @ across))
    if height_first:
        # Pillow's rule, found by trying sizes; it isn't documented.
        begins = (rows > height) & (rows - height > 2 * (columns - width))
        out = torch.where(begins.view(-1, 1, 1, 1), _grey(_grey(down @ pixels) @ across), out)
    return out.to(torch.float32)
