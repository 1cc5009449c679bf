#!/usr/bin/env python3
"""See lrreid_ext/commands/gallery.py."""

import sys

from lrreid_ext.commands.gallery import main

if __name__ == "__main__":
    sys.exit(main())
