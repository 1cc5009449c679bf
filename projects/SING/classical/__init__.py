"""Re-identification without a network: LOMO features, and the metrics XQDA and NFST.

They are the classical rows of SING's Table 2; ``lrreid classical`` trains and evaluates them.
"""

from projects.SING.classical.lomo import DIMENSIONS, lomo, lomo_batches, worker_pool
from projects.SING.classical.nfst import NFST
from projects.SING.classical.xqda import XQDA, difference_covariances

__all__ = [
    "DIMENSIONS",
    "NFST",
    "XQDA",
    "difference_covariances",
    "lomo",
    "lomo_batches",
    "worker_pool",
]
