#!/usr/bin/env python3
"""Put images of people into a gallery, and rank it for low-resolution queries.

The same as ``lrreid gallery``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.gallery import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
