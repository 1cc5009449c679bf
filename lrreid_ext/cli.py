"""The command ``lrreid``.

A command is a module with

- a docstring: its first paragraph describes the command, the rest follows the list of options;
- ``add_arguments(parser)``, which adds the options to an ``argparse.ArgumentParser``;
- ``run(args)``, which does the work; it may return an exit status, and raises a
  :class:`~lrreid_ext.errors.UserError` for what a user can fix;
- perhaps ``INTERRUPTED``, a line that says what to do after Ctrl-C.

The commands of this package are in :data:`lrreid_ext.commands.COMMANDS`; plugins declare theirs
(:func:`lrreid_ext.plugins.plugin_commands`). Only the module of the command that runs is imported,
so that ``--help`` and ``--version`` don't wait for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from lrreid_ext import __version__
from lrreid_ext.commands import COMMANDS
from lrreid_ext.errors import UserError, suggest
from lrreid_ext.plugins import import_module, plugin_commands

__all__ = ["commands", "main", "run_command"]


def commands() -> dict[str, tuple[str, str]]:
    """The module and the line of help of every command, by the command's name."""
    own = {name: (f"lrreid_ext.commands.{name}", line) for name, line in COMMANDS.items()}
    return own | {k: v for k, v in plugin_commands().items() if k not in own}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of ``lrreid``.

    Args:
        argv: the command line; by default the process's.

    Returns:
        The exit status; see :func:`run_command`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"lrreid {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        _print_usage()
        return 0 if words else 2
    name, table = words[0], commands()
    if name not in table:
        print(
            f"error: no command {name!r}.{suggest(name, table)} Commands: {', '.join(table)}",
            file=sys.stderr,
        )
        return 2
    # Results files record the command as it was typed.
    sys.argv = ["lrreid", *words]
    return run_command(table[name][0], f"lrreid {name}", words[1:])


def _print_usage() -> None:
    table = commands()
    width = max(map(len, table))
    print("usage: lrreid COMMAND [OPTIONS]\n")
    print("Low- and cross-resolution person re-identification on fast-reid.\n")
    for name, (_, line) in table.items():
        print(f"  {name:<{width}}  {line}")
    print("\nlrreid COMMAND --help says more; lrreid --version prints the version.")


def run_command(module: str, prog: str, argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        module: name of the command's module.
        prog: what the help calls the command.
        argv: the words after the command's name; by default the process's.

    Returns:
        The exit status: 0; the command's own; 2 with one line on stderr for what a user can fix;
        130 after Ctrl-C; 141 where the reader of the output has gone (``lrreid list | head``).
    """
    note = ""
    try:
        command = import_module(module)
        note = getattr(command, "INTERRUPTED", "")
        args = _parse(command, prog, list(sys.argv[1:] if argv is None else argv))
        # fastreid's way to make tensors; every worker of a loader would warn of it.
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        status = command.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Nothing is left to be flushed at the end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("; ".join(filter(None, ["interrupted", note])), file=sys.stderr)
        return 130


def _parse(command: ModuleType, prog: str, words: list[str]) -> argparse.Namespace:
    description, _, details = (command.__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:  # argparse can't intermix where there are sub-commands
        return parser.parse_args(words)
