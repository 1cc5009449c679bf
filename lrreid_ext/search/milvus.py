"""A gallery in Milvus: embedded in a file, or on a server or cluster.

Collection NAME holds entries and vectors, NAME__meta one row of JSON. Milvus has no transactions
over several calls: an interrupted write may be half done, and repeating it completes it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.files import make_folder
from lrreid_ext.search.index import EF_BUILD, LINKS, Floats, Ids, Queries, Recall, Search, fit
from lrreid_ext.search.store import Answers, Entry, Settings

__all__ = ["SCHEME", "MilvusStore"]

SCHEME, DEFAULT_NAME = "milvus:", "gallery"
# What Milvus calls the kinds of index, and how they are built.
_INDEXES: dict[str, tuple[str, dict[str, int]]] = {
    "exact": ("FLAT", {}),
    "hnsw": ("HNSW", {"M": LINKS, "efConstruction": EF_BUILD}),
}
_COLUMNS = ["sha256", "file", "height", "width", "identity", "camera"]
# Rows written or asked for, rows read, and queries, in one call.
_BATCH, _PAGE, _QUERIES = 500, 4096, 256

logger = logging.getLogger(__name__)


class MilvusStore:
    """See the module and :class:`~lrreid_ext.search.store.Store`.

    The user and password of a server are taken from the environment variable ``MILVUS_TOKEN``
    (``user:password``), and stored nowhere.
    """

    def __init__(self, where: str, client: Any, settings: Settings, new: bool) -> None:
        self.where = where
        self.settings = settings
        self.space = settings.space
        self.recall = Recall()
        self._client = client
        self._uri, self._name = _parsed(where)
        self._new = new
        self._area = 0.0
        # Whether a write has begun and not ended.
        self._unfinished = False

    @classmethod
    def open(cls, where: str) -> MilvusStore:
        """The gallery at an address.

        Raises:
            GalleryError: there is none, Milvus can't be reached, or it isn't installed.
        """
        uri, name = _parsed(where)
        client = _client(where, uri) if "://" in uri or Path(uri).exists() else None
        meta = _read_meta(where, client, name) if client else None
        if client is None or meta is None:
            raise GalleryError(f"{where}: no gallery is there; build one first")
        store = cls(where, client, _settings(where, meta), False)
        store._take(meta)
        if client.list_indexes(name):  # a write may have been interrupted between two
            client.load_collection(name)
        if store._unfinished:
            logger.warning(
                "%s: a write was interrupted, or is going on; repeat it if it was interrupted",
                where,
            )
        return store

    @classmethod
    def create(cls, where: str, settings: Settings, replace: bool = False) -> MilvusStore:
        """A gallery yet to be written; see :class:`~lrreid_ext.search.store.Store`.

        Raises:
            GalleryError: there is one (without ``replace``), the collection isn't a gallery, or
                Milvus can't rank by these distances.
        """
        uri, name = _parsed(where)
        if not settings.space.indexable:
            raise GalleryError(
                f"{where}: Milvus can't rank by sums of Euclidean distances of several anchors; "
                "use TEST.METRIC cosine, one of TEST.FUSION.ANCHORS, or a folder"
            )
        client = _client(where, uri)
        if not replace and _read_meta(where, client, name):
            raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")
        if client.has_collection(name) and not client.has_collection(_meta_name(name)):
            raise GalleryError(f"{where}: collection {name} is no gallery; name another")
        return cls(where, client, settings, True)

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        return 0 if self._new else int(self._query("", ["count(*)"])[0]["count(*)"])

    def entries(self) -> list[Entry]:
        pages = self._pages(_COLUMNS)
        return sorted((_entry(row) for rows in pages for row in rows), key=lambda e: e.file)

    def matching(self, files: Collection[str] = (), contents: Collection[str] = ()) -> list[Entry]:
        rows = [*self._having("place", map(_place, files)), *self._having("id", map(_id, contents))]
        return list({row["id"]: _entry(row) for row in rows}.values())

    def mean_area(self) -> float:
        return self._area

    def size(self) -> int:
        return sum(p.stat().st_size for p in Path(self._uri).rglob("*") if p.is_file())

    def close(self) -> None:
        self._client.close()

    def _having(
        self, column: str, values: Iterable[int], columns: list[str] = _COLUMNS
    ) -> Iterator[Any]:
        """Rows with one of the values in a column."""
        listed = [] if self._new else list(values)
        for start in range(0, len(listed), _BATCH):
            yield from self._query(f"{column} in {listed[start : start + _BATCH]}", columns)

    def _query(self, condition: str, columns: list[str]) -> Any:
        return self._client.query(self._name, filter=condition, output_fields=columns)

    def _pages(self, columns: list[str]) -> Iterator[list[Any]]:
        """All rows, in any order, some at a time."""
        if self._new:
            return
        pages = self._client.query_iterator(
            self._name, batch_size=_PAGE, filter="", output_fields=columns
        )
        while page := pages.next():
            yield list(page)
        pages.close()

    # ------------------------------------------------------------------ vectors, for the index
    def ids(self) -> Ids:
        rows = [row["id"] for page in self._pages(["id"]) for row in page]
        return np.sort(np.array(rows, np.int64))

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        """All of them: Milvus has its own index."""
        return map(_arrays, self._pages(["id", "vector"]))

    def take(self, ids: Ids) -> tuple[Ids, Floats]:
        return _arrays(list(self._having("id", ids.tolist(), ["id", "vector"])))

    # ------------------------------------------------------------------ searching
    def search(self, queries: Queries, k: int) -> Answers:
        def distance(score: float, weight: float) -> float:
            """From what Milvus gives: an inner product, or a squared length."""
            return weight - score if self.space.metric == "cosine" else max(score, 0.0) ** 0.5

        rows = self._hits(queries, k, self.recall.setting, _COLUMNS)
        weights = queries.weights.sum(axis=1).tolist()
        return [
            [(_entry(hit["entity"]), distance(hit["distance"], weight)) for hit in hits]
            for hits, weight in zip(rows, weights, strict=True)
        ]

    def _hits(self, queries: Queries, k: int, setting: int, columns: list[str]) -> list[Any]:
        params = {"params": {"ef": max(setting, k)} if setting else {}}
        vectors = list(self.space.index_queries(queries))
        hits: list[Any] = []
        for start in range(0, len(vectors), _QUERIES):
            hits += self._client.search(
                self._name, data=vectors[start : start + _QUERIES], limit=k,
                output_fields=columns, search_params=params,
            )  # fmt: skip
        return hits

    # ------------------------------------------------------------------ writing
    def put(self, entries: Sequence[Entry], vectors: Floats | None = None) -> list[Entry]:
        self._begin()
        ids = [_id(e.sha256) for e in entries]
        before = self.matching([e.file for e in entries])
        if vectors is None:
            order, values = self.take(np.array(ids, np.int64))
            vectors = values[np.searchsorted(order, ids)]
        rows = [
            {"id": i, "place": _place(entry.file), **asdict(entry), "vector": vector}
            for i, entry, vector in zip(ids, entries, vectors, strict=True)
        ]
        for start in range(0, len(rows), _BATCH):
            self._client.upsert(self._name, rows[start : start + _BATCH])
        dropped = [e for e in before if _id(e.sha256) not in ids]
        self.remove(dropped)
        return dropped

    def remove(self, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), _BATCH):
            self._begin()
            part = entries[start : start + _BATCH]
            self._client.delete(self._name, ids=[_id(e.sha256) for e in part])

    def _begin(self) -> None:
        """Before a change: note that a write has begun."""
        if self._unfinished:
            return
        if self._new:
            self._make_collection(_meta_name(self._name), 2)
            self._make_collection(self._name, self.space.dim)
            self._new = False
        else:
            meta = _read_meta(self.where, self._client, self._name)
            if meta is None or _settings(self.where, meta) != self.settings:
                raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
            self._take(meta)
        self._unfinished = True
        self._save()

    def refresh(self) -> None:
        if not self._unfinished:
            return
        self._client.flush(self._name)
        areas = [r["height"] * r["width"] for p in self._pages(["height", "width"]) for r in p]
        self._area = float(np.mean(areas)) if areas else 0.0
        self.recall = fit(
            self, self.settings.kind, self.settings.recall, self._build_hnsw, self.where
        )
        if self.recall.kind == "exact":
            self._index("exact")
        self._unfinished = False
        self._save()

    def _build_hnsw(self, _: Ids) -> Search:
        self._index("hnsw")

        def search(queries: Queries, k: int, setting: int) -> Ids:
            ids = np.full((len(queries.vectors), k), -1, np.int64)
            for row, hits in zip(ids, self._hits(queries, k, setting, ["id"]), strict=True):
                row[: len(hits)] = [hit["id"] for hit in hits]
            return ids

        return search

    def _index(self, kind: str) -> None:
        """Give the collection a kind of index, if it has another."""
        has_index = bool(self._client.list_indexes(self._name))
        if has_index:
            present = self._client.describe_index(self._name, "vector")["index_type"]
            if present == _INDEXES[kind][0]:
                return
        self._client.release_collection(self._name)
        if has_index:
            self._client.drop_index(self._name, "vector")
        self._client.create_index(self._name, self._params(kind))
        self._client.load_collection(self._name)

    def _params(self, kind: str) -> Any:
        index_type, build_params = _INDEXES[kind]
        metric = "IP" if self.space.metric == "cosine" else "L2"
        params = self._client.prepare_index_params()
        params.add_index("vector", index_type=index_type, metric_type=metric, params=build_params)
        return params

    def _make_collection(self, name: str, dim: int) -> None:
        """In place of one that is there. Other columns than these take any JSON."""
        from pymilvus import DataType, MilvusClient

        if self._client.has_collection(name):
            self._client.drop_collection(name)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        # Milvus keeps no collection without a vector.
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        self._client.create_collection(
            name, schema=schema, index_params=self._params("exact"), consistency_level="Strong"
        )

    def _take(self, meta: dict[str, Any]) -> None:
        self.recall = Recall(**meta["recall"])
        self._area, self._unfinished = meta["area"], meta["unfinished"]

    def _save(self) -> None:
        content = {
            "settings": self.settings.plain(), "recall": asdict(self.recall),
            "area": self._area, "unfinished": self._unfinished,
        }  # fmt: skip
        row = {"id": 0, "content": json.dumps(content), "vector": [0.0, 0.0]}
        self._client.upsert(_meta_name(self._name), [row])
        self._client.flush(_meta_name(self._name))


def _id(sha256: str) -> int:
    """A content's number in Milvus: the first 60 bits of its hash."""
    return int(sha256[:15], 16)


