#!/usr/bin/env python3
"""Write a trained model for other runtimes: ONNX, torch.export, or a folder of safetensors.

The same as ``lrreid export``; --help says more.
"""

from lrreid_ext.cli import guarded
from lrreid_ext.commands.export import main

if __name__ == "__main__":
    raise SystemExit(guarded(main))
