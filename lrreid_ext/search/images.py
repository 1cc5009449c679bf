"""Image files and their labels, and what adding them changes in a gallery."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lrreid_ext.data.labels import market_label, read_table
from lrreid_ext.data.recipes.sources import IMAGE_SUFFIXES
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.search.store import Entry, Store

__all__ = [
    "Change",
    "Labels",
    "Paths",
    "add_stored",
    "each_path",
    "find_images",
    "read_content",
    "read_labels",
]

# Files and folders.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
# Identity and camera of an image file; "" is unknown.
Label = tuple[str, str]
UNKNOWN: Label = ("", "")

LABEL_COLUMNS = ("path", "identity", "camera")


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


def read_content(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """A file's bytes, and their SHA-256 in hexadecimal.

    Raises:
        ImageError: the file can't be read, or its name isn't in UTF-8; names it.
    """
    try:
        str(path).encode()
        content = Path(path).read_bytes()
    except UnicodeEncodeError as error:
        # Bytes that aren't UTF-8 as escapes, such as \xe9.
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ImageError(f"{name}: its name isn't in UTF-8; rename it") from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror}") from error
    return content, hashlib.sha256(content).hexdigest()


class Labels(NamedTuple):
    """Where identities and cameras come from.

    Attributes:
        of: the label of an image file.
        overrule: whether these labels replace those that a gallery has.
    """

    of: Callable[[Path], Label]
    overrule: bool = False

    def update(self, entry: Entry, file: str) -> Label:
        """The label of an entry whose content is in ``file`` now.

        A table's label counts, or else the entry's. An entry that is moved, and that had its label
        from its old name or had none, takes that of the new name.
        """
        label = entry.identity, entry.camera
        moved = file != entry.file and label in (UNKNOWN, self.of(Path(entry.file)))
        new = self.of(Path(file))
        return new if any(new) and (self.overrule or moved) else label


def read_labels(source: str) -> Labels:
    """Where identities and cameras come from.

    Args:
        source: ``none``; ``market``, from names like ``0002_c1s1_000451_03.jpg``, where other names
            have no label; or the path of a CSV file (UTF-8) with the columns ``path`` (relative to
            the CSV file, or absolute), ``identity`` and ``camera``. Other columns are ignored. A
            table replaces a gallery's labels, except in lines with neither identity nor camera.

    Raises:
        GalleryError: a table that can't be read; names the line.
    """
    if source == "none":
        return Labels(lambda path: UNKNOWN)
    if source == "market":
        return Labels(_market)
    table = Path(source)
    if not table.is_file():
        raise GalleryError(f"--labels {source}: is neither none, market nor an existing CSV file")
    labels: dict[Path, Label] = {}
    for number, (name, identity, camera) in read_table(table, LABEL_COLUMNS):
        if not name:
            raise GalleryError(f"{table}, line {number}: no path")
        label = identity, camera
        if labels.setdefault((table.parent / name).resolve(), label) != label:
            raise GalleryError(
                f"{table}, line {number}: {name} has other labels in an earlier line"
            )
    return Labels(lambda path: labels.get(path, UNKNOWN), overrule=True)


def _market(path: Path) -> Label:
    label = market_label(path.name)
    return (str(label[0]), str(label[1])) if label else UNKNOWN


@dataclass
class Change:
    """What adding images did.

    Attributes:
        added: number of entries added.
        moved: old and new file of contents whose old file no longer holds them. Features stay.
        relabelled: files whose labels the table changed.
        replaced: files whose earlier content was dropped, since they hold another.
        duplicates: files left out, each with the file that has the same content.
        unchanged: number of files that were stored already.
        junk: files that their names or the table call bad detections; left out.
        discarded: stored files dropped because they are junk now.
        damaged: for each file that can't be used, its name and the reason; left out. Their earlier
            content stays.
    """

    added: int = 0
    moved: list[tuple[str, str]] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0
    junk: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def add_stored(
    store: Store, files: Sequence[Path], labels: Labels, change: Change
) -> dict[str, list[str]]:
    """Give stored contents their present files and labels, and drop junk.

    A content belongs to one file: the stored one while that holds it, or else the first of
    ``files`` that does. So files may be renamed, swapped and moved, and nothing is embedded again.
    A content that no file holds is dropped, if its own file is among ``files`` and can be read.

    Args:
        store: what is there.
        files: absolute paths, each once.
        labels: of the files.
        change: receives what there is to report.

    Returns:
        Hashes of contents that aren't stored, and the files that hold each.
    """
    usable: dict[str, str] = {}
    junk: dict[str, str] = {}
    for path in files:
        # Market-1501's convention for bad detections.
        is_junk = labels.of(path)[0].startswith("-")
        try:
            (junk if is_junk else usable)[str(path)] = read_content(path)[1]
        except ImageError as error:
            change.damaged.append(str(error))
    change.junk += junk
    entries = store.matching({**usable, **junk}, {*usable.values(), *junk.values()})
    stored = {entry.sha256: entry for entry in entries}
    owners = {e.sha256: e.file for e in entries if e.file not in junk and _is_held(e, usable)}
    fresh: dict[str, list[str]] = {}
    changed = []
    for file, sha256 in usable.items():
        owner = owners.setdefault(sha256, file)
        entry = stored.get(sha256)
        if entry is None:
            fresh.setdefault(sha256, []).append(file)
            continue
        if file != owner:
            change.duplicates.append((file, owner))
            continue
        identity, camera = labels.update(entry, file)
        updated = replace(entry, file=file, identity=identity, camera=camera)
        if updated == entry:
            change.unchanged += 1
            continue
        changed.append(updated)
        if file == entry.file:
            change.relabelled.append(file)
        else:
            change.moved.append((entry.file, file))
    if changed:
        store.put(changed)
    # A fresh content takes its file's place once it is embedded.
    dropped = [e for e in entries if e.sha256 not in owners and usable.get(e.file) not in fresh]
    for entry in dropped:
        is_junk = entry.file in junk or entry.sha256 in junk.values()
        (change.discarded if is_junk else change.replaced).append(entry.file)
    store.remove(dropped)
    return fresh


def _is_held(entry: Entry, contents: dict[str, str]) -> bool:
    """Whether an entry's file still holds its content; ``contents`` has those read already."""
    try:
        return (contents.get(entry.file) or read_content(entry.file)[1]) == entry.sha256
    except ImageError:
        return False
