#!/usr/bin/env python3
"""Choose sigma of SING's adaptive fusion by cross validation on training identities.

The same as ``lrreid choose-sigma``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.choose_sigma import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
