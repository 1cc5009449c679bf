"""Two sides and the distances between them, as TEST.METRIC, AQE and RERANK ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import chunk_rows, distance_chunks
from lrreid_ext.evaluation.reranking import Jaccard, expand, k_reciprocal
from lrreid_ext.evaluation.sides import Side

__all__ = ["Matching", "check_multi_shot", "match"]


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


def match(cfg: CfgNode, query: Side, gallery: Side) -> Matching:
    """Match two sides under TEST.METRIC, after what TEST.AQE and TEST.RERANK ask for.

    Raises:
        ConfigError: settings that these features or so few images don't allow.
    """
    test = cfg.TEST
    for key in ("AQE", "RERANK"):
        if test[key].ENABLED and query.features.ndim == 3:
            raise ConfigError(f"TEST.{key}.ENABLED: not available for features of several anchors")
    if test.AQE.ENABLED:
        aqe = test.AQE
        images = int((~query.is_junk).sum() + (~gallery.is_junk).sum())
        if images <= aqe.QE_K:
            raise ConfigError(
                f"TEST.AQE.QE_K: {aqe.QE_K} neighbours of {images} images are too many"
            )
        query, gallery = expand(query, gallery, aqe.QE_TIME, aqe.QE_K, aqe.ALPHA)
    jaccard = None
    if test.RERANK.ENABLED:
        node = test.RERANK
        jaccard = k_reciprocal(
            query, gallery, k1=node.K1, k2=node.K2, weight=node.LAMBDA, metric=test.METRIC
        )
    return Matching(query, gallery, test.METRIC, jaccard=jaccard)


def check_multi_shot(cfg: CfgNode) -> None:
    """Refuse settings of TEST.AQE, RERANK and ROC that can't be followed.

    Raises:
        ConfigError: names the key.
    """
    test = cfg.TEST
    for key in ("AQE", "RERANK", "ROC"):
        if test[key].ENABLED and "multi_shot" not in test.PROTOCOLS:
            raise ConfigError(
                f"TEST.{key}.ENABLED: is for the multi-shot protocol, which TEST.PROTOCOLS "
                f"{list(test.PROTOCOLS)} lacks"
            )
    aqe, rerank = test.AQE, test.RERANK
    if aqe.ENABLED and (aqe.QE_TIME < 1 or aqe.QE_K < 1 or aqe.ALPHA < 0):
        raise ConfigError(
            f"TEST.AQE: QE_TIME {aqe.QE_TIME} and QE_K {aqe.QE_K} must be at least 1, and ALPHA "
            f"{aqe.ALPHA} at least 0"
        )
    if rerank.ENABLED and not (1 <= rerank.K2 <= rerank.K1 and 0 <= rerank.LAMBDA <= 1):
        raise ConfigError(
            f"TEST.RERANK: K2 {rerank.K2} must be from 1 to K1 {rerank.K1}, and LAMBDA "
            f"{rerank.LAMBDA} from 0 to 1"
        )
    fars: Any = test.ROC.FARS
    if test.ROC.ENABLED and (not fars or min(fars) <= 0 or max(fars) > 1):
        raise ConfigError(f"TEST.ROC.FARS: {list(fars)} must be one or more numbers above 0, to 1")
