"""Degradations of practical super-resolution: blur, noise and JPEG beside downsampling.

Ranges and probabilities are those published, where not said otherwise:

* Real-ESRGAN: Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure
  Synthetic Data", ICCV Workshops 2021; for ``first-order`` and ``second-order``.
* BSRGAN: Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image
  Super-Resolution", ICCV 2021; for ``shuffled``.

No step in between has fewer pixels than the result, so that a factor means as many native pixels
as with any other kernel; what a blur takes away besides isn't counted. The published programs go
below, and enlarge again. Poisson noise is drawn from a bell of the same deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from PIL import Image

from lrreid_ext.data.kernels.draws import Draws
from lrreid_ext.data.kernels.plain import Size, resized
from lrreid_ext.data.kernels.steps import blurred, compressed, gaussian, low_pass, noisy

__all__ = ["REALISTIC"]

_RESAMPLING = {"bilinear": 1.0, "area": 1.0, "bicubic": 1.0}
# Shapes of blurs: the first word is the fall-off, the second whether both axes are alike.
_BLURS = {
    "gaussian iso": 0.405,
    "gaussian aniso": 0.225,
    "generalized iso": 0.108,
    "generalized aniso": 0.027,
    "plateau iso": 0.108,
    "plateau aniso": 0.027,
    "low-pass": 0.1,
}
_BETAS = {"gaussian": (1.0, 1.0), "generalized": (0.5, 4.0), "plateau": (1.0, 2.0)}


def _size_of(draws: Draws, stage: str) -> int:
    return draws.integer(f"{stage} blur size", 7, 21, step=2)


def _low_passed(image: Image.Image, draws: Draws, stage: str) -> Image.Image:
    size = _size_of(draws, stage)
    least = math.pi / 3 if size < 13 else math.pi / 5
    return blurred(image, low_pass(size, draws.uniform(f"{stage} cutoff", least, math.pi)))


def _blurred(image: Image.Image, draws: Draws, stage: str, most: float) -> Image.Image:
    """One of Real-ESRGAN's blurs, of at most ``most`` pixels' deviation."""
    kind = draws.choice(f"{stage} blur", _BLURS)
    if kind == "low-pass":
        return _low_passed(image, draws, stage)
    size = _size_of(draws, stage)
    shape, axes = kind.split()
    first = draws.uniform(f"{stage} sigma", 0.2, most)
    second, angle = first, 0.0
    if axes == "aniso":
        second = draws.uniform(f"{stage} sigma across", 0.2, most)
        angle = draws.uniform(f"{stage} angle", -math.pi, math.pi)
    low, high = _BETAS[shape]
    beta = draws.uniform(f"{stage} beta", low, high) if low < high else low
    return blurred(image, gaussian(size, (first, second), angle, shape, beta))


def _noisy(image: Image.Image, draws: Draws, stage: str, sigma: float, shot: float) -> Image.Image:
    """Gaussian noise of a deviation from 1 to ``sigma``, or shot noise of 0.05 to ``shot``."""
    kind = draws.choice(f"{stage} noise", {"gaussian": 0.5, "shot": 0.5})
    grey = draws.happens(f"{stage} noise is grey", 0.4)
    seed = draws.integer(f"{stage} noise seed", 0, 2**32 - 1)
    if kind == "gaussian":
        return noisy(image, seed, sigma=draws.uniform(f"{stage} noise sigma", 1, sigma), grey=grey)
    return noisy(image, seed, shot=draws.uniform(f"{stage} noise scale", 0.05, shot), grey=grey)


def _compressed(image: Image.Image, draws: Draws, stage: str) -> Image.Image:
    return compressed(image, draws.integer(f"{stage} quality", 30, 95))


def _resized(image: Image.Image, size: Size, draws: Draws, stage: str) -> Image.Image:
    return resized(image, size, draws.choice(f"{stage} resize", _RESAMPLING))


def _towards(
    image: Image.Image,
    size: Size,
    draws: Draws,
    stage: str,
    ways: dict[str, float],
    least: float,
    most: float,
) -> Image.Image:
    """``image`` enlarged to at most ``most`` times its size, reduced to at least ``least`` times
    and to no fewer pixels than ``size``, or as it is."""
    way = draws.choice(f"{stage} way", ways)
    if way == "keep":
        return image
    low = max(least, size[0] / image.height, size[1] / image.width)
    span = (min(low, 1.0), 1.0) if way == "down" else (1.0, most)
    scale = draws.uniform(f"{stage} scale", *span)
    between = tuple(
        max(end, round(scale * now))
        for end, now in zip(size, (image.height, image.width), strict=True)
    )
    return _resized(image, (between[0], between[1]), draws, stage)


# ---------------------------------------------------------------------- single steps


def _blur(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """A round Gaussian blur of 0.2 to 3 pixels, then bicubic."""
    sigma = draws.uniform("sigma", 0.2, 3)
    return resized(blurred(image, gaussian(21, (sigma, sigma))), size, "bicubic")


def _noise(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Bicubic, then Gaussian noise of a deviation of 1 to 30."""
    sigma = draws.uniform("noise sigma", 1, 30)
    seed = draws.integer("noise seed", 0, 2**32 - 1)
    return noisy(resized(image, size, "bicubic"), seed, sigma=sigma)


