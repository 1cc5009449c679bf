"""Made-up results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lrreid_ext.results import Figure, Figures, Group, Results

PROTOCOLS = ["single_shot", "multi_shot"]


def results(
    rank1: float = 40.0, groups: Sequence[str] = ("query", "query_hr", "x2"), **changes: Any
) -> Results:
    """Results whose groups all have the same figures.

    Args:
        rank1: Rank-1 of both protocols, in single-shot with deviation 1 over two trials; mAP is
            half of it.
        groups: names of the groups.
        changes: other fields of :class:`Results`.
    """
    shot = Figures(named={"Rank-1": Figure(rank1, 1.0)}, trials=[[rank1 - 1], [rank1 + 1]])
    multi = Figures(named={"Rank-1": Figure(rank1), "mAP": Figure(rank1 / 2)})
    group = Group(8, 0, {"single_shot": shot, "multi_shot": multi})
    fields: dict[str, Any] = {
        "test_set": "demo",
        "manifest_hash": "0123456789abcdef",
        "protocols": PROTOCOLS,
        "trials": 2,
        "seed": 0,
        "metric": "cosine",
        "groups": {name: copy.deepcopy(group) for name in groups},
    }
    return Results(**{**fields, **changes})
