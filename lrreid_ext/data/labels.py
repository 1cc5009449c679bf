"""Which training identities keep their labels, for semi-supervised training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrreid_ext.data.seeding import derive
from lrreid_ext.errors import ConfigError

__all__ = ["UNLABELLED", "labelled_identities"]

#: The target of an image whose identity is not known.
UNLABELLED = -1


def labelled_identities(
    items: Sequence[tuple[str, Any, Any]], share: float, seed: int
) -> frozenset[Any]:
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
    identities = sorted({pid for _, pid, _ in items}, key=str)
    count = round(share * len(identities))
    if share > 0 and count < 2:
        raise ConfigError(
            f"DATASETS.LABELLED: {share:g} of {len(identities)} identities leaves {count}; at "
            "least 2 must keep their labels, or none (0)"
        )
    order = np.random.default_rng(derive("labelled", seed) % 2**32).permutation(len(identities))
    return frozenset(identities[i] for i in order[:count])
