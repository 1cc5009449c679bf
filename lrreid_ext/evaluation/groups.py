"""Which queries are reported together: by group, and by factor."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.matching import right_matches

__all__ = [
    "FACTOR_BINS",
    "MOST_FACTORS",
    "answer_factors",
    "check_bins",
    "factor_parts",
    "positions",
    "query_groups",
]

# Queries of more different factors than this are reported in bins with these lower edges; in other
# edges, however few factors there are.
MOST_FACTORS = 8
FACTOR_BINS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def positions(test_set: TestSet, group: str) -> NDArray[np.int64]:
    """Positions of a group's images in the test set."""
    return np.array(
        [i for i, sample in enumerate(test_set.samples) if sample.group == group], dtype=np.int64
    )


def query_groups(
    test_set: TestSet, bins: Sequence[float] = FACTOR_BINS
) -> OrderedDict[str, NDArray[np.int64]]:
    """Positions of every group's images but the gallery's, in the order they are reported in.

    First ``query`` and its parts by factor (``query@2``), then ``query_hr``, then the others by
    factor. Where all queries have one factor and the gallery's vary, as in the SALR sets, the parts
    are by the factor of each query's right answer (``query@gallery4-6``), the least reduced one if
    it has several.

    Args:
        test_set: the images.
        bins: lower edges; see :func:`factor_parts`.
    """
    factors: dict[str, float] = {}
    for sample in test_set.samples:
        if sample.group != GALLERY:
            factors.setdefault(sample.group, sample.factor)
    first = (QUERY, QUERY_HR)
    names = [name for name in first if name in factors]
    names += sorted(factors.keys() - set(first), key=lambda name: (factors[name], name))
    groups: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
    for name in names:
        groups[name] = positions(test_set, name)
        if name == QUERY:
            drawn = np.array([test_set.samples[i].factor for i in groups[name]])
            parts, side = factor_parts(drawn, bins), ""
            if not parts:
                answers = answer_factors(test_set, groups[name])
                parts, side = factor_parts(answers, bins), GALLERY
            for label, mask in parts:
                groups[f"{name}@{side}{label}"] = groups[name][mask]
    return groups


def answer_factors(test_set: TestSet, queries: NDArray[np.int64]) -> NDArray[np.float64]:
    """The factor of each query's right answer, the least of several.

    Args:
        test_set: the images.
        queries: (Q,) positions.

    Returns:
        (Q,) factors; NaN where there is no right answer, or none of a known factor.
    """
    gallery = [s for s in test_set.samples if s.group == GALLERY and not math.isnan(s.factor)]
    pids, camids = (np.array([getattr(s, key) for s in gallery]) for key in ("pid", "camid"))
    factors = np.array([s.factor for s in gallery])
    least = []
    for i in queries:
        query = test_set.samples[i]
        right = factors[right_matches(query.pid, query.camid, pids, camids)]
        least.append(right.min(initial=math.inf))
    return np.where(np.isinf(least), math.nan, least)


def factor_parts(
    factors: NDArray[np.float64], bins: Sequence[float] = FACTOR_BINS
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Split queries by the factor drawn for each.

    Args:
        factors: (Q,), each >= 1; NaN, an unknown one, is in no part.
        bins: lower edges of the ranges, ascending from 1.

    Returns:
        Label and mask (Q,) of each part: a factor each (``2``, ``2.5``), or where there are more
        than eight, or ``bins`` other than :data:`FACTOR_BINS`, ranges that include their lower end
        (``2-3``, ``16+``). Nothing if all are one.
    """
    distinct = np.unique(factors[~np.isnan(factors)])
    if len(distinct) < 2:
        return []
    if len(distinct) <= MOST_FACTORS and tuple(bins) == FACTOR_BINS:
        return [(f"{factor:g}", factors == factor) for factor in distinct]
    parts = []
    for low, high in zip(bins, (*bins[1:], math.inf), strict=True):
        mask = (factors >= low) & (factors < high)
        if mask.any():
            label = f"{low:g}+" if math.isinf(high) else f"{low:g}-{high:g}"
            parts.append((label, mask))
    return parts


def check_bins(bins: Sequence[float]) -> None:
    """Refuse TEST.FACTOR_BINS that leave factors out.

    Raises:
        ConfigError: they don't begin at 1, or don't ascend.
    """
    if not bins or bins[0] != 1 or any(a >= b for a, b in pairwise(bins)):
        raise ConfigError(
            f"TEST.FACTOR_BINS: {list(bins)} must be lower edges that ascend from 1, such as "
            "[1, 2, 4, 8]"
        )
