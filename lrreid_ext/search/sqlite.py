"""A gallery in a folder: tables in one SQLite file, and an index as a cache beside it.

``features`` holds a vector for each content, ``images`` the file that has the content and what is
known of it. SQLite's write-ahead log lets others search while somebody writes, and keeps what was
committed when a process is killed. Ids are never used twice, so a vector never changes: a search
takes candidates from the graph, drops those that are gone, and looks at every vector with a greater
id than the graph's last. So an index that is behind costs time, never a match.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.files import make_folder, write_text
from lrreid_ext.search import index
from lrreid_ext.search.images import Entry
from lrreid_ext.search.index import Graph, Recall
from lrreid_ext.search.space import Floats, Ids, Queries
from lrreid_ext.search.store import FORMAT, Answers, Settings

__all__ = ["SqliteStore"]

DATABASE, GRAPH, STATE = "gallery.sqlite", "hnsw.faiss", "index.json"
# A graph that is being written, or was when its process was killed.
HALF = "hnsw.half"
# Of galleries of format 1, in folders of their own files.
OLD_FILE = "meta.json"

# What to do with a gallery that can't be read.
AGAIN = "build the gallery again, in another folder, and delete this one"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE, vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS images (
    file TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, height INTEGER NOT NULL,
    width INTEGER NOT NULL, identity TEXT NOT NULL, camera TEXT NOT NULL
)
"""
_COLUMNS = "images.sha256, file, height, width, identity, camera"
# CROSS JOIN fixes the order, so that no row of features, with its vector, is read.
_JOINED = "images CROSS JOIN features USING (sha256)"
_NEXT_VERSION = "UPDATE meta SET value = value + 1 WHERE key = 'version'"
# Values for IN, as JSON, however many there are.
_LISTED = "(SELECT value FROM json_each(?))"

# Seconds to wait for another process that writes.
PATIENCE = 30.0
# Bytes of vectors read at a time.
_BLOCK = 2**24
# No version of the tables.
_NEVER = -1


