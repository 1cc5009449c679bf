"""Recipes, degradation, paired HR/LR samples and loaders."""

from lrreid_ext.data.samples import (
    GALLERY,
    QUERY,
    QUERY_HR,
    Batch,
    Sample,
    TestSet,
    factor_group,
    rows_of,
    with_twin,
)

__all__ = [
    "GALLERY",
    "QUERY",
    "QUERY_HR",
    "Batch",
    "Sample",
    "TestSet",
    "factor_group",
    "rows_of",
    "with_twin",
]
