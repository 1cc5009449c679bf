"""How much real resolution an image has, when its size doesn't say: a crop that somebody enlarged.

Enlarging by a factor f leaves little power beyond the frequency 0.5 / f (in cycles a pixel) that
the small image could hold. So of an image's power spectrum the shares beyond a few such cut-offs
are measured, and a quadratic in their logarithms gives log2 f. Its few coefficients were fitted on
rendered people alone (``benchmarks/resolution.py --fit``); how wrong it is on a recipe's images,
real ones too, is measured by the same script and recorded in benchmarks/resolution.

Nothing is random, nothing is trained, and no file is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lrreid_ext.errors import ConfigError

__all__ = [
    "COEFFICIENTS",
    "CUTOFFS",
    "LARGEST",
    "NATIVE_SIZES",
    "SMALLEST_SIDE",
    "check_native_size",
    "estimated_factor",
    "estimated_size",
    "factor_from",
    "fit_coefficients",
    "native_size",
    "tail_shares",
]

#: Factors whose cut-off frequencies are looked beyond.
CUTOFFS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 8.0)

#: Of the quadratic: the constant, then for each cut-off the logarithm's, then its square's.
COEFFICIENTS: tuple[float, ...] = (
    -0.713,
    *(-0.1642, -0.1797, -0.2018, -0.2723, -0.3589, -0.2245, 0.3667),
    *(-0.0355, -0.0074, -0.0127, -0.0098, -0.0146, -0.0043, 0.2192),
)

#: Where a native size may come from.
NATIVE_SIZES = ("file", "estimated")

#: No factor above this is ever said.
LARGEST = 16.0

#: Of an image with fewer pixels on a side nothing can be told, and it counts as it is.
SMALLEST_SIDE = 8

# Share of power that rounding to 256 levels leaves anywhere.
_FLOOR = 1e-7


def tail_shares(image: Image.Image) -> NDArray[np.float64]:
    """Decimal logarithms of the shares of an image's power beyond each cut-off.

    Args:
        image: any mode; its brightness counts, with a window that fades to the borders, so that
            opposite borders, which the transform joins, make no edge.

    Returns:
        (7,) float64, at most 0, falling; about -7 where nothing is left.
    """
    pixels = np.asarray(image.convert("L"), dtype=np.float64) / 255
    height, width = pixels.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    mean = (pixels * window).sum() / window.sum()
    power = np.abs(np.fft.fft2((pixels - mean) * window)) ** 2 / ((window**2).sum() * pixels.size)
    frequency = np.maximum(
        np.abs(np.fft.fftfreq(height))[:, None], np.abs(np.fft.fftfreq(width))[None]
    )
    # The highest frequency of an even side is 0.5 itself, and belongs to the first cut-off.
    beyond = [power[frequency > 0.5 / factor - 1e-9].sum() for factor in CUTOFFS]
    # An image of one colour has no power at all: all of its shares are the floor's.
    total = power.sum() + _FLOOR
    return np.log10((np.array(beyond) + _FLOOR) / total)


def factor_from(
    shares: ArrayLike, coefficients: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """The factor that shares of power speak for.

    Args:
        shares: (..., 7), as :func:`tail_shares` gives them.
        coefficients: (15,) of another fit; by default :data:`COEFFICIENTS`.

    Returns:
        (...) float64, 1 to :data:`LARGEST`.
    """
    values = np.asarray(shares, dtype=np.float64)
    terms = _terms(values)
    logarithm = terms @ np.asarray(COEFFICIENTS if coefficients is None else coefficients)
    return 2 ** np.clip(logarithm, 0, np.log2(LARGEST))


def estimated_factor(image: Image.Image) -> float:
    """By how much an image was enlarged, as far as its spectrum tells; 1: not at all.

    A blurred or compressed image has as little detail as an enlarged one, and is taken for one.
    """
    if min(image.size) < SMALLEST_SIDE:
        return 1.0
    return float(factor_from(tail_shares(image)))


def estimated_size(image: Image.Image) -> tuple[int, int]:
    """Height and width in pixels that an image really has, each at least 1 and at most its own."""
    factor = estimated_factor(image)
    return max(1, round(image.height / factor)), max(1, round(image.width / factor))


def check_native_size(how: str) -> None:
    """Raises ConfigError unless ``how`` is one of :data:`NATIVE_SIZES`."""
    if how not in NATIVE_SIZES:
        raise ConfigError(f"INPUT.NATIVE_SIZE: {how!r} is none of {', '.join(NATIVE_SIZES)}")


def native_size(image: Image.Image, how: str = "file") -> tuple[int, int]:
    """Height and width in pixels of an image before it is resized for a network.

    Args:
        image: as its file has it.
        how: ``file``, the pixels there are, or ``estimated``; INPUT.NATIVE_SIZE.

    Raises:
        ConfigError: anything else.
    """
    check_native_size(how)
    return estimated_size(image) if how == "estimated" else (image.height, image.width)


def fit_coefficients(
    shares: ArrayLike, factors: ArrayLike, *, penalty: float = 0.01
) -> tuple[float, ...]:
    """Coefficients of the quadratic by ridge regression of log2 factor.

    Every factor weighs the same, however many images there are of it.

    Args:
        shares: (N, 7).
        factors: (N,) the true ones, each >= 1.
        penalty: on the squares of the coefficients of standardised terms.

    Returns:
        (15,) rounded to four decimals.

    Raises:
        ValueError: lengths that differ, or factors that are all one.
    """
    values, truth = np.asarray(shares, dtype=np.float64), np.asarray(factors, dtype=np.float64)
    if values.shape != (len(truth), len(CUTOFFS)):
        raise ValueError(f"shares {values.shape} don't fit {len(truth)} factors")
    distinct, group, counts = np.unique(truth, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise ValueError("a fit needs images of at least two factors")
    weight = 1 / counts[group]
    weight /= weight.mean()
    terms = _terms(values)[:, 1:]
    mean = np.average(terms, axis=0, weights=weight)
    deviation = np.sqrt(np.average((terms - mean) ** 2, axis=0, weights=weight)) + 1e-9
    design = np.column_stack([np.ones(len(terms)), (terms - mean) / deviation])
    normal = (design * weight[:, None]).T @ design
    normal[1:, 1:] += penalty * len(terms) * np.eye(len(mean))
    found = np.linalg.solve(normal, design.T @ (weight * np.log2(truth)))
    slopes = found[1:] / deviation
    return tuple(round(float(c), 4) for c in (found[0] - slopes @ mean, *slopes))


def _terms(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    ones = np.ones((*shares.shape[:-1], 1))
    return np.concatenate([ones, shares, shares**2], axis=-1)
