"""A gallery in Milvus: embedded in a file, or on a server or cluster.

Collection NAME holds entries and vectors, NAME__meta one row of JSON. Milvus has no transactions
over several calls: an interrupted write may be half done, and repeating it completes it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.files import make_folder
from lrreid_ext.search.images import LONGEST_LABEL, Entry
from lrreid_ext.search.index import EF_BUILD, LINKS, Recall, choose_kind, measure, warn_exact
from lrreid_ext.search.space import Floats, Ids, Queries
from lrreid_ext.search.store import FORMAT, Answers, Settings

__all__ = ["MilvusStore"]

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
        self.recall = Recall()
        self._client = client
        self._name = _parsed(where)[1]
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
        if "://" not in uri and not Path(uri).exists():
            raise GalleryError(f"{where}: no gallery is there; build one first")
        client = _client(where, uri)
        meta = _read_meta(where, client, name)
        if meta is None:
            client.close()
            raise GalleryError(f"{where}: no gallery is there; build one first")
        store = cls(where, client, Settings.from_plain(meta["settings"]), False)
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
        ours = client.has_collection(_meta_name(name))
        if ours and not replace and _read_meta(where, client, name):
            client.close()
            raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")
        if client.has_collection(name) and not ours:
            client.close()
            raise GalleryError(f"{where}: collection {name} is no gallery; name another")
        return cls(where, client, settings, True)

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        return 0 if self._new else int(self._query("", ["count(*)"])[0]["count(*)"])

    def entries(self) -> list[Entry]:
        return sorted(map(_entry, self._all(_COLUMNS)), key=lambda entry: entry.file)

    def with_contents(self, hashes: Collection[str]) -> list[Entry]:
        return [_entry(row) for row in self._where("id", [_id(h) for h in hashes], _COLUMNS)]

    def with_files(self, files: Collection[str]) -> list[Entry]:
        return [_entry(row) for row in self._where("file", files, _COLUMNS)]

    def mean_area(self) -> float:
        return self._area

    def size(self) -> int:
        path = Path(_parsed(self.where)[0])
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())

    def close(self) -> None:
        self._client.close()

    def _where(self, column: str, values: Collection[Any], columns: list[str]) -> Iterator[Any]:
        """Rows with one of the values in a column."""
        listed = [] if self._new else list(values)
        for start in range(0, len(listed), _BATCH):
            part = json.dumps(listed[start : start + _BATCH], ensure_ascii=False)
            yield from self._query(f"{column} in {part}", columns)

    def _query(self, condition: str, columns: list[str]) -> Any:
        return self._client.query(
            self._name, filter=condition, output_fields=columns, consistency_level="Strong"
        )

    def _pages(self, columns: list[str]) -> Iterator[list[Any]]:
        """All rows, in any order, some at a time."""
        if self._new:
            return
        pages = self._client.query_iterator(
            self._name, batch_size=_PAGE, filter="", output_fields=columns,
            consistency_level="Strong",
        )  # fmt: skip
        while page := pages.next():
            yield list(page)
        pages.close()

    def _all(self, columns: list[str]) -> Iterator[Any]:
        return chain.from_iterable(self._pages(columns))

    # ------------------------------------------------------------------ vectors, for the index
    def ids(self) -> Ids:
        return np.sort(np.array([row["id"] for row in self._all(["id"])], np.int64))

    def blocks(self, after: int = 0) -> Iterator[tuple[Ids, Floats]]:
        for page in self._pages(["id", "vector"]):
            yield self._arrays(page)

    def take(self, ids: Ids) -> tuple[Ids, Floats]:
        return self._arrays(list(self._where("id", ids.tolist(), ["id", "vector"])))

    def _arrays(self, rows: list[Any]) -> tuple[Ids, Floats]:
        rows = sorted(rows, key=lambda row: row["id"])
        values = np.array([row["vector"] for row in rows], np.float32)
        return np.array([row["id"] for row in rows], np.int64), values

    # ------------------------------------------------------------------ searching
    def search(self, queries: Queries, k: int) -> Answers:
        cosine = self.settings.metric == "cosine"
        answers: Answers = []
        for row, weights in zip(self._hits(queries, k, _COLUMNS), queries.weights, strict=True):
            total = float(weights.sum())
            # Milvus gives inner products, or squared lengths.
            answers.append(
                [(_entry(hit["entity"]), total - d if cosine else max(d, 0.0) ** 0.5)
                 for hit in row for d in [float(hit["distance"])]]
            )  # fmt: skip
        return answers

    def _hits(self, queries: Queries, k: int, columns: list[str], setting: int = 0) -> list[Any]:
        visited = setting or self.recall.setting
        params = {"params": {"ef": max(visited, k)} if visited else {}}
        vectors = list(self.settings.space.index_queries(queries))
        hits: list[Any] = []
        for start in range(0, len(vectors), _QUERIES):
            hits += self._client.search(
                self._name, data=vectors[start : start + _QUERIES], limit=k,
                output_fields=columns, search_params=params, consistency_level="Strong",
            )  # fmt: skip
        return hits

    # ------------------------------------------------------------------ writing
    def put(self, entries: Sequence[Entry], vectors: Floats | None = None) -> list[Entry]:
        self._begin()
        ids = [_id(e.sha256) for e in entries]
        stored = [e for e in self.with_files([e.file for e in entries]) if _id(e.sha256) not in ids]
        if vectors is None:
            order, values = self.take(np.array(ids, np.int64))
            vectors = values[np.searchsorted(order, ids)]
        rows = [
            {"id": i, **asdict(entry), "vector": vector}
            for i, entry, vector in zip(ids, entries, vectors, strict=True)
        ]
        for start in range(0, len(rows), _BATCH):
            self._client.upsert(self._name, rows[start : start + _BATCH])
        self.remove(stored)
        return stored

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
            self._make_collections()
            self._new, self._unfinished = False, True
            self._save()
            return
        meta = _read_meta(self.where, self._client, self._name)
        if meta is None or Settings.from_plain(meta["settings"]) != self.settings:
            raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
        self._take(meta)
        self._unfinished = True
        self._save()

    def refresh(self) -> None:
        if not self._unfinished:
            return
        if not self._client.list_indexes(self._name):
            self._index("exact")
        self._client.flush(self._name)
        sizes = np.array([(r["height"], r["width"]) for r in self._all(["height", "width"])])
        self._area = float(sizes.astype(np.float64).prod(axis=1).mean()) if len(sizes) else 0.0
        self.recall = self._fitted(len(sizes))
        self._unfinished = False
        self._save()

    def _fitted(self, count: int) -> Recall:
        """Give the collection the right kind of index, and measure its recall."""
        settings = self.settings
        present = self._client.describe_index(self._name, "vector")["index_type"]
        kind = choose_kind(settings.kind, count, settings.space)
        if present != _INDEXES[kind][0]:
            self._index(kind)
        if kind == "exact":
            return Recall()

        def search(queries: Queries, k: int, setting: int) -> Ids:
            ids = np.full((len(queries.vectors), k), -1, np.int64)
            for own, row in zip(ids, self._hits(queries, k, ["id"], setting), strict=True):
                own[: len(row)] = [hit["id"] for hit in row]
            return ids

        recall = measure(settings.space, self, settings.recall, search)
        if recall.measured < settings.recall:
            warn_exact(self.where, recall, settings.recall)
            self._index("exact")
            return Recall()
        return recall

    def _index(self, kind: str) -> None:
        self._client.release_collection(self._name)
        if self._client.list_indexes(self._name):
            self._client.drop_index(self._name, "vector")
        self._client.create_index(self._name, self._params(kind))
        self._client.load_collection(self._name)

    def _params(self, kind: str) -> Any:
        index_type, params = _INDEXES[kind]
        metric = "IP" if self.settings.metric == "cosine" else "L2"
        out = self._client.prepare_index_params()
        out.add_index("vector", index_type=index_type, metric_type=metric, params=params)
        return out

    def _make_collections(self) -> None:
        from pymilvus import DataType, MilvusClient

        texts = {"sha256": 64, "file": 4096, "identity": LONGEST_LABEL, "camera": LONGEST_LABEL}
        # Milvus keeps no collection without a vector.
        tables: list[tuple[str, dict[str, int], list[str], int]] = [
            (_meta_name(self._name), {"content": 65535}, [], 2),
            (self._name, texts, ["height", "width"], self.settings.space.dim),
        ]
        for name, texts, numbers, dim in tables:
            if self._client.has_collection(name):
                self._client.drop_collection(name)
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            for column, length in texts.items():
                schema.add_field(column, DataType.VARCHAR, max_length=length)
            for column in numbers:
                schema.add_field(column, DataType.INT64)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            self._client.create_collection(name, schema=schema, index_params=self._params("exact"))

    def _take(self, meta: dict[str, Any]) -> None:
        self.recall = Recall(**meta["recall"])
        self._area, self._unfinished = meta["area"], meta["unfinished"]

    def _save(self) -> None:
        content = {
            "format": FORMAT, "settings": asdict(self.settings), "recall": asdict(self.recall),
            "area": self._area, "unfinished": self._unfinished,
        }  # fmt: skip
        row = {"id": 0, "content": json.dumps(content), "vector": [0.0, 0.0]}
        self._client.upsert(_meta_name(self._name), [row])
        self._client.flush(_meta_name(self._name))


def _id(sha256: str) -> int:
    """A content's number in Milvus: the first 60 bits of its hash."""
    return int(sha256[:15], 16)


def _entry(row: Any) -> Entry:
    return Entry(*(row[column] for column in _COLUMNS))


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
    if not client.has_collection(_meta_name(name)):
        return None
    client.load_collection(_meta_name(name))
    rows = client.query(
        _meta_name(name), filter="", limit=1, output_fields=["content"], consistency_level="Strong"
    )
    if not rows:
        return None  # the first write was interrupted
    meta: dict[str, Any] = json.loads(rows[0]["content"])
    if meta["format"] != FORMAT:
        raise GalleryError(
            f"{where}: has format {meta['format']}, this version reads {FORMAT}; build the gallery "
            "again with --replace"
        )
    return meta


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
