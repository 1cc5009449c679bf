"""Means over splits and runs, against sums done by hand; and the command that makes the splits."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from lrreid_ext.errors import ResultsError
from lrreid_ext.results import Results, mean_of, results_table


def content(split: int, trials: list[list[float]], mean_ap: float, **changes: Any) -> Any:
    mean, std = np.mean(trials, axis=0), np.std(trials, axis=0, ddof=1)
    shot = {"unmatched": split, "trials": trials}
    for k, rank in enumerate((1, 5)):
        shot |= {f"Rank-{rank}": mean[k], f"Rank-{rank}_std": std[k], f"Rank-{rank}_ci": [0, 1]}
    multi = {"unmatched": split, "Rank-1": mean_ap / 2, "mAP": mean_ap, "mAP_ci": [0, 1]}
    entry = {"queries": 8, "junk": 1, "single_shot": shot, "multi_shot": multi}
    return {
        "test_set": "caviar",
        "manifest_hash": f"hash {split}",
        "info": {"recipe": "caviar", "split": split, "options": {"split": split, "seed": 0}},
        "protocols": ["single_shot", "multi_shot"],
        "trials": len(trials),
        "seed": 0,
        "metric": "cosine",
        "draw": "shared",
        "ci": {"level": 0.95, "repeats": 10, "by": "identity", "seed": 0},
        "groups": {"query": entry, f"query@{split}": entry},
        **changes,
    }


def mean(**contents: Any) -> Any:
    """Content of the mean's file."""
    return mean_of({name: Results.from_json(c) for name, c in contents.items()}).to_json()


A = content(0, [[10.0, 40.0], [30.0, 60.0]], 50.0)
B = content(1, [[50.0, 80.0], [70.0, 100.0]], 70.0)


def test_mean_over_splits_x_trials() -> None:
    found = mean(a=A, b=B)
    query = found["groups"]["query"]
    assert query["single_shot"]["Rank-1"] == 40
    assert query["single_shot"]["Rank-1_std"] == pytest.approx(np.std([10, 30, 50, 70], ddof=1))
    assert query["single_shot"]["Rank-5"] == 70
    assert query["multi_shot"]["mAP"] == 60
    assert query["multi_shot"]["mAP_std"] == pytest.approx(200**0.5)
    assert (query["queries"], query["junk"], query["multi_shot"]["unmatched"]) == (16, 2, 1)
    # Parts that not every split has are left out, and so is what holds within a split only.
    assert list(found["groups"]) == ["query"]
    assert "_ci" not in json.dumps(query)
    assert found["over"] == "splits"
    assert [part["split"] for part in found["parts"]] == [0, 1]
    assert "split" not in found["info"]
    table = results_table([Results.from_json(found)], names=["SING"])
    assert "40.0 ± 25.8" in table
    assert "2 splits x 2 trials" in table
    assert "multi-shot, 2 splits" in table


def test_runs_of_the_same_data() -> None:
    same = deepcopy(B)
    same["manifest_hash"], same["info"] = A["manifest_hash"], A["info"]
    same["groups"] = {"query": B["groups"]["query"]}
    found = mean(a=A, b=same)
    assert (found["over"], found["manifest_hash"]) == ("runs", "hash 0")
    assert "2 runs x 2 trials" in results_table([Results.from_json(found)], names=["A"])


def test_one_missing_figure_is_no_mean() -> None:
    lacking = deepcopy(B)
    lacking["groups"]["query"]["multi_shot"]["mAP"] = None
    found = mean(a=A, b=lacking)["groups"]["query"]["multi_shot"]
    assert found["mAP"] is None
    assert found["Rank-1"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "euclidean"}, "b: metric is 'euclidean', but 'cosine' in a"),
        ({"trials": 3}, "b: trials is 3"),
        ({"draw": "per_query"}, "b: draw"),
        ({"info": {"options": {"seed": 1}}}, "b: info.options is"),
    ],
)
def test_figures_that_were_measured_otherwise(change: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        mean(a=A, b={**B, **change})


def ranked(split: int, ranks: tuple[int, ...]) -> Any:
    """Results whose Rank-k are k, in every trial."""
    found = content(split, [[1.0, 5.0]] * 2, 50.0)
    entry = found["groups"]["query"]
    entry["single_shot"] = {"unmatched": 0, "trials": [[float(k) for k in ranks]] * 2}
    for k in ranks:
        entry["single_shot"] |= {f"Rank-{k}": float(k), f"Rank-{k}_std": 0.0}
    return found


def test_other_ranks_are_never_averaged() -> None:
    found = mean(a=ranked(0, (1, 10)), b=ranked(1, (1, 10)))
    assert found["groups"]["query"]["single_shot"]["Rank-10"] == 10
    for other in ((1, 20), (1,), (10, 1), (1, 10, 20)):
        with pytest.raises(ResultsError, match=r"b: single_shot/query has .* Rank-10 in a; "):
            mean(a=ranked(0, (1, 10)), b=ranked(1, other))
    lacking = deepcopy(B)
    del lacking["groups"]["query"]["multi_shot"]["mAP"]
    with pytest.raises(ResultsError, match="b: multi_shot/query has the figures Rank-1, but"):
        mean(a=A, b=lacking)


TRAINED = {"seed": 0, "data_sets": ["caviar"], "fold": [], "phase": "main", "epochs": 9}


def told(base: Any, training: Any, **info: Any) -> Any:
    """Results whose ``info`` says more."""
    return {**base, "info": {**base["info"], "training": training, **info}}


@pytest.mark.parametrize(
    ("training", "info", "message"),
    [
        (TRAINED, {"mixed_gallery": {"share": 0.5}}, r"info.mixed_gallery is {.*, but missing"),
        (TRAINED, {"validation": "left out", "fold": [0, 5]}, "info.validation is 'left out'"),
        ({**TRAINED, "data_sets": ["viper"]}, {}, r"data_sets is \['viper'\], but .* in a"),
        ({**TRAINED, "fold": [1, 5]}, {}, r"training.fold is \[1, 5\]"),
        ({**TRAINED, "phase": "teacher"}, {}, "training.phase is 'teacher', but 'main' in a"),
        ({}, {}, "info.training is missing, but"),
    ],
)
def test_what_the_files_say_of_themselves(training: Any, info: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=f"b: .*{message}"):
        mean(a=told(A, TRAINED), b=told(B, training, **info))


def test_other_seeds_weights_and_earlier_files_have_a_mean() -> None:
    earlier = {"seed": 1, "phase": "main", "epochs": 8}
    found = mean(a=told(A, {**TRAINED, "seed": 2}), b=told(B, earlier))
    assert [part["training"]["seed"] for part in found["parts"]] == [2, 1]


def test_too_few_and_twice() -> None:
    with pytest.raises(ResultsError, match="at least two"):
        mean(a=A)
    with pytest.raises(ResultsError, match="c: has the same data as a"):
        mean(a=A, b=B, c=A)
    short = deepcopy(B)
    del short["groups"]["query"]["single_shot"]["trials"]
    with pytest.raises(ResultsError, match="b: query has no figures per trial"):
        mean(a=A, b=short)
