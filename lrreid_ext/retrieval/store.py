"""Where a gallery is kept: the interface that faiss's folders and Milvus share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lrreid_ext.errors import GalleryError
from lrreid_ext.registry import suggest
from lrreid_ext.retrieval.entries import Entry
from lrreid_ext.retrieval.space import Floats, Ids, Space

__all__ = ["Asked", "Made", "Recall", "Store", "create_store", "open_store"]

# How recall is measured: by so many queries that look for so many nearest; see Space.probes.
SAMPLE, NEIGHBOURS = 256, 10

Rows = tuple[Sequence[Entry], Floats]


class Asked(NamedTuple):
    """Queries: vectors (Q, K * D) as :meth:`Space.stored` makes them, and weights (Q, K)."""

    vectors: Floats
    weights: Floats


@dataclass(frozen=True)
class Recall:
    """How much of what an exact search finds an approximate one finds.

    Measured on the gallery itself: its queries lie about some of its vectors; see
    :meth:`Space.probes`.

    Attributes:
        target: what was asked for, 0 to 1.
        measured: reached; 1 of an exact search.
        setting: nodes or lists that a search looks at; 0 where there is no such thing.
        queries, neighbours: how many were asked, and for how many nearest each.
    """

    target: float
    measured: float = 1.0
    setting: int = 0
    queries: int = 0
    neighbours: int = 0


@dataclass(frozen=True)
class Made:
    """What a gallery was made with; it stays the same as long as there is the gallery.

    Attributes:
        model: :attr:`lrreid_ext.api.TrainedModel.hash`.
        weights, config: the hashes that it is made of.
        run: where the model was loaded from.
        metric: of the distances.
        anchors: factors of the anchors whose features are kept; () of other models.
        width: values of the features of one anchor or model.
        flip: whether features are averaged with those of the mirror image.
        kind: of index: ``auto``, or a fixed one.
        recall: that an approximate index must reach, 0 to 1.
        opts: the overrides of its config that the model was loaded with.
    """

    model: str
    weights: str
    config: str
    run: str
    metric: str
    anchors: tuple[float, ...]
    width: int
    flip: bool
    kind: str
    recall: float
    opts: tuple[str, ...] = ()

    @property
    def space(self) -> Space:
        """Where its vectors lie."""
        return Space(self.metric, max(1, len(self.anchors)), self.width)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "anchors": list(self.anchors), "opts": list(self.opts)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Made:
        """Raises TypeError or KeyError if ``values`` isn't one."""
        made = cls(**values)
        return replace(
            made, anchors=tuple(float(f) for f in made.anchors), opts=tuple(map(str, made.opts))
        )


class Store(ABC):
    """Vectors and what is known of them, kept between runs.

    Attributes:
        where: what names it.
        made: what it was made with.
    """

    where: str
    made: Made

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """While this lasts nobody else may write; begins with what was last written.

        Raises:
            GalleryError: somebody else is writing.
        """

    @abstractmethod
    def known(self, hashes: Collection[str]) -> dict[str, Entry]:
        """The entries of those contents that are there, by hash."""

    @abstractmethod
    def of_files(self, files: Collection[str]) -> list[Entry]:
        """The entries of those files, by absolute path, that are there. After a write that was cut
        off a file may have several."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All of them, in the order added."""

    @abstractmethod
    def write(
        self, added: Iterable[Rows], removed: Sequence[Entry] = (), settled: Sequence[Entry] = ()
    ) -> None:
        """Take entries out, change others, and put new ones in.

        Args:
            added: entries, and their vectors (N, K * D).
            removed: taken out.
            settled: there already; their files and labels become these, their vectors stay.
        """

    @abstractmethod
    def search(self, asked: Asked, k: int) -> list[list[tuple[Entry, float]]]:
        """Each query's ``k`` nearest entries, or all if there are fewer, and their distances."""

    @property
    @abstractmethod
    def mean_area(self) -> float:
        """Mean number of native pixels of the images; 0 if there are none."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Kind of the index in use."""

    @property
    @abstractmethod
    def recall(self) -> Recall:
        """What its searches find."""

    @property
    def unfinished(self) -> bool:
        """Whether a write was cut off; the next one, of whatever, ends it."""
        return False

    @abstractmethod
    def size(self) -> int:
        """Bytes on the disk, as far as they are known; 0 if not."""

    def close(self) -> None:  # noqa: B027 - nothing to do where nothing is held
        """Let go of files and connections."""


def sampled(count: int) -> Ids:
    """Rows, sorted, that recall is measured on: the same for the same number of vectors."""
    drawn = np.random.default_rng(0).permutation(count)[:SAMPLE]
    return np.sort(drawn).astype(np.int64)


def first_other(found: Ids, own: Ids) -> Ids:
    """The first of each row of ``found`` (Q, 2) that isn't the row's own, of ``own``: (Q,)."""
    return np.where(found[:, 0] == own, found[:, 1], found[:, 0])


def open_store(where: str) -> Store:
    """A gallery that is there.

    Args:
        where: a folder; or ``milvus:`` and the file of Milvus's embedded form, or the address of a
            server, with ``#NAME`` after it for another collection than ``gallery``.

    Raises:
        GalleryError: there is none, or it can't be read.
    """
    return _store_type(where).open(where)


def create_store(where: str, made: Made, replace: bool = False) -> Store:
    """A new gallery, that holds nothing and is written by its first :meth:`Store.write`.

    Args:
        where: as for :func:`open_store`.
        made: what it is made with.
        replace: take the place of a gallery that is there; else that is an error.

    Raises:
        GalleryError: there is one, or something else.
    """
    return _store_type(where).create(where, made, replace)


def _store_type(where: str) -> Any:
    if where.startswith("milvus:"):
        from lrreid_ext.retrieval.milvus import MilvusStore

        return MilvusStore
    if "://" in where:
        raise GalleryError(f"{where}: for a Milvus server write milvus:{where}")
    scheme, colon, _ = where.partition(":")
    if colon and "milvus" in suggest(scheme, ["milvus"]):
        raise GalleryError(f"{where}: is no folder's name.{suggest(scheme, ['milvus'])}")
    from lrreid_ext.retrieval.folder import FolderStore

    return FolderStore
