"""Means over splits and runs, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lrreid_ext.errors import ResultsError
from lrreid_ext.results import (
    Figure,
    Figures,
    Group,
    Intervals,
    Results,
    Training,
    mean_of,
    results_table,
)

TRAINED = Training(seed=0, data_sets=["caviar"], fold=[], phase="main", epochs=9)


def single(trials: list[list[float]], ranks: tuple[int, ...] = (1, 5)) -> Figures:
    mean, std = np.mean(trials, axis=0), np.std(trials, axis=0, ddof=1)
    figures = zip(mean.tolist(), std.tolist(), strict=True)
    named = {f"Rank-{k}": Figure(*f, (0.0, 1.0)) for k, f in zip(ranks, figures, strict=True)}
    return Figures(1, named, trials)


def results(split: int, shot: Figures, mean_ap: float, **changes: Any) -> Results:
    named = {"Rank-1": Figure(mean_ap / 2), "mAP": Figure(mean_ap, ci=(0.0, 1.0))}
    multi = Figures(split, named)
    group = Group(8, 1, {"single_shot": shot, "multi_shot": multi})
    fields = {
        "test_set": "caviar",
        "manifest_hash": f"hash {split}",
        "info": {"recipe": "caviar", "split": split, "options": {"split": split, "seed": 0}},
        "training": TRAINED,
        "protocols": ["single_shot", "multi_shot"],
        "trials": 2,
        "seed": 0,
        "metric": "cosine",
        "ci": Intervals(0.95, 10, "identity", 0),
        "groups": {"query": group, f"query@{split}": group},
    }
    return Results(**{**fields, **changes})


def ranked(split: int, ranks: tuple[int, ...], **changes: Any) -> Results:
    """Results whose Rank-k is k in every trial."""
    return results(split, single([[float(k) for k in ranks]] * 2, ranks), 50.0, **changes)


ONE = results(0, single([[10.0, 40.0], [30.0, 60.0]]), 50.0)
TWO = results(1, single([[50.0, 80.0], [70.0, 100.0]]), 70.0)


def with_multi(multi: dict[str, Figure | None]) -> Results:
    """The second results with other multi-shot figures."""
    protocols = {**TWO.groups["query"].protocols, "multi_shot": Figures(named=multi)}
    return replace(TWO, groups={"query": Group(8, protocols=protocols)})


def test_mean_over_splits_x_trials() -> None:
    mean = mean_of({"a": ONE, "b": TWO})
    shot, multi = (mean.groups["query"].protocols[p] for p in mean.protocols)
    std = pytest.approx(np.std([10, 30, 50, 70], ddof=1))
    assert (shot.named["Rank-1"], shot.named["Rank-5"].value) == (Figure(40, std), 70)
    assert multi.named["mAP"] == Figure(60, pytest.approx(200**0.5))
    assert (mean.groups["query"].queries, mean.groups["query"].junk) == (16, 2)
    assert (shot.unmatched, multi.unmatched) == (2, 1)
    # Groups that only some splits have are left out, and so are intervals within a split.
    assert list(mean.groups) == ["query"] and mean.ci is None
    assert [part.split for part in mean.parts] == [0, 1] and "split" not in mean.info
    table = results_table([mean], names=["SING"])
    assert "40.0 ± 25.8" in table
    assert "2 splits x 2 trials" in table
    assert "multi-shot, 2 splits" in table


def test_runs_of_the_same_data() -> None:
    training = Training(seed=1, phase="main", epochs=8)  # as earlier versions recorded it
    same = replace(TWO, manifest_hash=ONE.manifest_hash, info=ONE.info, training=training)
    mean = mean_of({"a": ONE, "b": same})
    assert (mean.over, mean.manifest_hash) == ("runs", "hash 0")
    assert [part.training.seed for part in mean.parts] == [0, 1]
    assert "2 runs x 2 trials" in mean.measured


def test_one_missing_figure_is_no_mean() -> None:
    missing = with_multi({"Rank-1": Figure(35.0), "mAP": None})
    named = mean_of({"a": ONE, "b": missing}).groups["query"].protocols["multi_shot"].named
    assert named["mAP"] is None and named["Rank-1"].value == 30


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (replace(TWO, metric="euclidean"), "metric is 'euclidean', but 'cosine' in a"),
        (replace(TWO, trials=3), "trials is 3"),
        (replace(TWO, draw="per_query"), "draw"),
        (replace(TWO, info={"options": {"seed": 1}}), "info.options is {'seed': 1}"),
        (
            replace(TWO, info={**TWO.info, "mixed_gallery": {"share": 0.5}}),
            r"info.mixed_gallery is {.*, but missing",
        ),
        (replace(TWO, info={**TWO.info, "validation": "x"}), "info.validation is 'x'"),
        (
            replace(TWO, training=replace(TRAINED, data_sets=["viper"])),
            r"data_sets is \['viper'\], but .* in a",
        ),
        (replace(TWO, training=replace(TRAINED, fold=[1, 5])), r"training.fold is \[1, 5\]"),
        (
            replace(TWO, training=replace(TRAINED, phase="teacher")),
            "training.phase is 'teacher', but 'main' in a",
        ),
        (replace(TWO, training=None), "info.training is missing, but"),
        (ranked(1, (1, 20)), r"single_shot/query has the figures Rank-1, Rank-20, but"),
        (ranked(1, (1,)), "single_shot/query has .* Rank-5 in a; "),
        (ranked(1, (5, 1)), "single_shot/query has .* Rank-5 in a; "),
        (ranked(1, (1, 5, 10)), "single_shot/query has .* Rank-5 in a; "),
        (with_multi({"Rank-1": Figure(1.0)}), "multi_shot/query has the figures Rank-1, but"),
        (
            results(1, replace(single([[1.0, 2.0]] * 2), trials=None), 70.0),
            "query has no figures per trial",
        ),
    ],
)
def test_results_that_have_no_mean(second: Results, message: str) -> None:
    with pytest.raises(ResultsError, match=f"^b: .*{message}"):
        mean_of({"a": ONE, "b": second})


def test_too_few_and_twice() -> None:
    with pytest.raises(ResultsError, match="at least two"):
        mean_of({"a": ONE})
    with pytest.raises(ResultsError, match="c: has the same data as a"):
        mean_of({"a": ONE, "b": TWO, "c": ONE})
