"""A test set's features scored under a config's TEST, for the evaluation and the report alike."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.bootstrap import bootstrap_intervals
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.fusion import chosen_anchors, weighed
from lrreid_ext.evaluation.groups import positions, query_groups
from lrreid_ext.evaluation.matching import TIE_RULE, Matching, Side
from lrreid_ext.evaluation.ranking import RankStatistics, rank_statistics
from lrreid_ext.evaluation.reranking import expand, k_reciprocal
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot
from lrreid_ext.evaluation.verification import NoPairsError, Verification, tar_at_far
from lrreid_ext.results import (
    Counts,
    Figure,
    Figures,
    Fusion,
    Group,
    Intervals,
    Results,
    Training,
    provenance,
)

__all__ = ["Scored", "figures_of", "plain_info"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scored:
    """A test set's features, its sides, and how TEST matches them.

    Attributes:
        cfg: the keys MODEL.ANCHORS.FACTORS and TEST.
        test_set: the images.
        features: of its images, in their order.
    """

    cfg: CfgNode
    test_set: TestSet
    features: Features

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Positions of every group of queries and of its parts, by TEST.FACTOR_BINS."""
        return dict(query_groups(self.test_set, self.cfg.TEST.FACTOR_BINS))

    @cached_property
    def anchors(self) -> list[int]:
        """Positions of the anchors whose distances are fused; [] of a model without any."""
        whole = self.features.features
        return chosen_anchors(self.cfg, whole) if whole.ndim == 3 else []

    @property
    def fusion(self) -> Fusion | None:
        """The anchors' factors and the sigma of their fusion; None of a model without anchors."""
        if not self.anchors:
            return None
        factors = [float(self.cfg.MODEL.ANCHORS.FACTORS[i]) for i in self.anchors]
        return Fusion(factors, float(self.cfg.TEST.FUSION.SIGMA))

    @cached_property
    def gallery(self) -> Side:
        """The gallery's images."""
        return self.images(positions(self.test_set, GALLERY), GALLERY)

    def query(self, group: str = QUERY) -> Side:
        """The queries of one of :attr:`groups`."""
        query, fusion = self.images(self.groups[group], group), self.fusion
        if fusion is None:
            return query
        return weighed(query, self.gallery, fusion.anchors, fusion.sigma)

    def images(self, index: Sequence[int] | NDArray[np.int64], name: str = "images") -> Side:
        """Some of the test set's images.

        Args:
            index: their positions.
            name: what errors call them.

        Raises:
            ConfigError: features that can't be ranked.
        """
        at, whole = list(index), self.features.features
        samples = [self.test_set.samples[i] for i in at]
        try:
            return Side(
                whole[at][:, self.anchors] if self.anchors else whole[at],
                np.array([sample.pid for sample in samples], dtype=np.int64),
                np.array([sample.camid for sample in samples], dtype=np.int64),
                name,
                self.features.native_size[at],
                samples=samples,
            )
        except ValueError as error:
            raise ConfigError(f"test set {self.test_set.name!r}: {error}") from error

    def single_shot(self, query: Side) -> SingleShot:
        """Rank queries against galleries drawn by TEST.DRAW, TRIALS and SEED."""
        test = self.cfg.TEST
        matching = Matching(query, self.gallery, test.METRIC)
        return single_shot(matching, trials=test.TRIALS, seed=test.SEED, draw=test.DRAW)

    def multi_shot(self, query: Side) -> Matching:
        """Match queries with the whole gallery, after what TEST.AQE and TEST.RERANK ask for.

        Raises:
            ConfigError: settings that these features or so few images don't allow.
        """
        test, gallery = self.cfg.TEST, self.gallery
        for key in ("AQE", "RERANK"):
            if test[key].ENABLED and query.features.ndim == 3:
                raise ConfigError(
                    f"TEST.{key}.ENABLED: not available for features of several anchors"
                )
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

    @cached_property
    def matching(self) -> Matching:
        """The test set's own queries, as :meth:`multi_shot` matches them."""
        return self.multi_shot(self.query())

    @cached_property
    def results(self) -> Results:
        """Figures of every group under TEST.PROTOCOLS.

        Raises:
            ConfigError: features that are not finite, or no query with a right answer.
        """
        test, ci = self.cfg.TEST, intervals_of(self.cfg)
        aqe, rerank = test.AQE, test.RERANK
        gallery = self.gallery
        groups: dict[str, Group] = {name: Group(len(at)) for name, at in self.groups.items()}
        for name, index in self.groups.items():
            if "@" in name:
                continue
            query = self.query(name)
            # The whole group and its parts, by their positions among its queries.
            parts = {
                part: np.searchsorted(index, at)
                for part, at in self.groups.items()
                if part == name or part.startswith(f"{name}@")
            }
            for protocol in test.PROTOCOLS:
                statistics: SingleShot | RankStatistics
                if protocol == "multi_shot":
                    matching = self.multi_shot(query)
                    statistics = rank_statistics(matching)
                else:
                    statistics = self.single_shot(query)
                if name == QUERY and not statistics.valid.any():
                    raise ConfigError(self._unanswerable(protocol, query, gallery))
                for part, at in parts.items():
                    pids, subset = query.pids[at], statistics.subset(at)
                    if subset.unmatched:
                        logger.warning(
                            "%s, %s: %d of %d queries have no right answer in the gallery and are "
                            "left out",
                            *(part, protocol, subset.unmatched, len(at)),
                        )
                    figures = figures_of(subset, test.RANKS, pids, ci)
                    if protocol == "multi_shot" and test.ROC.ENABLED:
                        add_rates(
                            figures,
                            _rates(matching.part(at), test.ROC.FARS),
                            test.ROC.FARS,
                            pids,
                            ci,
                        )
                    groups[part].junk = int((pids < 0).sum())
                    groups[part].protocols[protocol] = figures
        info = plain_info(self.test_set)
        return Results(
            test_set=self.test_set.name,
            manifest_hash=self.test_set.manifest_hash,
            training=Training.from_json(info.pop("training", None)),
            info=info,
            protocols=list(test.PROTOCOLS),
            trials=test.TRIALS,
            seed=test.SEED,
            draw=test.DRAW,
            std="sample standard deviation over the trials",
            ci=ci,
            metric=test.METRIC,
            flip=bool(test.FLIP.ENABLED),
            aqe={"times": aqe.QE_TIME, "neighbours": aqe.QE_K, "alpha": aqe.ALPHA}
            if aqe.ENABLED
            else None,
            rerank={"k1": rerank.K1, "k2": rerank.K2, "lambda": rerank.LAMBDA}
            if rerank.ENABLED
            else None,
            fars=list(test.ROC.FARS) if test.ROC.ENABLED else None,
            fusion=self.fusion,
            tie_rule=TIE_RULE,
            counts=Counts(
                gallery=int((~gallery.is_junk).sum()),
                gallery_junk=int(gallery.is_junk.sum()),
                distractors=int((gallery.pids == 0).sum()),
                identities=len(np.unique(gallery.pids[gallery.pids > 0])),
                gallery_lr=int((gallery.factors != 1).sum()),
            ),
            groups=groups,
            **provenance(self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.DEVICE),
        )

    def _unanswerable(self, protocol: str, query: Side, gallery: Side) -> str:
        """Why no query has a right answer."""
        common = np.intersect1d(query.pids[query.pids > 0], gallery.pids)
        if len(common):
            cameras = np.union1d(query.camids, gallery.camids)
            seen = f"camera {cameras[0]} took" if len(cameras) == 1 else "its own camera took"
            why = (
                f"what the gallery holds of the queries' identities, {seen} as well, and the same "
                "camera's images don't count"
            )
        else:
            why = "none of the queries' identities is in the gallery"
        return (
            f"test set {self.test_set.name!r}: no query has a right answer in the gallery "
            f"({protocol}): {why}. Check identities and cameras of the data set"
        )


