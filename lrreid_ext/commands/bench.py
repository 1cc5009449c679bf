"""Measure ranking, search, export and training side by side; write the tables (in a checkout)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lrreid_ext.registry import suggest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="lrreid bench", description=__doc__)
    out.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run them one after another; the first exit status that isn't 0, or 2 without a checkout."""
    args = parser().parse_args(argv)
    known = sorted(p.stem for p in ROOT.glob("*.py"))
    if not known:
        print(f"error: {ROOT}: no benchmarks here; run this in a checkout", file=sys.stderr)
        return 2
    for name in args.names:
        if name not in known:
            print(
                f"error: no benchmark {name!r}.{suggest(name, known)} There are: "
                f"{', '.join(known)}",
                file=sys.stderr,
            )
            return 2
    for name in args.names or known:
        status = subprocess.run([sys.executable, str(ROOT / f"{name}.py")], check=False).returncode
        if status:
            return status
    return 0
