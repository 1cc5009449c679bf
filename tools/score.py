#!/usr/bin/env python3
"""Score trained models, or files of their features, by any protocol.

The same as ``lrreid score``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.score import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
