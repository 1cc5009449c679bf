"""Dividing identities into those that train and those that test."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from lrreid_ext.data.recipes.base import Recipe
from lrreid_ext.errors import RecipeError

__all__ = ["IdentitySplit", "drawn_identities"]


def drawn_identities(people: Collection[str], count: int, split: int) -> set[str]:
    """``count`` identities of split ``split``: the sorted names are permuted by
    ``numpy.random.default_rng(split)``, and the first are taken."""
    return set(np.random.default_rng(split).permutation(sorted(people))[:count].tolist())


class IdentitySplit(Recipe):
    """A source whose identities are divided at random; see :func:`drawn_identities`.

    Attributes:
        split: number of the split; where results are means over ten splits, 0 to 9.
        identities: how many the source must hold.
        train_identities: how many of them train.
    """

    split: NonNegativeInt = 0
    identities: int
    train_identities: int

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not 0 < self.train_identities < self.identities:
            raise self.error(
                "train_identities",
                f"{self.train_identities} of {self.identities} leaves a split empty",
            )

    def check_count(self, root: Path, people: Collection[str]) -> None:
        """Raises RecipeError unless there are as many people as the options say."""
        if len(people) != self.identities:
            raise RecipeError(
                f"{root}: {len(people)} identities where {self.identities} are expected. Complete "
                "the folder, or set the options identities and train_identities."
            )

    def training(self, root: Path, people: Collection[str]) -> set[str]:
        """Those of ``people`` that train.

        Raises:
            RecipeError: there are more or fewer people than the options say.
        """
        self.check_count(root, people)
        return drawn_identities(people, self.train_identities, self.split)
