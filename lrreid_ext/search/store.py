"""What a gallery keeps, and what its stores (SQLite, Milvus) have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lrreid_ext.errors import GalleryError
from lrreid_ext.search.index import Floats, Queries, Recall, Space

__all__ = ["FORMAT", "Answers", "Entry", "Settings", "Store"]

# Of what a gallery's files hold. Format 1 had a folder of generations, format 2 a file of the
# index's state.
FORMAT = 3


@dataclass(frozen=True)
class Entry:
    """One image of a gallery, or a query.

    Attributes:
        sha256: hash of the file's bytes.
        file: absolute path.
        height, width: native size in pixels: the file's, or the estimate from the image's spectrum
            with INPUT.NATIVE_SIZE estimated.
        identity, camera: from the file name or the table; "" is unknown.
    """

    sha256: str
    file: str
    height: int
    width: int
    identity: str = ""
    camera: str = ""


# Each query's nearest entries with their distances.
Answers = list[list[tuple[Entry, float]]]


@dataclass(frozen=True)
class Settings:
    """How a gallery was built. They never change.

    Attributes:
        weights: hash of the model's weights.
        config: hash of the part of its config that decides features.
        metric: of the distances.
        flip: whether features are averaged with those of the mirror image.
        anchors: factors of the anchors whose features are kept; () for other models.
        width: values of the features of one anchor or model.
        kind: of index: ``auto``, ``exact`` or ``hnsw``.
        recall: that HNSW must reach, 0 to 1.
        run: where the model was loaded from.
        opts: the config overrides that the model was loaded with.
    """

    weights: str
    config: str
    metric: str
    flip: bool
    anchors: tuple[float, ...]
    width: int
    kind: str = "auto"
    recall: float = 0.95
    run: str = ""
    opts: tuple[str, ...] = ()

    @property
    def space(self) -> Space:
        """The space of its vectors."""
        return Space(self.metric, max(1, len(self.anchors)), self.width)

    @classmethod
    def from_plain(cls, values: dict[str, Any], where: str, advice: str) -> Settings:
        """From JSON: the fields and ``format``.

        Raises:
            GalleryError: another format; names the gallery and gives the advice.
        """
        values = dict(values)
        if (number := values.pop("format")) != FORMAT:
            raise GalleryError(
                f"{where}: has format {number}, this version reads {FORMAT}; {advice}"
            )
        settings = cls(**values)
        return replace(settings, anchors=tuple(settings.anchors), opts=tuple(settings.opts))

    def plain(self) -> dict[str, Any]:
        """For JSON; see :meth:`from_plain`."""
        return {"format": FORMAT, **asdict(self)}


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
        """All entries."""

    def matching(self, files: Collection[str] = (), contents: Collection[str] = ()) -> list[Entry]:
        """Entries of these files, and those with these contents (hashes), each once."""

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
