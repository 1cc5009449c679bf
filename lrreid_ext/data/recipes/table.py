"""Any data set, by a table of its images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath

from lrreid_ext.data.labels import read_table
from lrreid_ext.data.recipes.base import (
    EITHER,
    GALLERY,
    LARGEST_NUMBER,
    LONGEST_STEM,
    QUERY,
    TRAIN,
    SourceImage,
)
from lrreid_ext.data.recipes.rules import MLRRecipe
from lrreid_ext.errors import RecipeError

__all__ = ["TableRecipe"]

COLUMNS = ("path", "identity", "camera", "split")
#: What a split's images are.
SPLITS = {"train": TRAIN, "query": QUERY, "gallery": GALLERY, "test": EITHER}

_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")

Row = tuple[str, str, str, str]


class TableRecipe(MLRRecipe):
    """Your own images, listed in a CSV file (UTF-8, with a header) of the source folder.

    ========  ==================================================================================
    column    content
    ========  ==================================================================================
    path      image file, below the source folder
    identity  a number from 1 or a name; empty for a distractor, which only the gallery and test
              may hold
    camera    a number from 0 or a name
    split     ``train``; ``query`` or ``gallery``; or ``test``, a query if the LR camera took it,
              else in the gallery
    ========  ==================================================================================

    Other columns are passed over. Identities that are all whole numbers above 0, and cameras that
    are all whole numbers from 0, keep their numbers; else they are numbered from 1 in the order of
    their sorted names. ``lr_camera`` is a number in that sense. Without training images the set is
    for testing alone.

    Attributes:
        csv: the file's name, below the source folder.
    """

    source_name = "a CSV table of images"
    where_to_get = (
        "you write it, one line for each image, with the columns path,identity,camera,split"
    )
    terms = "those of your images; the people in them have a say"
    needs_train = False
    expected = f"a CSV file with the columns {', '.join(COLUMNS)} (option csv)"
    listed = True

    csv: str = "images.csv"

    def holds(self, folder: Path) -> bool:
        return (folder / self.csv).is_file()

    def read(self, root: Path) -> list[SourceImage]:
        table = root / self.csv
        rows = _rows(root, table)
        people = _numbers(table, "identity", {n: row[1] for n, row in rows.items() if row[1]})
        cameras = _numbers(table, "camera", {n: row[2] for n, row in rows.items()})
        return [
            SourceImage(
                path=path,
                pid=people[identity] if identity else 0,
                camid=cameras[camera],
                role=SPLITS[split],
                name=_name(path),
            )
            for path, identity, camera, split in rows.values()
        ]


def _rows(root: Path, table: Path) -> dict[int, Row]:
    """The table's rows by their line.

    Raises:
        ConfigError: names the file and the line that can't be used.
    """
    rows: dict[int, Row] = {}
    lines: dict[str, int] = {}
    for number, values in read_table(table, COLUMNS):
        where = f"{table}, line {number}"
        row = _row(root, values, where)
        if row[0] in lines:
            raise RecipeError(f"{where}: {row[0]} stands in line {lines[row[0]]} already.")
        lines[row[0]] = number
        rows[number] = row
    return rows


def _row(root: Path, values: Sequence[str], where: str) -> Row:
    path, identity, camera, split = values
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise RecipeError(
            f"{where}: path {path!r} is not a file below the folder, with forward slashes."
        )
    if (length := len(PurePosixPath(_name(str(pure))).stem.encode())) > LONGEST_STEM:
        raise RecipeError(
            f"{where}: path {path!r} has {length} bytes without its suffix; the built file is "
            f"called after it, and has at most {LONGEST_STEM}. Shorten it."
        )
    if split not in SPLITS:
        raise RecipeError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}.")
    if not camera:
        raise RecipeError(f"{where}: no camera.")
    if not identity and split in ("train", "query"):
        raise RecipeError(f"{where}: no identity, which a {split} image needs.")
    if not (root / path).is_file():
        raise RecipeError(f"{where}: no such file {root / path}.")
    return str(pure), identity, camera, split


def _name(path: str) -> str:
    """What the built file is called after: folders may repeat names."""
    return path.replace("/", "_")


#: The least number of each column, and what to write in the place of those below it.
_LEAST = {
    "identity": (1, "leave the field empty for a distractor, and the line out for junk"),
    "camera": (0, "give it such a number, or a name"),
}


def _numbers(table: Path, column: str, named: dict[int, str]) -> dict[str, int]:
    """A number for each name: its own, if all are whole numbers; else by the names' order.

    Args:
        table: named in messages.
        column: ``identity`` or ``camera``.
        named: names by their line.

    Raises:
        RecipeError: a number that is too small or too large, or one that is written in two ways;
            names the line.
    """
    least, instead = _LEAST[column]
    known: dict[Decimal, tuple[str, int]] = {}
    for line, name in named.items():
        if not _NUMBER.fullmatch(name):
            continue
        where, value = f"{table}, line {line}: {column} {name!r}", Decimal(name)
        if value < least:
            raise RecipeError(f"{where}: numbers are from {least}; {instead}.")
        if value > LARGEST_NUMBER:
            raise RecipeError(
                f"{where}: numbers are to {LARGEST_NUMBER}; number from {least}, or give names."
            )
        spelled, before = known.setdefault(value, (name, line))
        if spelled != name:
            raise RecipeError(
                f"{where} is written {spelled!r} in line {before}; write one number in one way."
            )
    distinct = sorted(set(named.values()))
    if all(name.isascii() and name.isdecimal() for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=1)}