def _rates(matching: Matching, fars: Sequence[float]) -> Verification | None:
    """True accept rates; None without genuine or impostor pairs."""
    try:
        return tar_at_far(matching, fars)
    except NoPairsError:
        return None


def figures_of(
    statistics: SingleShot | RankStatistics,
    ranks: Sequence[int],
    pids: NDArray[np.int64],
    ci: Intervals | None = None,
) -> Figures:
    """One group's figures under one protocol.

    Args:
        statistics: of the group's Q queries.
        ranks: k of each Rank-k.
        pids: (Q,) identities of the queries.
        ci: how to compute confidence intervals; None for none. The interval of a single-shot
            figure is over the queries' means over the trials.

    Returns:
        Rank-k with the deviation over the trials for single-shot; else Rank-k, mAP and mINP.
    """
    valid = statistics.valid
    names = [f"Rank-{rank}" for rank in ranks]
    trials = None
    if isinstance(statistics, SingleShot):
        trials = [[percent(v) for v in trial] for trial in statistics.cmc(ranks)]
        pairs = zip(statistics.mean(ranks), statistics.std(ranks), strict=True)
        figures = [_figure(mean, std) for mean, std in pairs]
        first = statistics.first_rank[:, valid]
        columns = [(first <= rank).mean(axis=0) for rank in ranks]
    else:
        names += ["mAP", "mINP"]
        values = [*statistics.cmc(ranks), statistics.mean_ap, statistics.mean_inp]
        figures = [_figure(value) for value in values]
        columns = [statistics.first_rank[valid] <= rank for rank in ranks]
        columns += [statistics.ap[valid], statistics.inp[valid]]
    if ci is not None:
        ends = bootstrap_intervals(np.stack(columns, axis=1), pids[valid], **asdict(ci))
        figures = [_with_interval(f, end) for f, end in zip(figures, ends, strict=True)]
    return Figures(statistics.unmatched, dict(zip(names, figures, strict=True)), trials)


