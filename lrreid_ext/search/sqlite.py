"""A gallery in a folder: tables in one SQLite file, and an HNSW graph as a cache beside it.

``features`` holds a vector for each content, ``images`` the file that has the content and what is
known of it. SQLite's write-ahead log lets others search while somebody writes, and keeps what was
committed when a process is killed. Ids are never used twice, so a vector never changes: a search
takes candidates from the graph, drops those that are gone, and looks at every vector with a greater
id than the graph's last. So a graph that is behind costs time, never a match.
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
from lrreid_ext.files import make_folder
from lrreid_ext.search import index
from lrreid_ext.search.index import Floats, Graph, Ids, Queries, Recall
from lrreid_ext.search.store import Answers, Entry, Settings

__all__ = ["SqliteStore"]

DATABASE, GRAPH = "gallery.sqlite", "hnsw.faiss"
# A graph that is being written, or was when its process was killed.
HALF_GRAPH = "hnsw.half"
# Of galleries of format 1, in folders of their own files.
OLD_FILE = "meta.json"

# What to do with a gallery that can't be read.
AGAIN = "build the gallery again, in another folder, and delete this one"

# The table meta holds the settings, the number of changes ("version"), and the index's recall with
# the version that it was made for ("index").
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE, vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS images (
    file TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, height INTEGER NOT NULL,
    width INTEGER NOT NULL, identity TEXT NOT NULL, camera TEXT NOT NULL
);
DELETE FROM features;
DELETE FROM images;
DELETE FROM meta WHERE key <> 'version';
INSERT OR IGNORE INTO meta VALUES ('version', 0)
"""
_COLUMNS = "images.sha256, file, height, width, identity, camera"
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
        self.space = settings.space
        self.recall = Recall()
        self._folder = folder
        self._replace = replace
        self._db: sqlite3.Connection | None = None
        # The index in memory, the text in meta that describes it, and the version of the tables
        # that it was made for.
        self._graph: Graph | None = None
        self._index_text, self._indexed = "", _NEVER
        # As of a version of the tables: the vectors that aren't in the graph, and how many of the
        # graph's were removed.
        self._version = _NEVER
        self._rest: list[tuple[Ids, Floats]] = []
        self._removed = 0

    @classmethod
    def open(cls, where: str) -> SqliteStore:
        """The gallery in a folder.

        Raises:
            GalleryError: there is none, or it can't be read.
        """
        folder = Path(where)
        if (folder / DATABASE).is_file():
            db = _connect(folder)
            if (settings := _settings(db, where)) is not None:
                store = cls(folder, settings)
                store._db = db
                store._read_index()
                return store
        elif (folder / OLD_FILE).is_file():
            raise GalleryError(f"{where}: has an older format; {AGAIN}")
        raise GalleryError(f"{where}: no gallery is there; build one first")

    @classmethod
    def create(cls, where: str, settings: Settings, replace: bool = False) -> SqliteStore:
        """A gallery yet to be written; see :class:`~lrreid_ext.search.store.Store`.

        Raises:
            GalleryError: the folder holds a gallery (without ``replace``) or something else.
        """
        folder = make_folder(where)
        if (folder / DATABASE).is_file():
            db = _connect(folder)
            if not replace:
                _refuse_gallery(db, where)
            db.close()
        elif others := sorted(p.name for p in folder.iterdir()):
            raise GalleryError(f"{where}: is not empty and no gallery (it holds {others[0]})")
        return cls(folder, settings, replace)

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        return int(self._value("SELECT COUNT(*) FROM images") or 0)

    def entries(self) -> list[Entry]:
        # CROSS JOIN fixes the order, so that no row of features, with its vector, is read.
        return self._entries("images CROSS JOIN features USING (sha256) ORDER BY id")

    def matching(self, files: Collection[str] = (), contents: Collection[str] = ()) -> list[Entry]:
        values = json.dumps(list(files)), json.dumps(list(contents))
        return self._entries(f"images WHERE file IN {_LISTED} OR sha256 IN {_LISTED}", *values)

    def mean_area(self) -> float:
        return float(self._value("SELECT AVG(height * width) FROM images") or 0)

    def size(self) -> int:
        return sum(p.stat().st_size for p in self._folder.iterdir())

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db, self._graph, self._rest = None, None, []

    def _rows(self, question: str, *values: Any) -> list[Any]:
        """Rows of the answer; none before the gallery is made."""
        if self._db is None:
            return []
        with _errors(self.where):
            return self._db.execute(question, values).fetchall()

    def _value(self, question: str, *values: Any) -> Any:
        rows = self._rows(question, *values)
        return rows[0][0] if rows else None

    def _meta(self, key: str) -> Any:
        return self._value("SELECT value FROM meta WHERE key = ?", key)

    def _entries(self, source: str, *values: Any) -> list[Entry]:
        return [Entry(*row) for row in self._rows(f"SELECT {_COLUMNS} FROM {source}", *values)]

    # ------------------------------------------------------------------ vectors, for the index
    def ids(self) -> Ids:
        # SQLite reads them from the index of hashes, which is small, in that order.
        return np.sort(np.array(self._rows("SELECT id FROM features"), np.int64).reshape(-1))

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        assert self._db is not None
        count = max(1, _BLOCK // (4 * self.space.dim))
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
        return ids, values.reshape(len(ids), self.space.dim)

    # ------------------------------------------------------------------ searching
    def search(self, queries: Queries, k: int) -> Answers:
        if not self._is_ready():
            self._make_index()
        with self._transaction():
            self._load()
            ids, distances = index.nearest(self.space, queries, self._rest, k)
            if self._graph is not None:
                candidates = self._candidates(queries, k + self._removed, self.recall.setting)
                candidates = np.concatenate([candidates, ids], axis=1)
                ids, distances = index.rescore(self, queries, candidates, k)
            rows = self._rows(
                f"SELECT id, {_COLUMNS} FROM features CROSS JOIN images USING (sha256) "
                f"WHERE id IN {_LISTED}",
                json.dumps(np.unique(ids).tolist()),
            )
        entries = {row[0]: Entry(*row[1:]) for row in rows}
        return [
            [(entries[i], d) for i, d in zip(*row, strict=True) if i in entries]
            for row in zip(ids.tolist(), distances.tolist(), strict=True)
        ]

    def _candidates(self, queries: Queries, k: int, setting: int) -> Ids:
        assert self._graph is not None
        return self._graph.propose(self.space.index_queries(queries), k, setting)

    def _is_ready(self) -> bool:
        """Whether there is an index, and few enough vectors that aren't in it."""
        self._read_index()
        if self._indexed in (self._meta("version"), _NEVER):
            return self._indexed != _NEVER
        missing = (self._value("SELECT MAX(id) FROM features") or 0) - self._last
        return bool(4 * self.space.dim * missing <= index.EXACT_BYTES)

    def _load(self) -> None:
        """Have in memory what a search of this snapshot needs."""
        version = self._meta("version")
        if version == self._version:
            return
        self._read_index()
        # A search of the graph finds removed vectors too, and has to look for so many more.
        indexed = int((self.ids() <= self._last).sum())
        self._removed = (0 if self._graph is None else len(self._graph)) - indexed
        self._rest = list(self.blocks(self._last))
        self._version = version

    @property
    def _last(self) -> int:
        return 0 if self._graph is None else self._graph.last

    def _read_index(self) -> None:
        """Take up the gallery's index, if it is another than before."""
        text = self._meta("index") or ""
        if text == self._index_text:
            return
        values = json.loads(text) if text else {"version": _NEVER}
        self._indexed, self.recall = values.pop("version"), Recall(**values)
        self._graph = Graph.read(self._folder / GRAPH) if self.recall.kind == "hnsw" else None
        if self.recall.kind == "hnsw" and self._graph is None:
            self._indexed = _NEVER
        self._index_text, self._version = text, _NEVER

    def _make_index(self) -> None:
        """Make the index for what the tables hold now, if it isn't there."""

        def build(ids: Ids) -> index.Search:
            # A graph can't forget a vector.
            if self._graph is None or not bool(np.isin(self._graph.ids(), ids).all()):
                self._graph = Graph.new(self.space.dim)
            for block_ids, vectors in self.blocks(self._last):
                self._graph.add(block_ids, vectors)

            def search(queries: Queries, k: int, setting: int) -> Ids:
                candidates = self._candidates(queries, k, setting)
                return index.rescore(self, queries, candidates, k)[0]

            return search

        with self._transaction():
            version = self._meta("version")
            self._read_index()
            if self._indexed == version:
                return
            self._version = _NEVER
            kind, target = self.settings.kind, self.settings.recall
            self.recall = index.fit(self, kind, target, build, self.where)
        self._indexed = version
        if self.recall.kind == "exact":
            self._graph = None
        # One process at a time writes; an index that can't be written now serves this process.
        with suppress(GalleryError), self._transaction(write=True) as db:
            if version != self._meta("version"):
                return  # whoever wrote meanwhile also makes an index
            text = json.dumps({"version": version, **asdict(self.recall)})
            db.execute("INSERT OR REPLACE INTO meta VALUES ('index', ?)", (text,))
            # If this process dies before the commit, the graph serves all the same.
            if self._graph is None:
                for name in (GRAPH, HALF_GRAPH):
                    (self._folder / name).unlink(missing_ok=True)
            else:
                self._graph.write(self._folder / HALF_GRAPH)
                os.replace(self._folder / HALF_GRAPH, self._folder / GRAPH)
            self._index_text = text

    # ------------------------------------------------------------------ writing
    def put(self, entries: Sequence[Entry], vectors: Floats | None = None) -> list[Entry]:
        with self._transaction(write=True) as db:
            before = self.matching([e.file for e in entries])
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
            kept = {e.sha256 for e in self.matching(contents=[e.sha256 for e in before])}
            dropped = [e for e in before if e.sha256 not in kept]
            self._drop(db, dropped)
        return dropped

    def remove(self, entries: Sequence[Entry]) -> None:
        if entries:
            with self._transaction(write=True) as db:
                self._drop(db, entries)

    @staticmethod
    def _drop(db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        """Drop contents, as part of a change."""
        hashes = json.dumps([e.sha256 for e in entries])
        db.execute(f"DELETE FROM images WHERE sha256 IN {_LISTED}", (hashes,))
        db.execute(f"DELETE FROM features WHERE sha256 IN {_LISTED}", (hashes,))
        db.execute("UPDATE meta SET value = value + 1 WHERE key = 'version'")

    def refresh(self) -> None:
        if self._db is not None:
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
                    self._make_tables(db)
                if _settings(db, self.where) != self.settings:
                    raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _make_tables(self, db: sqlite3.Connection) -> None:
        """Make the tables, or empty those of the gallery that is replaced."""
        if not self._replace:
            _refuse_gallery(db, self.where)
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        settings = json.dumps(self.settings.plain())
        db.execute("INSERT INTO meta VALUES ('settings', ?)", (settings,))


def _connect(folder: Path) -> sqlite3.Connection:
    """The database; only to read, and without files of its own, where the folder is read-only."""
    path = (folder / DATABASE).resolve()
    writable = os.access(folder, os.W_OK)
    # A log that a killed writer has left mustn't be overlooked, as it is in an immutable file.
    log = path.with_name(f"{DATABASE}-wal")
    mode = "rwc" if writable else "ro" if log.exists() else "ro&immutable=1"
    with _errors(str(folder)):
        db = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", timeout=PATIENCE, isolation_level=None, uri=True
        )
        if writable:
            # A page of SQLite's 4 KiB would hold a single vector of 512 values and as much air.
            for pragma in ("page_size = 32768", "journal_mode = WAL", "secure_delete = ON"):
                db.execute(f"PRAGMA {pragma}")
    return db


def _settings(db: sqlite3.Connection, where: str) -> Settings | None:
    """None before the gallery is made."""
    with _errors(where):
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall():
            return None
        ((text,),) = db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchall()
    return Settings.from_plain(json.loads(text), where, AGAIN)


def _refuse_gallery(db: sqlite3.Connection, where: str) -> None:
    if _settings(db, where) is not None:
        raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        path = Path(where, DATABASE)
        if "locked" in str(error):
            message = f"{where}: another process is writing; wait until it is done"
        elif isinstance(error, sqlite3.OperationalError):
            message = f"{path}: SQLite says: {error}"
        else:
            message = f"{path}: is damaged ({error}); {AGAIN}"
        raise GalleryError(message) from error
