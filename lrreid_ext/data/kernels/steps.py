"""The steps that realistic degradations consist of: blur, noise and compression.

Each takes and returns an RGB image of bytes, as if it were saved between any two. To give the same
bytes on every machine, blurs are whole-numbered sums and noise comes from a stream that numpy
promises never to change. The exception is :func:`compressed`, which gives what Pillow's libjpeg
gives: libjpeg-turbo in the wheels, whose versions agree; other builds may not.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import fftconvolve
from scipy.special import j1

__all__ = ["bell", "blurred", "compressed", "gaussian", "low_pass", "noisy"]

Weights = NDArray[np.float64]
# Blur weights are whole multiples of 1 / _ONE: their last bit, which machines differ in, is gone.
_ONE = 1 << 16


def _offsets(size: int) -> tuple[Weights, Weights]:
    rows, columns = np.mgrid[:size, :size].astype(np.float64) - size // 2
    return rows, columns


def gaussian(
    size: int,
    sigma: tuple[float, float],
    angle: float = 0.0,
    shape: str = "gaussian",
    beta: float = 1.0,
) -> Weights:
    """Blur weights (size, size), falling off from the middle.

    With q the squared distance in deviations: ``gaussian`` is exp(-q / 2), ``generalized``
    exp(-q^beta / 2), and ``plateau`` 1 / (1 + q^beta) (Real-ESRGAN, Eq. 3 to 5).

    Args:
        size: odd, in pixels.
        sigma: deviations along the two axes, in pixels.
        angle: of the first axis, in radians.
    """
    rows, columns = _offsets(size)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    q = (along / sigma[0]) ** 2 + (across / sigma[1]) ** 2
    return 1 / (1 + q**beta) if shape == "plateau" else np.exp(-(q**beta) / 2)


def low_pass(size: int, cutoff: float) -> Weights:
    """Weights (size, size) of the ideal circular low-pass, cut off at the edges: it rings, as
    sharpening does (Real-ESRGAN, Eq. 6).

    Args:
        cutoff: angular frequency, to pi.
    """
    rows, columns = _offsets(size)
    distance = np.hypot(rows, columns)
    distance[size // 2, size // 2] = 1  # the limit is put there below
    weights = cutoff * j1(cutoff * distance) / (2 * np.pi * distance)
    weights[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return weights


def blurred(image: Image.Image, weights: Weights) -> Image.Image:
    """``image`` convolved with ``weights``, which are made to sum to 1; mirrored at its edges."""
    whole = np.rint(weights * (_ONE / weights.sum()))
    middle = len(whole) // 2
    whole[middle, middle] += _ONE - whole.sum()
    padded = np.pad(
        np.asarray(image, np.float64), ((middle, middle), (middle, middle), (0, 0)), "reflect"
    )
    # Whole numbers below 2^53: rounding takes away the Fourier transform's error entirely.
    sums = np.rint(fftconvolve(padded, whole[:, :, None], "valid", axes=(0, 1))).astype(np.int64)
    return Image.fromarray(((sums + _ONE // 2) // _ONE).clip(0, 255).astype(np.uint8))


def bell(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Bell-shaped noise of mean 0 and deviation 1, at most 6: sums of twelve uniform numbers."""
    count = int(np.prod(shape))
    raw = np.random.PCG64(seed).random_raw(3 * count).astype("<u8").view("<u2")
    sums = raw.reshape(count, 12).sum(1, dtype=np.int64)
    return ((sums - 6 * 65535) / 65536).reshape(shape)


def noisy(
    image: Image.Image, seed: int, sigma: float = 0.0, shot: float = 0.0, grey: bool = False
) -> Image.Image:
    """``image`` with noise added.

    Args:
        seed: of the noise.
        sigma: deviation that is the same everywhere, of the sensor, on the 0-255 scale.
        shot: deviation for a pixel of value 1; it grows with the root of the value, as the noise
            of counted photons does.
        grey: the same noise in all three channels.
    """
    pixels = np.asarray(image, np.float64)
    light = pixels
    if grey:  # in whole numbers, for a matrix product's last bit depends on the machine
        red, green, blue = (pixels[..., i : i + 1] for i in range(3))
        light = (299 * red + 587 * green + 114 * blue) / 1000
    deviation = np.sqrt(sigma * sigma + shot * shot * light)
    noise = deviation * bell(light.shape, seed)
    return Image.fromarray(np.rint(pixels + noise).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """``image`` saved as JPEG with this quality, 1 to 95, and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as stored:
        return stored.convert("RGB")
