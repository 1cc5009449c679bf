#!/usr/bin/env python3
"""Whether the gates of a dual-stream backbone learned resolution.

The same as ``lrreid gates``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.gates import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
