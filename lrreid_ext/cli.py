"""``lrreid``: one command over all that is in :mod:`lrreid_ext.commands`."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lrreid_ext.registry import suggest

FOLDER = Path(__file__).with_name("commands")


def commands() -> dict[str, str]:
    """Every command and the first line of its docstring, without importing any."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = " ".join(doc.split("\n\n")[0].split())
    return found


def usage() -> str:
    """What ``lrreid --help`` prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {line}" for name, line in known.items()]
    return "\n".join(
        [
            "usage: lrreid COMMAND [OPTIONS]",
            "",
            "Low- and cross-resolution person re-identification on fast-reid.",
            "",
            *lines,
            "",
            "lrreid COMMAND --help says more.",
        ]
    )


def guarded(main: Callable[..., int], *args: Any) -> int:
    """Run a command: an interruption, and a reader that has gone (``lrreid list | head``), end it
    without a traceback, by the shell's exit status for each."""
    try:
        status = main(*args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nothing is left to be flushed at the end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the command's exit status, or 2 for a command that there isn't."""
    return guarded(_run, list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, rest = words[0], words[1:]
    known = commands()
    if name not in known:
        print(
            f"error: no command {name!r}.{suggest(name, known)} There are: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    # What is written beside figures is what was typed, wherever the script was found.
    sys.argv = ["lrreid", *words]
    return int(import_module(f"lrreid_ext.commands.{name.replace('-', '_')}").main(rest))
