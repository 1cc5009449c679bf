"""Measure ranking, search, export and training side by side; write the tables (in a checkout)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from lrreid_ext.errors import UserError, suggest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")


def run(args: argparse.Namespace) -> int:
    """Run one after another, up to the first that fails; return its status."""
    names = sorted({p.stem for p in ROOT.glob("*.py")} - {"shared"})
    if not names:
        raise UserError(f"{ROOT}: no benchmarks here; run this in a checkout")
    for name in args.names:
        if name not in names:
            raise UserError(
                f"no benchmark {name!r}.{suggest(name, names)} Benchmarks: {', '.join(names)}"
            )
    for name in args.names or names:
        status = subprocess.run([sys.executable, str(ROOT / f"{name}.py")], check=False).returncode
        if status:
            return status
    return 0
