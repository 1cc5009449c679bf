"""The standard evaluator: cross-resolution figures of one test set, by protocol and group."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.config import CfgNode
from lrreid_ext.data.resolution import check_native_size
from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.bootstrap import UNITS
from lrreid_ext.evaluation.collect import FeatureCollector
from lrreid_ext.evaluation.distance import METRICS, check_features
from lrreid_ext.evaluation.figures import (
    figures_of,
    flat_figures,
    interval_settings,
    intervals_of,
    rates_of,
)
from lrreid_ext.evaluation.fusion import anchor_weights, areas, check_fusion, chosen_anchors
from lrreid_ext.evaluation.groups import check_bins, positions, query_groups
from lrreid_ext.evaluation.multi_shot import MultiShot, check_multi_shot
from lrreid_ext.evaluation.per_query import single_shot_per_query
from lrreid_ext.evaluation.provenance import provenance, write_json
from lrreid_ext.evaluation.ranking import TIE_RULE, RankStatistics
from lrreid_ext.evaluation.report import (
    draw_label,
    group_table,
    interval_table,
    multi_shot_label,
    rate_table,
)
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot
from lrreid_ext.registry import EVALUATOR_REGISTRY

PROTOCOLS = ("single_shot", "multi_shot")
DRAWS = ("shared", "per_query")

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
        self.groups = query_groups(test_set, cfg.TEST.FACTOR_BINS)
        self._gallery = positions(test_set, GALLERY)
        if QUERY not in self.groups or not len(self._gallery):
            raise ConfigError(
                f"DATASETS.TESTS: test set {test_set.name!r} needs both query and gallery images; "
                f"it has {len(self.groups.get(QUERY, ()))} and {len(self._gallery)}"
            )

    @staticmethod
    def check(cfg: CfgNode) -> None:
        """Find settings that can't be followed before training begins; see :func:`check_config`."""
        check_config(cfg)

    def evaluate(self) -> OrderedDict[str, float]:
        """Score everything, print the table, write the JSON.

        Returns:
            Figures in percent by ``protocol/group/figure``, such as ``single_shot/query/Rank-1``,
            ``single_shot/query/Rank-1_std`` and ``multi_shot/x4/mAP``; those that no query bears
            on are left out. On all processes but the first, an empty dict.

        Raises:
            ConfigError: features that are not finite, or no query with a right answer.
            ValueError: images missing or scored twice.
        """
        gathered = self.gathered()
        if gathered is None:
            return OrderedDict()
        features, sizes = gathered
        start = time.perf_counter()
        results = self.score(features, sizes)
        logger.info("Scored %s in %.1f s", self.test_set.name, time.perf_counter() - start)
        made = (group_table(results), interval_table(results), rate_table(results))
        tables = "\n\n".join(filter(None, made))
        logger.info("%s\n%s", self._headline(results), tables)
        if self.output_dir:
            path = os.path.join(self.output_dir, f"results_{self.test_set.name}.json")
            write_json(path, results)
            logger.info("Results written to %s", path)
        return flat_figures(results)

    def score(self, features: Tensor, sizes: Tensor) -> dict[str, Any]:
        """The content of the results file, from features that are there already.

        Args:
            features: (N, D) or (N, K, D), in the order of the test set.
            sizes: (N, 2), native height and width.

        Raises:
            ValueError: see :meth:`evaluate`.
        """
        test = self.cfg.TEST
        fusion: dict[str, Any] | None = None
        if features.ndim == 3:
            anchors = chosen_anchors(self.cfg, features)
            features = features[:, anchors]
            factors = [float(self.cfg.MODEL.ANCHORS.FACTORS[i]) for i in anchors]
            fusion = {"anchors": factors, "sigma": float(test.FUSION.SIGMA)}
        samples = self.test_set.samples
        pids = np.array([sample.pid for sample in samples])
        camids = np.array([sample.camid for sample in samples])
        gallery = self._gallery
        shown = self._usable(features[gallery], "gallery")
        groups: dict[str, dict[str, Any]] = {}
        for name, index in self.groups.items():
            if "@" in name:
                continue
            parts = {part: at for part, at in self.groups.items() if part.startswith(f"{name}@")}
            query = self._usable(features[index], name)
            weights = None
            if fusion is not None:
                weights = anchor_weights(
                    areas(sizes[index]),
                    areas(sizes[gallery[pids[gallery] >= 0]]),
                    fusion["anchors"],
                    fusion["sigma"],
                )
            args = (pids[index], pids[gallery], camids[index], camids[gallery])
            for protocol in test.PROTOCOLS:
                shown_all: MultiShot | None = None
                statistics: SingleShot | RankStatistics
                if protocol == "multi_shot":
                    shown_all = MultiShot(self.cfg, query, shown, *args, weights)
                    statistics = shown_all.ranked()
                else:
                    statistics = self._single_shot(query, shown, weights, *args)
                if name == QUERY and not statistics.valid.any():
                    raise ConfigError(self._unanswerable(protocol, *args))
                self._add(groups, name, protocol, statistics, pids[index])
                for part, at in parts.items():
                    own = statistics.subset(np.searchsorted(index, at))
                    self._add(groups, part, protocol, own, pids[at])
                if shown_all is not None and test.ROC.ENABLED:
                    for part, at in {name: index, **parts}.items():
                        verified = shown_all.verified(np.searchsorted(index, at))
                        groups[part][protocol] |= rates_of(
                            verified, test.ROC.FARS, pids[at], interval_settings(self.cfg)
                        )
        return {
            "test_set": self.test_set.name,
            "manifest_hash": self.test_set.manifest_hash,
            "info": plain_info(self.test_set),
            "protocols": list(test.PROTOCOLS),
            "trials": test.TRIALS,
            "seed": test.SEED,
            "draw": test.DRAW,
            "std": "sample standard deviation over the trials",
            "ci": interval_settings(self.cfg),
            "metric": test.METRIC,
            "flip": bool(test.FLIP.ENABLED),
            "aqe": _aqe_settings(self.cfg),
            "rerank": _rerank_settings(self.cfg),
            "fars": list(test.ROC.FARS) if test.ROC.ENABLED else None,
            "fusion": fusion,
            "tie_rule": TIE_RULE,
            "counts": {
                "gallery": int((pids[gallery] >= 0).sum()),
                "gallery_junk": int((pids[gallery] < 0).sum()),
                "distractors": int((pids[gallery] == 0).sum()),
                "identities": len(np.unique(pids[gallery][pids[gallery] > 0])),
                "gallery_lr": sum(samples[i].factor != 1 for i in gallery),
            },
            "groups": {name: groups[name] for name in self.groups},
            **provenance(self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.DEVICE),
        }

    def _single_shot(
        self,
        query: Tensor,
        gallery: Tensor,
        weights: Tensor | None,
        *args: NDArray[np.int64],
    ) -> SingleShot:
        """One group's trials; ``args``: identities and cameras, as the functions take them."""
        test = self.cfg.TEST
        shoot = single_shot_per_query if test.DRAW == "per_query" else single_shot
        options: dict[str, Any] = {"metric": test.METRIC, "weights": weights}
        options |= {"trials": test.TRIALS, "seed": test.SEED}
        return shoot(query, gallery, *args, **options)

    def _add(
        self,
        groups: dict[str, dict[str, Any]],
        name: str,
        protocol: str,
        statistics: SingleShot | RankStatistics,
        pids: NDArray[np.int64],
    ) -> None:
        """Enter one group's figures under one protocol, in percent; ``pids`` of its queries."""
        entry = groups.setdefault(
            name, {"queries": len(statistics.valid), "junk": int(statistics.junk.sum())}
        )
        if statistics.unmatched:
            logger.warning(
                "%s, %s: %d of %d queries have no right answer in the gallery and are left out",
                name,
                protocol,
                statistics.unmatched,
                len(statistics.valid),
            )
        ranks, ci = list(self.cfg.TEST.RANKS), interval_settings(self.cfg)
        figures = figures_of(statistics, ranks)
        if ci is not None:
            figures |= intervals_of(statistics, ranks, pids, **ci)
        entry[protocol] = figures

    def _usable(self, features: Tensor, group: str) -> Tensor:
        """The features as float32, or one clear message that they can't be ranked."""
        try:
            return check_features(features, group)
        except ValueError as error:
            raise ConfigError(f"test set {self.test_set.name!r}: {error}") from error

    def _unanswerable(
        self,
        protocol: str,
        q_pids: NDArray[np.int64],
        g_pids: NDArray[np.int64],
        q_camids: NDArray[np.int64],
        g_camids: NDArray[np.int64],
    ) -> str:
        """Why no query has a right answer."""
        common = np.intersect1d(q_pids[q_pids > 0], g_pids)
        if len(common):
            cameras = np.union1d(q_camids, g_camids)
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

    def _headline(self, results: Mapping[str, Any]) -> str:
        counts, query = results["counts"], results["groups"][QUERY]
        unmatched = max(query[protocol]["unmatched"] for protocol in results["protocols"])
        data = results["test_set"]
        if results["manifest_hash"]:
            data += f", manifest {results['manifest_hash'][:12]}"
        how = [
            f"single-shot ({draw_label(results)}, seed {results['seed']})"
            if protocol == "single_shot"
            else multi_shot_label(results)
            for protocol in results["protocols"]
        ]
        how += [f"{results['metric']} distance"]
        how += ["flip"] if results["flip"] else []
        if results["fusion"]:
            names = ", ".join(f"x{f:g}" for f in results["fusion"]["anchors"])
            how += [f"distances of the anchors {names} fused, sigma {results['fusion']['sigma']:g}"]
        return (
            f"{data}\n"
            f"protocol: {', '.join(how)}\n"
            f"query:    {query['queries']} images, {unmatched} without a right answer, "
            f"{query['junk']} junk dropped\n"
            f"gallery:  {counts['gallery']} images, {counts['identities']} identities, "
            f"{counts['distractors']} distractors, {counts['gallery_lr']} low-resolution, "
            f"{counts['gallery_junk']} junk dropped"
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
    """What the test set says of itself, in types that JSON has words for."""
    info: dict[str, Any] = json.loads(json.dumps(test_set.info, default=_plain))
    return info


def _plain(value: object) -> object:
    """What JSON can hold of a value that it has no word for."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _aqe_settings(cfg: CfgNode) -> dict[str, float] | None:
    settings = cfg.TEST.AQE
    if not settings.ENABLED:
        return None
    return {"times": settings.QE_TIME, "neighbours": settings.QE_K, "alpha": settings.ALPHA}


def _rerank_settings(cfg: CfgNode) -> dict[str, float] | None:
    settings = cfg.TEST.RERANK
    if not settings.ENABLED:
        return None
    return {"k1": settings.K1, "k2": settings.K2, "lambda": settings.LAMBDA}
