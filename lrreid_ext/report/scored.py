"""Features that a trained model extracted from a test set, for all sections of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lrreid_ext.config import changed
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.results import Results, Training
from lrreid_ext.trained import TrainedModel

__all__ = ["ScoredRun", "score_run", "score_runs"]


@dataclass(frozen=True, eq=False)
class ScoredRun(Scored):
    """One run's features of one test set.

    Attributes:
        run: the model; the test set was built by its config.
        data_set: its name in DATASETS.TESTS.
    """

    run: TrainedModel
    data_set: str

    @property
    def name(self) -> str:
        """Name of the run in tables and legends."""
        return self.run.name

    @property
    def training(self) -> Training:
        """How the weights were trained, as far as the checkpoint records it."""
        return Training.from_json(self.run.training) or Training()

    @cached_property
    def results(self) -> Results:
        """The results, as the evaluation writes them."""
        return CrossResolutionEvaluator(self.cfg, self.test_set).score(self.features)


def score_run(
    run: TrainedModel, data_set: str = "", factors: Sequence[float] | None = None
) -> ScoredRun:
    """Extract a run's features of one test set.

    Args:
        run: the model.
        data_set: name of the test set; "" is the first of the run's DATASETS.TESTS.
        factors: the queries' HR twins are reduced by each, if the set has such twins; None is
            TEST.FACTORS.

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
    features = extract_features(cfg, run.module, test_set)
    assert features is not None  # this is the only process
    run = TrainedModel(run.name, cfg, run.module, run.training)
    return ScoredRun(cfg, test_set, features, run, data_set)


def score_runs(
    runs: Sequence[TrainedModel], data_set: str = "", factors: Sequence[float] | None = None
) -> list[ScoredRun]:
    """Extract several runs' features of the same images.

    Args:
        runs, data_set, factors: see :func:`score_run`; without a data set, that of the first run.

    Raises:
        ConfigError: runs whose test sets of that name hold different images.
    """
    scored_runs: list[ScoredRun] = []
    for run in runs:
        scored = score_run(run, data_set, factors)
        data_set = scored.data_set
        if scored_runs and scored.test_set.samples != scored_runs[0].test_set.samples:
            first, second = (
                f"{s.name!r} ({s.test_set.manifest_hash[:12] or 'no manifest'}, "
                f"{len(s.test_set.samples)} images)"
                for s in (scored_runs[0], scored)
            )
            raise ConfigError(
                f"{scored.test_set.name}: the images of the runs {first} and {second} differ, so "
                "that they can't be compared; name another --data-set, give all the same options "
                f"(--opts DATASETS.OPTIONS.{data_set}.KEY VALUE), or make a page of each run"
            )
        scored_runs.append(scored)
    return scored_runs
