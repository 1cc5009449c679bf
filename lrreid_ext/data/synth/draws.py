"""Random draws and arithmetic that give the same values everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def unit(x: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] in place (``np.clip`` costs several times more on small arrays)."""
    np.maximum(x, 0.0, out=x)
    return np.minimum(x, 1.0, out=x)


class Draws:
    """A stream of draws named by integers.

    Only the raw bits of PCG64 and basic arithmetic are used: ziggurat normals, shuffles and bounded
    integers may change between numpy versions or differ in their last bit between processors.

    Args:
        *key: integers >= 0 that name the stream. The first one should tell what it is for.
    """

    def __init__(self, *key: int) -> None:
        self._rng = np.random.default_rng(list(key))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._rng.random())

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return float(self._rng.random()) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(float(self._rng.random()) * len(options))]

    def order(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        keys = self._rng.random(len(options))
        return [options[i] for i in np.argsort(keys, kind="stable")]

    def array(self, *shape: int) -> np.ndarray:
        """Uniform float32 numbers in [0, 1) of the given shape."""
        return self._rng.random(shape).astype(np.float32)

    def grain(self, *shape: int) -> np.ndarray:
        """Bell-shaped float32 noise of mean 0 and standard deviation 1 (a sum of four bytes)."""
        count = 4
        for side in shape:
            count *= side
        raw = np.frombuffer(self._rng.bytes(count), np.uint8).reshape(4, *shape)
        total = raw[0].astype(np.float32)
        for layer in raw[1:]:
            total += layer
        # A byte has mean 127.5 and variance (256^2 - 1) / 12; four of them have deviation 147.8.
        return (total - 510.0) * (1.0 / 147.8)
