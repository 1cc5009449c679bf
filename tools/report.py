#!/usr/bin/env python3
"""Write one HTML page about trained models.

The same as ``lrreid report``; --help says more.
"""

from lrreid_ext.commands.report import main

if __name__ == "__main__":
    raise SystemExit(main())
