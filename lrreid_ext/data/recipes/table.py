"""Any data set, by a table of its images."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from lrreid_ext.data.recipes.base import EITHER, GALLERY, QUERY, TRAIN, RecipeError, SourceImage
from lrreid_ext.data.recipes.rules import MLRRecipe
from lrreid_ext.data.recipes.sources import first_folder

__all__ = ["TableRecipe"]

COLUMNS = ("path", "identity", "camera", "split")
#: What a split's images are.
SPLITS = {"train": TRAIN, "query": QUERY, "gallery": GALLERY, "test": EITHER}

Row = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class TableRecipe(MLRRecipe):
    """Your own images, listed in a CSV file (UTF-8, with a header) of the source folder.

    ========  ==================================================================================
    column    content
    ========  ==================================================================================
    path      image file, below the source folder
    identity  a number or a name; empty for a distractor, which only the gallery and test may hold
    camera    a number or a name
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

    source_name: ClassVar[str] = "a CSV table of images"
    where_to_get: ClassVar[str] = (
        "you write it, one line for each image, with the columns path,identity,camera,split"
    )
    terms: ClassVar[str] = "those of your images; the people in them have a say"
    needs_train: ClassVar[bool] = False

    csv: str = "images.csv"

    def locate(self, source: Path) -> Path:
        return first_folder(
            self,
            source,
            ("",),
            lambda folder: (folder / self.csv).is_file(),
            f"the file {self.csv} with the columns {', '.join(COLUMNS)}",
        )

    def read(self, root: Path) -> list[SourceImage]:
        rows = _rows(root, root / self.csv)
        people = _numbers((identity for _, identity, _, _ in rows if identity), least=1)
        cameras = _numbers((camera for _, _, camera, _ in rows), least=0)
        return [
            SourceImage(
                path=path,
                pid=people[identity] if identity else 0,
                camid=cameras[camera],
                split="train" if split == "train" else "test",
                role=SPLITS[split],
                name=path.replace("/", "_"),
            )
            for path, identity, camera, split in rows
        ]


def _rows(root: Path, table: Path) -> list[Row]:
    """The table's rows.

    Raises:
        RecipeError: names the file and the line that can't be used.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise RecipeError(
                    f"{table}, line 1: no column {missing[0]!r} in "
                    f"{','.join(reader.fieldnames or ())!r}; it needs {','.join(COLUMNS)}, with "
                    "commas between them."
                )
            for line in reader:
                number = reader.line_num
                row = _row(root, line, f"{table}, line {number}")
                if row[0] in lines:
                    raise RecipeError(
                        f"{table}, line {number}: {row[0]} stands in line {lines[row[0]]} already."
                    )
                lines[row[0]] = number
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RecipeError(f"{table}: can't be read as CSV in UTF-8 ({error}).") from error
    return rows


def _row(root: Path, line: dict[str, str | None], where: str) -> Row:
    if None in line or None in line.values():
        raise RecipeError(f"{where}: has another number of fields than the header.")
    path, identity, camera, split = ((line[name] or "").strip() for name in COLUMNS)
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise RecipeError(
            f"{where}: path {path!r} is not a file below the folder, with forward slashes."
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


def _numbers(names: Iterable[str], least: int) -> dict[str, int]:
    """A number for each name: its own, if all are whole numbers from ``least``; else by order."""
    distinct = sorted(set(names))
    if all(name.isascii() and name.isdecimal() and int(name) >= least for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=1)}
