#!/usr/bin/env python3
"""Write ranked galleries of several runs side by side, right and wrong marked.

The same as ``lrreid ranked``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.ranked import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
