"""Galleries: images of people that a model has embedded, and queries ranked against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lrreid_ext.config import CfgNode
from lrreid_ext.data.pictures import read_picture
from lrreid_ext.data.resolution import native_size as size_of
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.evaluation.distance import METRICS, check_features
from lrreid_ext.evaluation.fusion import anchor_weights, areas, check_fusion, chosen_anchors
from lrreid_ext.registry import suggest
from lrreid_ext.results.provenance import config_hash, weights_hash
from lrreid_ext.search.adding import Change, add_stored
from lrreid_ext.search.images import (
    Entry,
    Labels,
    Paths,
    content_hash,
    each_path,
    failure,
    find_images,
    read_content,
    read_labels,
)
from lrreid_ext.search.index import KINDS
from lrreid_ext.search.milvus import SCHEME, MilvusStore
from lrreid_ext.search.space import Floats, Queries
from lrreid_ext.search.sqlite import SqliteStore
from lrreid_ext.search.store import Settings, Store
from lrreid_ext.trained import TrainedModel

__all__ = ["Answer", "Change", "Gallery", "Match"]


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

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rank": self.rank,
            "distance": round(self.distance, 6),
            "right": self.right,
            "same_file": self.same_file,
            **self.entry.plain(),
        }


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
        return {
            "query": self.query.plain(),
            "weights": {k: round(v, 6) for k, v in self.weights.items()},
            "matches": [m.plain() for m in self.matches],
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
                :meth:`~lrreid_ext.search.space.Space.probes`. If it can't, the search is exact, and
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
        files, label = find_images(images), read_labels(labels)
        settings = _settings(model, files, kind, recall, run, opts)
        gallery = cls(_store_class(where).create(where, settings, replace), model)
        try:
            return gallery, gallery._add(files, label, batch_size, at_once=replace)
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
        waiting: list[tuple[list[Entry], Floats]] = []
        with tqdm(total=len(fresh), desc="features", unit="image", disable=None) as bar:
            for start in range(0, len(fresh), batch_size):
                part = fresh[start : start + batch_size]
                waiting.append(self._embedded(part, labels, change))
                bar.update(len(part))
                if at_once and start + batch_size < len(fresh):
                    continue
                entries = [entry for batch, _ in waiting for entry in batch]
                vectors = np.concatenate([values for _, values in waiting])
                waiting.clear()
                if entries:
                    change.replaced += [e.file for e in self.store.put(entries, vectors)]
                    change.added += len(entries)
        # Copies of fresh contents have lost what they held, unless they can't be read.
        outdated = self.store.with_files([file for file, _ in change.duplicates])
        self.store.remove(outdated)
        change.replaced += [e.file for e in outdated]
        self.store.refresh()
        if not len(self):
            first = "; {}: {}".format(*change.damaged[0]) if change.damaged else ""
            raise GalleryError(f"{self.store.where}: no image can be used{first}")
        return change

    def _embedded(
        self, fresh: Sequence[tuple[str, list[str]]], labels: Labels, change: Change
    ) -> tuple[list[Entry], Floats]:
        """Entries and vectors of contents and their files."""
        entries, pictures = [], []
        for sha256, files in fresh:
            try:
                picture = read_picture(files[0])
            except ImageError as error:
                reason = failure(files[0], error)[1]
                change.damaged += [(file, reason) for file in files]
                continue
            pictures.append(picture)
            entries.append(
                Entry(sha256, files[0], *self._size(picture), *labels.of(Path(files[0])))
            )
            change.duplicates += [(file, files[0]) for file in files[1:]]
        return entries, self._vectors(pictures, entries)

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        return size_of(picture, self.model.cfg.INPUT.NATIVE_SIZE)

    def _vectors(self, pictures: Sequence[Image.Image], entries: Sequence[Entry]) -> Floats:
        """(N, K * D), to be stored, of images and their entries."""
        settings, cfg = self.store.settings, self.model.cfg
        if not entries:
            return np.empty((0, settings.space.dim), np.float32)
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
    def remove(self, which: Callable[[Entry], bool]) -> list[Entry]:
        """Remove the entries for which ``which`` is true, and their features.

        Returns:
            The removed entries.
        """
        gone = [entry for entry in self.store.entries() if which(entry)]
        self.store.remove(gone)
        self.store.refresh()
        return gone

    def remove_files(self, files: Paths) -> list[Entry]:
        """Remove files by path, all below a folder, or by the first 8 or more digits of their hash.

        Raises:
            GalleryError: an empty path, or one that isn't stored (the message names the most
                similar one); nothing is removed then.
        """
        entries = self.store.entries()
        gone: dict[str, Entry] = {}
        for given in each_path(files):
            text = str(given)
            if not text.strip():  # such as a shell variable that isn't set
                raise GalleryError("remove: an empty path; name a file or folder")
            path = str(Path(given).resolve())
            below = os.path.join(path, "")
            matching = [e for e in entries if e.file == path or e.file.startswith(below)]
            if not matching and len(text) >= 8:
                matching = [e for e in entries if e.sha256.startswith(text.lower())]
            if not matching:
                self.store.refresh()  # complete a removal that was interrupted
                hint = suggest(path, [e.file for e in entries])
                raise GalleryError(
                    f"{self.store.where}: holds no {text}.{hint} Nothing was removed"
                )
            gone |= {e.file: e for e in matching}
        return self.remove(lambda entry: entry.file in gone)

    # ------------------------------------------------------------------ searching
    def search(
        self,
        queries: Paths,
        k: int = 10,
        *,
        native_size: tuple[int, int] | None = None,
        labels: str = "none",
        batch_size: int = 64,
        on_damaged: Callable[[str, str], None] | None = None,
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
            on_damaged: called with the name of a query that can't be used, and the reason; the
                other queries are answered then.

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
        files, label = find_images(queries), read_labels(labels)
        entries, vectors = [], []
        for start in range(0, len(files), batch_size):
            pictures, batch = [], []
            for path in files[start : start + batch_size]:
                try:
                    content = read_content(path)
                    picture = read_picture(path, content)
                except ImageError as error:
                    if on_damaged is None:
                        raise
                    on_damaged(*failure(path, error))
                    continue
                size = native_size or self._size(picture)
                pictures.append(picture)
                batch.append(Entry(content_hash(content), str(path), *size, *label.of(path)))
            if batch:
                entries += batch
                vectors.append(self._vectors(pictures, batch))
        if not entries:
            raise ImageError("no query can be read as an image")
        weights = self._weights(entries)
        found = self.store.search(Queries(np.concatenate(vectors), weights.numpy()), k)
        anchors = [f"x{f:g}" for f in self.store.settings.anchors]
        return [
            Answer(
                query,
                dict(zip(anchors, own.tolist(), strict=False)),
                [_match(query, n, entry, d) for n, (entry, d) in enumerate(near, start=1)],
            )
            for query, own, near in zip(entries, weights, found, strict=True)
        ]

    def _weights(self, queries: Sequence[Entry]) -> Tensor:
        """(Q, K) float32."""
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
        recall, settings = store.recall, asdict(store.settings)
        return {
            "gallery": store.where,
            "images": len(entries),
            "identities": len({e.identity for e in entries if e.identity not in ("", "0")}),
            "cameras": len({e.camera for e in entries if e.camera}),
            "native sizes": [list(s) for s in (sizes[0], sizes[-1])] if sizes else [],
            "dimension": store.settings.space.dim,
            "index": recall.kind,
            "recall": {
                "asked": settings.pop("recall"),
                "measured": round(recall.measured, 4),
                "setting": recall.setting,
                "queries": recall.queries,
                "neighbours": recall.neighbours,
            },
            "bytes": store.size(),
            **{key: value for key, value in settings.items() if key != "width"},
        }


def _store_class(where: str) -> type[SqliteStore] | type[MilvusStore]:
    if where.startswith(SCHEME):
        return MilvusStore
    if "://" in where:
        raise GalleryError(f"{where}: for a Milvus server write {SCHEME}{where}")
    scheme, colon, _ = where.partition(":")
    if colon and (hint := suggest(scheme, [SCHEME[:-1]])):
        raise GalleryError(f"{where}: isn't a folder's name.{hint}")
    return SqliteStore


def _match(query: Entry, rank: int, entry: Entry, distance: float) -> Match:
    known = bool(query.identity) and bool(entry.identity)
    right = query.identity == entry.identity if known else None
    return Match(rank, distance, entry, right, query.sha256 == entry.sha256)


def _metric_and_flip(cfg: CfgNode) -> tuple[str, bool]:
    if cfg.TEST.METRIC not in METRICS:
        raise GalleryError(f"TEST.METRIC: {cfg.TEST.METRIC!r} is none of {', '.join(METRICS)}")
    return cfg.TEST.METRIC, bool(cfg.TEST.FLIP.ENABLED)


def _settings(
    model: TrainedModel,
    files: Sequence[Path],
    kind: str,
    recall: float,
    run: str,
    opts: Sequence[str],
) -> Settings:
    """Settings of a gallery of these files; the first that can be read shows the features."""
    metric, flip = _metric_and_flip(model.cfg)
    for path in files:
        try:
            features = model.embed(path)
        except ImageError:
            continue
        break
    else:
        raise GalleryError(f"{files[0]}: can't be read as an image, nor can any other")
    return Settings(
        model=model.hash,
        weights=weights_hash(model.module),
        config=config_hash(model.cfg),
        run=run,
        metric=metric,
        anchors=_anchors(model, features),
        width=features.shape[-1],
        flip=flip,
        kind=kind,
        recall=recall,
        opts=tuple(opts),
    )


def _anchors(model: TrainedModel, features: Tensor) -> tuple[float, ...]:
    """Factors of the anchors that a model's features (N, K, D) are fused of; () of (N, D)."""
    if features.ndim == 2:
        return ()
    factors = model.cfg.MODEL.ANCHORS.FACTORS
    return tuple(float(factors[i]) for i in chosen_anchors(model.cfg, features))


