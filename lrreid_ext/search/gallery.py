"""Galleries: images of people that a model has embedded, and queries ranked against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lrreid_ext.data.pictures import read_picture
from lrreid_ext.data.resolution import native_size as size_of
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.evaluation.distance import METRICS, check_features
from lrreid_ext.evaluation.fusion import anchor_weights, areas, chosen_anchors
from lrreid_ext.registry import suggest
from lrreid_ext.results.provenance import config_hash, weights_hash
from lrreid_ext.search.images import (
    Change,
    Labels,
    Paths,
    add_stored,
    each_path,
    find_images,
    read_content,
    read_labels,
)
from lrreid_ext.search.index import KINDS, Floats, Queries
from lrreid_ext.search.milvus import SCHEME, MilvusStore
from lrreid_ext.search.sqlite import SqliteStore
from lrreid_ext.search.store import Entry, Settings, Store
from lrreid_ext.trained import TrainedModel

__all__ = ["Answer", "Gallery", "Match"]


@dataclass(frozen=True)
class Match:
    """One image of the gallery, ranked.

    Attributes:
        rank: from 1.
        distance: as the evaluator measures it; smaller is nearer.
        entry: the image.
        right: whether it shows the query's identity; None where either is unknown.
        same_file: whether it is the query itself, byte for byte.
    """

    rank: int
    distance: float
    entry: Entry
    right: bool | None
    same_file: bool


@dataclass(frozen=True)
class Answer:
    """A query and its matches, nearest first.

    Attributes:
        query: the image, as the gallery would store it.
        weights: of the anchors' distances, by factor; empty for models without anchors.
        matches: ranked.
    """

    query: Entry
    weights: dict[str, float]
    matches: list[Match]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        matches = [asdict(match) for match in self.matches]
        return {
            "query": asdict(self.query),
            "weights": {factor: round(weight, 6) for factor, weight in self.weights.items()},
            "matches": [
                {**match, "distance": round(match["distance"], 6), **match.pop("entry")}
                for match in matches
            ],
        }


class Gallery:
    """A store of features, and the model that embeds images.

    Args:
        store: an open one.
        model: None for what needs none: :meth:`remove` and :meth:`info`.

    Raises:
        GalleryError: the stored features come from another model, or from other test settings.
    """

    def __init__(self, store: Store, model: TrainedModel | None = None) -> None:
        self.store = store
        self._model = model
        if model is not None:
            _check_model(store, model)

    @property
    def model(self) -> TrainedModel:
        """The model that embeds images."""
        if self._model is None:
            raise GalleryError(f"{self.store.where}: a model is needed to embed images")
        return self._model

    def __len__(self) -> int:
        return len(self.store)

    @classmethod
    def open(cls, where: str, model: TrainedModel | None = None) -> Gallery:
        """An existing gallery.

        Args:
            where: a folder; or ``milvus:`` and the file of Milvus's embedded form, or the address
                of a server, with ``#NAME`` for another collection than ``gallery``.
            model: the one that the gallery was built with; None for what needs none.

        Raises:
            GalleryError: there is none, it can't be read, or another model built it.
        """
        return cls(_store_class(where).open(where), model)

    @classmethod
    def create(
        cls,
        where: str,
        model: TrainedModel,
        images: Paths,
        *,
        labels: str = "none",
        kind: str = "auto",
        recall: float = 0.95,
        batch_size: int = 64,
        run: str = "",
        opts: Sequence[str] = (),
        replace: bool = False,
    ) -> tuple[Gallery, Change]:
        """A new gallery of image files.

        Args:
            where: as for :meth:`open`.
            model: embeds the images. Its TEST.METRIC, FLIP and FUSION.ANCHORS become the
                gallery's.
            images: files and folders.
            labels: see :func:`~lrreid_ext.search.images.read_labels`.
            kind: of index: ``exact``, ``hnsw``, or ``auto``, which chooses by size at every change.
            recall: share, 0 to 1, of the ten nearest neighbours that HNSW must find; see
                :meth:`~lrreid_ext.search.index.Space.probes`. If it can't, the search is exact, and
                a warning says so.
            batch_size: images at a time.
            run: where the model was loaded from, to find it again.
            opts: config overrides that the model was loaded with, to load it again.
            replace: take the place of an existing gallery once all images are embedded.

        Raises:
            GalleryError: ``where`` can't be used, or no image can.
            ConfigError: settings of TEST that can't be used.
        """
        if kind not in ("auto", *KINDS):
            raise GalleryError(f"kind {kind!r} is none of auto, {', '.join(KINDS)}")
        if not 0 < recall <= 1:
            raise GalleryError(f"recall {recall} must be above 0 and at most 1")
        files, labels_of = find_images(images), read_labels(labels)
        settings = Settings(
            **_of_features(model), kind=kind, recall=recall, run=run, opts=tuple(opts)
        )
        gallery = cls(_store_class(where).create(where, settings, replace))
        gallery._model = model
        try:
            return gallery, gallery._add(files, labels_of, batch_size, at_once=replace)
        except BaseException:
            gallery.close()
            raise

    def close(self) -> None:
        """Release files and connections."""
        self.store.close()

    # ------------------------------------------------------------------ adding
    def add(self, images: Paths, *, labels: str = "none", batch_size: int = 64) -> Change:
        """Embed image files and store them, a batch at a time.

        Contents that are stored already aren't embedded again, so adding a folder once more adds
        what is new in it, also after an interruption. A file whose content has changed replaces its
        old content. A stored content whose file is gone, or holds another, moves to the new name.

        Args:
            images: files and folders.
            labels: see :func:`~lrreid_ext.search.images.read_labels`.
            batch_size: images at a time.

        Raises:
            GalleryError: no image can be used, a model that gives NaN, or another process that is
                replacing the gallery.
        """
        return self._add(find_images(images), read_labels(labels), batch_size)

    def _add(
        self, files: Sequence[Path], labels: Labels, batch_size: int, at_once: bool = False
    ) -> Change:
        """See :meth:`add`; ``at_once`` stores nothing before all is embedded."""
        change = Change()
        fresh = add_stored(self.store, files, labels, change)
        batches = self._embedded(fresh, labels, batch_size, change)
        if at_once:
            parts = list(batches)
            entries = [entry for part, _ in parts for entry in part]
            batches = iter([(entries, np.concatenate([v for _, v in parts]))] if parts else [])
        for entries, vectors in batches:
            change.replaced += [e.file for e in self.store.put(entries, vectors)]
            change.added += len(entries)
        # Copies of fresh contents have lost what they held, unless they can't be read.
        outdated = self.store.matching([file for file, _ in change.duplicates])
        self.store.remove(outdated)
        change.replaced += [e.file for e in outdated]
        self.store.refresh()
        if not len(self):
            first = f"; {change.damaged[0]}" if change.damaged else ""
            raise GalleryError(f"{self.store.where}: no image can be used{first}")
        return change

    def _embedded(
        self, contents: dict[str, list[str]], labels: Labels, batch_size: int, change: Change
    ) -> Iterator[tuple[list[Entry], Floats]]:
        """Entries and vectors of contents, a batch at a time.

        Args:
            contents: the files that hold each, by hash.
            labels: of the files.
            batch_size: contents at a time.
            change: receives duplicates and damaged files.
        """
        hashes = list(contents)
        with tqdm(total=len(hashes), desc="features", unit="image", disable=None) as bar:
            for start in range(0, len(hashes), batch_size):
                pictures, entries = [], []
                for sha256 in hashes[start : start + batch_size]:
                    file, *copies = contents[sha256]
                    try:
                        picture = read_picture(file)
                    except ImageError as error:
                        reason = str(error).removeprefix(file)
                        change.damaged += [f"{name}{reason}" for name in (file, *copies)]
                        continue
                    size = size_of(picture, self.model.cfg.INPUT.NATIVE_SIZE)
                    pictures.append(picture)
                    entries.append(Entry(sha256, file, *size, *labels.of(Path(file))))
                    change.duplicates += [(copy, file) for copy in copies]
                if entries:
                    yield entries, self._vectors(pictures, entries)
                bar.update(min(batch_size, len(hashes) - start))

    def _vectors(self, pictures: Sequence[Image.Image], entries: Sequence[Entry]) -> Floats:
        """(N, K * D), to be stored, of images and their entries."""
        settings, cfg = self.store.settings, self.model.cfg
        sizes = [(e.height, e.width) for e in entries]
        features = self.model.embed(list(pictures), sizes, len(pictures), settings.flip)
        if settings.anchors:
            factors = [float(f) for f in cfg.MODEL.ANCHORS.FACTORS]
            features = features[:, [factors.index(f) for f in settings.anchors]]
        try:
            return settings.space.stored(check_features(features, "images"))
        except ValueError as error:
            raise GalleryError(str(error)) from error

    # ------------------------------------------------------------------ removing
    def remove(self, condition: Callable[[Entry], bool]) -> list[Entry]:
        """Remove the entries for which ``condition`` is true, and their features.

        Returns:
            The removed entries.
        """
        removed = [entry for entry in self.store.entries() if condition(entry)]
        self.store.remove(removed)
        self.store.refresh()
        return removed

    def remove_files(self, files: Paths) -> list[Entry]:
        """Remove files by path, all below a folder, or by the first 8 or more digits of their hash.

        Raises:
            GalleryError: an empty path, or one that isn't stored (the message names the most
                similar one); nothing is removed then.
        """
        entries = self.store.entries()
        listed: set[str] = set()
        for text in map(str, each_path(files)):
            if not text.strip():  # such as a shell variable that isn't set
                raise GalleryError("remove: an empty path; name a file or folder")
            path = str(Path(text).resolve())
            below = os.path.join(path, "")
            matching = [e.file for e in entries if e.file == path or e.file.startswith(below)]
            if not matching and len(text) >= 8:
                matching = [e.file for e in entries if e.sha256.startswith(text.lower())]
            if not matching:
                self.store.refresh()  # complete a removal that was interrupted
                hint = suggest(path, [e.file for e in entries])
                raise GalleryError(
                    f"{self.store.where}: holds no {text}.{hint} Nothing was removed"
                )
            listed.update(matching)
        return self.remove(lambda entry: entry.file in listed)

    # ------------------------------------------------------------------ searching
    def search(
        self,
        queries: Paths,
        k: int = 10,
        *,
        native_size: tuple[int, int] | None = None,
        labels: str = "none",
        batch_size: int = 64,
        on_damaged: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Rank the gallery for query image files.

        Distances of a model with anchors are fused by each query's own resolution (SING, Eq. 6 to
        8), with the model's TEST.FUSION.SIGMA.

        Args:
            queries: files and folders.
            k: matches of each.
            native_size: height and width that all queries had before somebody enlarged them; by
                default the files' own, or with INPUT.NATIVE_SIZE estimated the estimates from
                their spectra.
            labels: of the queries; see :func:`~lrreid_ext.search.images.read_labels`.
            batch_size: images at a time.
            on_damaged: called with the name of a query that can't be used, and the reason, as one
                text; the other queries are answered then.

        Raises:
            ImageError: a query that can't be read (without ``on_damaged``), or none that can.
            GalleryError: ``k`` or a native size below 1, or an empty gallery.
        """
        if k < 1:
            raise GalleryError(f"{k} matches: at least 1 is needed")
        if native_size and min(native_size) < 1:
            raise GalleryError(f"native size {native_size}: at least 1 pixel each way is needed")
        if not len(self):
            raise GalleryError(f"{self.store.where}: the gallery is empty")
        files, labels_of = find_images(queries), read_labels(labels)
        entries, vectors = [], []
        for start in range(0, len(files), batch_size):
            pictures, batch = [], []
            for path in files[start : start + batch_size]:
                try:
                    content, sha256 = read_content(path)
                    picture = read_picture(path, content)
                except ImageError as error:
                    if on_damaged is None:
                        raise
                    on_damaged(str(error))
                    continue
                size = native_size or size_of(picture, self.model.cfg.INPUT.NATIVE_SIZE)
                pictures.append(picture)
                batch.append(Entry(sha256, str(path), *size, *labels_of.of(path)))
            if batch:
                entries += batch
                vectors.append(self._vectors(pictures, batch))
        if not entries:
            raise ImageError("no query can be read as an image")
        weights = self._weights(entries).numpy()
        neighbours = self.store.search(Queries(np.concatenate(vectors), weights), k)
        anchors = [f"x{f:g}" for f in self.store.settings.anchors]
        return [
            Answer(
                query,
                dict(zip(anchors, query_weights, strict=False)),
                [_match(query, n, entry, d) for n, (entry, d) in enumerate(ranked, start=1)],
            )
            for query, query_weights, ranked in zip(
                entries, weights.tolist(), neighbours, strict=True
            )
        ]

    def _weights(self, queries: Sequence[Entry]) -> Tensor:
        """(Q, K) float32; ones without anchors."""
        anchors = self.store.settings.anchors
        if not anchors:
            return torch.ones(len(queries), 1)
        sizes = torch.tensor([[q.height, q.width] for q in queries])
        mean = torch.tensor([self.store.mean_area()], dtype=torch.float64)
        sigma = float(self.model.cfg.TEST.FUSION.SIGMA)
        return anchor_weights(areas(sizes), mean, anchors, sigma)

    def info(self) -> dict[str, Any]:
        """Contents, index and settings, for JSON."""
        store = self.store
        entries = store.entries()
        sizes = sorted((e.height, e.width) for e in entries)
        settings, recall = asdict(store.settings), asdict(store.recall)
        return {
            "gallery": store.where,
            "images": len(entries),
            "identities": len({e.identity for e in entries if e.identity not in ("", "0")}),
            "cameras": len({e.camera for e in entries if e.camera}),
            "native sizes": [list(s) for s in (sizes[0], sizes[-1])] if sizes else [],
            "dimension": store.settings.space.dim,
            "bytes": store.size(),
            "index": recall.pop("kind"),
            "recall": {"asked": settings.pop("recall"), **recall},
            **settings,
        }


