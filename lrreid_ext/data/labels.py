"""Identities and cameras as text: file names in Market-1501's naming, and CSV tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lrreid_ext.errors import ConfigError

__all__ = ["market_label", "read_table"]

_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)(?!\d).*")


def market_label(name: str) -> tuple[int, int] | None:
    """Identity and camera of an image file named as Market-1501 does.

    Args:
        name: such as ``0002_c1s1_000451_03.jpg``: identity 2, camera 1. Identity 0 is a
            distractor, -1 junk.

    Returns:
        Both numbers; None for a name of another kind.
    """
    match = _MARKET_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def read_table(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file (UTF-8, with a header), one by one.

    Args:
        table: the file.
        columns: those that are read, in this order; others are passed over.

    Returns:
        The number of each line in the file, and its values without blanks around them.

    Raises:
        ConfigError: a file that can't be read, a column that isn't there, or a line with another
            number of fields than the header; names the line.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            header = reader.fieldnames or ()
            if missing := [name for name in columns if name not in header]:
                raise ConfigError(
                    f"{table}, line 1: no column {missing[0]!r} in {','.join(header)!r}; it needs "
                    f"{','.join(columns)}, with commas between them"
                )
            for line in reader:
                if None in line or None in line.values():
                    raise ConfigError(
                        f"{table}, line {reader.line_num}: has another number of fields than the "
                        "header"
                    )
                yield reader.line_num, [line[name].strip() for name in columns]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{table}: can't be read as CSV in UTF-8 ({error})") from error
