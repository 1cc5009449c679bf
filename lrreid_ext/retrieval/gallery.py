"""Galleries: images of people that a model has embedded, and queries ranked against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lrreid_ext.api import TrainedModel
from lrreid_ext.config import CfgNode
from lrreid_ext.data.pictures import Images, read_picture
from lrreid_ext.data.resolution import native_size as size_of
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.evaluation.distance import METRICS, check_features
from lrreid_ext.evaluation.fusion import anchor_weights, areas, check_fusion, chosen_anchors
from lrreid_ext.evaluation.provenance import config_hash, weights_hash
from lrreid_ext.registry import suggest
from lrreid_ext.retrieval.adding import Change, content_hash, plan, why_left_out
from lrreid_ext.retrieval.ann import KINDS
from lrreid_ext.retrieval.entries import Entry, Labels, Paths, each_path, find_images, read_labels
from lrreid_ext.retrieval.store import Asked, Made, Rows, Store, create_store, open_store

__all__ = ["Answer", "Change", "Gallery", "Match"]


@dataclass(frozen=True)
class Match:
    """One image of the gallery, ranked.

    Attributes:
        rank: from 1.
        distance: as the evaluator measures it; smaller is nearer.
        entry: the image.
        right: whether it shows the query's identity; None where either's isn't known.
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
        query: the image, as an entry would hold it.
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
    """A store of features, and the model that made them.

    Args:
        store: of :func:`~lrreid_ext.retrieval.store.open_store`.
        model: None for what needs none: :meth:`remove` and :meth:`info`.

    Raises:
        GalleryError: the store's features were made by another model, or in another way.
    """

    def __init__(self, store: Store, model: TrainedModel | None = None) -> None:
        self.store = store
        self._model = model
        if model is not None:
            _check_model(store, model)

    @property
    def model(self) -> TrainedModel:
        """The model that made the features."""
        if self._model is None:
            raise GalleryError(f"{self.store.where}: a model is needed to embed images")
        return self._model

    @classmethod
    def build(
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
            where: a folder, or Milvus; see :func:`~lrreid_ext.retrieval.store.open_store`.
            model: embeds the images. Its TEST.METRIC, FLIP and FUSION.ANCHORS become the
                gallery's.
            images: files, and folders to be searched through.
            labels: see :func:`~lrreid_ext.retrieval.entries.read_labels`.
            kind: ``exact``, ``hnsw`` or ``ivfpq``; ``auto`` chooses by size at every change.
            recall: what an approximate index must reach: the share that it finds of the ten nearest
                of queries drawn about some of the gallery's images, 0 to 1. A kind that can't gives
                way to a more exact one, with a warning.
            batch_size: images at a time.
            run: where the model was loaded from, to be found again.
            opts: the overrides that it was loaded with, to be given again.
            replace: take the place of a gallery that is there, if all goes well.

        Raises:
            GalleryError: ``where`` can't be used, or no image can.
            ConfigError: settings of TEST that can't be followed.
        """
        if kind not in ("auto", *KINDS):
            raise GalleryError(f"kind {kind!r} is none of auto, {', '.join(KINDS)}")
        if not 0 < recall <= 1:
            raise GalleryError(f"recall {recall} must be above 0 and at most 1")
        files, label = find_images(images), read_labels(labels)
        made = _made_with(model, files, kind, recall, run, opts)
        gallery = cls(create_store(where, made, replace), model)
        return gallery, gallery._add(files, label, batch_size)

    @classmethod
    def open(cls, where: str, model: TrainedModel | None = None) -> Gallery:
        """A gallery that is there."""
        return cls(open_store(where), model)

    def add(self, images: Paths, *, labels: str = "none", batch_size: int = 64) -> Change:
        """Embed image files and put them in, all or (if it is interrupted) none.

        What is there already, by content, isn't put in again; so adding a folder once more adds
        what is new in it. A file whose content has changed takes its old content's place, and
        content that is found under another name, its own file being gone, moves there.

        Args:
            images: files, and folders to be searched through.
            labels: see :func:`~lrreid_ext.retrieval.entries.read_labels`.
            batch_size: images at a time.

        Raises:
            GalleryError: no image can be used, a model that gives NaN, or another process that is
                writing.
        """
        return self._add(find_images(images), read_labels(labels), batch_size)

    def _add(self, files: Sequence[Path], label: Labels, batch_size: int) -> Change:
        change = Change()
        with self.store.writing():
            todo = plan(self.store, files, label, change)
            rows = self._embedded(todo.fresh, batch_size, change)
            self.store.write(rows, todo.gone, todo.settled)
            if not len(self.store):
                worst = (
                    f"; {change.damaged[0][0]}: {change.damaged[0][1]}" if change.damaged else ""
                )
                raise GalleryError(f"{self.store.where}: no image can be used{worst}")
        return change

    def _embedded(self, fresh: Sequence[Entry], batch_size: int, change: Change) -> Iterator[Rows]:
        """Batches of entries with their sizes, and their vectors."""
        with tqdm(total=len(fresh), desc="features", unit="image", disable=None) as bar:
            for start in range(0, len(fresh), batch_size):
                part = fresh[start : start + batch_size]
                entries, pictures = [], []
                for entry in part:
                    try:
                        picture = read_picture(entry.file)
                    except ImageError as error:
                        change.damaged.append(why_left_out(entry.file, error))
                        continue
                    pictures.append(picture)
                    height, width = self._size(picture)
                    entries.append(replace(entry, height=height, width=width))
                bar.update(len(part))
                if entries:
                    change.added += len(entries)
                    vectors = self._features(pictures, entries, batch_size)
                    yield entries, self.store.made.space.stored(vectors)

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        return size_of(picture, self.model.cfg.INPUT.NATIVE_SIZE)

    def _features(self, images: Images, entries: Sequence[Entry], batch_size: int) -> Tensor:
        """(N, D) or (N, K, D), of the gallery's anchors, of images and their entries."""
        made = self.store.made
        sizes = [(e.height, e.width) for e in entries]
        features = self.model.embed(images, sizes, batch_size, made.flip)
        return _chosen(features, self.model.cfg, made)

    def remove(self, which: Callable[[Entry], bool]) -> list[Entry]:
        """Take out the entries that ``which`` says yes to; nothing of them is kept.

        Returns:
            Those taken out.
        """
        with self.store.writing():
            gone = [entry for entry in self.store.entries() if which(entry)]
            if gone or self.store.unfinished:
                self.store.write([], gone)
        return gone

    def remove_files(self, files: Paths) -> list[Entry]:
        """Take out files: by path, all below a folder, or by the beginning (8 characters or more)
        of their hash.

        Raises:
            GalleryError: an empty path, or one that isn't there (the nearest that is, is named);
                nothing is taken out then.
        """
        if self.store.unfinished:
            self.remove(lambda entry: False)
        entries = list(self.store.entries())
        held = [e.file for e in entries]
        gone: dict[str, Entry] = {}
        for given in each_path(files):
            text = str(given)
            if not text.strip():  # such as a shell's variable that isn't set
                raise GalleryError("remove: an empty path; name a file or folder")
            path = str(Path(given).resolve())
            below = os.path.join(path, "")
            found = [e for e in entries if e.file == path or e.file.startswith(below)]
            if not found and len(text) >= 8:
                found = [e for e in entries if e.sha256.startswith(text.lower())]
            if not found:
                raise GalleryError(
                    f"{self.store.where}: holds no {text}.{suggest(path, held)} Nothing was removed"
                )
            gone |= {e.file: e for e in found}
        return self.remove(lambda entry: entry.file in gone)

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
            queries: files, and folders to be searched through.
            k: matches of each.
            native_size: height and width that all queries had before somebody enlarged them; by
                default the files' own, or with INPUT.NATIVE_SIZE estimated what their spectra
                speak for.
            labels: of the queries; see :func:`~lrreid_ext.retrieval.entries.read_labels`.
            batch_size: images at a time.
            on_damaged: told the name of a query that can't be used, and why; the others are
                answered then.

        Raises:
            ImageError: a query that can't be read (without ``on_damaged``), or none that can.
            GalleryError: ``k`` or a native size below 1, or an empty gallery.
        """
        if k < 1:
            raise GalleryError(f"{k} matches: at least 1 is needed")
        if native_size and min(native_size) < 1:
            raise GalleryError(f"native size {native_size}: at least 1 pixel each way is needed")
        if not len(self.store):
            raise GalleryError(f"{self.store.where}: the gallery is empty")
        label = read_labels(labels)
        entries = []
        for path in find_images(queries):
            try:
                sha256, picture = content_hash(path), read_picture(path)
            except ImageError as error:
                if on_damaged is None:
                    raise
                on_damaged(*why_left_out(path, error))
                continue
            size = native_size or self._size(picture)
            entries.append(Entry(0, sha256, str(path), *size, *label.of(path)))
        if not entries:
            raise ImageError("no query can be read as an image")
        features = self._features([e.file for e in entries], entries, batch_size)
        weights = self._weights(entries)
        vectors = self.store.made.space.stored(features)
        found = self.store.search(Asked(vectors, weights.numpy()), k)
        anchors = [f"x{f:g}" for f in self.store.made.anchors]
        return [
            Answer(
                query,
                dict(zip(anchors, own.tolist(), strict=False)) if anchors else {},
                [_match(query, n, entry, d) for n, (entry, d) in enumerate(matches, start=1)],
            )
            for query, own, matches in zip(entries, weights, found, strict=True)
        ]

    def _weights(self, queries: Sequence[Entry]) -> Tensor:
        """(Q, K) float32."""
        made = self.store.made
        if not made.anchors:
            return torch.ones(len(queries), 1)
        sizes = torch.tensor([[q.height, q.width] for q in queries])
        mean = torch.tensor([self.store.mean_area], dtype=torch.float64)
        sigma = float(self.model.cfg.TEST.FUSION.SIGMA)
        return anchor_weights(areas(sizes), mean, made.anchors, sigma)

    def info(self) -> dict[str, Any]:
        """What there is to say of it, ready for JSON."""
        store = self.store
        entries = list(store.entries())
        sizes = sorted((e.height, e.width) for e in entries)
        recall = store.recall
        return {
            "gallery": store.where,
            "images": len(store),
            "identities": len({e.identity for e in entries if e.identity not in ("", "0")}),
            "cameras": len({e.camera for e in entries if e.camera}),
            "native sizes": [list(s) for s in (sizes[0], sizes[-1])] if sizes else [],
            "dimension": store.made.space.dim,
            "index": store.kind,
            "recall": {
                "asked": recall.target,
                "measured": round(recall.measured, 4),
                "setting": recall.setting,
                "queries": recall.queries,
                "neighbours": recall.neighbours,
            },
            "bytes": store.size(),
            **{k: v for k, v in store.made.to_json().items() if k not in ("recall", "width")},
        }


def _match(query: Entry, rank: int, entry: Entry, distance: float) -> Match:
    known = bool(query.identity) and bool(entry.identity)
    return Match(
        rank,
        distance,
        entry,
        query.identity == entry.identity if known else None,
        query.sha256 == entry.sha256,
    )


def _settings(cfg: CfgNode) -> tuple[str, bool]:
    if cfg.TEST.METRIC not in METRICS:
        raise GalleryError(f"TEST.METRIC: {cfg.TEST.METRIC!r} is none of {', '.join(METRICS)}")
    return cfg.TEST.METRIC, bool(cfg.TEST.FLIP.ENABLED)


def _made_with(
    model: TrainedModel,
    files: Sequence[Path],
    kind: str,
    recall: float,
    run: str,
    opts: Sequence[str],
) -> Made:
    """What a gallery of these files will be made with; the first that can be read shows it."""
    metric, flip = _settings(model.cfg)
    for path in files:
        try:
            features = model.embed(path)
        except ImageError:
            continue
        break
    else:
        raise GalleryError(f"{files[0]}: can't be read as an image, nor can any other")
    return Made(
        model.hash,
        weights_hash(model.module),
        config_hash(model.cfg),
        run,
        metric,
        _anchors(model, features),
        features.shape[-1],
        flip,
        kind,
        recall,
        tuple(opts),
    )


def _anchors(model: TrainedModel, features: Tensor) -> tuple[float, ...]:
    """Factors of the anchors that a model's features (N, K, D) are fused of; () of (N, D)."""
    if features.ndim == 2:
        return ()
    factors = model.cfg.MODEL.ANCHORS.FACTORS
    return tuple(float(factors[i]) for i in chosen_anchors(model.cfg, features))


def _chosen(features: Tensor, cfg: CfgNode, made: Made) -> Tensor:
    """The features of a gallery's anchors, if they can be ranked."""
    if made.anchors:
        factors = [float(f) for f in cfg.MODEL.ANCHORS.FACTORS]
        features = features[:, [factors.index(f) for f in made.anchors]]
    try:
        return check_features(features, "images")
    except ValueError as error:
        raise GalleryError(str(error)) from error


def _check_model(store: Store, model: TrainedModel) -> None:
    """Refuse a model whose features can't be compared with those that are kept.

    Raises:
        GalleryError: says what differs.
    """
    made = store.made
    if model.hash != made.model:
        differ = [
            what
            for what, own, kept in (
                ("weights", weights_hash(model.module), made.weights),
                ("config", config_hash(model.cfg), made.config),
            )
            if own != kept
        ]
        raise GalleryError(
            f"{store.where}: was made by another model ({made.run or made.model[:12]}); its "
            f"{' and '.join(differ)} differ. Features of two models can't be compared: use that "
            "one, or build the gallery anew"
        )
    metric, flip = _settings(model.cfg)
    check_fusion(model.cfg)
    asked = {float(f) for f in model.cfg.TEST.FUSION.ANCHORS}
    if made.anchors and asked != set(made.anchors):
        # Anchors that are named and not trained are left out, as they were then.
        asked = set(_anchors(model, model.embed(np.zeros((8, 4, 3), np.uint8))))
    for key, kept, own in (
        ("TEST.METRIC", made.metric, metric),
        ("TEST.FLIP.ENABLED", made.flip, flip),
        ("TEST.FUSION.ANCHORS", sorted(made.anchors), sorted(asked)),
    ):
        if kept != own:
            raise GalleryError(
                f"{store.where}: was made with {key} {kept}, the model's config says {own}; "
                "override it, or build the gallery anew"
            )
