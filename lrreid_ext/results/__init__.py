"""What an evaluation measures: one class, its file, its tables, and means over several."""

from lrreid_ext.results.mean import mean_of
from lrreid_ext.results.names import (
    PROTOCOLS,
    RESULTS_FILES,
    FigureName,
    factor_name,
    group_label,
    results_file,
)
from lrreid_ext.results.portable import portable
from lrreid_ext.results.provenance import provenance
from lrreid_ext.results.results import (
    Counts,
    Figure,
    Figures,
    Fusion,
    Group,
    Intervals,
    Part,
    Results,
    Training,
    stored_results,
)
from lrreid_ext.results.tables import default_columns, group_table, results_table

__all__ = [
    "PROTOCOLS",
    "RESULTS_FILES",
    "Counts",
    "Figure",
    "FigureName",
    "Figures",
    "Fusion",
    "Group",
    "Intervals",
    "Part",
    "Results",
    "Training",
    "default_columns",
    "factor_name",
    "group_label",
    "group_table",
    "mean_of",
    "portable",
    "provenance",
    "results_file",
    "results_table",
    "stored_results",
]
