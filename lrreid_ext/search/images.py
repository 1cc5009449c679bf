"""Image files, their contents and their labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lrreid_ext.data.labels import market_label, read_table
from lrreid_ext.data.recipes.sources import IMAGE_SUFFIXES
from lrreid_ext.errors import GalleryError, ImageError

__all__ = [
    "Entry",
    "Label",
    "Labels",
    "Paths",
    "content_hash",
    "each_path",
    "failure",
    "find_images",
    "read_content",
    "read_labels",
]

# Files and folders.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
# Identity and camera of an image file; "" is unknown.
Label = tuple[str, str]

LABEL_COLUMNS = ("path", "identity", "camera")
# Bytes of UTF-8. Milvus needs a limit.
LONGEST_LABEL = 256


class Labels(NamedTuple):
    """Where identities and cameras come from.

    Attributes:
        of: the label of an image file.
        overrule: whether these labels replace those that a gallery has.
    """

    of: Callable[[Path], Label]
    overrule: bool = False


@dataclass(frozen=True)
class Entry:
    """One image of a gallery.

    Attributes:
        sha256: hash of the file's bytes.
        file: absolute path.
        height, width: native size in pixels: the file's, or the estimate from the image's spectrum
            with INPUT.NATIVE_SIZE estimated.
        identity, camera: from the file name or the table; "" is unknown.
    """

    sha256: str
    file: str
    height: int
    width: int
    identity: str = ""
    camera: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def each_path(paths: Paths) -> list[str | os.PathLike[str]]:
    """One path, or several, as a list."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def find_images(paths: Paths) -> list[Path]:
    """Absolute paths of image files, each once, in the order given; files of a folder sorted.

    Args:
        paths: a file or folder, or several. Folders are searched recursively.

    Raises:
        GalleryError: a path that doesn't exist, or a folder without images.
    """
    files: dict[Path, None] = {}
    for path in map(Path, each_path(paths)):
        if path.is_dir():
            # Names of half-written files begin with a dot.
            inside = [
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            ]
            if not inside:
                raise GalleryError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            # A broken link keeps its own name, so that the error can name it.
            files |= dict.fromkeys(
                p.resolve() if p.is_file() else p.absolute() for p in sorted(inside)
            )
        elif path.exists():
            files[path.resolve()] = None
        else:
            raise GalleryError(f"{path}: no such file or folder")
    return list(files)


def read_content(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: the file can't be read, or its name can't be stored; begins with the name.
    """
    if any(letter < " " and letter not in "\t\n\r\f\b" for letter in str(path)):
        # Milvus can't store one.
        raise ImageError(f"{path!r}: its name holds a control character; rename it")
    try:
        str(path).encode()
        return Path(path).read_bytes()
    except UnicodeEncodeError as error:
        raise ImageError(f"{_printable(path)}: its name isn't in UTF-8; rename it") from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror}") from error


def content_hash(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def failure(path: str | os.PathLike[str], error: ImageError) -> tuple[str, str]:
    """A file's printable name, and the error's message without that name."""
    name = _printable(path)
    return name, str(error).removeprefix(f"{name}: ")


def _printable(path: str | os.PathLike[str]) -> str:
    """A path with bytes that aren't UTF-8 as escapes, such as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_labels(how: str) -> Labels:
    """Where identities and cameras come from.

    Args:
        how: ``none``; ``market``, from names like ``0002_c1s1_000451_03.jpg``, where other names
            have no label; or the path of a CSV file (UTF-8) with the columns ``path`` (relative to
            the CSV file, or absolute), ``identity`` and ``camera``. Other columns are ignored. A
            table replaces a gallery's labels, except in lines with neither identity nor camera.

    Raises:
        GalleryError: a table that can't be read; names the line.
    """
    if how == "none":
        return Labels(lambda path: ("", ""))
    if how == "market":
        return Labels(_market)
    table = Path(how)
    if not table.is_file():
        raise GalleryError(f"--labels {how}: is neither none, market nor an existing CSV file")
    labels = _table(table)
    return Labels(lambda path: labels.get(path, ("", "")), overrule=True)


def _market(path: Path) -> Label:
    label = market_label(path.name)
    return (str(label[0]), str(label[1])) if label else ("", "")


def _table(table: Path) -> dict[Path, Label]:
    labels: dict[Path, Label] = {}
    for number, (name, identity, camera) in read_table(table, LABEL_COLUMNS):
        where = f"{table}, line {number}"
        if not name:
            raise GalleryError(f"{where}: no path")
        if max(len(identity.encode()), len(camera.encode())) > LONGEST_LABEL:
            raise GalleryError(f"{where}: a label has more than {LONGEST_LABEL} bytes")
        path = (table.parent / name).resolve()
        if labels.setdefault(path, (identity, camera)) != (identity, camera):
            raise GalleryError(f"{where}: {name} has other labels in an earlier line")
    return labels
