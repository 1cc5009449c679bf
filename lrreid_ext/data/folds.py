"""Parts of the training identities, for validation without a look at the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrreid_ext.data.seeding import derive
from lrreid_ext.errors import ConfigError

Item = tuple[str, Any, Any]


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
    identities = sorted({pid for _, pid, _ in items}, key=str)
    if len(identities) < fold[1]:
        raise ConfigError(
            f"DATASETS.FOLD: {fold[1]} parts of only {len(identities)} training identities"
        )
    order = np.random.default_rng(derive("fold", seed) % 2**32).permutation(len(identities))
    chosen = {identities[i] for i in np.array_split(order, fold[1])[fold[0]]}
    return [item for item in items if (item[1] in chosen) == left_out]
