"""Recipes, degradation, paired HR/LR samples and loaders."""

from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, Sample, TestSet, factor_group

__all__ = ["GALLERY", "QUERY", "QUERY_HR", "Sample", "TestSet", "factor_group"]
