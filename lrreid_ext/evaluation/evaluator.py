"""The standard evaluator: cross-resolution figures of one test set, by protocol and group."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from typing import Any

from lrreid_ext.config import CfgNode
from lrreid_ext.data.resolution import check_native_size
from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.bootstrap import UNITS
from lrreid_ext.evaluation.distance import METRICS
from lrreid_ext.evaluation.features import FeatureCollector, Features
from lrreid_ext.evaluation.fusion import check_fusion
from lrreid_ext.evaluation.groups import check_bins, positions
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.evaluation.single_shot import DRAWS
from lrreid_ext.registry import EVALUATOR_REGISTRY
from lrreid_ext.results import (
    PROTOCOLS,
    Results,
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

        Args:
            features: of the test set's images, in their order.

        Raises:
            ConfigError: see :meth:`evaluate`.
        """
        start = time.perf_counter()
        results = Scored(self.cfg, self.test_set, features).results
        logger.info("Scored %s in %.1f s", self.test_set.name, time.perf_counter() - start)
        logger.info("%s\n%s", _headline(results), tables(results))
        if self.output_dir:
            path = os.path.join(self.output_dir, results_file(self.test_set.name))
            results.save(path)
            logger.info("Results written to %s", path)
        return results


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
