#!/usr/bin/env python3
"""The same as ``lrreid train``, for a checkout that isn't installed."""

import sys

from lrreid_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
