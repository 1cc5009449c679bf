"""Low- and cross-resolution person re-identification on fast-reid."""

from lrreid_ext.compat import import_host

__version__ = "0.1.0"

import_host()
