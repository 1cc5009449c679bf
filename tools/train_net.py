#!/usr/bin/env python3
"""Train or evaluate: tools/train_net.py --config-file projects/PSHRNet/synth.yml [KEY VALUE ...]"""

from lrreid_ext.cli import guarded
from lrreid_ext.engine.cli import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
