from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrreid_ext.errors import ResultsError
from lrreid_ext.evaluation import load_results, results_table
from lrreid_ext.evaluation.report import draw_label, group_table, interval_table


def content(rank1: float, **changes: Any) -> dict[str, Any]:
    def entry(mean: float | None) -> dict[str, Any]:
        return {
            "queries": 8,
            "junk": 0,
            "single_shot": {"unmatched": 0, "Rank-1": mean, "Rank-1_std": mean and mean / 10},
            "multi_shot": {"unmatched": 0, "Rank-1": mean, "mAP": mean and mean / 2},
        }

    return {
        "test_set": "demo",
        "manifest_hash": "0123456789abcdef",
        "protocols": ["single_shot", "multi_shot"],
        "trials": 10,
        "seed": 0,
        "metric": "cosine",
        "groups": {
            "query": entry(rank1),
            "query@2": entry(99.0),
            "query_hr": entry(80.0),
            "x10": entry(None),
            "x2": entry(60.0),
        },
        **changes,
    }


def save(folder: Path, data: Any) -> Path:
    folder.mkdir()
    path = folder / "results_demo.json"
    path.write_text(json.dumps(data))
    return path


def cells(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_results_of_before_there_were_draws_and_intervals() -> None:
    old = content(40.0)
    assert not {"draw", "ci", "counts", "parts"} & old.keys()
    table = group_table(old)
    assert "40.0 +- 4.0" in table
    assert "out" not in table
    assert interval_table(old) == ""
    assert draw_label(old) == "10 trials"


def test_another_training_set_is_told() -> None:
    training = {"training": {"data_sets": ["mlr_market1501", "mlr_cuhk03"]}}
    there = results_table([content(40.0, info=training)])
    assert "cosine distance; trained on mlr_market1501, mlr_cuhk03; percent." in there
    training = {"training": {"data_sets": ["demo", "mlr_cuhk03"]}}
    assert "trained on" not in results_table([content(40.0, info=training)])
    fold = content(40.0, info=training, test_set="demo_validation")
    assert "trained on" not in results_table([fold])


def test_rows_are_runs(tmp_path: Path) -> None:
    two = content(45.0)
    two["groups"]["x3"] = two["groups"].pop("x2")
    table = results_table([save(tmp_path / "SING", content(40.0)), save(tmp_path / "RAIN", two)])
    header, _, sing, rain = cells(table)
    assert header == ["run", "MLR Rank-1", "HR -> HR", "x2", "x3", "x10", "MLR mAP (multi-shot)"]
    assert sing == ["SING", "40.0 ± 4.0", "80.0 ± 8.0", "60.0 ± 6.0", "", "", "20.0"]
    assert rain == ["RAIN", "45.0 ± 4.5", "80.0 ± 8.0", "", "60.0 ± 6.0", "", "22.5"]
    assert table.splitlines()[-1] == (
        "demo, manifest 0123456789ab: single-shot, 10 trials, seed 0; multi-shot; "
        "cosine distance; percent."
    )


def test_chosen_columns_names_and_style() -> None:
    columns = ["multi_shot/x2/mAP", "single_shot/query/Rank-5"]
    table = results_table([content(40.0)], columns, names=["A"], style="plain")
    assert "|" not in table
    assert "x2 mAP (multi-shot)" in table.splitlines()[0]
    assert "MLR Rank-5" in table.splitlines()[0]
    assert table.splitlines()[2].split() == ["A", "30.0"]


def test_different_data_are_told_apart() -> None:
    table = results_table(
        [content(40.0, name="A"), content(41.0, name="B", seed=7), content(42.0, name="C")]
    )
    header, _, *rows = cells(table)
    assert header[-1] == "data"
    assert [(row[0], row[-1]) for row in rows] == [("A", "(1)"), ("B", "(2)"), ("C", "(1)")]
    assert "(2) demo, manifest 0123456789ab: single-shot, 10 trials, seed 7" in table


def test_flip_and_expansion_are_named() -> None:
    table = results_table([content(40.0, flip=True, aqe={"times": 1})])
    assert "; multi-shot with aqe; cosine distance; flip; percent." in table


def test_hr_queries_are_called_so_where_the_gallery_is_not_hr() -> None:
    run = content(40.0)
    assert "HR -> HR" in results_table([run]) and "HR queries" not in results_table([run])
    mixed = {**run, "counts": {**run.get("counts", {}), "gallery_lr": 3}}
    assert "HR queries" in results_table([mixed]) and "HR -> HR" not in results_table([mixed])


def test_multi_shot_alone() -> None:
    run = content(40.0, protocols=["multi_shot"])
    for entry in run["groups"].values():
        del entry["single_shot"]
    header, _, row = cells(results_table([run], names=["A"]))
    assert header[1] == "MLR Rank-1 (multi-shot)"
    assert row == ["A", "40.0", "80.0", "60.0", "", "20.0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read as JSON"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[]", "holds an object, not list"),
        ("{}", "lacks test_set, manifest_hash"),
        (json.dumps(content(1.0, groups={})), "'groups' lacks 'query'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results_x.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message) as caught:
        load_results(path)
    assert str(path) in str(caught.value)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"none.json: no such file"):
        results_table([tmp_path / "none.json"])
    with pytest.raises(ValueError, match="no results"):
        results_table([])
    with pytest.raises(ValueError, match="1 results but 2 names"):
        results_table([content(1.0)], names=["A", "B"])
    with pytest.raises(ValueError, match="style 'html'"):
        results_table([content(1.0)], style="html")
    with pytest.raises(ValueError, match="'mAP': protocol/group/figure is needed"):
        results_table([content(1.0)], ["mAP"])
