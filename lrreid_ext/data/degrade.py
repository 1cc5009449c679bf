"""Reduce an image's resolution: the degradation kernels, and how a factor is drawn.

A factor is a real number >= 1 by which height and width are divided; the result is the SMALL image
of native pixels. Bringing it back to a network's input size is left to whoever reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image

from lrreid_ext.data.kernels import PLAIN, Draws, hash_unit
from lrreid_ext.registry import KERNEL_REGISTRY, names, registered, suggest

__all__ = [
    "KERNELS",
    "ROUNDINGS",
    "Draws",
    "degrade",
    "draw_factor",
    "draw_width",
    "hash_unit",
    "known_kernels",
    "reduced_size",
]

Size = tuple[int, int]

#: Names of the kernels that only downsample. ``bicubic``, ``bilinear``, ``lanczos`` and ``area``
#: widen their support with the factor (antialiased); ``cv2-linear`` samples four pixels whatever
#: the factor, as OpenCV's ``INTER_LINEAR`` does, so it aliases; ``max-pool`` takes the largest
#: value of each cell. Those that also blur, add noise or compress are in
#: :mod:`lrreid_ext.data.kernels.chains`; :func:`known_kernels` names all.
KERNELS: tuple[str, ...] = tuple(PLAIN)


def known_kernels() -> list[str]:
    """Names of all kernels, those of plugins included."""
    return names(KERNEL_REGISTRY)


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
    image: Image.Image,
    factor: float,
    kernel: str = "bicubic",
    rounding: str = "nearest",
    draws: Draws | None = None,
) -> Image.Image:
    """The small image.

    Args:
        image: PIL image in mode RGB, H x W.
        factor: >= 1, need not be whole; 1 returns ``image`` itself, whatever the kernel.
        kernel: one of :func:`known_kernels`.
        rounding: one of :data:`ROUNDINGS`.
        draws: what the kernel draws its parameters with, and where they are kept; kernels that
            only downsample need none.

    Returns:
        RGB image of ``max(1, round(H / factor))`` x ``max(1, round(W / factor))`` pixels.

    Raises:
        ValueError: a factor below 1, an unknown kernel or rounding, an image that isn't RGB, or a
            kernel that draws without ``draws``.
    """
    reduce = registered(KERNEL_REGISTRY, kernel)
    if reduce is None:
        known = known_kernels()
        raise ValueError(
            f"kernel {kernel!r} is unknown.{suggest(kernel, known)} Known: {', '.join(known)}"
        )
    if image.mode != "RGB":
        raise ValueError(f"an image to degrade must be in mode RGB, not {image.mode}")
    size = reduced_size(image.height, image.width, factor, rounding)
    if factor == 1:
        return image
    small = reduce(image, size, draws or Draws.none())
    if (small.height, small.width, small.mode) != (*size, "RGB"):
        raise ValueError(
            f"kernel {kernel!r} made a {small.mode} image of {small.height} x {small.width} pixels "
            f"(height x width) where RGB and {size[0]} x {size[1]} were asked for"
        )
    return small


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
