"""The standard evaluator: cross-resolution figures of one test set, by protocol and group."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from lrreid_ext.config import CfgNode
from lrreid_ext.data.resolution import check_native_size
from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.bootstrap import UNITS
from lrreid_ext.evaluation.distance import METRICS
from lrreid_ext.evaluation.features import FeatureCollector, Features
from lrreid_ext.evaluation.figures import add_rates, figures_of, intervals_of
from lrreid_ext.evaluation.fusion import check_fusion
from lrreid_ext.evaluation.groups import check_bins, positions
from lrreid_ext.evaluation.matching import Matching, check_multi_shot
from lrreid_ext.evaluation.ranking import RankStatistics, rank_statistics
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.evaluation.sides import TIE_RULE, Side
from lrreid_ext.evaluation.single_shot import DRAWS, SingleShot
from lrreid_ext.evaluation.verification import NoPairsError, Verification, tar_at_far
from lrreid_ext.registry import EVALUATOR_REGISTRY
from lrreid_ext.results import (
    PROTOCOLS,
    Counts,
    Group,
    Results,
    Training,
    provenance,
    results_file,
)
from lrreid_ext.results.tables import tables

logger = logging.getLogger(__name__)


@EVALUATOR_REGISTRY.register()
class CrossResolutionEvaluator(FeatureCollector):
    """Scores the query, its HR twins and each factor's twins against one gallery.

    Features are put in order by the batch's ``index``, so neither the number of processes nor the
    order of the batches matters. The groups of the test set's samples are reported under their
    names (``query``, ``query_hr``, ``x2`` ...), and besides, where the queries' own factors vary,
    the queries of each as ``query@2`` (or of a range, ``query@2-3``, where they are many). Where
    the gallery's vary instead, it is the factor of the right answer: ``query@gallery4-6``.

    Args:
        cfg: the keys TEST.PROTOCOLS, RANKS, TRIALS, SEED, DRAW, METRIC, CI, FACTOR_BINS, AQE,
            RERANK, ROC, FLIP and FUSION.
        test_set: the images, in the order of ``index``.
        output_dir: where ``results_<test set>.json`` is written; None or "" for nowhere.

    Raises:
        ConfigError: a protocol or metric that doesn't exist, or one that isn't available here; a
            test set without query or gallery.
    """

    def __init__(self, cfg: CfgNode, test_set: TestSet, output_dir: str | None = None) -> None:
        check_config(cfg)
        super().__init__(test_set)
        self.cfg = cfg
        self.output_dir = output_dir
        queries, gallery = (len(positions(test_set, group)) for group in (QUERY, GALLERY))
        if not queries or not gallery:
            raise ConfigError(
                f"DATASETS.TESTS: test set {test_set.name!r} needs both query and gallery images; "
                f"it has {queries} and {gallery}"
            )

    @staticmethod
    def check(cfg: CfgNode) -> None:
        """Find settings that can't be followed before training begins; see :func:`check_config`."""
        check_config(cfg)

    def evaluate(self) -> OrderedDict[str, float]:
        """Score everything, print the table, write the JSON.

        Returns:
            Figures in percent by ``protocol/group/figure``, such as ``single_shot/query/Rank-1``,
            ``single_shot/query/Rank-1_std`` and ``multi_shot/x4/mAP``; those without any
            query are left out. On all processes but the first, an empty dict.

        Raises:
            ConfigError: features that are not finite, or no query with a right answer.
            ValueError: images missing or scored twice.
        """
        features = self.gathered()
        return OrderedDict() if features is None else self.report(features).flat()

    def report(self, features: Features) -> Results:
        """Score features that are extracted already, print the table, and write the JSON.

        Args and errors: see :meth:`score`.
        """
        start = time.perf_counter()
        results = self.score(features)
        logger.info("Scored %s in %.1f s", self.test_set.name, time.perf_counter() - start)
        logger.info("%s\n%s", _headline(results), tables(results))
        if self.output_dir:
            path = os.path.join(self.output_dir, results_file(self.test_set.name))
            results.save(path)
            logger.info("Results written to %s", path)
        return results

    def score(self, features: Features) -> Results:
        """The results of features that are extracted already.

        Args:
            features: of the test set's images, in their order.

        Raises:
            ConfigError: see :meth:`evaluate`.
        """
        test, ci = self.cfg.TEST, intervals_of(self.cfg)
        aqe, rerank = test.AQE, test.RERANK
        scored = Scored(self.cfg, self.test_set, features)
        gallery = scored.gallery
        groups: dict[str, Group] = {name: Group(len(at)) for name, at in scored.groups.items()}
        for name, index in scored.groups.items():
            if "@" in name:
                continue
            query = scored.query(name)
            # The whole group and its parts, by their positions among its queries.
            parts = {
                part: np.searchsorted(index, at)
                for part, at in scored.groups.items()
                if part == name or part.startswith(f"{name}@")
            }
            for protocol in test.PROTOCOLS:
                statistics: SingleShot | RankStatistics
                if protocol == "multi_shot":
                    matching = scored.multi_shot(query)
                    statistics = rank_statistics(matching)
                else:
                    statistics = scored.single_shot(query)
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
                        add_rates(figures, _rates(matching.part(at), test), test.ROC.FARS, pids, ci)
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
            fusion=scored.fusion,
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


