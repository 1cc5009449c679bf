"""Sweeps: what the file says, what is kept, gone on with or refused, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, TINY_OSNET

from lrreid_ext.analysis.plots import save
from lrreid_ext.analysis.runs import difference
from lrreid_ext.analysis.sweep import SweepRun, draw, read_sweep, table, to_csv
from lrreid_ext.commands import sweep as command
from lrreid_ext.config import load_cfg
from lrreid_ext.errors import ConfigError

OSNET = str(ROOT / "configs" / "osnet_copies.yml")


def written(folder: Path, **entries: Any) -> Path:
    path = folder / "sweep.yml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


def results(rank: float, **more: Any) -> dict[str, Any]:
    single = {"Rank-1": rank, "Rank-1_std": 0.5}
    group = {"queries": 4, "single_shot": single, "multi_shot": {"mAP": rank - 1}}
    return {
        "test_set": "some", "manifest_hash": "ab" * 32, "protocols": ["single_shot", "multi_shot"],
        "trials": 3, "seed": 0, "metric": "cosine", "groups": {"query": group, **more},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["table3", "fig5"])
def test_the_bundled_sweeps_are_sound(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "projects" / "RAIN" / f"{name}.yml")
    assert command.main([file, "--dry-run", "--only", "RAIN", "HR only"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == {"table3": 2, "fig5": 11}[name]
    # Whatever a variant says must make a difference, or it would be trained in vain.
    sweep = read_sweep(Path(file))
    cfgs = [load_cfg(str(run.config), run.words()) for run in sweep.runs]
    for k, cfg in enumerate(cfgs):
        assert all(difference(cfg, other) for other in cfgs[:k])


def test_a_file_is_read_as_it_says(tmp_path: Path) -> None:
    file = written(
        tmp_path, CONFIG=OSNET, OUT="somewhere", OPTIONS={"SEED": 1, "SOLVER.MAX_EPOCH": 3},
        AXIS={"KEY": "DATASETS.LABELLED", "VALUES": [0.5, 1.0], "LABEL": "labelled"},
        VARIANTS={"one": None, "an/other": {"OPTIONS": {"SEED": 2}, "VALUES": [1.0]}},
    )  # fmt: skip
    sweep = read_sweep(file, extra=["SOLVER.MAX_EPOCH", "4"])
    assert [run.name for run in sweep.runs] == ["one, 0.5", "one, 1.0", "an/other, 1.0"]
    assert str(sweep.runs[2].out) == "somewhere/an_other/1.0"
    cfg = load_cfg(OSNET, sweep.runs[2].words())
    assert (cfg.SEED, cfg.SOLVER.MAX_EPOCH, cfg.DATASETS.LABELLED) == (2, 4, 1.0)
    assert cfg.OUTPUT_DIR == "somewhere/an_other/1.0"
    assert sweep.label == "labelled"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"VARIANT": {}}, "'VARIANT' is not an entry. Did you mean 'VARIANTS'"),
        ({"CONFIG": OSNET}, "VARIANTS: none"),
        ({"VARIANTS": {"a": {}}}, "VARIANTS: a: no CONFIG"),
        ({"VARIANTS": {"a": {"CONFIG": OSNET, "VALUES": [1]}}}, "there is none"),
        ({"CONFIG": OSNET, "VARIANTS": {"a b": {}, "a_b": {}}}, "two runs would be in"),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}, "AXIS": {"KEY": "SEED"}}, "AXIS: needs"),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}, "DRAW": ["Rank-1"]}, "protocol/group/figure"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(written(tmp_path, **entries))


def test_what_is_written_of_results(tmp_path: Path) -> None:
    file = written(
        tmp_path, CONFIG=OSNET, AXIS={"KEY": "SEED", "VALUES": [1, 2]},
        VARIANTS={"a": {}, "b": {"VALUES": [2]}},
    )  # fmt: skip
    sweep = read_sweep(file)
    found = [(run, results(40.0 + 10 * k)) for k, run in enumerate(sweep.runs)]
    rows = list(csv.DictReader(to_csv(found).splitlines()))
    assert [(r["variant"], r["value"], r["figure"], r["mean"], r["std"]) for r in rows] == [
        ("a", "1", "Rank-1", "40", "0.5"), ("a", "1", "mAP", "39", ""),
        ("a", "2", "Rank-1", "50", "0.5"), ("a", "2", "mAP", "49", ""),
        ("b", "2", "Rank-1", "60", "0.5"), ("b", "2", "mAP", "59", ""),
    ]  # fmt: skip
    assert "a, 2" in table(sweep, found) and "50.0 ± 0.5" in table(sweep, found)
    panel = draw(sweep, found).axes[0]
    curves = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert curves == {"a": [[1.0, 40.0], [2.0, 50.0]], "b": [[2.0, 60.0]]}
    assert panel.get_xlabel() == "SEED"

    plain = read_sweep(written(tmp_path, CONFIG=OSNET, VARIANTS={"a": {}, "b": {}}))
    found = [(run, results(40.0 + 10 * k)) for k, run in enumerate(plain.runs)]
    panels = draw(plain, found)
    assert [bar.get_width() for bar in panels.axes[0].patches] == [40.0, 50.0]
    assert [t.get_text() for t in panels.axes[0].get_yticklabels()] == ["a", "b"]
    save(panels, tmp_path / "bars.svg")
    with pytest.raises(ConfigError, match="single_shot/x8/Rank-1"):
        draw(read_sweep(written(tmp_path, CONFIG=OSNET, VARIANTS={"a": {}, "b": {}},
                                DRAW=["single_shot/x8/Rank-1"])), found)  # fmt: skip


def test_trains_once_goes_on_and_refuses_what_was_made_otherwise(
    market_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tiny = dict(zip(TINY_OSNET[::2], TINY_OSNET[1::2], strict=True))
    file = written(
        tmp_path, CONFIG=OSNET, OUT=str(tmp_path / "runs"),
        OPTIONS={**tiny, "SOLVER.MAX_EPOCH": 1, "DATASETS.ROOT": str(market_root),
                 "TEST.EVAL_PERIOD": 1},
        VARIANTS={"mixed": {}, "hr": {"OPTIONS": {"INPUT.LR.TRAIN_ON": "hr"}}},
    )  # fmt: skip
    calls: list[list[str]] = []
    train = command.train_net

    def watched(words: list[str]) -> int:
        calls.append(words)
        # Killed before the second of the two.
        return 130 if len(calls) == 2 else train(words)

    monkeypatch.setattr(command, "train_net", watched)
    assert command.main([str(file)]) == 130
    assert command.main([str(file)]) == 0
    assert [c[c.index("OUTPUT_DIR") + 1].rsplit("/", 1)[1] for c in calls] == ["mixed", "hr", "hr"]
    out = tmp_path / "runs"
    made = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["variant"] for run in made] == ["mixed", "hr"]
    for run in made:
        own = json.loads((out / run["variant"] / "results_mlr_market1501.json").read_text())
        assert run["results"] == own
    assert {p.suffix for p in out.glob("sweep.*")} == {".md", ".csv", ".json", ".svg", ".png"}

    # Results that lack are measured, without another training.
    (out / "hr" / "results_mlr_market1501.json").unlink()
    assert command.main([str(file)]) == 0
    assert len(calls) == 4 and "--eval-only" in calls[3]
    assert command.main([str(file), "--opts", "SEED", "7"]) == 2
    assert "SEED was 0, and now is 7" in capsys.readouterr().err
    assert len(calls) == 4
    assert command.main([str(file), "--only", "hrr"]) == 2


def test_where_a_run_is_made_is_no_difference() -> None:
    a, b = (load_cfg(OSNET, ["OUTPUT_DIR", name, "TEST.NUM_WORKERS", "0"]) for name in "ab")
    assert not difference(a, b)
    c = load_cfg(OSNET, ["INPUT.LR.FACTORS", "[2]"])
    assert difference(a, c) == "INPUT.LR.FACTORS was [2, 3, 4], and now is [2]"
    run = SweepRun("a", None, Path(OSNET), {"SEED": 1, "INPUT.LR.FACTORS": [2]}, Path("o"))
    assert run.words() == ["SEED", "1", "INPUT.LR.FACTORS", "[2]", "OUTPUT_DIR", "o"]
