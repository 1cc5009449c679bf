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
from lrreid_ext.retrieval.entries import Entry, Label, Labels, shown_name
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
        junk: files that their names or the table call bad detections; left out.
        discarded: files that were there and are junk now; taken out.
        damaged: files that can't be read, and why; left out. What such a file held before stays.
    """

    added: int = 0
    moved: list[tuple[str, str]] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0
    junk: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
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
    given, junk = _contents(files, labels, change)
    everything = {**given, **junk}
    held = store.known(set(everything.values()))
    outdated = [e for e in store.of_files(list(everything)) if everything[e.file] != e.sha256]
    unreadable = _unreadable({e.file: everything[e.file] for e in outdated}, held)
    change.damaged += [(shown_name(f), unreadable[h]) for f, h in given.items() if h in unreadable]
    given = {f: h for f, h in given.items() if h not in unreadable}
    places: dict[str, str] = {}
    fresh, settled = [], []
    for file, sha256 in given.items():
        entry = held.get(sha256)
        if entry is not None and entry.file == file:
            places[sha256] = file
            label = labels.of(Path(file))
            if labels.overrule and any(label) and label != (entry.identity, entry.camera):
                settled.append(replace(entry, identity=label[0], camera=label[1]))
                change.relabelled.append(file)
            else:
                change.unchanged += 1
        elif sha256 in places:
            change.duplicates.append((file, places[sha256]))
        elif entry is None:
            places[sha256] = file
            fresh.append(Entry(0, sha256, file, 0, 0, *labels.of(Path(file))))
        elif _is_there(entry, given):
            places[sha256] = entry.file
            change.duplicates.append((file, entry.file))
        else:
            places[sha256] = file
            identity, camera = _label_moved(entry, Path(file), labels)
            settled.append(replace(entry, file=file, identity=identity, camera=camera))
            change.moved.append((entry.file, file))
    gone = {
        e.sha256: e
        for e in outdated
        if e.sha256 not in places and everything[e.file] not in unreadable
    }
    change.replaced = [e.file for e in gone.values() if e.file not in junk]
    for file, sha256 in junk.items():
        entry = held.get(sha256)
        if entry and sha256 not in places and (entry.file == file or not _is_there(entry, given)):
            gone[sha256] = entry
    replaced = set(change.replaced)
    change.discarded = [e.file for e in gone.values() if e.file not in replaced]
    return Plan(fresh, settled, list(gone.values()))


def _unreadable(changed: dict[str, str], held: dict[str, Entry]) -> dict[str, str]:
    """Of contents that aren't there and would take another's place: why they are no images."""
    found = {}
    for file, sha256 in changed.items():
        if sha256 not in held and sha256 not in found:
            try:
                read_picture(file)
            except ImageError as error:
                found[sha256] = why_left_out(file, error)[1]
    return found


def _is_there(entry: Entry, given: dict[str, str]) -> bool:
    """Whether an entry's file still holds its content; files that are given are known."""
    if entry.file in given:
        return given[entry.file] == entry.sha256
    try:
        return content_hash(entry.file) == entry.sha256
    except ImageError:
        return False


def _label_moved(entry: Entry, file: Path, labels: Labels) -> Label:
    """The label of an entry that has moved: a table's, or its own; that of its new name if its own
    was that of the old name."""
    own, new = (entry.identity, entry.camera), labels.of(file)
    follows = labels.overrule or not any(own) or own == labels.of(Path(entry.file))
    return new if follows and any(new) else own


def content_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        ImageError: it can't be read, or its name can't be kept; begins with the name.
    """
    if any(letter < " " and letter not in "\t\n\r\f\b" for letter in str(path)):
        # Milvus has no way to write one.
        raise ImageError(f"{path!r}: its name holds a control character; rename it")
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


def _contents(
    files: Sequence[Path], labels: Labels, change: Change
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes by path of the files that can be used, and of those that are junk."""
    given: dict[str, str] = {}
    junk: dict[str, str] = {}
    for path in files:
        bad = Entry(0, "", str(path), 0, 0, *labels.of(path)).junk
        try:
            (junk if bad else given)[str(path)] = content_hash(path)
        except ImageError as error:
            change.damaged.append(why_left_out(path, error))
    change.junk += junk
    return given, junk
