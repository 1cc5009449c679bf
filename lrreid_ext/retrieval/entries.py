"""What a gallery knows of each image, and where identities and cameras come from."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lrreid_ext.data.recipes.market1501 import MARKET_NAME
from lrreid_ext.data.recipes.sources import IMAGE_SUFFIXES
from lrreid_ext.errors import GalleryError

__all__ = [
    "Entry",
    "Label",
    "Labels",
    "Paths",
    "each_path",
    "find_images",
    "read_labels",
    "shown_name",
]

# Files and folders.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
# Identity and camera of an image file; "" is unknown.
Label = tuple[str, str]

LABEL_COLUMNS = ("path", "identity", "camera")
# Bytes of UTF-8; Milvus has to be told how long a text may be.
LONGEST_LABEL = 256


class Labels(NamedTuple):
    """Where identities and cameras come from.

    Attributes:
        of: the label of an image file.
        overrule: whether these labels count more than those that a gallery has.
    """

    of: Callable[[Path], Label]
    overrule: bool = False


@dataclass(frozen=True)
class Entry:
    """One image of a gallery.

    Attributes:
        id: number in the gallery, never used again after a removal; 0: none yet.
        sha256: of the file's bytes.
        file: absolute path.
        height, width: native size in pixels; the file's, or with INPUT.NATIVE_SIZE estimated what
            its spectrum speaks for.
        identity, camera: as the names or the table say; "" is unknown.
    """

    id: int
    sha256: str
    file: str
    height: int
    width: int
    identity: str = ""
    camera: str = ""

    @property
    def junk(self) -> bool:
        """A bad detection, by Market-1501's convention: never ranked."""
        return self.identity.startswith("-")

    def plain(self) -> dict[str, Any]:
        """For JSON, without the number."""
        content = asdict(self)
        del content["id"]
        return content


def each_path(paths: Paths) -> list[str | os.PathLike[str]]:
    """One path, or several, as a list."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def find_images(paths: Paths) -> list[Path]:
    """Image files in the order named, each once; of folders all in and below them, sorted.

    Args:
        paths: a file or folder, or several.

    Raises:
        GalleryError: a path that isn't there, or a folder without images.
    """
    found: dict[Path, None] = {}
    for path in map(Path, each_path(paths)):
        if path.is_dir():
            # A built file's name begins with a dot while it is being written.
            inside = [
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            ]
            if not inside:
                raise GalleryError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            # What a broken link leads to is nothing; it is left out by its own name.
            found |= dict.fromkeys(
                p.resolve() if p.is_file() else p.absolute() for p in sorted(inside)
            )
        elif path.exists():
            found[path.resolve()] = None
        else:
            raise GalleryError(f"{path}: no such file or folder")
    return list(found)


def shown_name(path: str | os.PathLike[str]) -> str:
    """A path that can be printed: bytes that aren't UTF-8 as escapes, such as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_labels(how: str) -> Labels:
    """Where identities and cameras come from.

    Args:
        how: ``none``; ``market``, from names like ``0002_c1s1_000451_03.jpg``, other names being
            unlabelled; or the path of a CSV file (UTF-8) with the columns ``path`` (relative to the
            file, or absolute), ``identity`` and ``camera``. Other columns are passed over. A table
            overrules what a gallery has, but for lines that have neither.

    Raises:
        GalleryError: a table that can't be read; names the line.
    """
    if how == "none":
        return Labels(lambda path: ("", ""))
    if how == "market":
        return Labels(_market)
    table = Path(how)
    if not table.is_file():
        raise GalleryError(f"--labels {how}: is neither none, market nor a CSV file that is there")
    known = _table(table)
    return Labels(lambda path: known.get(path, ("", "")), overrule=True)


def _market(path: Path) -> Label:
    match = MARKET_NAME.fullmatch(path.name)
    return (str(int(match[1])), str(int(match[2]))) if match else ("", "")


def _table(table: Path) -> dict[Path, Label]:
    known: dict[Path, Label] = {}
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            missing = [name for name in LABEL_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise GalleryError(
                    f"{table}, line 1: no column {missing[0]!r}; it needs "
                    f"{', '.join(LABEL_COLUMNS)}"
                )
            for line in reader:
                where = f"{table}, line {reader.line_num}"
                if None in line or None in line.values():
                    raise GalleryError(f"{where}: has another number of fields than the header")
                name, identity, camera = (line[key].strip() for key in LABEL_COLUMNS)
                if not name:
                    raise GalleryError(f"{where}: no path")
                if max(len(identity.encode()), len(camera.encode())) > LONGEST_LABEL:
                    raise GalleryError(f"{where}: a label has more than {LONGEST_LABEL} bytes")
                path = (table.parent / name).resolve()
                if known.setdefault(path, (identity, camera)) != (identity, camera):
                    raise GalleryError(f"{where}: {name} has other labels in an earlier line")
    except (csv.Error, UnicodeDecodeError) as error:
        raise GalleryError(f"{table}: can't be read as CSV in UTF-8 ({error})") from error
    return known
