"""What a degradation draws at random: by a hash, or from a generator; and a record of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Draws", "Parameters", "hash_unit"]

#: What was drawn, by name: ready for JSON.
Parameters = dict[str, "float | int | str | list[str]"]

# Numbers are used as they are written down, with so many digits after the point.
_DIGITS = 4


def hash_unit(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and ``seed`` alone.

    The first 53 bits of SHA-256 of ``"<seed>:<name>"``: the same on every machine and in whatever
    order the names come, which a random stream can't promise.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


class Draws:
    """Draws the parameters of one image's degradation, each under a name of its own.

    Attributes:
        parameters: what was drawn, in that order.
    """

    def __init__(self, unit: Callable[[str], float]) -> None:
        """
        Args:
            unit: gives a number in [0, 1) for a parameter's name.
        """
        self._unit = unit
        self.parameters: Parameters = {}

    @classmethod
    def hashed(cls, name: str, seed: int) -> Draws:
        """The same for the same image: each parameter is drawn by a hash (:func:`hash_unit`).

        Args:
            name: of the image; its file's name without folder and suffix.
            seed: the recipe's, or the training's.
        """
        return cls(lambda key: hash_unit(f"{key} of {name}", seed))

    @classmethod
    def random(cls) -> Draws:
        """Drawn from Python's global generator, which a training loader seeds for each sample."""
        return cls(lambda _: random.random())

    @classmethod
    def none(cls) -> Draws:
        """For kernels that draw nothing; the others raise ValueError."""
        return cls(_refuse)

    def _keep(self, key: str, value: float | int | str | list[str]) -> None:
        if key in self.parameters:
            raise ValueError(f"{key!r} is drawn twice; each draw of a kernel has its own name")
        self.parameters[key] = value

    def uniform(self, key: str, low: float, high: float) -> float:
        """A number between ``low`` and ``high``, with four digits after the point."""
        value = round(low + self._unit(key) * (high - low), _DIGITS)
        self._keep(key, value)
        return value

    def integer(self, key: str, low: int, high: int, step: int = 1) -> int:
        """A whole number from ``low`` to ``high``, both included, in steps of ``step``."""
        value = low + step * int(self._unit(key) * ((high - low) // step + 1))
        self._keep(key, value)
        return value

    def choice(self, key: str, weights: Mapping[str, float]) -> str:
        """One of the names, as probable as its weight."""
        chosen, left = "", self._unit(key) * sum(weights.values())
        for name, weight in weights.items():
            if weight > 0 and left >= 0:
                chosen = name
            left -= weight
        self._keep(key, chosen)
        return chosen

    def happens(self, key: str, probability: float) -> bool:
        """Whether something with this probability is done."""
        return self.choice(key, {"yes": probability, "no": 1 - probability}) == "yes"

    def order(self, key: str, names: Sequence[str]) -> list[str]:
        """The names in an order drawn at random."""
        left = list(names)
        out: list[str] = []
        while left:
            out.append(left.pop(int(self._unit(f"{key} {len(out)}") * len(left))))
        self._keep(key, list(out))
        return out


def _refuse(key: str) -> float:
    raise ValueError(
        f"this kernel draws {key!r} at random, and was given nothing to draw with: pass "
        "draws=Draws.hashed(name, seed)"
    )