def _place(file: str) -> int:
    """A path's number. Milvus's filters don't take every path."""
    return _id(hashlib.sha256(file.encode()).hexdigest())


def _entry(row: Any) -> Entry:
    return Entry(*(row[column] for column in _COLUMNS))


def _arrays(rows: list[Any]) -> tuple[Ids, Floats]:
    rows = sorted(rows, key=lambda row: row["id"])
    vectors = np.array([row["vector"] for row in rows], np.float32)
    return np.array([row["id"] for row in rows], np.int64), vectors


def _parsed(where: str) -> tuple[str, str]:
    """File or address, and collection.

    Raises:
        GalleryError: a collection name that Milvus refuses.
    """
    target, _, name = where.removeprefix(SCHEME).partition("#")
    name = name or DEFAULT_NAME
    if not target or not re.fullmatch(r"[A-Za-z_]\w{0,200}", name, re.ASCII):
        raise GalleryError(
            f"{where}: write milvus:FILE.db or milvus:http://HOST:19530, with #NAME for a "
            "collection (letters, digits, underscores)"
        )
    return target, name


def _meta_name(name: str) -> str:
    return f"{name}__meta"


def _read_meta(where: str, client: Any, name: str) -> dict[str, Any] | None:
    """None before the first write, and if that was interrupted."""
    if not client.has_collection(_meta_name(name)):
        return None
    client.load_collection(_meta_name(name))
    rows = client.query(_meta_name(name), filter="", limit=1, output_fields=["content"])
    return json.loads(rows[0]["content"]) if rows else None


