"""A gallery in Milvus: embedded in a file, or on a server or cluster.

Two collections: NAME holds the vectors and entries by content hash, NAME__meta one row of JSON,
which is written last. Milvus has no transactions over several calls: an interrupted write may be
half done, and repeating it completes it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.files import make_folder
from lrreid_ext.retrieval import ann
from lrreid_ext.retrieval.entries import Entry
from lrreid_ext.retrieval.space import Floats, Ids
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

__all__ = ["MilvusStore"]

SCHEME, DEFAULT_NAME, META = "milvus:", "gallery", "meta"
FORMAT = 1
# What Milvus calls the kinds, how they are built, and what a search's setting is called.
_INDEXES: dict[str, tuple[str, dict[str, int], str]] = {
    "exact": ("FLAT", {}, ""),
    "hnsw": ("HNSW", {"M": ann.LINKS, "efConstruction": ann.EF_BUILD}, "ef"),
    "ivfpq": ("IVF_PQ", {"nbits": 8}, "nprobe"),
}
_COLUMNS = ("number", "sha256", "file", "height", "width", "identity", "camera")
# Rows, and queries, in one call.
_BATCH, _QUERIES_AT_ONCE = 500, 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What every write may change; ``unfinished`` while one is at it, or was cut off."""

    next_id: int = 1
    mean_area: float = 0.0
    kind: str = "exact"
    recall: Recall = Recall(1.0)  # noqa: RUF009 - it is frozen
    unfinished: bool = False


