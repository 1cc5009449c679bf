"""Two sides, the distances between them, and the rules by which their images match.

* **Same camera** (Market-1501): gallery images of the query's identity *and* camera are left out.
* **Distractors** (pid 0) are never a right match; **junk** (pid below 0) is left out.
* **Ties**: a wrong match at exactly the distance of a right one ranks before it. So the figures
  don't depend on the gallery's order, and a network that maps every image to one point scores 0.
  The order among right matches at one distance changes nothing.
* A query without a right match is counted as unmatched and has no part in the means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.data.samples import Sample
from lrreid_ext.evaluation.distance import check_features, chunk_rows, distance_chunks

if TYPE_CHECKING:
    from lrreid_ext.evaluation.reranking import Jaccard

__all__ = ["TIE_RULE", "Matching", "Pairs", "Side", "drawable", "right_matches"]

TIE_RULE = "a wrong match at the distance of a right one ranks before it"


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a match: queries or a gallery.

    Attributes:
        features: (N, D), or (N, K, D) of K models, of any number type; kept as float32 on their
            device, where the distances are computed.
        pids: (N,) identities; 0 is a distractor, below 0 junk.
        camids: (N,) cameras.
        name: what errors call the side.
        native_size: (N, 2) height and width in pixels before resizing; None if unknown.
        weights: (N, K), how much each model's distances count for each query; None: equal weights.
        samples: (N,) the images; empty if unknown.

    Raises:
        ValueError: no features, features of another shape or not finite, or labels that are not
            one per feature.
    """

    features: Tensor
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    name: str = "images"
    native_size: Tensor | None = None
    weights: Tensor | None = None
    samples: Sequence[Sample] = ()

    def __post_init__(self) -> None:
        features = check_features(self.features, self.name)
        object.__setattr__(self, "features", features)
        for field, label in (("pids", "identities"), ("camids", "cameras")):
            values = np.asarray(getattr(self, field), dtype=np.int64)
            object.__setattr__(self, field, values)
            if values.shape != (len(features),):
                raise ValueError(
                    f"{self.name}: {len(features)} features but {label} of shape {values.shape}"
                )

    def __len__(self) -> int:
        return len(self.pids)

    @property
    def factors(self) -> NDArray[np.float64]:
        """(N,) how much each image is reduced; NaN if unknown."""
        return np.array([sample.factor for sample in self.samples], dtype=np.float64)

    @property
    def is_junk(self) -> NDArray[np.bool_]:
        """(N,) images that are left out."""
        return self.pids < 0

    def rows(self, index: ArrayLike) -> Side:
        """Some of the images.

        Args:
            index: positions, or a mask (N,).
        """
        positions = np.arange(len(self))[np.asarray(index)]
        at = torch.from_numpy(positions).to(self.features.device)
        return self.updated(
            features=self.features[at],
            pids=self.pids[positions],
            camids=self.camids[positions],
            native_size=None if self.native_size is None else self.native_size[at.cpu()],
            weights=None if self.weights is None else self.weights[at.to(self.weights.device)],
            samples=[self.samples[i] for i in positions] if self.samples else (),
        )

    def updated(self, **fields: Any) -> Side:
        """The same images with other fields, which are not checked again."""
        side = copy(self)
        side.__dict__.update(fields)
        return side


