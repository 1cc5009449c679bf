#!/usr/bin/env python3
"""What resolution does to distances: same-person over different-person, as resolution falls.

The same as ``lrreid objective``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.objective import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
