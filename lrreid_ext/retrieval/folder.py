"""A gallery in a folder, searched by faiss.

``meta.json`` names a generation, the files ``g<n>.*`` are that generation's: ``vectors`` (N, K * D)
float32 and ``ids`` (N,) int64 as they lie in memory, ``entries`` (SQLite), and, where there is one,
faiss's ``index``. A write makes the next generation's files and then replaces ``meta.json``, in one
step; so an interrupted one leaves the gallery as it was. What was removed is in no file any more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.evaluation.provenance import write_json
from lrreid_ext.files import make_folder
from lrreid_ext.retrieval import ann
from lrreid_ext.retrieval.entries import Entry
from lrreid_ext.retrieval.space import Floats, Ids, Space
from lrreid_ext.retrieval.store import (
    NEIGHBOURS,
    Asked,
    Made,
    Recall,
    Rows,
    Store,
    first_other,
    sampled,
)

try:
    import fcntl
except ImportError:  # Windows: two writers aren't kept apart there
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderStore"]

META_FILE, LOCK_FILE = "meta.json", ".lock"
FORMAT = 1
_GENERATION_FILE = re.compile(r"g(\d+)\.(vectors|ids|entries|index)")
# What a write of META_FILE leaves behind when it is killed.
_HALF_WRITTEN = re.compile(r"\.meta\.\d+\.tmp\.json")
_COLUMNS = ("id", "sha256", "file", "height", "width", "identity", "camera")
_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, file TEXT NOT NULL UNIQUE,
    height INTEGER NOT NULL, width INTEGER NOT NULL, identity TEXT NOT NULL, camera TEXT NOT NULL
)
"""
# Rows copied, and queries compared with their candidates, at a time.
_CHUNK, _QUERIES = 2**14, 64
# IVF-PQ's lists are drawn up anew when there are so many times more vectors.
_RETRAIN = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What changes from one generation to the next."""

    generation: int = 0
    count: int = 0
    next_id: int = 1
    mean_area: float = 0.0
    kind: str = "exact"
    recall: Recall = Recall(1.0)  # noqa: RUF009 - it is frozen
    trained_on: int = 0


class FolderStore(Store):
    """See the module. Made by :meth:`open` and :meth:`create`."""

    def __init__(self, folder: Path, made: Made, state: _State) -> None:
        self.folder = folder
        self.where = str(folder)
        self.made = made
        self._writes = False
        self._take(state)

    @classmethod
    def open(cls, where: str) -> FolderStore:
        """The gallery in a folder.

        Raises:
            GalleryError: there is none, or files of it are missing, cut short or not ours.
        """
        folder = Path(where)
        if not (folder / META_FILE).is_file():
            raise GalleryError(f"{where}: no gallery is there; build one first")
        made, state = _read_meta(folder)
        while True:
            try:
                return cls(folder, made, state)
            except GalleryError:
                # Another process may have written meanwhile, and cleared these files away.
                missed, (made, state) = state, _read_meta(folder)
                if state == missed:
                    raise

    @classmethod
    def create(cls, where: str, made: Made, replace: bool = False) -> FolderStore:
        """A gallery yet to be written; see :func:`~lrreid_ext.retrieval.store.create_store`.

        Raises:
            GalleryError: the folder holds a gallery (without ``replace``) or something else.
        """
        folder = Path(where)
        generation = 0
        if (folder / META_FILE).is_file():
            if not replace:
                raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")
            generation = _read_meta(folder)[1].generation
        elif folder.exists() and not folder.is_dir():
            raise GalleryError(f"{where}: is no folder")
        elif folder.is_dir():
            strange = [n for n in os.listdir(folder) if not _ours(n)]
            if strange:
                raise GalleryError(f"{where}: is not empty and no gallery (it holds {strange[0]})")
        make_folder(folder)
        # The generation's number goes on, so that what is there stays until the first write.
        return cls(folder, made, _State(generation=generation))

    # ------------------------------------------------------------------ reading
    def _take(self, state: _State) -> None:
        self.state = state
        self._index: Any = None
        self._db: sqlite3.Connection | None = None
        shape = (state.count, self.made.space.dim)
        if not state.count:
            self._vectors, self._ids = np.zeros(shape, np.float32), np.zeros(0, np.int64)
            return
        vectors, ids = self._path("vectors"), self._path("ids")
        try:
            for path, size in ((vectors, 4 * shape[0] * shape[1]), (ids, 8 * shape[0])):
                if path.stat().st_size != size:
                    raise FileNotFoundError(f"{path}: is missing or cut short")
            self._vectors = np.memmap(vectors, np.float32, "c", shape=shape)
            self._ids = np.fromfile(ids, np.int64)
            self._db = sqlite3.connect(
                f"{self._path('entries').resolve().as_uri()}?mode=ro&immutable=1", uri=True
            )
        except (OSError, sqlite3.DatabaseError) as error:
            raise GalleryError(
                f"{self.where}: the gallery is damaged, build it anew ({error})"
            ) from error

    def _path(self, what: str, generation: int | None = None) -> Path:
        return (
            self.folder / f"g{self.state.generation if generation is None else generation}.{what}"
        )

    def __len__(self) -> int:
        return self.state.count

    @property
    def mean_area(self) -> float:
        return self.state.mean_area

    @property
    def kind(self) -> str:
        return self.state.kind

    @property
    def recall(self) -> Recall:
        return self.state.recall

    def size(self) -> int:
        total = 0
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process may be clearing up
                total += path.stat().st_size
        return total

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._index = None

    def known(self, hashes: Collection[str]) -> dict[str, Entry]:
        return {e.sha256: e for e in self._select("sha256", hashes)}

    def of_files(self, files: Collection[str]) -> list[Entry]:
        return self._select("file", files)

    def entries(self) -> Iterator[Entry]:
        yield from self._queried("ORDER BY id", ())

    def _select(self, column: str, values: Collection[Any]) -> list[Entry]:
        wanted, found = list(values), list[Entry]()
        for start in range(0, len(wanted), 500):  # SQLite takes 999 in one question
            part = wanted[start : start + 500]
            found += self._queried(f"WHERE {column} IN ({', '.join('?' * len(part))})", part)
        return found

    def _queried(self, clause: str, values: Sequence[Any]) -> Iterator[Entry]:
        if self._db is None:
            return
        try:
            for row in self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM entries {clause}", values
            ):
                yield Entry(*row)
        except sqlite3.DatabaseError as error:
            raise GalleryError(
                f"{self._path('entries')}: can't be read ({error}); the gallery is damaged, build "
                "it anew"
            ) from error

    def search(self, asked: Asked, k: int) -> list[list[tuple[Entry, float]]]:
        index = self._loaded()
        if not len(self):
            return [[] for _ in asked.vectors]
        searched = _Searched(self.made.space, self._vectors, self._ids)
        ids, distances = searched.nearest(
            asked, min(k, len(self)), self.kind, index, self.recall.setting
        )
        known = {e.id: e for e in self._select("id", {int(i) for i in ids.ravel() if i >= 0})}
        return [
            [(known[int(i)], float(d)) for i, d in zip(row, own, strict=True) if i >= 0]
            for row, own in zip(ids, distances, strict=True)
        ]

    def _loaded(self) -> Any:
        """The index, read on first use; None of an exact search.

        Where another process has written since the gallery was opened, and cleared it away, what
        that has written is taken up.
        """
        while self.kind != "exact" and self._index is None:
            path = self._path("index")
            try:
                self._index = faiss.read_index(str(path))
            except RuntimeError as error:
                if not self._taken_up():
                    raise GalleryError(
                        f"{path}: can't be read; the gallery is damaged, build it anew"
                    ) from error
        return self._index

    def _taken_up(self) -> bool:
        """Be what is in the folder now; whether that is something else."""
        newest = FolderStore.open(self.where)
        if newest.made != self.made:
            raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
        if newest.state == self.state:
            return False
        self.close()
        vars(self).update(vars(newest))
        return True

    # ------------------------------------------------------------------ writing
    @contextmanager
    def writing(self) -> Iterator[None]:
        with open(self.folder / LOCK_FILE, "a") as stream:
            if fcntl is not None:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise GalleryError(
                        f"{self.where}: another process is writing; wait until it is done"
                    ) from error
            if (self.folder / META_FILE).is_file():
                made, state = _read_meta(self.folder)
                if self.state.count:
                    if made != self.made:
                        raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
                    if state != self.state:
                        self.close()
                        self._take(state)
                elif state.generation != self.state.generation:
                    # A store without images is a new one, or was emptied: it may be a replacement
                    # of what it has seen, of nothing else.
                    raise GalleryError(f"{self.where}: was written meanwhile; open it again")
            self._writes = True
            try:
                yield
            finally:
                self._writes = False
                self._sweep()

    def write(
        self, added: Iterable[Rows], removed: Sequence[Entry] = (), settled: Sequence[Entry] = ()
    ) -> None:
        if not self._writes:
            raise RuntimeError("a gallery is written within its `with store.writing()`")
        new = self.state.generation + 1
        for left in self.folder.glob(f"g{new}.*"):  # by a write that was killed
            left.unlink()
        gone = np.array(sorted(e.id for e in removed), dtype=np.int64)
        kept = np.flatnonzero(~np.isin(self._ids, gone))
        fresh = self._write_rows(new, added, gone, kept, settled)
        if not len(fresh) and not len(gone) and not settled:
            return
        ids = np.concatenate([self._ids[kept], fresh])
        ids.tofile(self._path("ids", new))
        shape = (len(ids), self.made.space.dim)
        vectors = np.zeros(shape, np.float32)
        if len(ids):
            vectors = np.memmap(self._path("vectors", new), np.float32, "c", shape=shape)
        kind, recall, trained = self._write_index(new, vectors, ids, len(fresh), gone)
        with closing(sqlite3.connect(self._path("entries", new))) as db:
            (area,) = db.execute("SELECT AVG(height * width) FROM entries").fetchone()
        next_id = int(max(self.state.next_id, fresh[-1] + 1 if len(fresh) else 0))
        state = _State(new, len(ids), next_id, float(area or 0), kind, recall, trained)
        for what in ("vectors", "ids", "entries", "index"):
            _to_disk(self._path(what, new))
        self._commit(state)
        self.close()
        self._take(state)

    def _write_rows(
        self, new: int, added: Iterable[Rows], gone: Ids, kept: Ids, settled: Sequence[Entry]
    ) -> Ids:
        """Write the next generation's vectors and entries; the new ones' ids."""
        entries = self._path("entries", new)
        if self.state.count:
            shutil.copyfile(self._path("entries"), entries)
        fresh: list[int] = []
        with (
            open(self._path("vectors", new), "wb") as stream,
            closing(sqlite3.connect(entries)) as db,
        ):
            if not self.state.count:
                db.execute(_SCHEMA)
            db.executemany("DELETE FROM entries WHERE id = ?", [(int(i),) for i in gone])
            # Two files may change places, and none is named twice meanwhile; no path has a NUL.
            db.executemany(
                "UPDATE entries SET file = ? WHERE id = ?", [(f"\0{e.id}", e.id) for e in settled]
            )
            db.executemany(
                "UPDATE entries SET file = ?, identity = ?, camera = ? WHERE id = ?",
                [(e.file, e.identity, e.camera, e.id) for e in settled],
            )
            for start in range(0, len(kept), _CHUNK):
                stream.write(self._vectors[kept[start : start + _CHUNK]].tobytes())
            for batch, vectors in added:
                ids = range(
                    self.state.next_id + len(fresh), self.state.next_id + len(fresh) + len(batch)
                )
                db.executemany(
                    f"INSERT INTO entries VALUES ({', '.join('?' * len(_COLUMNS))})",
                    [
                        (i, e.sha256, e.file, e.height, e.width, e.identity, e.camera)
                        for i, e in zip(ids, batch, strict=True)
                    ],
                )
                stream.write(np.ascontiguousarray(vectors, np.float32).tobytes())
                fresh += ids
            db.commit()
            if len(gone) or settled:
                db.execute("VACUUM")  # what was taken out would stay legible in the file
        return np.array(fresh, dtype=np.int64)

    def _write_index(
        self, new: int, vectors: Floats, ids: Ids, fresh: int, gone: Ids
    ) -> tuple[str, Recall, int]:
        """Make the next generation's index, good enough for the recall that is asked for.

        Returns:
            Its kind, what it finds, and how many vectors its lists were drawn up from.
        """
        made = self.made
        kind = ann.choose_kind(len(ids), made.space.dim) if made.kind == "auto" else made.kind
        if kind == "ivfpq" and len(ids) < ann.LEAST_IVFPQ:
            kind = "hnsw"
        if not made.space.indexable or len(ids) < 2:
            kind = "exact"
        searched = _Searched(made.space, vectors, ids)
        while kind != "exact":
            index, trained = self._grown(kind, vectors, ids, fresh, gone)
            recall = searched.tuned(kind, index, made.recall)
            if recall.measured >= made.recall:
                faiss.write_index(index, str(self._path("index", new)))
                return kind, recall, trained
            logger.warning(
                "%s: %s finds %.3f of the nearest at most, less than %g; %s is taken",
                *(self.where, kind, recall.measured, made.recall, ann.looser(kind)),
            )
            kind = ann.looser(kind)
        return "exact", Recall(made.recall), 0

    def _grown(
        self, kind: str, vectors: Floats, ids: Ids, fresh: int, gone: Ids
    ) -> tuple[Any, int]:
        """The present index with the change in it where it can take it, or else a new one."""
        trained = self.state.trained_on
        # HNSW's graph can't forget a vector.
        same = kind == self.kind and not (kind == "hnsw" and len(gone))
        if not same or len(ids) > _RETRAIN * trained:
            return ann.build(kind, vectors, ids), len(ids)
        index: Any = faiss.read_index(str(self._path("index")))
        if len(gone):
            index.remove_ids(gone)
        if fresh:
            index.add_with_ids(np.ascontiguousarray(vectors[-fresh:]), ids[-fresh:])
        return index, trained

    def _commit(self, state: _State) -> None:
        content = {"format": FORMAT, "made": self.made.to_json(), "state": asdict(state)}
        write_json(self.folder / META_FILE, content)

    def _sweep(self) -> None:
        """Remove the files of other generations, of interrupted writes too."""
        current = -1
        if (self.folder / META_FILE).is_file():
            current = _read_meta(self.folder)[1].generation
        for path in self.folder.iterdir():
            match = _GENERATION_FILE.match(path.name)
            half = _HALF_WRITTEN.fullmatch(path.name) is not None
            if half or (match and int(match[1]) != current):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Searched:
    """Vectors (N, K * D) and their ids (N,), ascending."""

    space: Space
    vectors: Floats
    ids: Ids

    def nearest(
        self, asked: Asked, k: int, kind: str, index: Any, setting: int
    ) -> tuple[Ids, Floats]:
        """Ids and distances (Q, k), nearest first; -1 and infinity where fewer were found."""
        blocks = [
            self._nearest(
                Asked(*(part[start : start + _QUERIES] for part in asked)), k, kind, index, setting
            )
            for start in range(0, len(asked.vectors), _QUERIES)
        ]
        return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])

    def _nearest(
        self, asked: Asked, k: int, kind: str, index: Any, setting: int
    ) -> tuple[Ids, Floats]:
        if kind == "exact":
            rows = self.space.nearest(*asked, self.vectors, k)
        else:
            proposed = ann.propose(kind, index, self.space.asked(*asked), k, setting)
            rows = np.where(proposed < 0, -1, np.searchsorted(self.ids, proposed))
        distances = self.space.distances(*asked, self.vectors[rows])
        distances[rows < 0] = np.inf
        # Equal distances in the order of the gallery.
        order = np.lexsort((rows, distances), axis=1)[:, :k]
        rows = np.take_along_axis(rows, order, 1)
        found = np.where(rows < 0, -1, self.ids[rows])
        return found, np.take_along_axis(distances, order, 1)

    def tuned(self, kind: str, index: Any, target: float) -> Recall:
        """The fastest setting that reaches ``target``, or else the best there is."""
        rows = sampled(len(self.ids))
        k = min(NEIGHBOURS, len(self.ids))
        weights = np.ones((len(rows), self.space.parts), np.float32)
        drawn = Asked(np.ascontiguousarray(self.vectors[rows]), weights)
        near = first_other(self.nearest(drawn, 2, "exact", None, 0)[0], self.ids[rows])
        nearest = self.vectors[np.searchsorted(self.ids, near)]
        asked = Asked(self.space.probes(drawn.vectors, nearest), weights)
        exact = self.nearest(asked, k, "exact", None, 0)[0]

        def search(setting: int) -> Ids:
            return self.nearest(asked, k, kind, index, setting)[0]

        setting, reached = ann.tune(search, exact, target, ann.ladder(kind, index))
        return Recall(target, reached, setting, len(rows), k)


def _ours(name: str) -> bool:
    known = (_GENERATION_FILE.match, _HALF_WRITTEN.fullmatch)
    return name in (META_FILE, LOCK_FILE) or any(match(name) for match in known)


def _read_meta(folder: Path) -> tuple[Made, _State]:
    path = folder / META_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise GalleryError(f"{path}: is of format {content['format']}, this reads {FORMAT}")
        state = {**content["state"], "recall": Recall(**content["state"]["recall"])}
        return Made.from_json(content["made"]), _State(**state)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, GalleryError):
            raise
        raise GalleryError(f"{path}: is no gallery's: {error}") from error


def _to_disk(path: Path) -> None:
    """Have the system write what it holds of a file, so that no name points to an unwritten one."""
    if path.is_file():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
