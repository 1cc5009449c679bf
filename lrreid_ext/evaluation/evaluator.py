"""The standard evaluator: cross-resolution figures of one test set, by protocol and group."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fastreid.evaluation.query_expansion import aqe
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.config import CfgNode, ConfigError
from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, TestSet
from lrreid_ext.evaluation.collect import FeatureCollector
from lrreid_ext.evaluation.distance import METRICS, check_features
from lrreid_ext.evaluation.fusion import anchor_weights, areas, check_fusion, chosen_anchors
from lrreid_ext.evaluation.provenance import provenance, write_json
from lrreid_ext.evaluation.ranking import TIE_RULE, RankStatistics, rank_statistics
from lrreid_ext.evaluation.report import group_table
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot
from lrreid_ext.registry import EVALUATOR_REGISTRY

PROTOCOLS = ("single_shot", "multi_shot")

# Queries of more different factors than this are reported in bins with these lower edges.
MOST_FACTORS = 8
FACTOR_BINS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

logger = logging.getLogger(__name__)


@EVALUATOR_REGISTRY.register()
class CrossResolutionEvaluator(FeatureCollector):
    """Scores the query, its HR twins and each factor's twins against one gallery.

    Features are put in order by the batch's ``index``, so neither the number of processes nor the
    order of the batches matters. The groups of the test set's samples are reported under their
    names (``query``, ``query_hr``, ``x2`` ...), and besides, where the queries' own factors vary,
    the queries of each as ``query@2`` (or of a range, ``query@2-3``, where they are many).

    Args:
        cfg: the keys TEST.PROTOCOLS, RANKS, TRIALS, SEED, METRIC, AQE, FLIP and FUSION.
        test_set: the images, in the order of ``index``.
        output_dir: where ``results_<test set>.json`` is written; None or "" for nowhere.

    Raises:
        ConfigError: a protocol or metric that doesn't exist, or one that isn't available here.
        ValueError: a test set without query or gallery.
    """

    def __init__(self, cfg: CfgNode, test_set: TestSet, output_dir: str | None = None) -> None:
        check_config(cfg)
        super().__init__(test_set)
        self.cfg = cfg
        self.output_dir = output_dir
        self.groups = query_groups(test_set)
        self._gallery = _positions(test_set, GALLERY)
        if QUERY not in self.groups or not len(self._gallery):
            raise ValueError(f"test set {test_set.name!r} needs both query and gallery images")

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
            ValueError: images missing or scored twice, features that are not finite, or no query
                with a right answer.
        """
        gathered = self.gathered()
        if gathered is None:
            return OrderedDict()
        features, sizes = gathered
        start = time.perf_counter()
        results = self.score(features, sizes)
        logger.info("Scored %s in %.1f s", self.test_set.name, time.perf_counter() - start)
        logger.info("%s\n%s", self._headline(results), group_table(results))
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
        shown = check_features(features[gallery], "gallery")
        groups: dict[str, dict[str, Any]] = {}
        for name, index in self.groups.items():
            if "@" in name:
                continue
            parts = {part: at for part, at in self.groups.items() if part.startswith(f"{name}@")}
            query = check_features(features[index], name)
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
                statistics = self._rank(protocol, query, shown, weights, *args)
                if name == QUERY and not statistics.valid.any():
                    raise ValueError(
                        f"test set {self.test_set.name!r}: no query has a right answer in the "
                        f"gallery ({protocol}); check identities and cameras of the data set"
                    )
                self._add(groups, name, protocol, statistics)
                for part, at in parts.items():
                    self._add(groups, part, protocol, statistics.subset(np.searchsorted(index, at)))
        return {
            "test_set": self.test_set.name,
            "manifest_hash": self.test_set.manifest_hash,
            "info": plain_info(self.test_set),
            "protocols": list(test.PROTOCOLS),
            "trials": test.TRIALS,
            "seed": test.SEED,
            "std": "sample standard deviation over the trials",
            "metric": test.METRIC,
            "flip": bool(test.FLIP.ENABLED),
            "aqe": _aqe_settings(self.cfg),
            "fusion": fusion,
            "tie_rule": TIE_RULE,
            "counts": {
                "gallery": int((pids[gallery] >= 0).sum()),
                "gallery_junk": int((pids[gallery] < 0).sum()),
                "distractors": int((pids[gallery] == 0).sum()),
                "identities": len(np.unique(pids[gallery][pids[gallery] > 0])),
            },
            "groups": {name: groups[name] for name in self.groups},
            **provenance(self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.DEVICE),
        }

    def _rank(
        self,
        protocol: str,
        query: Tensor,
        gallery: Tensor,
        weights: Tensor | None,
        *args: NDArray[np.int64],
    ) -> SingleShot | RankStatistics:
        """One group's statistics; ``args``: identities and cameras, as the functions take them."""
        test = self.cfg.TEST
        options: dict[str, Any] = {"metric": test.METRIC, "weights": weights}
        if protocol == "single_shot":
            options |= {"trials": test.TRIALS, "seed": test.SEED}
            return single_shot(query, gallery, *args, **options)
        query, gallery = self._expanded(query, gallery, args[1])
        return rank_statistics(query, gallery, *args, **options)

    def _add(
        self,
        groups: dict[str, dict[str, Any]],
        name: str,
        protocol: str,
        statistics: SingleShot | RankStatistics,
    ) -> None:
        """Enter one group's figures under one protocol, in percent."""
        entry = groups.setdefault(
            name, {"queries": len(statistics.valid), "junk": int(statistics.junk.sum())}
        )
        ranks = list(self.cfg.TEST.RANKS)
        figures: dict[str, Any] = {"unmatched": statistics.unmatched}
        if statistics.unmatched:
            logger.warning(
                "%s, %s: %d of %d queries have no right answer in the gallery and are left out",
                name,
                protocol,
                statistics.unmatched,
                len(statistics.valid),
            )
        if isinstance(statistics, SingleShot):
            means, deviations = statistics.mean(ranks), statistics.std(ranks)
            for rank, mean, deviation in zip(ranks, means, deviations, strict=True):
                figures[f"Rank-{rank}"] = _percent(mean)
                figures[f"Rank-{rank}_std"] = _percent(deviation)
            figures["trials"] = [[_percent(v) for v in trial] for trial in statistics.cmc(ranks)]
        else:
            for rank, value in zip(ranks, statistics.cmc(ranks), strict=True):
                figures[f"Rank-{rank}"] = _percent(value)
            figures["mAP"] = _percent(statistics.mean_ap)
            figures["mINP"] = _percent(statistics.mean_inp)
        entry[protocol] = figures

    def _expanded(
        self, query: Tensor, gallery: Tensor, gallery_pids: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """The features after fastreid's average query expansion, if TEST.AQE asks for it."""
        settings = self.cfg.TEST.AQE
        if not settings.ENABLED:
            return query, gallery
        if query.ndim == 3:
            raise ConfigError("TEST.AQE.ENABLED: not available for features of several anchors")
        # Junk is no part of the gallery, and must not lend its features to others.
        kept = torch.from_numpy(gallery_pids >= 0)
        images = len(query) + int(kept.sum())
        if images <= settings.QE_K:
            raise ConfigError(
                f"TEST.AQE.QE_K: {settings.QE_K} neighbours of {images} images are too many"
            )
        query, near = aqe(query, gallery[kept], settings.QE_TIME, settings.QE_K, settings.ALPHA)
        expanded = gallery.clone()
        expanded[kept] = near
        return query, expanded

    def _headline(self, results: Mapping[str, Any]) -> str:
        counts, query = results["counts"], results["groups"][QUERY]
        unmatched = max(query[protocol]["unmatched"] for protocol in results["protocols"])
        data = results["test_set"]
        if results["manifest_hash"]:
            data += f", manifest {results['manifest_hash'][:12]}"
        how = [
            f"single-shot ({results['trials']} trials, seed {results['seed']})"
            if protocol == "single_shot"
            else "multi-shot"
            for protocol in results["protocols"]
        ]
        how += [f"{results['metric']} distance"]
        how += [switch for switch in ("flip", "aqe") if results[switch]]
        if results["fusion"]:
            names = ", ".join(f"x{f:g}" for f in results["fusion"]["anchors"])
            how += [f"distances of the anchors {names} fused, sigma {results['fusion']['sigma']:g}"]
        return (
            f"{data}\n"
            f"protocol: {', '.join(how)}\n"
            f"query:    {query['queries']} images, {unmatched} without a right answer, "
            f"{query['junk']} junk dropped\n"
            f"gallery:  {counts['gallery']} images, {counts['identities']} identities, "
            f"{counts['distractors']} distractors, {counts['gallery_junk']} junk dropped"
        )


def check_config(cfg: CfgNode) -> None:
    """Refuse settings of TEST that can't be followed.

    Raises:
        ConfigError: names the key.
    """
    test = cfg.TEST
    for key in ("RERANK", "ROC"):
        if test[key].ENABLED:
            raise ConfigError(
                f"TEST.{key}.ENABLED: not available in CrossResolutionEvaluator yet; set it False"
            )
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
    check_fusion(cfg)
    if test.SEED < 0:
        raise ConfigError(f"TEST.SEED: {test.SEED} must be >= 0")


def query_groups(test_set: TestSet) -> OrderedDict[str, NDArray[np.int64]]:
    """Positions of every group's images but the gallery's, in the order they are reported in.

    First ``query`` and its parts by factor (``query@2``), then ``query_hr``, then the others by
    factor.
    """
    factors: dict[str, float] = {}
    for sample in test_set.samples:
        if sample.group != GALLERY:
            factors.setdefault(sample.group, sample.factor)
    first = (QUERY, QUERY_HR)
    names = [name for name in first if name in factors]
    names += sorted(factors.keys() - set(first), key=lambda name: (factors[name], name))
    groups: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
    for name in names:
        groups[name] = _positions(test_set, name)
        if name == QUERY:
            drawn = np.array([test_set.samples[i].factor for i in groups[name]])
            for label, mask in factor_parts(drawn):
                groups[f"{name}@{label}"] = groups[name][mask]
    return groups


def plain_info(test_set: TestSet) -> dict[str, Any]:
    """What the test set says of itself, in types that JSON has words for."""
    info: dict[str, Any] = json.loads(json.dumps(test_set.info, default=_plain))
    return info


def factor_parts(factors: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Split queries by the factor drawn for each.

    Args:
        factors: (Q,), each >= 1.

    Returns:
        Label and mask (Q,) of each part: a factor each (``2``, ``2.5``), or where there are more
        than eight, ranges that include their lower end (``2-3``, ``16+``). Nothing if all are one.
    """
    distinct = np.unique(factors)
    if len(distinct) < 2:
        return []
    if len(distinct) <= MOST_FACTORS:
        return [(f"{factor:g}", factors == factor) for factor in distinct]
    uppers = (*FACTOR_BINS[1:], math.inf)
    parts = []
    for low, high in zip(FACTOR_BINS, uppers, strict=True):
        mask = (factors >= low) & (factors < high)
        if mask.any():
            label = f"{low:g}+" if math.isinf(high) else f"{low:g}-{high:g}"
            parts.append((label, mask))
    return parts


def flat_figures(results: Mapping[str, Any]) -> OrderedDict[str, float]:
    """The figures of a results file as ``protocol/group/figure``, without those that are null."""
    flat: OrderedDict[str, float] = OrderedDict()
    for protocol in results["protocols"]:
        for name, entry in results["groups"].items():
            for figure, value in entry[protocol].items():
                if isinstance(value, float):
                    flat[f"{protocol}/{name}/{figure}"] = value
    return flat


def _positions(test_set: TestSet, group: str) -> NDArray[np.int64]:
    return np.array(
        [i for i, sample in enumerate(test_set.samples) if sample.group == group], dtype=np.int64
    )


def _plain(value: object) -> object:
    """What JSON can hold of a value that it has no word for."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _percent(share: float | np.floating[Any]) -> float | None:
    """Share to percent, to six decimals; None for NaN."""
    value = float(share)
    return None if math.isnan(value) else round(100 * value, 6)


def _aqe_settings(cfg: CfgNode) -> dict[str, float] | None:
    settings = cfg.TEST.AQE
    if not settings.ENABLED:
        return None
    return {"times": settings.QE_TIME, "neighbours": settings.QE_K, "alpha": settings.ALPHA}