@dataclass(frozen=True, eq=False)
class Matching:
    """The distances of queries to a gallery, made a few rows at a time.

    Attributes:
        query, gallery: the two sides.
        metric: ``cosine`` or ``euclidean``.
        chunk: queries at a time; the extra memory is ``chunk * G`` numbers and a few per query.
            None: see :func:`~lrreid_ext.evaluation.distance.distance_chunks`.
        jaccard: what re-ranking mixes with the distances; None re-ranks nothing.
    """

    query: Side
    gallery: Side
    metric: str = "cosine"
    chunk: int | None = None
    jaccard: Jaccard | None = None

    def distances(self) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive queries and their distances (rows, G) float32, on the features' device.

        The memory is used again for the next rows: whoever keeps them must copy them, and may
        write into them.
        """
        chunk = self.chunk
        if self.jaccard is not None and chunk is None:
            chunk = max(16, chunk_rows(len(self.gallery)) // 4)
        for rows, block in distance_chunks(
            self.query.features, self.gallery.features, self.metric, chunk, self.query.weights
        ):
            if self.jaccard is not None:
                self.jaccard.mix(rows, block)
            yield rows, block

    def part(self, query: ArrayLike | None = None, gallery: ArrayLike | None = None) -> Matching:
        """The same distances, of some queries and some of the gallery alone.

        Args:
            query, gallery: positions, or masks; None takes all.
        """
        jaccard = self.jaccard
        return replace(
            self,
            query=self.query if query is None else self.query.rows(query),
            gallery=self.gallery if gallery is None else self.gallery.rows(gallery),
            jaccard=None if jaccard is None else jaccard.part(query, gallery),
        )


def right_matches(
    pid: ArrayLike, camid: ArrayLike, g_pids: NDArray[np.int64], g_camids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(G,) which gallery images are right matches of one query, or each of its own query."""
    return (g_pids == pid) & (g_camids != camid) & (g_pids > 0)


def drawable(gallery: Side, camera: int) -> NDArray[np.int64]:
    """Positions of the gallery images that single-shot may draw for queries of a camera.

    Distractors and junk are never drawn.
    """
    return np.flatnonzero((gallery.pids > 0) & (gallery.camids != camera))


class Pairs:
    """Which gallery images are right for a query, which are wrong, and which are left out.

    Args:
        query, gallery: the two sides.

    Raises:
        ValueError: the gallery is all junk.
    """

    def __init__(self, query: Side, gallery: Side) -> None:
        self.query, self.gallery = query, gallery
        # All images of a query's identity lie between two places of this order.
        self._order = np.argsort(gallery.pids, kind="stable")
        ordered = gallery.pids[self._order]
        self._begin = np.searchsorted(ordered, query.pids, side="left")
        self._count = np.searchsorted(ordered, query.pids, side="right") - self._begin
        self._junk = np.flatnonzero(gallery.is_junk)
        if len(self._junk) == len(gallery):
            raise ValueError(f"{gallery.name}: all {len(gallery)} images are junk (pid below 0)")

    def of_query(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The gallery positions that one query ranks, and which of them are right."""
        pid, camid = self.query.pids[i], self.query.camids[i]
        g_pids, g_camids = self.gallery.pids, self.gallery.camids
        kept = np.flatnonzero((g_pids >= 0) & ~((g_pids == pid) & (g_camids == camid)))
        return kept, right_matches(pid, camid, g_pids[kept], g_camids[kept])

    def split(self, rows: slice, block: Tensor) -> Tensor:
        """Take the right matches out of a chunk of distances.

        Args:
            rows: the queries.
            block: (rows, G) distances. All but those of wrong matches become infinite: of right
                matches, of junk on either side, and of the query's identity and camera.

        Returns:
            (rows, P) distances of right matches, ascending, infinite after a query's last.
        """
        count = self._count[rows]
        local = np.repeat(np.arange(len(count)), count)
        # Numbers 0, 1, 2 ... of the images of each query's identity.
        within = np.arange(len(local)) - np.repeat(np.cumsum(count) - count, count)
        same = self._order[np.repeat(self._begin[rows], count) + within]
        is_right = right_matches(
            self.query.pids[rows][local],
            self.query.camids[rows][local],
            self.gallery.pids[same],
            self.gallery.camids[same],
        )
        same_rows, same_columns = _on(block, local), _on(block, same)
        taken = block[same_rows, same_columns]
        taken[_on(block, ~is_right)] = torch.inf
        right = block.new_full((len(count), max(1, int(count.max(initial=0)))), torch.inf)
        right[same_rows, _on(block, within)] = taken
        block[same_rows, same_columns] = torch.inf
        if len(self._junk):
            block[:, _on(block, self._junk)] = torch.inf
        if self.query.is_junk[rows].any():
            block[_on(block, self.query.is_junk[rows])] = torch.inf
        return right.sort(dim=1).values


def _on(block: Tensor, array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).to(block.device)
