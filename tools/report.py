#!/usr/bin/env python3
"""Write one HTML page about trained models: figures, curves, pictures, and where they came from.

The same as ``lrreid report``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.report import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
