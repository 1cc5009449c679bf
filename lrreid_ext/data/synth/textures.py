"""Cloth patterns and prints, as functions of a position on the garment.

Positions are in body heights: ``a`` around the body (angle times radius, 0 in front), ``b`` along
it (0 at the upper end). A pattern that is laid out so moves, turns and foreshortens with the body.
A person in a 128-pixel image is about 112 pixels tall, so the periods used here (0.018 to 0.055)
are 2 to 6 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from lrreid_ext.data.synth.draws import Draws, unit

NOISE_CELLS, NOISE_STEPS = 32, 8
_NOISE_SIDE = NOISE_CELLS * NOISE_STEPS


@dataclass(frozen=True)
class Texture:
    """A repeating pattern of two tones whose mean is the cloth's colour.

    Attributes:
        kind: a key of :data:`PATTERNS`, or ``plain``.
        period: length of one repeat, body heights.
        delta: RGB difference between the two tones, 0-255 scale, signed.
    """

    kind: str = "plain"
    period: float = 0.03
    delta: tuple[float, float, float] = (0.0, 0.0, 0.0)


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """(256, 256) float32 smooth noise that repeats, its values evenly spread over [0, 1)."""
    cells = (Draws(11).array(NOISE_CELLS, NOISE_CELLS) * 255).astype(np.uint8)
    tiled = Image.fromarray(np.tile(cells, (3, 3)))
    side = 3 * _NOISE_SIDE
    smooth = np.asarray(tiled.resize((side, side), Image.Resampling.BICUBIC))
    middle = smooth[_NOISE_SIDE : 2 * _NOISE_SIDE, _NOISE_SIDE : 2 * _NOISE_SIDE]
    ranks = np.empty(middle.size, np.float32)
    ranks[np.argsort(middle, axis=None, kind="stable")] = np.arange(middle.size)
    return (ranks / middle.size).reshape(middle.shape)


def noise(a: np.ndarray, b: np.ndarray, cell: float, shift: float = 0.0) -> np.ndarray:
    """Smooth noise in [0, 1), mean 0.5.

    Args:
        a, b: positions, body heights.
        cell: size of a blob, body heights.
        shift: moves the noise (any number).
    """
    step = NOISE_STEPS / cell
    i = (b * step + shift * 977.0).astype(np.int32) & (_NOISE_SIDE - 1)
    j = (a * step + shift * 613.0 + 4096.0).astype(np.int32) & (_NOISE_SIDE - 1)
    return noise_tile().ravel()[i * _NOISE_SIDE + j]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.abs(x - np.floor(x) - 0.5) * 4.0 - 1.0


def _bands(x: np.ndarray, share: float, sharp: float) -> np.ndarray:
    """1 in a ``share`` of every unit of x (around the whole numbers), 0 elsewhere, soft edges."""
    return unit((_triangle(x) - (1.0 - 2.0 * share)) * sharp + 0.5)


def _hstripes(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return _bands(b, 0.5, sharp) + 0.0 * a


def _vstripes(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return _bands(a, 0.5, sharp) + 0.0 * b


def _diagonal(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return _bands(a * 0.75 + b * 0.75, 0.5, sharp)


def _pinlines(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return _bands(b * 0.7, 0.3, sharp) + 0.0 * a


def _check(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return 0.5 * _bands(a * 0.8, 0.5, sharp) + 0.5 * _bands(b * 0.8, 0.5, sharp)


def _grid(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return np.maximum(_bands(a * 0.75, 0.22, sharp), _bands(b * 0.75, 0.22, sharp))


def _plaid(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    wide = _bands(a * 0.55, 0.4, sharp) + _bands(b * 0.55, 0.4, sharp)
    thin = _bands(a * 0.55 + 0.5, 0.12, sharp) + _bands(b * 0.55 + 0.5, 0.12, sharp)
    return 0.3 * wide + 0.2 * thin


def _dots(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    row = np.floor(b)
    x = a + 0.5 * (row - 2.0 * np.floor(row * 0.5))
    dx, dy = x - np.floor(x) - 0.5, b - row - 0.5
    return unit((0.1 - dx * dx - dy * dy) * (sharp * 6.0) + 0.5)


def _zigzag(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return _bands(b * 0.8 + 0.35 * _triangle(a * 0.5), 0.5, sharp)


def _blotches(a: np.ndarray, b: np.ndarray, sharp: float) -> np.ndarray:
    return unit((noise(a, b, 0.6, 0.37) - 0.5) * (2.0 * sharp) + 0.5)


PATTERNS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], np.ndarray], float]] = {
    "hstripes": (_hstripes, 0.5),
    "vstripes": (_vstripes, 0.5),
    "diagonal": (_diagonal, 0.5),
    "pinlines": (_pinlines, 0.3),
    "check": (_check, 0.5),
    "grid": (_grid, 1.0 - 0.78**2),
    "plaid": (_plaid, 0.288),
    "dots": (_dots, 0.314),
    "zigzag": (_zigzag, 0.5),
    "blotches": (_blotches, 0.5),
}
"""By name: the function ``(a, b, sharpness) -> [0, 1]``, positions in periods, and its mean."""


def weave(texture: Texture, a: np.ndarray, b: np.ndarray, pixels: float) -> np.ndarray | None:
    """How far the cloth is towards its second tone, minus the mean: a field of mean about 0.

    Args:
        texture: the pattern.
        a, b: positions, body heights, broadcastable.
        pixels: canvas pixels per body height, which sets how soft the edges are.

    Returns:
        float32 field, or None for plain cloth.
    """
    if texture.kind == "plain":
        return None
    pattern, mean = PATTERNS[texture.kind]
    sharp = min(4.0, max(0.8, 0.25 * texture.period * pixels))
    inverse = 1.0 / texture.period
    return pattern(a * inverse, b * inverse, sharp) - mean


_DIGITS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111",
)  # fmt: skip


@lru_cache(maxsize=512)
def print_bitmap(kind: str, variant: int) -> np.ndarray:
    """A chest or back print as a float32 bitmap of 0 and 1.

    Args:
        kind: ``number`` (two digits), ``emblem`` (a symmetric badge), ``text`` (lines of short
            bars), ``band`` (stripes across the chest).
        variant: which one; an integer >= 0.

    Raises:
        ValueError: an unknown kind.
    """
    draws = Draws(12, variant)
    if kind == "number":
        bitmap = np.zeros((5, 7), np.float32)
        for column, digit in ((0, variant // 10 % 10), (4, variant % 10)):
            glyph = np.array([float(c) for c in _DIGITS[digit]], np.float32).reshape(5, 3)
            bitmap[:, column : column + 3] = glyph
        return bitmap
    if kind == "emblem":
        half = (draws.array(7, 4) < 0.55).astype(np.float32)
        half[:, 3] = 1.0
        return np.concatenate([half, half[:, 2::-1]], axis=1)
    if kind == "text":
        bitmap = (draws.array(5, 13) < 0.72).astype(np.float32)
        bitmap[1::2] = 0.0
        return bitmap
    if kind == "band":
        return (draws.array(7, 1) < 0.5).astype(np.float32)
    raise ValueError(f"unknown print {kind!r}: choose number, emblem, text or band")


def stamp(
    bitmap: np.ndarray, a: np.ndarray, b: np.ndarray, width: float, height: float
) -> np.ndarray:
    """Where a print covers the cloth: the bitmap's value around (0, 0), 0 outside.

    Args:
        bitmap: (rows, columns) of 0 and 1.
        a, b: positions relative to the print's centre, body heights.
        width, height: the print's size, body heights.
    """
    rows, columns = bitmap.shape
    padded = np.zeros((rows + 2, columns + 2), np.float32)
    padded[1:-1, 1:-1] = bitmap
    i = np.clip(b * (rows / height) + (rows * 0.5 + 1.0), 0, rows + 1).astype(np.int32)
    j = np.clip(a * (columns / width) + (columns * 0.5 + 1.0), 0, columns + 1).astype(np.int32)
    return padded.ravel()[i * (columns + 2) + j]