def _check_model(store: Store, model: TrainedModel) -> None:
    """Refuse a model whose features can't be compared with the stored ones.

    Raises:
        GalleryError: names what differs.
    """
    settings = store.settings
    if model.hash != settings.model:
        differ = [
            what
            for what, own, stored in (
                ("weights", weights_hash(model.module), settings.weights),
                ("config", config_hash(model.cfg), settings.config),
            )
            if own != stored
        ]
        raise GalleryError(
            f"{store.where}: was made by another model ({settings.run or settings.model[:12]}); "
            f"its {' and '.join(differ)} differ. Features of two models can't be compared: use "
            "that one, or build the gallery again"
        )
    metric, flip = _metric_and_flip(model.cfg)
    check_fusion(model.cfg)
    anchors = {float(f) for f in model.cfg.TEST.FUSION.ANCHORS}
    if settings.anchors and anchors != set(settings.anchors):
        # Anchors that are named and not trained are left out, as they were in the build.
        anchors = set(_anchors(model, model.embed(np.zeros((8, 4, 3), np.uint8))))
    for key, stored, own in (
        ("TEST.METRIC", settings.metric, metric),
        ("TEST.FLIP.ENABLED", settings.flip, flip),
        ("TEST.FUSION.ANCHORS", sorted(settings.anchors), sorted(anchors)),
    ):
        if stored != own:
            raise GalleryError(
                f"{store.where}: was made with {key} {stored}, the model's config says {own}; "
                "override it, or build the gallery again"
            )
