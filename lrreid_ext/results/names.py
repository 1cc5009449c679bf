"""Names of results files, of groups of queries, and of figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrreid_ext.data.samples import QUERY, QUERY_HR
from lrreid_ext.errors import ConfigError

#: The protocols, in the order of tables.
PROTOCOLS = ("single_shot", "multi_shot")

#: Pattern of all results files.
RESULTS_FILES = "results_*.json"


def results_file(test_set: str) -> str:
    """Name of the file that holds the results on a test set: ``results_<test set>.json``."""
    return RESULTS_FILES.replace("*", test_set)


def group_label(group: str, lr_gallery: bool = False) -> str:
    """Name of a group of queries in tables: ``MLR``, ``HR -> HR``, ``x2``, ``MLR @2``.

    Args:
        group: its name in results, such as ``query``, ``query_hr``, ``x2`` or ``query@2``.
        lr_gallery: whether the gallery holds LR images; ``query_hr`` is then ``HR queries``.
    """
    if group == QUERY_HR:
        return "HR queries" if lr_gallery else "HR -> HR"
    return group.replace(f"{QUERY}@", "MLR @") if group != QUERY else "MLR"


def factor_name(factor: float) -> str:
    """``HR``, ``x2``, or ``LR`` for an unknown factor."""
    if math.isnan(factor):
        return "LR"
    return "HR" if factor == 1 else f"x{factor:g}"


@dataclass(frozen=True)
class FigureName:
    """Name of one figure: ``protocol/group/figure``, such as ``single_shot/query/Rank-1``."""

    protocol: str
    group: str
    figure: str

    @classmethod
    def parse(cls, text: str) -> FigureName:
        """Read ``protocol/group/figure``.

        Raises:
            ConfigError: text of another form.
        """
        parts = str(text).split("/")
        if len(parts) != 3:
            raise ConfigError(
                f"column {text!r}: write protocol/group/figure, such as single_shot/query/Rank-1"
            )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.protocol}/{self.group}/{self.figure}"

    def label(self, lr_gallery: bool = False) -> str:
        """Heading of the figure's column: ``MLR Rank-1``, ``x4``, ``MLR mAP (multi-shot)``."""
        label = group_label(self.group, lr_gallery)
        if self.protocol == "multi_shot":
            return f"{label} {self.figure} (multi-shot)"
        return f"{label} {self.figure}" if self.group == QUERY or self.figure != "Rank-1" else label
