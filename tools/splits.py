#!/usr/bin/env python3
"""Train and evaluate on several random splits of a recipe, and average the results.

The same as ``lrreid splits``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.splits import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
