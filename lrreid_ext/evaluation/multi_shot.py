"""One group's queries against the whole gallery: expanded, re-ranked, ranked and verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.expansion import expand
from lrreid_ext.evaluation.ranking import RankStatistics, rank_statistics
from lrreid_ext.evaluation.reranking import k_reciprocal
from lrreid_ext.evaluation.verification import Verification, tar_at_far

__all__ = ["ChosenRows", "MultiShot", "check_multi_shot"]

Labels = NDArray[np.int64]


class MultiShot:
    """Distances of some queries to the gallery, after what TEST.AQE and TEST.RERANK ask for.

    Junk has no part in the test: where features or distances depend on other images, it is left out
    before, so that it doesn't lend its features to others.

    Args:
        cfg: TEST.METRIC, AQE, RERANK and ROC.
        query, gallery: checked features (Q, D) and (G, D), or (Q, K, D) and (G, K, D).
        q_pids, g_pids, q_camids, g_camids: identities and cameras.
        weights: (Q, K), of the K models' distances; None weighs them alike.

    Raises:
        ConfigError: settings that these features or so few images don't allow.
    """

    def __init__(
        self,
        cfg: CfgNode,
        query: Tensor,
        gallery: Tensor,
        q_pids: Labels,
        g_pids: Labels,
        q_camids: Labels,
        g_camids: Labels,
        weights: Tensor | None = None,
    ) -> None:
        test = cfg.TEST
        self.metric = test.METRIC
        self.fars: Sequence[float] = test.ROC.FARS if test.ROC.ENABLED else ()
        mixing = test.AQE.ENABLED or test.RERANK.ENABLED
        if mixing and query.ndim == 3:
            key = "AQE" if test.AQE.ENABLED else "RERANK"
            raise ConfigError(f"TEST.{key}.ENABLED: not available for features of several anchors")
        asked = q_pids >= 0 if mixing else np.full(len(q_pids), True)
        kept = g_pids >= 0 if mixing else np.full(len(g_pids), True)
        self.asked = asked
        self.labels = (q_pids[asked], g_pids[kept], q_camids[asked], g_camids[kept])
        self.query = query if asked.all() else query[torch.from_numpy(asked)]
        self.gallery = gallery if kept.all() else gallery[torch.from_numpy(kept)]
        self.weights = weights
        self.distances: Iterable[tuple[slice, Tensor]] | None = None
        if not len(self.query) or not len(self.gallery):
            return
        if test.AQE.ENABLED:
            self._expand(test.AQE)
        if test.RERANK.ENABLED:
            self._rerank(test.RERANK)

    def _expand(self, aqe: CfgNode) -> None:
        images = len(self.query) + len(self.gallery)
        if images <= aqe.QE_K:
            raise ConfigError(
                f"TEST.AQE.QE_K: {aqe.QE_K} neighbours of {images} images are too many"
            )
        self.query, self.gallery = expand(
            self.query, self.gallery, aqe.QE_TIME, aqe.QE_K, aqe.ALPHA
        )

    def _rerank(self, rerank: CfgNode) -> None:
        self.distances = k_reciprocal(
            self.query,
            self.gallery,
            k1=rerank.K1,
            k2=rerank.K2,
            weight=rerank.LAMBDA,
            metric=self.metric,
        )

    def ranked(self) -> RankStatistics:
        """Where the right matches of all queries rank, in the order that the queries came in."""
        if not self.asked.any():
            return _nothing(self.asked, len(self.gallery))
        found = rank_statistics(
            self.query,
            self.gallery,
            *self.labels,
            metric=self.metric,
            weights=self.weights,
            distances=self.distances,
        )
        return found if self.asked.all() else _with_junk(found, self.asked)

    def verified(self, queries: NDArray[np.int64] | None = None) -> Verification | None:
        """True accept rates at TEST.ROC.FARS, or None without genuine or impostor pairs.

        Args:
            queries: ascending positions of some queries, whose pairs alone count; by default all.
        """
        q_pids, g_pids, q_camids, g_camids = self.labels
        chosen = np.arange(len(self.asked)) if queries is None else queries
        # Positions among the queries that are asked.
        rows = (np.cumsum(self.asked) - 1)[chosen[self.asked[chosen]]]
        labels = (q_pids[rows], g_pids, q_camids[rows], g_camids)
        if not _has_pairs(*labels):
            return None
        index = torch.from_numpy(rows)
        found = tar_at_far(
            self.query[index],
            self.gallery,
            *labels,
            fars=self.fars,
            metric=self.metric,
            weights=None if self.weights is None else self.weights[index],
            distances=None if self.distances is None else ChosenRows(self.distances, rows),
        )
        # Queries that are junk have no pairs.
        genuine = np.zeros(len(chosen), dtype=np.int64)
        accepted = np.zeros((len(chosen), len(self.fars)), dtype=np.int64)
        genuine[self.asked[chosen]] = found.genuine_by_query
        accepted[self.asked[chosen]] = found.accepted_by_query
        return replace(found, genuine_by_query=genuine, accepted_by_query=accepted)


class ChosenRows:
    """Some rows of distances that come in chunks, to be gone through as often as those.

    Args:
        distances: consecutive rows and their distances (rows, G).
        rows: ascending.
    """

    def __init__(self, distances: Iterable[tuple[slice, Tensor]], rows: NDArray[np.int64]) -> None:
        self._distances, self._rows = distances, rows

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        done = 0
        for rows, block in self._distances:
            begin, end = np.searchsorted(self._rows, [rows.start, rows.stop])
            if end > begin:
                own = torch.from_numpy(self._rows[begin:end] - rows.start).to(block.device)
                yield slice(done, done + int(end - begin)), block[own]
                done += int(end - begin)


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


def _has_pairs(q_pids: Labels, g_pids: Labels, q_camids: Labels, g_camids: Labels) -> bool:
    """Whether there is a genuine and an impostor pair at all."""
    cameras: dict[int, set[int]] = {}
    for pid, camid in zip(g_pids.tolist(), g_camids.tolist(), strict=True):
        if pid >= 0:
            cameras.setdefault(pid, set()).add(camid)
    genuine = impostor = False
    for pid, camid in set(zip(q_pids.tolist(), q_camids.tolist(), strict=True)):
        if pid >= 0:
            genuine |= pid > 0 and bool(cameras.get(pid, set()) - {camid})
            impostor |= bool(cameras.keys() - {pid})
    return genuine and impostor


def _nothing(asked: NDArray[np.bool_], gallery: int) -> RankStatistics:
    """Statistics of queries all of which are junk."""
    empty, none = np.full(len(asked), np.nan), np.zeros(len(asked), dtype=np.int64)
    return RankStatistics(none, empty, empty.copy(), none > 0, ~asked, gallery, 0)


def _with_junk(found: RankStatistics, asked: NDArray[np.bool_]) -> RankStatistics:
    """The same statistics with the queries that are junk in their places."""
    whole = _nothing(asked, found.gallery)
    for name in ("first_rank", "ap", "inp", "valid"):
        getattr(whole, name)[asked] = getattr(found, name)
    return whole
