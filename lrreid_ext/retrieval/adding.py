"""What adding image files to a gallery comes to: what is new, has moved, or gives way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lrreid_ext.data.pictures import read_picture
from lrreid_ext.errors import ImageError
from lrreid_ext.retrieval.entries import Entry, Labels, shown_name
from lrreid_ext.retrieval.store import Store

__all__ = ["Change", "Plan", "content_hash", "plan", "why_left_out"]


@dataclass
class Change:
    """What adding images did.

    Attributes:
        added: entries put in.
        moved: files whose content was there under a name that no longer holds it: both, the old one
            first. Their features stay.
        relabelled: files that were there, and have other labels in the table that is given now.
        replaced: files that were there with other content, which is taken out.
        duplicates: files whose content is there under another name (or came before): both.
        unchanged: number of files that are there already.
        junk: files that their names call bad detections; left out.
        damaged: files that can't be read, and why; left out. What such a file held before stays.
    """

    added: int = 0
    moved: list[tuple[str, str]] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0
    junk: list[str] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)


class Plan(NamedTuple):
    """What a store is to do.

    Attributes:
        fresh: entries to be embedded; their sizes aren't known yet.
        settled: entries that are there, with the files and labels that they have now.
        gone: entries to be taken out.
    """

    fresh: list[Entry]
    settled: list[Entry]
    gone: list[Entry]


def plan(store: Store, files: Sequence[Path], labels: Labels, change: Change) -> Plan:
    """Compare image files with what a gallery holds, by content.

    A content belongs to one file. One that is found under another name moves there if its own file
    is gone or holds something else; so files may be renumbered, swapped and moved, and nothing is
    embedded anew. An entry whose file holds something else, and whose content isn't among the
    files, gives way, unless the file can't be read as an image any more.

    Args:
        store: what is there.
        files: absolute paths, each once.
        labels: see :func:`~lrreid_ext.retrieval.entries.read_labels`.
        change: takes what there is to say of it, but for the number of images added.
    """
    given = _contents(files, labels, change)
    held = store.known(set(given.values()))
    there = store.of_file(list(given))
    outdated = {e.sha256 for e in there.values() if given[e.file] != e.sha256}
    places: dict[str, str] = {}
    spared: set[str] = set()
    fresh, settled = [], []
    for file, sha256 in given.items():
        label = labels.of(Path(file))
        entry = held.get(sha256)
        if entry is not None and entry.file == file:
            places[sha256] = file
            if labels.overrule and any(label) and label != (entry.identity, entry.camera):
                settled.append(replace(entry, identity=label[0], camera=label[1]))
                change.relabelled.append(file)
            else:
                change.unchanged += 1
        elif sha256 in places:
            change.duplicates.append((file, places[sha256]))
        elif entry is None:
            if file in there:
                try:
                    read_picture(file)
                except ImageError as error:
                    change.damaged.append(why_left_out(file, error))
                    spared.add(there[file].sha256)
                    continue
            places[sha256] = file
            fresh.append(Entry(0, sha256, file, 0, 0, *label))
        elif sha256 not in outdated and (entry.file in given or _holds(entry.file, sha256)):
            places[sha256] = entry.file
            change.duplicates.append((file, entry.file))
        else:
            places[sha256] = file
            identity, camera = label if any(label) else (entry.identity, entry.camera)
            settled.append(replace(entry, file=file, identity=identity, camera=camera))
            change.moved.append((entry.file, file))
    kept = spared.union(places)
    gone = [e for e in there.values() if e.sha256 in outdated and e.sha256 not in kept]
    change.replaced = [e.file for e in gone]
    return Plan(fresh, settled, gone)


def content_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        ImageError: it can't be read, or its name can't be kept; begins with the name.
    """
    try:
        str(path).encode()
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except UnicodeEncodeError as error:
        raise ImageError(f"{shown_name(path)}: its name isn't in UTF-8; rename it") from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror}") from error


def why_left_out(path: str | os.PathLike[str], error: ImageError) -> tuple[str, str]:
    """A file as it is shown, and what an error that begins with its name says of it."""
    name = shown_name(path)
    return name, str(error).removeprefix(f"{name}: ")


def _contents(files: Sequence[Path], labels: Labels, change: Change) -> dict[str, str]:
    """Hashes of the files that can be used, by path."""
    given = {}
    for path in files:
        if Entry(0, "", str(path), 0, 0, *labels.of(path)).junk:
            change.junk.append(str(path))
            continue
        try:
            given[str(path)] = content_hash(path)
        except ImageError as error:
            change.damaged.append(why_left_out(path, error))
    return given


def _holds(file: str, sha256: str) -> bool:
    try:
        return content_hash(file) == sha256
    except ImageError:
        return False
