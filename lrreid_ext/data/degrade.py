"""Reduce an image's resolution: the degradation kernels, and how a factor is drawn.

A factor is a real number >= 1 by which height and width are divided; the result is the SMALL image
of native pixels. Bringing it back to a network's input size is left to whoever reads it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lrreid_ext.registry import suggest

__all__ = [
    "KERNELS",
    "ROUNDINGS",
    "degrade",
    "draw_factor",
    "draw_width",
    "hash_unit",
    "reduced_size",
]

Size = tuple[int, int]


def _pil(resample: Image.Resampling) -> Callable[[Image.Image, Size], Image.Image]:
    def resize(image: Image.Image, size: Size) -> Image.Image:
        return image.resize((size[1], size[0]), resample)

    return resize


def _cv2_linear(image: Image.Image, size: Size) -> Image.Image:
    import cv2

    small = cv2.resize(np.asarray(image), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return Image.fromarray(small)


def _max_pool(image: Image.Image, size: Size) -> Image.Image:
    """Adaptive: output cell i covers rows floor(i*H/h) to ceil((i+1)*H/h), columns alike."""
    pixels = np.asarray(image)
    for axis, length in enumerate(size):
        native = pixels.shape[axis]
        cells = [
            pixels.take(range(i * native // length, -(-(i + 1) * native // length)), axis).max(axis)
            for i in range(length)
        ]
        pixels = np.stack(cells, axis)
    return Image.fromarray(pixels)


_RESIZE: dict[str, Callable[[Image.Image, Size], Image.Image]] = {
    "bicubic": _pil(Image.Resampling.BICUBIC),
    "bilinear": _pil(Image.Resampling.BILINEAR),
    "lanczos": _pil(Image.Resampling.LANCZOS),
    "area": _pil(Image.Resampling.BOX),
    "cv2-linear": _cv2_linear,
    "max-pool": _max_pool,
}

#: Names of the kernels. ``bicubic``, ``bilinear``, ``lanczos`` and ``area`` widen their support
#: with the factor (antialiased); ``cv2-linear`` samples four pixels whatever the factor, as
#: OpenCV's ``INTER_LINEAR`` does, so it aliases; ``max-pool`` takes the largest value of each cell.
KERNELS: tuple[str, ...] = tuple(_RESIZE)

_ROUND: dict[str, Callable[[float], int]] = {
    "nearest": round,
    "floor": math.floor,
    "ceil": math.ceil,
}

#: How a side length that isn't whole is rounded (``nearest``: a half goes to the even number).
ROUNDINGS: tuple[str, ...] = tuple(_ROUND)


def reduced_size(height: int, width: int, factor: float, rounding: str = "nearest") -> Size:
    """``(height, width)`` after division by ``factor``, rounded, and at least 1 each.

    Raises:
        ValueError: ``factor`` is below 1 or not finite, or ``rounding`` is not in ``ROUNDINGS``.
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"factor {factor!r}: a degradation factor is a finite number >= 1")
    if rounding not in _ROUND:
        raise ValueError(f"rounding {rounding!r}: known are {', '.join(ROUNDINGS)}")
    to_int = _ROUND[rounding]
    return max(1, to_int(height / factor)), max(1, to_int(width / factor))


def degrade(
    image: Image.Image, factor: float, kernel: str = "bicubic", rounding: str = "nearest"
) -> Image.Image:
    """The small image.

    Args:
        image: PIL image in mode RGB, H x W.
        factor: >= 1, need not be whole; 1 returns ``image`` itself.
        kernel: one of :data:`KERNELS`.
        rounding: one of :data:`ROUNDINGS`.

    Returns:
        RGB image of ``max(1, round(H / factor))`` x ``max(1, round(W / factor))`` pixels.

    Raises:
        ValueError: a factor below 1, an unknown kernel or rounding, or an image that isn't RGB.
    """
    if kernel not in _RESIZE:
        raise ValueError(
            f"kernel {kernel!r} is unknown.{suggest(kernel, KERNELS)} Known: {', '.join(KERNELS)}"
        )
    if image.mode != "RGB":
        raise ValueError(f"an image to degrade must be in mode RGB, not {image.mode}")
    size = reduced_size(image.height, image.width, factor, rounding)
    if factor == 1:
        return image
    return _RESIZE[kernel](image, size)


def hash_unit(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and ``seed`` alone.

    The first 53 bits of SHA-256 of ``"<seed>:<name>"``: the same on every machine and in whatever
    order the names come, which a random stream can't promise.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def draw_width(name: str, seed: int, widths: Sequence[int]) -> int:
    """The width in pixels that the image called ``name`` is reduced to.

    Args:
        name: the file's name and not its folder.
        seed: the recipe's seed.
        widths: ``(low, high)``: each whole number from ``low`` to below ``high`` is as likely.
    """
    low, high = widths
    return low + int(hash_unit(name, seed) * (high - low))


def draw_factor(
    name: str,
    seed: int,
    factors: Sequence[float] | None = None,
    span: tuple[float, float] | None = None,
) -> float:
    """The degradation factor of the image (or identity, or camera) called ``name``.

    Args:
        name: what the draw is for, by the file's name and not its folder.
        seed: the recipe's seed.
        factors: the set to draw from, each as likely; or
        span: ``(low, high)``, drawn uniformly from ``low`` (included) to ``high``.

    Raises:
        ValueError: neither or both are given, the set is empty, a factor is below 1, or
            ``low`` exceeds ``high``.
    """
    if bool(factors) == bool(span):
        raise ValueError("draw_factor: give either factors (a set, not empty) or span (low, high)")
    unit = hash_unit(name, seed)
    if factors:
        if bad := [f for f in factors if not f >= 1]:
            raise ValueError(f"factor {bad[0]!r}: a degradation factor is a number >= 1")
        return float(factors[int(unit * len(factors))])
    assert span is not None
    low, high = span
    if not 1 <= low <= high:
        raise ValueError(f"span {span!r}: needs 1 <= low <= high")
    return float(low + unit * (high - low))