def _settings(where: str, meta: dict[str, Any]) -> Settings:
    return Settings.from_plain(meta["settings"], where, "build the gallery again with --replace")


class _Client:
    """A MilvusClient that raises our errors."""

    def __init__(self, where: str, client: Any) -> None:
        self._where, self._client = where, client

    def __getattr__(self, name: str) -> Any:
        from pymilvus.exceptions import MilvusException

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return getattr(self._client, name)(*args, **kwargs)
            except MilvusException as error:
                raise GalleryError(f"{self._where}: Milvus says: {error.message}") from error

        return call


def _client(where: str, uri: str) -> _Client:
    needed = ["pymilvus"] if "://" in uri else ["pymilvus", "milvus_lite"]
    if missing := [m for m in needed if importlib.util.find_spec(m) is None]:
        raise GalleryError(
            f"{where}: {missing[0]} isn't installed: pip install -e .[milvus] in the checkout"
        )
    from pymilvus import MilvusClient
    from pymilvus.exceptions import ConnectionConfigException, MilvusException

    if "://" not in uri:
        if not uri.endswith(".db"):
            raise GalleryError(f"{where}: the embedded form's name ends in .db")
        if Path(uri).is_file():
            raise GalleryError(f"{where}: is a file; the embedded form keeps a folder")
        make_folder(Path(uri).resolve().parent)
        # The embedded form has no clock, about which this logger warns.
        logging.getLogger("pymilvus.client.iterator.query_iterator").setLevel(logging.ERROR)
    log = logging.getLogger("milvus_lite.server_manager")
    log.disabled = True  # it would print a traceback of the error that is raised here
    try:
        client = MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=30)
        return _Client(where, client)
    except ConnectionConfigException as error:
        raise GalleryError(
            f"{where}: can't be opened ({error.message}). The embedded form serves one process at "
            "a time: wait until the other is done, or use a server"
        ) from error
    except MilvusException as error:
        raise GalleryError(f"{where}: Milvus says: {error.message}") from error
    finally:
        log.disabled = False
