"""What adding image files changes in a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrreid_ext.errors import ImageError
from lrreid_ext.search.images import Entry, Label, Labels, content_hash, failure, read_content
from lrreid_ext.search.store import Store

__all__ = ["Change", "add_stored"]


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
        damaged: files that can't be read, and why; left out. Their earlier content stays.
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


def add_stored(
    store: Store, files: Sequence[Path], labels: Labels, change: Change
) -> list[tuple[str, list[str]]]:
    """Give stored contents their present files and labels, and drop junk.

    A content belongs to one file. A content that is found under another name moves there if its own
    file is gone or holds something else; so files may be renamed, swapped and moved, and nothing is
    embedded again. A content whose file holds something else, and that no given file holds, is
    dropped, unless the file can't be read as an image any more.

    Args:
        store: what is there.
        files: absolute paths, each once.
        labels: see :func:`~lrreid_ext.search.images.read_labels`.
        change: receives what there is to report.

    Returns:
        Contents that aren't stored, and the files that hold each.
    """
    contents, junk = _contents(files, labels, change)
    everything = {**contents, **junk}
    stored = {e.sha256: e for e in store.with_contents(set(everything.values()))}
    outdated = [e for e in store.with_files(list(everything)) if everything[e.file] != e.sha256]
    places: dict[str, str] = {}
    fresh: dict[str, list[str]] = {}
    changed = []
    for file, sha256 in contents.items():
        entry = stored.get(sha256)
        if entry is None:
            fresh.setdefault(sha256, []).append(file)
        elif entry.file == file:
            places[sha256] = file
            label = labels.of(Path(file))
            if labels.overrule and any(label) and label != (entry.identity, entry.camera):
                changed.append(replace(entry, identity=label[0], camera=label[1]))
                change.relabelled.append(file)
            else:
                change.unchanged += 1
        elif sha256 in places:
            change.duplicates.append((file, places[sha256]))
        elif _is_there(entry, contents):
            places[sha256] = entry.file
            change.duplicates.append((file, entry.file))
        else:
            places[sha256] = file
            identity, camera = _label_moved(entry, Path(file), labels)
            changed.append(replace(entry, file=file, identity=identity, camera=camera))
            change.moved.append((entry.file, file))
    if changed:
        store.put(changed)
    # A fresh content takes its file's place once it is embedded.
    gone = {
        e.sha256: e
        for e in outdated
        if e.sha256 not in places and contents.get(e.file) not in fresh
    }
    change.replaced += [e.file for e in gone.values() if e.file not in junk]
    for file, sha256 in junk.items():
        entry = stored.get(sha256)
        if entry is None or sha256 in places:
            continue
        if entry.file == file or not _is_there(entry, contents):
            gone[sha256] = entry
    change.discarded += [e.file for e in gone.values() if e.file not in change.replaced]
    store.remove(list(gone.values()))
    return list(fresh.items())


def _contents(
    files: Sequence[Path], labels: Labels, change: Change
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes by path of the files that can be used, and of those that are junk."""
    contents: dict[str, str] = {}
    junk: dict[str, str] = {}
    for path in files:
        # Market-1501's convention for bad detections.
        is_junk = labels.of(path)[0].startswith("-")
        try:
            (junk if is_junk else contents)[str(path)] = content_hash(read_content(path))
        except ImageError as error:
            change.damaged.append(failure(path, error))
    change.junk += junk
    return contents, junk


def _is_there(entry: Entry, contents: dict[str, str]) -> bool:
    """Whether an entry's file still holds its content; ``contents`` has those read already."""
    if entry.file in contents:
        return contents[entry.file] == entry.sha256
    try:
        return content_hash(read_content(entry.file)) == entry.sha256
    except ImageError:
        return False


def _label_moved(entry: Entry, file: Path, labels: Labels) -> Label:
    """The label of an entry that moves to ``file``. A table's label counts, or the entry's own; if
    its own came from its old name, the new name's."""
    own, new = (entry.identity, entry.camera), labels.of(file)
    follows = labels.overrule or not any(own) or own == labels.of(Path(entry.file))
    return new if follows and any(new) else own
