"""Results: their file, labels and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mini_results import results

from lrreid_ext.errors import ConfigError, ResultsError
from lrreid_ext.results import Counts, Results, Training, group_table, results_table
from lrreid_ext.results.tables import interval_table, rate_table

NEEDED = ("test_set", "manifest_hash", "protocols", "trials", "seed", "metric", "groups")


def table(*runs: Results, columns: list[str] | None = None) -> str:
    return results_table(runs, columns, names=["A", "B", "C"][: len(runs)])


def cells(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_repositorys_files_are_written_as_they_were_read(tmp_path: Path) -> None:
    files = [*ROOT.glob("projects/*/results/*.json"), *ROOT.glob("benchmarks/yardstick/*.json")]
    assert len(files) > 20
    for file in files:
        stored = json.loads(file.read_text())
        stored["counts"].setdefault("gallery_lr", 0)
        Results.load(file).save(tmp_path / "a.json")
        written = json.loads((tmp_path / "a.json").read_text())
        assert {key: written[key] for key in stored} == stored, file
        # Keys that the file is older than are written with what they mean.
        assert not any(written[key] for key in written.keys() - stored.keys() - {"draw"}), file


def test_results_older_than_draws_and_intervals() -> None:
    content = results(40.0).to_json()
    old = Results.from_json({key: content[key] for key in NEEDED})
    assert "40.0 +- 1.0" in group_table(old)
    assert "out" not in group_table(old)
    assert interval_table(old) == rate_table(old) == ""
    assert old.draw_label == "2 trials"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "single-shot, 2 trials, seed 0; multi-shot; cosine distance; percent."),
        ({"flip": True, "aqe": {"times": 1}}, "; multi-shot with aqe; cosine distance; flip; per"),
        ({"draw": "per_query", "seed": 7}, "single-shot, 2 trials per query, seed 7; multi-shot"),
        (
            {"training": Training(data_sets=["mlr_market1501", "mlr_cuhk03"])},
            "cosine distance; trained on mlr_market1501, mlr_cuhk03; percent.",
        ),
        ({"training": Training(data_sets=["demo", "x"])}, "cosine distance; percent."),
        (
            {"training": Training(data_sets=["demo"]), "test_set": "demo_validation"},
            "cosine distance; percent.",
        ),
        (
            {"info": {"mixed_gallery": {"share": 0.5, "factors": [2, 4]}}},
            "cosine distance; 50 % of the gallery reduced by 2, 4; percent.",
        ),
    ],
)
def test_what_was_measured_stands_below(changes: dict[str, Any], text: str) -> None:
    assert text in table(results(40.0, **changes))


def test_rows_are_runs() -> None:
    one = results(40.0, ("query", "query@2", "x10", "query_hr", "x2"))
    one.groups["x10"].protocols["single_shot"].named["Rank-1"] = None
    header, _, first, second = cells(table(one, results(45.0, ("query", "x3"))))
    assert header == ["run", "MLR Rank-1", "HR -> HR", "x2", "x3", "x10", "MLR mAP (multi-shot)"]
    assert first == ["A", *["40.0 ± 1.0"] * 3, "", "", "20.0"]
    assert second == ["B", "45.0 ± 1.0", "", "", "45.0 ± 1.0", "", "22.5"]


def test_chosen_columns_and_style() -> None:
    columns = ["multi_shot/x2/mAP", "single_shot/query/Rank-5"]
    text = results_table([results(40.0)], columns, names=["A"], style="plain")
    assert "|" not in text
    assert "x2 mAP (multi-shot)" in text.splitlines()[0]
    assert "MLR Rank-5" in text.splitlines()[0]
    assert text.splitlines()[2].split() == ["A", "20.0"]


def test_different_data_are_told_apart() -> None:
    text = table(results(40.0), results(41.0, seed=7), results(42.0))
    header, _, *rows = cells(text)
    assert header[-1] == "data"
    assert [(row[0], row[-1]) for row in rows] == [("A", "(1)"), ("B", "(2)"), ("C", "(1)")]
    assert "(2) demo, manifest 0123456789ab: single-shot, 2 trials, seed 7" in text


def test_hr_queries_of_an_lr_gallery() -> None:
    mixed = results(40.0, counts=Counts(9, 0, 0, 9, gallery_lr=3))
    assert "HR -> HR" in table(results(40.0)) and "HR queries" not in table(results(40.0))
    assert "HR queries" in table(mixed) and "HR -> HR" not in table(mixed)


def test_multi_shot_alone() -> None:
    header, _, row = cells(table(results(40.0, protocols=["multi_shot"])))
    assert header[1] == "MLR Rank-1 (multi-shot)"
    assert row == ["A", "40.0", "40.0", "40.0", "20.0"]


def changed(**fields: Any) -> str:
    return json.dumps({**results().to_json(), **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; lrreid eval"),
        ("{", "can't be read as JSON"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[]", "not a results file"),
        ("{}", "not a results file: test_set: Field required"),
        (changed(groups={}), "'groups' lacks 'query' under 'single_shot'"),
        (changed(groups={"query": {"queries": 1}}), "lacks 'query' under 'single_shot'"),
        (changed(groups={"query": {}}), "groups.query.queries: Field required"),
        (changed(ci={"level": 1}), "not a results file: ci.repeats: Field required"),
        (changed(trials="many"), "not a results file: trials: Input should be a valid integer"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "results_x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=message) as caught:
        Results.load(path)
    assert str(path) in str(caught.value)


def test_columns_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mAP': write protocol/group/figure"):
        table(results(), columns=["mAP"])
