#!/usr/bin/env python3
"""Draw t-SNE of features by identity and by factor: does a person stay put when reduced?

The same as ``lrreid tsne``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.tsne import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
