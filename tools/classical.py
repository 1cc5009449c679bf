#!/usr/bin/env python3
"""LOMO features with XQDA, NFST or plain Euclidean distance: the classical rows of SING's Table 2.

The same as ``lrreid classical``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.classical import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
