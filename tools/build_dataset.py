#!/usr/bin/env python3
"""The same as ``lrreid build``, for a checkout that isn't installed."""

import sys

from lrreid_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["build", *sys.argv[1:]]))