def intervals_of(cfg: CfgNode) -> Intervals | None:
    """How TEST.CI asks for confidence intervals; None if it doesn't."""
    ci = cfg.TEST.CI
    return Intervals(ci.LEVEL, ci.REPEATS, ci.BY, cfg.TEST.SEED) if ci.REPEATS else None


def add_rates(
    figures: Figures,
    verification: Verification | None,
    fars: Sequence[float],
    pids: NDArray[np.int64],
    ci: Intervals | None = None,
) -> None:
    """Add true accept rates (``TAR@1e-4`` ...) and the numbers of pairs to multi-shot figures.

    Where fewer than 1 / FAR impostor pairs exist, none of them may be accepted.

    Args:
        figures: to add to.
        verification: None if there are no genuine or no impostor pairs.
        fars: the false accept rates.
        pids: (Q,) identities of the queries.
        ci: how to compute confidence intervals: of other people at the same threshold.
    """
    rates = [float("nan")] * len(fars) if verification is None else verification.tar
    rated = [_figure(rate) for rate in rates]
    figures.genuine_pairs = figures.impostor_pairs = 0
    if verification is not None:
        figures.genuine_pairs = verification.genuine
        figures.impostor_pairs = verification.impostors
        if ci is not None:
            paired = verification.genuine_by_query > 0
            counts = verification.genuine_by_query[paired]
            shares = verification.accepted_by_query[paired] / counts[:, None]
            drawn = bootstrap_intervals(shares, pids[paired], weights=counts, **asdict(ci))
            rated = [_with_interval(f, end) for f, end in zip(rated, drawn, strict=True)]
    figures.named |= {rate_name(far): f for far, f in zip(fars, rated, strict=True)}


def rate_name(far: float) -> str:
    """Name of a true accept rate: ``TAR@1e-4``."""
    return f"TAR@{np.format_float_scientific(far, trim='-', exp_digits=1)}"


def percent(share: float | np.floating[Any]) -> float | None:
    """A share in percent, to six decimals; None for NaN."""
    value = float(share)
    return None if math.isnan(value) else round(100 * value, 6)


def _figure(share: float, std: float = math.nan) -> Figure | None:
    value = percent(share)
    return None if value is None else Figure(value, percent(std))


def _with_interval(figure: Figure | None, ends: NDArray[np.float64]) -> Figure | None:
    low, high = percent(ends[0]), percent(ends[1])
    if figure is None or low is None or high is None:
        return figure
    return replace(figure, ci=(low, high))


def plain_info(test_set: TestSet) -> dict[str, Any]:
    """The test set's ``info`` in types that JSON has."""

    def plain(value: object) -> object:
        return value.item() if isinstance(value, np.generic) else str(value)

    info: dict[str, Any] = json.loads(json.dumps(test_set.info, default=plain))
    return info
