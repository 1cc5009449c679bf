"""Re-identification without a network: LOMO features, and the metrics XQDA and NFST.

They are the classical rows of SING's Table 2; ``tools/classical.py`` trains and evaluates them.
"""

from lrreid_ext.classical.lomo import DIMENSIONS, lomo, lomo_batches, worker_pool
from lrreid_ext.classical.nfst import NFST
from lrreid_ext.classical.xqda import XQDA, difference_covariances

__all__ = [
    "DIMENSIONS",
    "NFST",
    "XQDA",
    "difference_covariances",
    "lomo",
    "lomo_batches",
    "worker_pool",
]
