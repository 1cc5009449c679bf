"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from lrreid_ext.data.recipes import recipe_named
from lrreid_ext.errors import ConfigError, RecipeError

__all__ = [
    "add_data_set",
    "add_overrides",
    "add_processes",
    "add_run",
    "at_least",
    "data_set_name",
    "pairs",
]


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """An option's ``type``: a number of ``kind`` that is not below ``least``."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, not {text}")
        return value

    return number


def data_set_name(text: str) -> str:
    """An option's ``type``: a data set by its name, or by its recipe's YAML file."""
    try:
        return recipe_named(text)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_data_set(parser: argparse.ArgumentParser, default: str, what: str = "") -> None:
    """Add ``--data-set NAME``; ``default`` says which data set is used without it."""
    parser.add_argument(
        "--data-set", default="", type=data_set_name, metavar="NAME",
        help=f"{what}a name, or a recipe's YAML file (default: {default})",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser, nargs: str | None = "+") -> None:
    """Add the trained models, ``runs`` (``run`` for ``nargs=None``), and ``--opts KEY VALUE``."""
    parser.add_argument(
        "runs" if nargs else "run", nargs=nargs, metavar="[NAME=]RUN",
        help="folder of a training (its last checkpoint is used), a checkpoint in it, or "
        "hub:owner/name; tables and figures call it NAME",
    )  # fmt: skip
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE",
        help="overrides of all runs' configs; after the RUNs",
    )  # fmt: skip


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the number of processes, ``args.processes``."""
    parser.add_argument(
        "--num-gpus", "--num-processes", type=int, default=1, dest="processes", metavar="N",
        help="processes on this machine: one per GPU, or any number on a CPU",
    )  # fmt: skip


def add_overrides(parser: argparse.ArgumentParser, what: str = "overrides of the config") -> None:
    """Add overrides of the config as positional ``KEY VALUE`` pairs, ``args.opts``."""
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=what)


def pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Words ``KEY VALUE ...`` by key."""
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} has no partner")
    return dict(zip(overrides[::2], overrides[1::2], strict=True))
