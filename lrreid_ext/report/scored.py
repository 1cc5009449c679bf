"""Features that a trained model extracted from a test set, for all sections of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrreid_ext.config import changed
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.results import Training
from lrreid_ext.trained import TrainedModel

__all__ = ["ScoredRun", "score_runs"]


@dataclass(frozen=True, eq=False)
class ScoredRun(Scored):
    """One run's features of one test set.

    Attributes:
        model: the run's; the test set was built by its config.
        data_set: its name in DATASETS.TESTS.
    """

    model: TrainedModel
    data_set: str

    @property
    def name(self) -> str:
        """Name of the run in tables and legends."""
        return self.model.name

    @property
    def training(self) -> Training:
        """How the weights were trained, as far as the checkpoint records it."""
        return Training.from_json(self.model.training) or Training()


def score_runs(
    models: Sequence[TrainedModel], data_set: str = "", factors: Sequence[float] | None = None
) -> list[ScoredRun]:
    """Extract several models' features of the same images.

    Args:
        models: of the runs.
        data_set: name of the test set; "" is the first of the first run's DATASETS.TESTS.
        factors: the queries' HR twins are reduced by each, if the set has such twins; None is
            TEST.FACTORS.

    Raises:
        ConfigError: no test set, a factor that isn't above 1, or runs whose test sets of that name
            hold different images.
    """
    data_set = data_set or next(iter(models[0].cfg.DATASETS.TESTS), "")
    if not data_set:
        raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
    if bad := [f for f in factors or () if not f > 1]:
        raise ConfigError(f"--factors: a degradation factor is above 1, not {bad[0]:g}")
    runs: list[ScoredRun] = []
    for model in models:
        test_factors = model.cfg.TEST.FACTORS if factors is None else list(factors)
        cfg = changed(model.cfg, ("TEST.HR", True), ("TEST.FACTORS", test_factors))
        check_config(cfg)
        test_set = build_test_set(cfg, data_set)
        features = extract_features(cfg, model.module, test_set)
        assert features is not None  # this is the only process
        runs.append(ScoredRun(cfg, test_set, features, replace(model, cfg=cfg), data_set))
        if test_set.samples != runs[0].test_set.samples:
            first, second = (
                f"{run.name!r} ({run.test_set.manifest_hash[:12] or 'no manifest'}, "
                f"{len(run.test_set.samples)} images)"
                for run in (runs[0], runs[-1])
            )
            raise ConfigError(
                f"{test_set.name}: the images of the runs {first} and {second} differ, so that "
                "they can't be compared; name another --data-set, give all the same options "
                f"(--opts DATASETS.OPTIONS.{data_set}.KEY VALUE), or make a page of each run"
            )
    return runs