class SqliteStore:
    """See the module and :class:`~lrreid_ext.search.store.Store`."""

    def __init__(self, folder: Path, settings: Settings, replace: bool = False) -> None:
        self.where = str(folder)
        self.settings = settings
        self.recall = Recall()
        self._folder = folder
        self._replace = replace
        self._db: sqlite3.Connection | None = None
        # The index in memory: the text of its state, the version of the tables that it was made
        # for, and its graph. Then, as of a version, the vectors that aren't in the graph, and how
        # many are in it that were removed.
        self._state, self._indexed = "", _NEVER
        self._graph: Graph | None = None
        self._rest: list[tuple[Ids, Floats]] = []
        self._gone = 0
        self._version = _NEVER

    @classmethod
    def open(cls, where: str) -> SqliteStore:
        """The gallery in a folder.

        Raises:
            GalleryError: there is none, or it can't be read.
        """
        folder = Path(where)
        if not (folder / DATABASE).is_file():
            if (folder / OLD_FILE).is_file():
                raise GalleryError(f"{where}: has an older format; {AGAIN}")
            raise GalleryError(f"{where}: no gallery is there; build one first")
        with _errors(where):
            db = _connect(folder)
            settings = _settings(db, where)
        if settings is None:
            db.close()
            raise GalleryError(f"{where}: no gallery is there; build one first")
        store = cls(folder, settings)
        store._db = db
        store._read_index()
        return store

    @classmethod
    def create(cls, where: str, settings: Settings, replace: bool = False) -> SqliteStore:
        """A gallery yet to be written; see :class:`~lrreid_ext.search.store.Store`.

        Raises:
            GalleryError: the folder holds a gallery (without ``replace``) or something else.
        """
        folder = Path(where)
        if folder.exists() and not folder.is_dir():
            raise GalleryError(f"{where}: isn't a folder")
        if (folder / DATABASE).is_file():
            with _errors(where):
                db = _connect(folder)
                stored = None if replace else _settings(db, where)
                db.close()
            if stored is not None:
                raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")
        elif folder.is_dir() and (others := sorted(p.name for p in folder.iterdir())):
            raise GalleryError(f"{where}: is not empty and no gallery (it holds {others[0]})")
        make_folder(folder)
        return cls(folder, settings, replace)

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        return 0 if self._db is None else int(self._value("SELECT COUNT(*) FROM images"))

    def entries(self) -> list[Entry]:
        return self._entries(f"{_JOINED} ORDER BY id")

    def with_contents(self, hashes: Collection[str]) -> list[Entry]:
        return self._entries(f"images WHERE sha256 IN {_LISTED}", json.dumps(list(hashes)))

    def with_files(self, files: Collection[str]) -> list[Entry]:
        return self._entries(f"images WHERE file IN {_LISTED}", json.dumps(list(files)))

    def mean_area(self) -> float:
        return float(self._value("SELECT AVG(height * width) FROM images") or 0)

    def size(self) -> int:
        return sum(p.stat().st_size for p in self._folder.iterdir())

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db, self._graph, self._rest = None, None, []

    def _rows(self, question: str, *values: Any) -> list[Any]:
        if self._db is None:
            return []
        with _errors(self.where):
            return self._db.execute(question, values).fetchall()

    def _value(self, question: str, *values: Any) -> Any:
        rows = self._rows(question, *values)
        return rows[0][0] if rows else None

    def _entries(self, rest: str, *values: Any) -> list[Entry]:
        return [Entry(*row) for row in self._rows(f"SELECT {_COLUMNS} FROM {rest}", *values)]

    # ------------------------------------------------------------------ vectors, for the index
    def ids(self) -> Ids:
        # SQLite reads them from the index of hashes, which is small, in that order.
        return np.sort(np.array(self._rows("SELECT id FROM features"), np.int64).reshape(-1))

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        assert self._db is not None
        count = max(1, _BLOCK // (4 * self.settings.space.dim))
        question = "SELECT id, vector FROM features WHERE id > ? ORDER BY id"
        with _errors(self.where):
            cursor = self._db.execute(question, (after,))
            while rows := cursor.fetchmany(count):
                yield self._arrays(rows)

    def take(self, ids: Ids) -> tuple[Ids, Floats]:
        question = f"SELECT id, vector FROM features WHERE id IN {_LISTED} ORDER BY id"
        return self._arrays(self._rows(question, json.dumps(ids.tolist())))

    def _arrays(self, rows: Sequence[tuple[int, bytes]]) -> tuple[Ids, Floats]:
        ids = np.array([row[0] for row in rows], np.int64)
        values = np.frombuffer(bytearray().join(row[1] for row in rows), np.float32)
        return ids, values.reshape(len(ids), self.settings.space.dim)

    # ------------------------------------------------------------------ searching
    def search(self, queries: Queries, k: int) -> Answers:
        if not self._is_ready():
            self._make_index()
        with self._transaction():
            self._load()
            space = self.settings.space
            ids, distances = index.nearest(space, queries, self._rest, k)
            if self._graph is not None:
                vectors = space.index_queries(queries)
                near = self._graph.propose(vectors, k + self._gone, self.recall.setting)
                near = np.concatenate([near, ids], axis=1)
                ids, distances = index.rescore(space, queries, near, self, k)
            rows = self._rows(
                f"SELECT id, {_COLUMNS} FROM features CROSS JOIN images USING (sha256) "
                f"WHERE id IN {_LISTED}",
                json.dumps(np.unique(ids).tolist()),
            )
        entries = {row[0]: Entry(*row[1:]) for row in rows}
        return [
            [(entries[i], d) for i, d in zip(own, far, strict=True) if i in entries]
            for own, far in zip(ids.tolist(), distances.tolist(), strict=True)
        ]

    def _is_ready(self) -> bool:
        """Whether there is an index, and few enough vectors that aren't in it."""
        self._read_index()
        if self._indexed in (self._current_version(), _NEVER):
            return self._indexed != _NEVER
        missing = (self._value("SELECT MAX(id) FROM features") or 0) - self._last
        return bool(4 * self.settings.space.dim * missing <= index.EXACT_BYTES)

    def _load(self) -> None:
        """Have in memory what a search of this snapshot needs."""
        version = self._current_version()
        if version == self._version:
            return
        self._read_index()
        ids = self.ids()
        # A search of the graph finds these too, and has to look for so many more.
        self._gone = 0 if self._graph is None else len(self._graph) - int((ids <= self._last).sum())
        ids = ids[ids > self._last]
        vectors = np.empty((len(ids), self.settings.space.dim), np.float32)
        start = 0
        for _, block in self.blocks(self._last):
            vectors[start : start + len(block)] = block
            start += len(block)
        self._rest = [(ids, vectors)] if len(ids) else []
        self._version = version

    @property
    def _last(self) -> int:
        return 0 if self._graph is None else self._graph.last

    def _read_index(self) -> None:
        """Take up the index in the folder, if it is another than before."""
        try:
            text = (self._folder / STATE).read_text(encoding="utf-8")
            if text == self._state:
                return
            values = json.loads(text)
            version, recall = int(values.pop("version")), Recall(**values)
        except (OSError, ValueError, KeyError, TypeError):
            text, version, recall = "", _NEVER, Recall()
        graph = Graph.read(self._folder / GRAPH) if recall.kind == "hnsw" else None
        if recall.kind == "hnsw" and graph is None:
            text, version, recall = "", _NEVER, Recall()
        self._state, self._indexed, self.recall, self._graph = text, version, recall, graph
        self._version = _NEVER

    def _make_index(self) -> None:
        """Make the index for what the tables hold now, if it isn't there."""
        with self._transaction():
            version = self._current_version()
            self._read_index()
            if self._indexed == version:
                return
            space, kind, target = self.settings.space, self.settings.kind, self.settings.recall
            recall, graph = index.fit(space, self, kind, target, self._graph, self.where)
        self._indexed, self.recall, self._graph, self._version = version, recall, graph, _NEVER
        # One process at a time writes; an index that can't be written now serves this process.
        with suppress(GalleryError), self._transaction(write=True):
            if version != self._current_version():
                return  # whoever wrote meanwhile also makes an index
            path = self._folder / GRAPH
            if graph is None:
                path.unlink(missing_ok=True)
                (self._folder / HALF).unlink(missing_ok=True)
            else:
                graph.write(self._folder / HALF)
                os.replace(self._folder / HALF, path)
            self._state = json.dumps({"version": version, **asdict(recall)})
            write_text(self._folder / STATE, self._state)

    # ------------------------------------------------------------------ writing
    def put(self, entries: Sequence[Entry], vectors: Floats | None = None) -> list[Entry]:
        with self._transaction(write=True) as db:
            before = self.with_files([e.file for e in entries])
            if vectors is not None:
                db.executemany(
                    "INSERT OR IGNORE INTO features (sha256, vector) VALUES (?, ?)",
                    [(e.sha256, v.tobytes()) for e, v in zip(entries, vectors, strict=True)],
                )
            # REPLACE drops the rows that have the same file or the same content. Another process
            # may have removed a content meanwhile.
            db.executemany(
                "INSERT OR REPLACE INTO images SELECT ?1, ?2, ?3, ?4, ?5, ?6 "
                "WHERE EXISTS (SELECT 1 FROM features WHERE sha256 = ?2)",
                [(e.file, e.sha256, e.height, e.width, e.identity, e.camera) for e in entries],
            )
            kept = {e.sha256 for e in self.with_contents([e.sha256 for e in before])}
            dropped = [e for e in before if e.sha256 not in kept]
            self._drop(db, dropped)
            db.execute(_NEXT_VERSION)
        return dropped

    def remove(self, entries: Sequence[Entry]) -> None:
        if entries:
            with self._transaction(write=True) as db:
                self._drop(db, entries)
                db.execute(_NEXT_VERSION)

    @staticmethod
    def _drop(db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        hashes = json.dumps([e.sha256 for e in entries])
        db.execute(f"DELETE FROM images WHERE sha256 IN {_LISTED}", (hashes,))
        db.execute(f"DELETE FROM features WHERE sha256 IN {_LISTED}", (hashes,))

    def refresh(self) -> None:
        if self._db is None:
            return
        self._make_index()
        # The log would keep what was dropped.
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """What is read within is of one moment, what is written comes whole or not at all.

        A new store makes its gallery, or replaces another, in its first transaction.

        Raises:
            GalleryError: somebody has replaced the gallery, or is writing for too long.
        """
        new = self._db is None
        db = self._db = self._db or _connect(self._folder)
        with _errors(self.where):
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                if new:
                    self._begin(db)
                if _settings(db, self.where) != self.settings:
                    raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _begin(self, db: sqlite3.Connection) -> None:
        """Make the tables, or empty those of the gallery that is replaced."""
        if _has_tables(db) and not self._replace:
            raise GalleryError(f"{self.where}: is a gallery already; add to it, or replace it")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        for table in ("images", "features"):
            db.execute(f"DELETE FROM {table}")
        settings = json.dumps({"format": FORMAT, **asdict(self.settings)})
        db.execute("INSERT OR REPLACE INTO meta VALUES ('settings', ?)", (settings,))
        db.execute("INSERT OR IGNORE INTO meta VALUES ('version', 0)")

    def _current_version(self) -> int:
        return int(self._value("SELECT value FROM meta WHERE key = 'version'"))


def _connect(folder: Path) -> sqlite3.Connection:
    db = sqlite3.connect(folder / DATABASE, timeout=PATIENCE, isolation_level=None)
    # A page of SQLite's 4 KiB would hold a single vector of 512 values and as much air.
    for pragma in ("page_size = 32768", "journal_mode = WAL", "secure_delete = ON"):
        db.execute(f"PRAGMA {pragma}")
    return db


def _has_tables(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall())


def _settings(db: sqlite3.Connection, where: str) -> Settings | None:
    if not _has_tables(db):
        return None
    ((text,),) = db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchall()
    values = json.loads(text)
    if (number := values.pop("format")) != FORMAT:
        raise GalleryError(f"{where}: has format {number}, this version reads {FORMAT}; {AGAIN}")
    return Settings.from_plain(values)


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        path = Path(where, DATABASE)
        if "locked" in str(error):
            raise GalleryError(
                f"{where}: another process is writing; wait until it is done"
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise GalleryError(f"{path}: SQLite says: {error}") from error
        raise GalleryError(f"{path}: is damaged ({error}); {AGAIN}") from error
