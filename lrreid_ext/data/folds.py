"""Parts of the training identities: folds for validation, and those that keep their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrreid_ext.data.seeding import derive
from lrreid_ext.errors import ConfigError

#: Path, identity and camera of a training image.
Item = tuple[str, Any, Any]

#: The target of an image without a label.
UNLABELLED = -1


def fold_of(items: Sequence[Item], fold: Sequence[int], seed: int, left_out: bool) -> list[Item]:
    """The images that a fold leaves out, or the others.

    The identities are shuffled by ``seed`` and cut into k parts of (almost) one size, so that the
    k folds together leave out each identity once.

    Args:
        items: ``(path, identity, camera)`` tuples.
        fold: DATASETS.FOLD, ``[i, k]`` with 0 <= i < k and k >= 2.
        seed: of the shuffle.
        left_out: True for the i-th part, False for the rest.

    Raises:
        ConfigError: a fold that isn't one, or more parts than identities.
    """
    if len(fold) != 2 or fold[1] < 2 or not 0 <= fold[0] < fold[1]:
        raise ConfigError(f"DATASETS.FOLD: {list(fold)} is not [i, k] with 0 <= i < k and k >= 2")
    identities = _shuffled(items, derive("fold", seed))
    if len(identities) < fold[1]:
        raise ConfigError(
            f"DATASETS.FOLD: {fold[1]} parts of only {len(identities)} training identities"
        )
    sizes = [len(part) for part in np.array_split(range(len(identities)), fold[1])]
    start = sum(sizes[: fold[0]])
    chosen = set(identities[start : start + sizes[fold[0]]])
    return [item for item in items if (item[1] in chosen) == left_out]


def labelled_identities(items: Sequence[Item], share: float, seed: int) -> frozenset[Any]:
    """A part of the identities, whole; a larger share of one seed holds every smaller one.

    Args:
        items: ``(path, identity, camera)`` tuples.
        share: DATASETS.LABELLED, from 0 to 1.
        seed: of the draw.

    Raises:
        ConfigError: a share out of range, or one that leaves a single identity: there is nobody to
            tell it from.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"DATASETS.LABELLED: {share} is not between 0 and 1")
    identities = _shuffled(items, derive("labelled", seed))
    count = round(share * len(identities))
    if share > 0 and count < 2:
        raise ConfigError(
            f"DATASETS.LABELLED: {share:g} of {len(identities)} identities leaves {count}; at "
            "least 2 must keep their labels, or none (0)"
        )
    return frozenset(identities[:count])


def _shuffled(items: Sequence[Item], seed: int) -> list[Any]:
    """Every identity once, in an order that depends on the identities and the seed alone."""
    identities = sorted({pid for _, pid, _ in items}, key=str)
    order = np.random.default_rng(seed % 2**32).permutation(len(identities))
    return [identities[i] for i in order]