class MilvusStore(Store):
    """See the module. Made by :meth:`open` and :meth:`create`.

    A server's user and password are taken from the environment variable ``MILVUS_TOKEN``
    (``user:password``), and kept nowhere.
    """

    def __init__(self, where: str, client: Any, name: str, made: Made, state: _State) -> None:
        self.where = where
        self.made = made
        self.state = state
        self._client = client
        self._name = name
        # Whether what is there must give way to the first write.
        self._new = False
        # Whether the row of JSON is there.
        self._noted = True

    @classmethod
    def open(cls, where: str) -> MilvusStore:
        """The gallery at an address.

        Raises:
            GalleryError: none is there, Milvus can't be reached, or it isn't installed.
        """
        uri, name = _parsed(where)
        if "://" not in uri and not Path(uri).exists():
            raise GalleryError(f"{where}: no gallery is there; build one first")
        client = _client(where, uri)
        with _told(where):
            found = _read_meta(where, client, name)
            if found is None:
                client.close()
                raise GalleryError(f"{where}: no gallery is there; build one first")
            if client.list_indexes(name):  # a write may have been cut off between two
                client.load_collection(name)
        if found[1].unfinished:
            logger.warning(
                "%s: a write was cut off, or is going on; if it was cut off, say it again",
                where,
            )
        return cls(where, client, name, *found)

    @classmethod
    def create(cls, where: str, made: Made, replace: bool = False) -> MilvusStore:
        """A gallery yet to be written; see :func:`~lrreid_ext.retrieval.store.create_store`.

        Raises:
            GalleryError: there is one (without ``replace``), the collection is another's, or
                distances that Milvus can't rank by.
        """
        uri, name = _parsed(where)
        if not made.space.indexable:
            raise GalleryError(
                f"{where}: Milvus can't rank by sums of Euclidean distances of several anchors; "
                "use TEST.METRIC cosine, one of TEST.FUSION.ANCHORS, or a folder"
            )
        if "://" not in uri and made.kind == "ivfpq":
            raise GalleryError(f"{where}: embedded Milvus has no ivfpq; use hnsw or exact")
        client = _client(where, uri)
        with _told(where):
            found = _read_meta(where, client, name)
            ours = client.has_collection(_meta_name(name))
            if found is not None and not replace:
                client.close()
                raise GalleryError(f"{where}: is a gallery already; add to it, or replace it")
            if client.has_collection(name) and not ours:
                client.close()
                raise GalleryError(f"{where}: collection {name} is no gallery; name another")
        store = cls(where, client, name, made, _State())
        store._new, store._noted = True, False
        return store

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        if self._new:
            return 0
        with _told(self.where):
            rows = self._client.query(
                self._name, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
        return int(rows[0]["count(*)"])

    @property
    def mean_area(self) -> float:
        return self.state.mean_area

    @property
    def kind(self) -> str:
        return self.state.kind

    @property
    def recall(self) -> Recall:
        return self.state.recall

    @property
    def unfinished(self) -> bool:
        return self.state.unfinished

    def size(self) -> int:
        path = Path(_parsed(self.where)[0])
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(p.stat().st_size for p in files if p.is_file())

    def close(self) -> None:
        self._client.close()

    def known(self, hashes: Collection[str]) -> dict[str, Entry]:
        return {e.sha256: e for e in self._select("sha256", hashes)}

    def of_files(self, files: Collection[str]) -> list[Entry]:
        return self._select("file", files)

    def _select(self, column: str, values: Collection[Any]) -> list[Entry]:
        if self._new:
            return []
        wanted, found = list(values), []
        for start in range(0, len(wanted), _BATCH):
            listed = json.dumps(wanted[start : start + _BATCH], ensure_ascii=False)
            with _told(self.where):
                rows = self._client.query(
                    self._name,
                    filter=f"{column} in {listed}",
                    output_fields=list(_COLUMNS),
                    consistency_level="Strong",
                )
            found += [_entry(row) for row in rows]
        return found

    def entries(self) -> Iterator[Entry]:
        # Milvus gives them in any order.
        rows = [_entry(row) for row in self._rows(_COLUMNS)]
        yield from sorted(rows, key=lambda entry: entry.id)

    def _rows(self, columns: Sequence[str]) -> Iterator[Any]:
        if self._new:
            return
        with _told(self.where):
            pages = self._client.query_iterator(
                self._name,
                batch_size=_BATCH,
                filter="",
                output_fields=list(columns),
                consistency_level="Strong",
            )
            while page := pages.next():
                yield from page
            pages.close()

    def search(self, asked: Asked, k: int) -> list[list[tuple[Entry, float]]]:
        if not len(self):
            return [[] for _ in asked.vectors]
        found = self._hits(asked, k, self.kind, self.recall.setting, _COLUMNS)
        cosine = self.made.metric == "cosine"
        out = []
        for row, weights in zip(found, asked.weights, strict=True):
            whole = float(weights.sum())
            measured = [float(hit["distance"]) for hit in row]
            # Milvus gives inner products, and squared lengths.
            distances = [whole - d if cosine else max(d, 0.0) ** 0.5 for d in measured]
            entries = [_entry({**hit["entity"], "sha256": hit["sha256"]}) for hit in row]
            out.append(list(zip(entries, distances, strict=True)))
        return out

    def _hits(
        self, asked: Asked, k: int, kind: str, setting: int, columns: Sequence[str]
    ) -> list[Any]:
        called = _INDEXES[kind][2]
        params = {called: max(setting, k) if kind == "hnsw" else setting} if called else {}
        vectors = self.made.space.asked(*asked)
        found: list[Any] = []
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            with _told(self.where):
                found += self._client.search(
                    self._name,
                    data=list(vectors[start : start + _QUERIES_AT_ONCE]),
                    limit=k,
                    output_fields=[c for c in columns if c != "sha256"],
                    search_params={"params": params},
                    consistency_level="Strong",
                )
        return found

    # ------------------------------------------------------------------ writing
    @contextmanager
    def writing(self) -> Iterator[None]:
        if not self._new:
            with _told(self.where):
                found = _read_meta(self.where, self._client, self._name)
            if found is None or found[0] != self.made:
                raise GalleryError(f"{self.where}: was replaced meanwhile; open it again")
            self.state = found[1]
            if self.state.unfinished:
                self._recover()
        yield

    def _recover(self) -> None:
        """Have an index, and numbers that nobody has, after a write that was cut off."""
        with _told(self.where):
            if not self._client.list_indexes(self._name):
                self._client.create_index(self._name, self._params("exact", self._metric))
                self._client.load_collection(self._name)
        numbers = [int(row["number"]) for row in self._rows(("number",))]
        self.state = replace(self.state, next_id=max([self.state.next_id - 1, *numbers]) + 1)

    def write(
        self, added: Iterable[Rows], removed: Sequence[Entry] = (), settled: Sequence[Entry] = ()
    ) -> None:
        if not self._new:
            self._write(added, removed, settled)
            return
        # What may be there gives way when all is embedded, not before.
        with tempfile.TemporaryFile() as stream:
            parts = []
            for entries, vectors in added:
                np.ascontiguousarray(vectors, np.float32).tofile(stream)
                parts.append(entries)
            stream.seek(0)
            if parts:
                self._write(_read_back(parts, stream, self.made.space.dim), (), ())

    def _write(
        self, added: Iterable[Rows], removed: Sequence[Entry], settled: Sequence[Entry]
    ) -> None:
        fresh = self._new
        if fresh:
            self._make_collections()
        try:
            self._write_rows(added, removed, settled)
        except BaseException:
            if fresh:
                self._undo()
            raise
        if not self.state.unfinished:  # nothing was changed, now or before
            return
        with _told(self.where):
            self._client.flush(self._name)
        sizes = np.array([(r["height"], r["width"]) for r in self._rows(("height", "width"))])
        area = float(sizes.astype(np.float64).prod(axis=1).mean()) if len(sizes) else 0.0
        kind, recall = self._indexed(len(sizes), "exact" if fresh else self._present())
        self._save(_State(self.state.next_id, area, kind, recall))

    def _present(self) -> str:
        """Kind of the index that the collection has."""
        with _told(self.where):
            called = self._client.describe_index(self._name, "vector")["index_type"]
        return next(kind for kind, index in _INDEXES.items() if index[0] == called)

    def _write_rows(
        self, added: Iterable[Rows], removed: Sequence[Entry], settled: Sequence[Entry]
    ) -> None:
        """Change the rows; the state is unfinished afterwards if there was anything to do."""
        for start in range(0, len(removed), _BATCH):
            self._begin()
            with _told(self.where):
                part = removed[start : start + _BATCH]
                self._client.delete(self._name, ids=[e.sha256 for e in part])
        for start in range(0, len(settled), _BATCH):
            self._begin()
            own = settled[start : start + _BATCH]
            vectors = self._vectors(np.array([e.id for e in own], np.int64))
            self._upsert(own, vectors)
        for batch, vectors in added:
            self._begin()
            number = self.state.next_id
            self._upsert([replace(e, id=n) for n, e in enumerate(batch, start=number)], vectors)
            self.state = replace(self.state, next_id=number + len(batch))

    def _begin(self) -> None:
        """Before the first change: note that one has begun. A new gallery is none until its end."""
        if not self.state.unfinished:
            state = replace(self.state, unfinished=True)
            if self._noted:
                self._save(state)
            self.state = state

    def _upsert(self, entries: Sequence[Entry], vectors: Floats) -> None:
        rows = [
            {"number": entry.id, **entry.plain(), "vector": vector}
            for entry, vector in zip(entries, vectors, strict=True)
        ]
        for start in range(0, len(rows), _BATCH):
            with _told(self.where):
                self._client.upsert(self._name, rows[start : start + _BATCH])

    def _make_collections(self) -> None:
        from pymilvus import DataType, MilvusClient

        self._drop()
        with _told(self.where):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=16)
            schema.add_field("content", DataType.VARCHAR, max_length=65535)
            # Milvus keeps no collection without a vector.
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
            self._client.create_collection(
                _meta_name(self._name), schema=schema, index_params=self._params("exact", "L2")
            )
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("sha256", DataType.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("file", DataType.VARCHAR, max_length=4096)
            for column in ("number", "height", "width"):
                schema.add_field(column, DataType.INT64)
            for column in ("identity", "camera"):
                schema.add_field(column, DataType.VARCHAR, max_length=256)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.made.space.dim)
            self._client.create_collection(
                self._name, schema=schema, index_params=self._params("exact", self._metric)
            )
        self._new = False

    @property
    def _metric(self) -> str:
        return "IP" if self.made.metric == "cosine" else "L2"

    def _params(self, kind: str, metric: str, **more: int) -> Any:
        called, params, _ = _INDEXES[kind]
        out = self._client.prepare_index_params()
        out.add_index("vector", index_type=called, metric_type=metric, params={**params, **more})
        return out

    def _drop(self) -> None:
        with _told(self.where):
            for name in (self._name, _meta_name(self._name)):
                if self._client.has_collection(name):
                    self._client.drop_collection(name)

    def _undo(self) -> None:
        """Be a gallery yet to be written again."""
        self._drop()
        self._new, self.state = True, _State()

    def _save(self, state: _State) -> None:
        content = {"format": FORMAT, "made": self.made.to_json(), "state": asdict(state)}
        row = {"name": META, "content": json.dumps(content), "vector": [0.0, 0.0]}
        with _told(self.where):
            self._client.upsert(_meta_name(self._name), [row])
            self._client.flush(_meta_name(self._name))
        self.state, self._noted = state, True

    def _indexed(self, count: int, present: str) -> tuple[str, Recall]:
        """See that the collection has an index of the right kind that finds enough.

        Args:
            count: rows.
            present: kind of the index that is there.
        """
        made = self.made
        dim = made.space.dim
        kind = ann.choose_kind(count, dim) if made.kind == "auto" else made.kind
        embedded = "://" not in _parsed(self.where)[0]
        if kind == "ivfpq" and (embedded or count < ann.LEAST_IVFPQ):
            kind = "hnsw"
        if count < 2:
            kind = "exact"
        while kind != "exact":
            settings = list(ann.EF_SEARCH)
            if kind == "ivfpq":
                lists = ann.lists_for(count)
                settings = ann.doubled(lists)
                if kind != present:
                    self._reindex(kind, nlist=lists, m=ann.bytes_of_code(dim))
            elif kind != present:
                self._reindex(kind)
            present = kind
            recall = self._tuned(kind, count, settings)
            if recall.measured >= made.recall:
                return kind, recall
            logger.warning(
                "%s: %s finds %.3f of the nearest at most, less than %g; %s is taken",
                *(self.where, kind, recall.measured, made.recall, ann.looser(kind)),
            )
            kind = ann.looser(kind)
        if present != "exact":
            self._reindex("exact")
        return "exact", Recall(made.recall)

    def _reindex(self, kind: str, **more: int) -> None:
        with _told(self.where):
            self._client.release_collection(self._name)
            self._client.drop_index(self._name, "vector")
            self._client.create_index(self._name, self._params(kind, self._metric, **more))
            self._client.load_collection(self._name)

    def _tuned(self, kind: str, count: int, settings: Sequence[int]) -> Recall:
        k = min(NEIGHBOURS, count)
        numbers = np.array(sorted(r["number"] for r in self._rows(("number",))), np.int64)
        own = numbers[sampled(count)]
        vectors = self._vectors(own)
        near = first_other(self._exact(vectors, 2), own)
        probes = self.made.space.probes(vectors, self._vectors(near))
        asked = Asked(probes, np.ones((len(own), self.made.space.parts), np.float32))
        exact = self._exact(probes, k)

        def search(setting: int) -> Ids:
            hits = self._hits(asked, k, kind, setting, ("number",))
            found = np.full((len(hits), k), -1, np.int64)
            for i, row in enumerate(hits):
                found[i, : len(row)] = [hit["entity"]["number"] for hit in row]
            return found

        setting, reached = ann.tune(search, exact, self.made.recall, settings)
        return Recall(self.made.recall, reached, setting, len(own), k)

    def _vectors(self, numbers: Ids) -> Floats:
        """The vectors (Q, K * D) of these entries."""
        with _told(self.where):
            rows = self._client.query(
                self._name,
                filter=f"number in {sorted(set(numbers.tolist()))}",
                output_fields=["number", "vector"],
                consistency_level="Strong",
            )
        known = {int(row["number"]): row["vector"] for row in rows}
        return np.array([known[int(n)] for n in numbers], np.float32)

    def _exact(self, vectors: Floats, k: int) -> Ids:
        """Numbers (Q, k) of the nearest of all, by reading every vector once."""
        best = np.full((len(vectors), k), np.inf, np.float32)
        numbers = np.full((len(vectors), k), -1, np.int64)
        page: list[Any] = []

        def look() -> None:
            nonlocal best, numbers
            block = np.array([row["vector"] for row in page], np.float32)
            # All are equally long, or Euclidean distances count.
            far = (block**2).sum(axis=1)[None] - 2 * vectors @ block.T
            merged = np.concatenate([best, far], axis=1)
            own = np.array([row["number"] for row in page], np.int64)
            named = np.concatenate([numbers, np.broadcast_to(own, far.shape)], axis=1)
            order = np.argsort(merged, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(merged, order, 1)
            numbers = np.take_along_axis(named, order, 1)
            page.clear()

        for row in self._rows(("number", "vector")):
            page.append(row)
            if len(page) == 2**13:
                look()
        if page:
            look()
        return numbers


def _read_back(parts: Sequence[Sequence[Entry]], stream: IO[bytes], dim: int) -> Iterator[Rows]:
    """The rows whose vectors (N, dim) stand one behind the other in a file."""
    for entries in parts:
        values = np.fromfile(stream, np.float32, len(entries) * dim)
        yield entries, values.reshape(len(entries), dim)


def _parsed(where: str) -> tuple[str, str]:
    """File or address, and collection.

    Raises:
        GalleryError: a collection's name that Milvus doesn't take.
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


def _client(where: str, uri: str) -> Any:
    needed = ["pymilvus"] if "://" in uri else ["pymilvus", "milvus_lite"]
    if missing := [m for m in needed if importlib.util.find_spec(m) is None]:
        raise GalleryError(
            f"{where}: {missing[0]} isn't installed: pip install -e .[milvus] in the checkout"
        )
    from pymilvus import MilvusClient

    if "://" not in uri:
        if not uri.endswith(".db"):
            raise GalleryError(f"{where}: the embedded form's name ends in .db")
        if Path(uri).is_file():
            raise GalleryError(f"{where}: is a file; the embedded form keeps a folder")
        make_folder(Path(uri).resolve().parent)
        # It has no clock of its own to read, and doesn't need one.
        logging.getLogger("pymilvus.client.iterator.query_iterator").setLevel(logging.ERROR)
    with _told(where), _lite_errors(where):
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=30)


@contextmanager
def _lite_errors(where: str) -> Iterator[None]:
    """Why the embedded form can't be opened, which it only logs, with a traceback."""
    from pymilvus.exceptions import ConnectionConfigException

    reasons: list[str] = []

    def heard(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            reasons.append(str(record.exc_info[1]))
            return False
        return True

    log = logging.getLogger("milvus_lite.server_manager")
    log.addFilter(heard)
    try:
        yield
    except ConnectionConfigException as error:
        why = reasons[-1] if reasons else error.message
        raise GalleryError(
            f"{where}: can't be opened ({why}). The embedded form serves one process at a time: "
            "wait until the other is done, or use a server"
        ) from error
    finally:
        log.removeFilter(heard)


def _read_meta(where: str, client: Any, name: str) -> tuple[Made, _State] | None:
    if not client.has_collection(_meta_name(name)):
        return None
    client.load_collection(_meta_name(name))
    rows = client.query(
        _meta_name(name),
        filter=f'name == "{META}"',
        output_fields=["content"],
        consistency_level="Strong",
    )
    if not rows:
        return None  # the first write was cut off
    content = json.loads(rows[0]["content"])
    if content["format"] != FORMAT:
        raise GalleryError(f"{where}: is of format {content['format']}, this reads {FORMAT}")
    state = {**content["state"], "recall": Recall(**content["state"]["recall"])}
    return Made.from_json(content["made"]), _State(**state)


def _entry(row: Any) -> Entry:
    return Entry(
        int(row["number"]),
        row["sha256"],
        row["file"],
        int(row["height"]),
        int(row["width"]),
        row["identity"],
        row["camera"],
    )


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Milvus's errors as ours."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise GalleryError(f"{where}: Milvus says: {error.message}") from error