def _store_class(where: str) -> type[SqliteStore] | type[MilvusStore]:
    if where.startswith(SCHEME):
        return MilvusStore
    if "://" in where:
        raise GalleryError(f"{where}: for a Milvus server write {SCHEME}{where}")
    return SqliteStore


def _match(query: Entry, rank: int, entry: Entry, distance: float) -> Match:
    labelled = bool(query.identity) and bool(entry.identity)
    right = query.identity == entry.identity if labelled else None
    return Match(rank, distance, entry, right, query.sha256 == entry.sha256)


def _of_features(model: TrainedModel) -> dict[str, Any]:
    """The settings that decide a gallery's features; see :class:`Settings`."""
    cfg = model.cfg
    if cfg.TEST.METRIC not in METRICS:
        raise GalleryError(f"TEST.METRIC: {cfg.TEST.METRIC!r} is none of {', '.join(METRICS)}")
    # Those of any image show which anchors are trained.
    features = model.embed(np.zeros((64, 32, 3), np.uint8), native_size=(64, 32))
    anchors = chosen_anchors(cfg, features) if features.ndim == 3 else []
    return {
        "weights": weights_hash(model.module),
        "config": config_hash(cfg),
        "metric": cfg.TEST.METRIC,
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        "anchors": tuple(sorted(float(cfg.MODEL.ANCHORS.FACTORS[i]) for i in anchors)),
        "width": features.shape[-1],
    }


def _check_model(store: Store, model: TrainedModel) -> None:
    """Refuse a model whose features can't be compared with the stored ones.

    Raises:
        GalleryError: names what differs.
    """
    stored, other = asdict(store.settings), _of_features(model)
    differences = [key for key, value in other.items() if stored[key] != value]
    hashes = [key for key in differences if key in ("weights", "config")]
    if hashes:
        raise GalleryError(
            f"{store.where}: was made by another model ({store.settings.run or 'unnamed'}); its "
            f"{' and '.join(hashes)} differ. Features of two models can't be compared: use that "
            "one, or build the gallery again"
        )
    names = {"metric": "METRIC", "flip": "FLIP.ENABLED", "anchors": "FUSION.ANCHORS"}
    for key in differences:
        before, now = (list(v) if key == "anchors" else v for v in (stored[key], other[key]))
        raise GalleryError(
            f"{store.where}: was made with TEST.{names[key]} {before}, the model's config says "
            f"{now}; override it, or build the gallery again"
        )
