"""Where a gallery is kept: what SQLite and Milvus have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lrreid_ext.search.images import Entry
from lrreid_ext.search.index import Recall
from lrreid_ext.search.space import Floats, Queries, Space

__all__ = ["FORMAT", "Answers", "Settings", "Store"]

# Of what a gallery's files hold. Format 1 had a folder of generations.
FORMAT = 2

# Each query's nearest entries with their distances.
Answers = list[list[tuple[Entry, float]]]


@dataclass(frozen=True)
class Settings:
    """How a gallery was built. They never change.

    Attributes:
        model: hash of the weights and of the part of the config that decides features.
        weights, config: the two hashes that ``model`` combines.
        run: where the model was loaded from.
        metric: of the distances.
        anchors: factors of the anchors whose features are kept; () for other models.
        width: values of the features of one anchor or model.
        flip: whether features are averaged with those of the mirror image.
        kind: of index: ``auto``, ``exact`` or ``hnsw``.
        recall: that HNSW must reach, 0 to 1.
        opts: the config overrides that the model was loaded with.
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
        """The space of its vectors."""
        return Space(self.metric, max(1, len(self.anchors)), self.width)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Settings:
        """From what JSON makes of the fields."""
        settings = cls(**values)
        return replace(settings, anchors=tuple(settings.anchors), opts=tuple(settings.opts))


class Store(Protocol):
    """Entries and their vectors, kept between runs. A file has one content, a content one file.

    A class of stores also has ``open(where)`` and ``create(where, settings, replace)``. A created
    store is empty; its first :meth:`put` makes the gallery, or replaces another.

    Attributes:
        where: its name on the command line.
        settings: how the gallery was built.
        recall: kind and recall of the index.
    """

    where: str
    settings: Settings
    recall: Recall

    def __len__(self) -> int:
        """Number of images."""

    def entries(self) -> list[Entry]:
        """All of them."""

    def with_contents(self, hashes: Collection[str]) -> list[Entry]:
        """The entries of those contents that are stored."""

    def with_files(self, files: Collection[str]) -> list[Entry]:
        """The entries of those files that are stored. After an interrupted write a file may have
        several."""

    def put(self, entries: Sequence[Entry], vectors: Floats | None = None) -> list[Entry]:
        """Store entries. Each replaces the entries of its content and of its file.

        Args:
            entries: of different contents and files.
            vectors: (N, K * D); None where the contents are stored already.

        Returns:
            The entries whose contents were dropped, since their files have other contents now.
        """

    def remove(self, entries: Sequence[Entry]) -> None:
        """Drop entries and their vectors."""

    def refresh(self) -> None:
        """Bring the index up to date, if it isn't."""

    def search(self, queries: Queries, k: int) -> Answers:
        """Each query's ``k`` nearest entries, or all if there are fewer."""

    def mean_area(self) -> float:
        """Mean number of native pixels of the images; 0 if there are none."""

    def size(self) -> int:
        """Bytes on the disk; 0 if unknown."""

    def close(self) -> None:
        """Release files and connections."""
