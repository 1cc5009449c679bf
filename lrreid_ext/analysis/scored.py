"""A trained model's features of a test set, extracted once and looked at in many ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.analysis.ranked import Matches, nearest
from lrreid_ext.analysis.runs import Run, changed
from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import GALLERY, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import comparable
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator, query_groups
from lrreid_ext.evaluation.features import Features, extract_features
from lrreid_ext.evaluation.fusion import anchor_weights, areas, chosen_anchors
from lrreid_ext.evaluation.per_query import single_shot_per_query
from lrreid_ext.evaluation.ranking import RankStatistics, rank_statistics
from lrreid_ext.evaluation.single_shot import SingleShot, single_shot

__all__ = ["Scored", "score_run", "score_runs"]


@dataclass(frozen=True)
class Scored:
    """What one run makes of one test set.

    Attributes:
        run: the model; its config is the one that ``test_set`` was made by.
        data_set: its name in DATASETS.TESTS.
        test_set: the images.
        found: their features.
    """

    run: Run
    data_set: str
    test_set: TestSet
    found: Features

    @property
    def name(self) -> str:
        """What tables and legends call the run."""
        return self.run.name

    @property
    def cfg(self) -> CfgNode:
        """The run's config."""
        return self.run.cfg

    @property
    def pids(self) -> NDArray[np.int64]:
        """(N,) identities of all images."""
        return np.array([s.pid for s in self.test_set.samples], dtype=np.int64)

    @property
    def camids(self) -> NDArray[np.int64]:
        """(N,) cameras of all images."""
        return np.array([s.camid for s in self.test_set.samples], dtype=np.int64)

    @property
    def factors(self) -> NDArray[np.float64]:
        """(N,) by how much each image is reduced; NaN where nobody knows."""
        return np.array([s.factor for s in self.test_set.samples], dtype=np.float64)

    @property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Positions of every group of queries, as the evaluator reports them."""
        return dict(query_groups(self.test_set))

    @property
    def gallery(self) -> NDArray[np.int64]:
        """(G,) positions of the gallery's images."""
        samples = self.test_set.samples
        return np.array([i for i, s in enumerate(samples) if s.group == GALLERY], dtype=np.int64)

    def results(self) -> dict[str, Any]:
        """The content of a results file, as the evaluation writes it."""
        evaluator = CrossResolutionEvaluator(self.cfg, self.test_set)
        return evaluator.score(self.found.features, self.found.native_size)

    def comparable(self, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(len(index), D) features whose L2 distance orders images as ranking does, if all anchors
        weigh the same."""
        anchors = self._anchors if self.found.features.ndim == 3 else []
        return comparable(self.found.features[list(index)], self.cfg.TEST.METRIC, anchors)

    def statistics(
        self, index: NDArray[np.int64], gallery: NDArray[np.int64] | None = None
    ) -> RankStatistics:
        """Multi-shot ranks of the images at ``index``, without query expansion.

        Args:
            index: positions of the queries.
            gallery: positions of the gallery's images; None means all.
        """
        return rank_statistics(*self._arguments(index, gallery), **self._options(index))

    def shots(self, index: NDArray[np.int64]) -> SingleShot:
        """Single-shot ranks of the images at ``index``, by TEST.DRAW, TRIALS and SEED."""
        test = self.cfg.TEST
        options = {**self._options(index), "trials": test.TRIALS, "seed": test.SEED}
        shoot = single_shot_per_query if test.DRAW == "per_query" else single_shot
        return shoot(*self._arguments(index, None), **options)

    def nearest(self, index: NDArray[np.int64], count: int) -> Matches:
        """The gallery's nearest images for the queries at ``index``; positions in the gallery."""
        return nearest(*self._arguments(index, None), count=count, **self._options(index))

    @property
    def _anchors(self) -> list[int]:
        return chosen_anchors(self.cfg, self.found.features)

    def _arguments(
        self, index: NDArray[np.int64], gallery: NDArray[np.int64] | None
    ) -> tuple[Any, ...]:
        """Features, identities and cameras, as the ranking functions take them."""
        shown = self.gallery if gallery is None else gallery
        features, pids, camids = self.found.features, self.pids, self.camids
        if features.ndim == 3:
            features = features[:, self._anchors]
        labels = (pids[index], pids[shown], camids[index], camids[shown])
        return features[index], features[shown], *labels

    def _options(self, index: NDArray[np.int64]) -> dict[str, Any]:
        weights = None
        if self.found.features.ndim == 3:
            factors = [float(self.cfg.MODEL.ANCHORS.FACTORS[k]) for k in self._anchors]
            size, shown = self.found.native_size, self.gallery
            weights = anchor_weights(
                areas(size[index]),
                areas(size[shown[self.pids[shown] >= 0]]),
                factors,
                self.cfg.TEST.FUSION.SIGMA,
            )
        return {"metric": self.cfg.TEST.METRIC, "weights": weights}


def score_run(run: Run, data_set: str = "", factors: Sequence[float] | None = None) -> Scored:
    """Extract a run's features of one test set.

    Args:
        run: the model.
        data_set: name of the test set; "" is the first of the run's DATASETS.TESTS.
        factors: the queries' HR twins are reduced by each, if the set knows such twins; None
            means TEST.FACTORS.

    Raises:
        ConfigError: no test set, or a factor that isn't above 1.
    """
    if not data_set and not run.cfg.DATASETS.TESTS:
        raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
    if bad := [f for f in factors or () if not f > 1]:
        raise ConfigError(f"--factors: a degradation factor is above 1, not {bad[0]:g}")
    wanted = run.cfg.TEST.FACTORS if factors is None else list(factors)
    cfg = changed(run.cfg, ("TEST.HR", True), ("TEST.FACTORS", wanted))
    data_set = data_set or cfg.DATASETS.TESTS[0]
    test_set = build_test_set(cfg, data_set)
    found = extract_features(cfg, run.model, test_set)
    assert found is not None  # this is the only process
    return Scored(Run(run.name, cfg, run.model, run.training), data_set, test_set, found)


def score_runs(
    runs: Sequence[Run], data_set: str = "", factors: Sequence[float] | None = None
) -> list[Scored]:
    """Extract several runs' features of the same images.

    Args:
        runs, data_set, factors: see :func:`score_run`; without a data set, that of the first run.

    Raises:
        ConfigError: runs whose test sets of that name hold different images.
    """
    out: list[Scored] = []
    for run in runs:
        scored = score_run(run, data_set or (out[0].data_set if out else ""), factors)
        if out and scored.test_set.samples != out[0].test_set.samples:
            first = out[0]
            raise ConfigError(
                f"{scored.test_set.name}: the runs {first.name!r} and {run.name!r} know it with "
                f"different images ({_short(first.test_set)} and {_short(scored.test_set)}), so "
                "that they can't be compared; name another --data-set, give all the same options "
                f"(--opts DATASETS.OPTIONS.{scored.data_set}.KEY VALUE), or look at them one by one"
            )
        out.append(scored)
    return out


def _short(test_set: TestSet) -> str:
    known = test_set.manifest_hash[:12] or "no manifest"
    return f"{known}, {len(test_set.samples)} images"
