#!/usr/bin/env python3
"""Train, evaluate, tabulate and draw named variants of a config: an ablation, or a curve.

The same as ``lrreid sweep``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.sweep import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
