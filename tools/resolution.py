#!/usr/bin/env python3
"""How wrong the resolution estimator is on a data set's images, by factor and kernel.

The same as ``lrreid resolution``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.resolution import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