def _rates(matching: Matching, test: CfgNode) -> Verification | None:
    """True accept rates at TEST.ROC.FARS; None without genuine or impostor pairs."""
    try:
        return tar_at_far(matching, test.ROC.FARS)
    except NoPairsError:
        return None


def _headline(results: Results) -> str:
    """Lines above the tables: data, protocol, query and gallery."""
    counts, query = results.counts, results.groups[QUERY]
    assert counts is not None
    protocol = [
        f"single-shot ({results.draw_label}, seed {results.seed})"
        if name == "single_shot"
        else results.multi_shot_label
        for name in results.protocols
    ]
    protocol += [f"{results.metric} distance"]
    protocol += ["flip"] if results.flip else []
    if results.fusion:
        names = ", ".join(f"x{f:g}" for f in results.fusion.anchors)
        protocol += [f"distances of the anchors {names} fused, sigma {results.fusion.sigma:g}"]
    return (
        f"{results.data_label}\n"
        f"protocol: {', '.join(protocol)}\n"
        f"query:    {query.queries} images, {query.left_out - query.junk} without a right answer, "
        f"{query.junk} junk dropped\n"
        f"gallery:  {counts.gallery} images, {counts.identities} identities, "
        f"{counts.distractors} distractors, {counts.gallery_lr} low-resolution, "
        f"{counts.gallery_junk} junk dropped"
    )


def check_config(cfg: CfgNode) -> None:
    """Refuse settings of TEST that can't be followed.

    Raises:
        ConfigError: names the key.
    """
    test = cfg.TEST
    check_native_size(cfg.INPUT.NATIVE_SIZE)
    unknown = [name for name in test.PROTOCOLS if name not in PROTOCOLS]
    if unknown or not test.PROTOCOLS or len(set(test.PROTOCOLS)) < len(test.PROTOCOLS):
        raise ConfigError(
            f"TEST.PROTOCOLS: {list(test.PROTOCOLS)} must be one or both of {', '.join(PROTOCOLS)}"
        )
    if test.METRIC not in METRICS:
        raise ConfigError(f"TEST.METRIC: {test.METRIC!r} is none of {', '.join(METRICS)}")
    if not test.RANKS or any(not isinstance(r, int) or r < 1 for r in test.RANKS):
        raise ConfigError(f"TEST.RANKS: {list(test.RANKS)} must be whole numbers from 1")
    if test.TRIALS < 1:
        raise ConfigError(f"TEST.TRIALS: {test.TRIALS} must be at least 1")
    if test.DRAW not in DRAWS:
        raise ConfigError(f"TEST.DRAW: {test.DRAW!r} is none of {', '.join(DRAWS)}")
    check_fusion(cfg)
    if min(test.FACTORS, default=1) < 1:
        raise ConfigError(f"TEST.FACTORS: {list(test.FACTORS)} must be factors from 1")
    if test.SEED < 0:
        raise ConfigError(f"TEST.SEED: {test.SEED} must be >= 0")
    check_multi_shot(cfg)
    check_bins(test.FACTOR_BINS)
    mixed = test.GALLERY
    if not 0 <= mixed.LR_SHARE <= 1:
        raise ConfigError(f"TEST.GALLERY.LR_SHARE: {mixed.LR_SHARE} must be between 0 and 1")
    if mixed.LR_SHARE and (not mixed.LR_FACTORS or min(mixed.LR_FACTORS) <= 1):
        raise ConfigError(
            f"TEST.GALLERY.LR_FACTORS: {list(mixed.LR_FACTORS)} must be one or more numbers above 1"
        )
    ci = test.CI
    if ci.REPEATS < 0 or ci.REPEATS == 1:
        raise ConfigError(f"TEST.CI.REPEATS: {ci.REPEATS} must be 0 (no intervals) or at least 2")
    if not 0 < ci.LEVEL < 1:
        raise ConfigError(f"TEST.CI.LEVEL: {ci.LEVEL} must be between 0 and 1")
    if ci.BY not in UNITS:
        raise ConfigError(f"TEST.CI.BY: {ci.BY!r} is none of {', '.join(UNITS)}")


def plain_info(test_set: TestSet) -> dict[str, Any]:
    """The test set's ``info`` in types that JSON has."""

    def plain(value: object) -> object:
        return value.item() if isinstance(value, np.generic) else str(value)

    info: dict[str, Any] = json.loads(json.dumps(test_set.info, default=plain))
    return info
