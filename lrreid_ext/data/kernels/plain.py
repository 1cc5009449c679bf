"""Downsampling and nothing else. These kernels draw nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lrreid_ext.data.kernels.draws import Draws

__all__ = ["PLAIN", "RESAMPLING", "resized"]

Size = tuple[int, int]

#: Pillow's antialiased filters: their support widens with the factor.
RESAMPLING: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


def resized(image: Image.Image, size: Size, resampling: str) -> Image.Image:
    """``image`` with ``size`` (height, width), by a filter of :data:`RESAMPLING`."""
    return image.resize((size[1], size[0]), RESAMPLING[resampling])


def _pil(resampling: str) -> Callable[[Image.Image, Size, Draws], Image.Image]:
    def kernel(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
        return resized(image, size, resampling)

    kernel.__doc__ = f"Downsampling by Pillow's {resampling} filter, antialiased."
    return kernel


def _cv2_linear(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Downsampling by OpenCV's INTER_LINEAR, which looks at four pixels and aliases."""
    import cv2

    small = cv2.resize(np.asarray(image), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return Image.fromarray(small)


def _max_pool(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """The largest value of each cell.

    Output cell i covers rows floor(i*H/h) to ceil((i+1)*H/h), columns alike.
    """
    pixels = np.asarray(image)
    for axis, length in enumerate(size):
        native = pixels.shape[axis]
        cells = [
            pixels.take(range(i * native // length, -(-(i + 1) * native // length)), axis).max(axis)
            for i in range(length)
        ]
        pixels = np.stack(cells, axis)
    return Image.fromarray(pixels)


PLAIN: dict[str, Callable[[Image.Image, Size, Draws], Image.Image]] = {
    **{name: _pil(name) for name in RESAMPLING},
    "cv2-linear": _cv2_linear,
    "max-pool": _max_pool,
}