def _jpeg(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Bicubic, then JPEG of quality 30 to 95."""
    return compressed(resized(image, size, "bicubic"), draws.integer("quality", 30, 95))


# ---------------------------------------------------------------------- chains


def _first_order(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Blur, downsampling, noise and JPEG, once each (Real-ESRGAN, Eq. 1)."""
    image = _blurred(image, draws, "first", 3)
    image = _resized(image, size, draws, "first")
    image = _noisy(image, draws, "first", 30, 3)
    return _compressed(image, draws, "first")


def _second_order(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Blur, resizing, noise and JPEG, twice, with a ringing low-pass at the end (Real-ESRGAN,
    section 3)."""
    image = _blurred(image, draws, "first", 3)
    ways = {"up": 0.2, "down": 0.7, "keep": 0.1}
    image = _towards(image, size, draws, "first", ways, 0.15, 1.5)
    image = _noisy(image, draws, "first", 30, 3)
    image = _compressed(image, draws, "first")
    if draws.happens("second blur is done", 0.8):
        image = _blurred(image, draws, "second", 1.5)
    ways = {"up": 0.3, "down": 0.4, "keep": 0.3}
    image = _towards(image, size, draws, "second", ways, 0.3, 1.2)
    image = _noisy(image, draws, "second", 25, 2.5)
    jpeg_last = draws.happens("JPEG is last", 0.5)
    if not jpeg_last:
        image = _compressed(image, draws, "second")
    image = _resized(image, size, draws, "last")
    if draws.happens("last low-pass is done", 0.8):
        image = _low_passed(image, draws, "last")
    return _compressed(image, draws, "second") if jpeg_last else image


def _round_blur(image: Image.Image, draws: Draws, most: float) -> Image.Image:
    sigma = draws.uniform("round sigma", 0.1, most)
    return blurred(image, gaussian(_size_of(draws, "round"), (sigma, sigma)))


def _long_blur(image: Image.Image, draws: Draws, most: float) -> Image.Image:
    # The published lengths are of the covariance's axes: squares of deviations.
    sigma = (
        math.sqrt(draws.uniform("long variance", 0.5, most)),
        math.sqrt(draws.uniform("long variance across", 0.5, most)),
    )
    angle = draws.uniform("long angle", 0, math.pi)
    return blurred(image, gaussian(_size_of(draws, "long"), sigma, angle))


def _grain(image: Image.Image, draws: Draws) -> Image.Image:
    sigma = draws.uniform("noise sigma", 1, 25)
    grey = draws.happens("noise is grey", 0.4)
    return noisy(image, draws.integer("noise seed", 0, 2**32 - 1), sigma=sigma, grey=grey)


def _shuffled(image: Image.Image, size: Size, draws: Draws) -> Image.Image:
    """Two blurs, downsampling, noise and perhaps JPEG in an order drawn at random; then JPEG
    (BSRGAN, section 3, without its model of a camera's sensor and its correlated noise).

    Blurs are as strong as published for a factor of 2 below 3, and of 4 from there.
    """
    strong = image.height / size[0] >= 3
    steps: dict[str, Callable[[Image.Image], Image.Image]] = {
        "round blur": partial(_round_blur, draws=draws, most=2.8 if strong else 2.4),
        "long blur": partial(_long_blur, draws=draws, most=8 if strong else 6),
        "downsampling": partial(_resized, size=size, draws=draws, stage="first"),
        "noise": partial(_grain, draws=draws),
    }
    if draws.happens("JPEG is done twice", 0.75):
        steps["JPEG"] = partial(_compressed, draws=draws, stage="first")
    for step in draws.order("order", list(steps)):
        image = steps[step](image)
    return _compressed(image, draws, "last")


REALISTIC: dict[str, Callable[[Image.Image, Size, Draws], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "first-order": _first_order,
    "second-order": _second_order,
    "shuffled": _shuffled,
}
