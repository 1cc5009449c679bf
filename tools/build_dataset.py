#!/usr/bin/env python3
"""Build a cross-resolution data set from an ordinary one, or check a built one.

The same as ``lrreid build``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.build import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
