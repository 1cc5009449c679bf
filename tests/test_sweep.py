"""Sweeps and splits: what is read, kept, resumed or refused, averaged and written."""

from __future__ import annotations

import csv
import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY_OSNET

from lrreid_ext.cli import main
from lrreid_ext.commands.sweep import Entry, Sweep, draw, entries_of, numbers, read_sweep, to_csv
from lrreid_ext.config import difference, load_cfg
from lrreid_ext.engine.run import run_config
from lrreid_ext.engine.sweep import Training, repetitions
from lrreid_ext.errors import ConfigError
from lrreid_ext.report.plots import save
from lrreid_ext.results import Figure, Figures, Group, Results

OSNET = str(ROOT / "configs" / "osnet_copies.yml")


def written(folder: Path, **entries: Any) -> Path:
    path = folder / "sweep.yml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


def read(
    content: dict[str, Any], *overrides: str, path: Path = Path("sweep.yml")
) -> tuple[Sweep, list[Entry]]:
    sweep = read_sweep(path, content)
    return sweep, entries_of(sweep, path, overrides)


def results(rank: float) -> Results:
    single = Figures(named={"Rank-1": Figure(rank, 0.5)})
    multi = Figures(named={"mAP": Figure(rank - 1)})
    group = Group(4, protocols={"single_shot": single, "multi_shot": multi})
    protocols = ["single_shot", "multi_shot"]
    return Results("some", "ab" * 32, protocols, 3, 0, "cosine", {"query": group})


@pytest.mark.parametrize(("name", "runs"), [("table3", 2), ("fig5", 11)])
def test_the_bundled_sweeps_are_sound(
    name: str, runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "projects" / "RAIN" / f"{name}.yml"
    assert main(["sweep", str(file), "--dry-run", "--only", "RAIN", "HR only"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == runs
    # Whatever a variant says must make a difference, or it would be trained in vain.
    _, entries = read(yaml.safe_load(file.read_text()), path=file)
    cfgs = [entry.training.cfg() for entry in entries]
    for k, cfg in enumerate(cfgs):
        assert all(difference(cfg, other) for other in cfgs[:k])


def test_a_file_is_read_as_it_says() -> None:
    content = {
        "CONFIG": OSNET, "OUT": "somewhere", "OPTIONS": {"SEED": 1, "SOLVER.MAX_EPOCH": 3},
        "AXIS": {"KEY": "DATASETS.LABELLED", "VALUES": [0.5, 1.0], "LABEL": "labelled"},
        "VARIANTS": {"one": {}, "an/other": {"OPTIONS": {"SEED": 2}, "VALUES": [1.0]}},
    }  # fmt: skip
    sweep, entries = read(content, "SOLVER.MAX_EPOCH", "4")
    trainings = [entry.training for entry in entries]
    assert [t.name for t in trainings] == ["one, 0.5", "one, 1.0", "an/other, 1.0"]
    assert str(trainings[2].folder) == "somewhere/an_other/1.0"
    cfg = trainings[2].cfg()
    assert (cfg.SEED, cfg.SOLVER.MAX_EPOCH, cfg.DATASETS.LABELLED) == (2, 4, 1.0)
    assert cfg.OUTPUT_DIR == "somewhere/an_other/1.0"
    assert sweep.AXIS.LABEL == "labelled"


@pytest.mark.parametrize(
    ("entries", "words", "message"),
    [
        ({"VARIANTS": {"a": {}}, "VARIANT": {}}, [], "VARIANT: is not an entry. Did you mean"),
        ({"CONFIG": OSNET, "VARIANTS": {}}, [], "VARIANTS: Dictionary should have at least 1"),
        ({"VARIANTS": {"a": {}}}, [], "VARIANTS.a: CONFIG: "),
        ({"VARIANTS": {"a": {"CONFIG": OSNET, "VALUES": [1]}}}, [], "there is none"),
        ({"CONFIG": OSNET, "VARIANTS": {"a b": {}, "a_b": {}}}, [], "two trainings would be in"),
        (
            {"CONFIG": OSNET, "VARIANTS": {"a": {}}, "AXIS": {"KEY": "SEED"}},
            [],
            "AXIS.VALUES: Field required",
        ),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}, "DRAW": ["Rank-1"]}, [], "protocol/group/figure"),
        ({"CONFIG": "no.yml", "VARIANTS": {"a": {}}}, [], "no.yml: no such file"),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}}, ["--only", "b"], "no variant 'b'; there are a"),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}}, ["SEED"], "'SEED' has no partner"),
        ({"CONFIG": OSNET, "VARIANTS": {"a": {}}}, ["--mean", "x"], "either a FILE.yml or"),
        (
            {"CONFIG": OSNET, "VARIANTS": {"a": {}}},
            ["--splits", "0,1", "DATASETS.TESTS", "['mlr_market1501']"],
            "mlr_market1501 has no option 'split'",
        ),
        ({"MODEL": {}}, [], "has no VARIANTS; give --splits or --seeds"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: Any, words: list[str], message: str
) -> None:
    assert main(["sweep", str(written(tmp_path, **entries)), *words]) == 2
    assert message in capsys.readouterr().err


def test_numbers() -> None:
    assert numbers("0-3,7") == [0, 1, 2, 3, 7]
    for bad in ("", "3-1", "-1", "a", "0,,1", "0-3,2"):
        with pytest.raises(ArgumentTypeError):
            numbers(bad)


def test_splits_and_seeds() -> None:
    options = {
        "DATASETS.NAMES": ["mlr_viper", "mlr_market1501"], "DATASETS.TESTS": ["caviar"],
    }  # fmt: skip
    one = Training("a", Path(OSNET), options, Path("out"))
    assert repetitions(one, []) == [one]
    repeated = repetitions(one, [3, 4], [7, 8])
    assert [t.name for t in repeated][:2] == ["a, split 3, seed 7", "a, split 3, seed 8"]
    assert [str(t.folder) for t in repeated][2:] == [f"out/split_4/seed_{k}" for k in (7, 8)]
    assert dict(repeated[0].options) == {
        **options, "SEED": 7,
        "DATASETS.OPTIONS.mlr_viper.split": 3, "DATASETS.OPTIONS.caviar.split": 3,
    }  # fmt: skip


def test_what_is_written_of_results(tmp_path: Path) -> None:
    content = {
        "CONFIG": OSNET, "AXIS": {"KEY": "SEED", "VALUES": [1, 2]},
        "VARIANTS": {"a": {}, "b": {"VALUES": [2]}},
    }  # fmt: skip
    sweep, entries = read(content)
    measured = [results(40.0 + 10 * k) for k in range(3)]
    rows = list(csv.DictReader(to_csv(entries, measured).splitlines()))
    assert [(r["variant"], r["value"], r["figure"], r["mean"], r["std"]) for r in rows] == [
        ("a", "1", "Rank-1", "40", "0.5"), ("a", "1", "mAP", "39", ""),
        ("a", "2", "Rank-1", "50", "0.5"), ("a", "2", "mAP", "49", ""),
        ("b", "2", "Rank-1", "60", "0.5"), ("b", "2", "mAP", "59", ""),
    ]  # fmt: skip
    panel = draw(sweep, entries, measured).axes[0]
    curves = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert curves == {"a": [[1.0, 40.0], [2.0, 50.0]], "b": [[2.0, 60.0]]}
    assert panel.get_xlabel() == "SEED"

    variants = {"CONFIG": OSNET, "VARIANTS": {"a": {}, "b": {}}}
    plain, entries = read(variants)
    panels = draw(plain, entries, measured[:2])
    assert [bar.get_width() for bar in panels.axes[0].patches] == [40.0, 50.0]
    assert [t.get_text() for t in panels.axes[0].get_yticklabels()] == ["a", "b"]
    save(panels, tmp_path / "bars.svg")
    other, _ = read({**variants, "DRAW": ["single_shot/x8/Rank-1"]})
    with pytest.raises(ConfigError, match="single_shot/x8/Rank-1"):
        draw(other, entries, measured[:2])


def test_trains_once_resumes_and_refuses_other_configs(
    market_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tiny = dict(zip(TINY_OSNET[::2], TINY_OSNET[1::2], strict=True))
    file = written(
        tmp_path, CONFIG=OSNET, OUT=str(tmp_path / "runs"),
        OPTIONS={**tiny, "SOLVER.MAX_EPOCH": 1, "DATASETS.ROOT": str(market_root),
                 "TEST.EVAL_PERIOD": 1},
        VARIANTS={"mixed": {}, "hr": {"OPTIONS": {"INPUT.LR.TRAIN_ON": "hr"}}},
    )  # fmt: skip
    calls: list[tuple[str, bool]] = []

    def watched(config: Path, overrides: list[str], **options: Any) -> None:
        place = Path(overrides[overrides.index("OUTPUT_DIR") + 1]).name
        calls.append((place, options.get("evaluate", False)))
        if len(calls) == 2:  # killed before the second of the two
            raise KeyboardInterrupt
        run_config(config, overrides, **options)

    monkeypatch.setattr("lrreid_ext.engine.sweep.run_config", watched)
    assert main(["sweep", str(file)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert main(["sweep", str(file)]) == 0
    assert calls == [("mixed", False), ("hr", False), ("hr", False)]
    out = tmp_path / "runs"
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["variant"] for run in runs] == ["mixed", "hr"]
    for run in runs:
        file_of = out / run["variant"] / "results_mlr_market1501.json"
        assert run["results"] == json.loads(file_of.read_text())
    assert {p.suffix for p in out.glob("sweep.*")} == {".md", ".csv", ".json", ".svg", ".png"}

    # Missing results are measured, without another training.
    (out / "hr" / "results_mlr_market1501.json").unlink()
    assert main(["sweep", str(file)]) == 0
    assert calls[3:] == [("hr", True)]
    assert main(["sweep", str(file), "SEED", "7"]) == 2
    assert "SEED was 0, and now is 7" in capsys.readouterr().err
    assert len(calls) == 4


def test_where_a_run_is_made_is_no_difference() -> None:
    a, b = (load_cfg(OSNET, ["OUTPUT_DIR", name, "TEST.NUM_WORKERS", "0"]) for name in "ab")
    assert not difference(a, b)
    c = load_cfg(OSNET, ["INPUT.LR.FACTORS", "[2]"])
    assert difference(a, c) == "INPUT.LR.FACTORS was [2, 3, 4], and now is [2]"


# ---------------------------------------------------------------- splits and means
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


A = content(0, [[10.0, 40.0], [30.0, 60.0]], 50.0)
B = content(1, [[50.0, 80.0], [70.0, 100.0]], 70.0)


def test_networks_of_other_configs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = str(ROOT / "configs" / "osnet_hr.yml")
    files = []
    for k, base in enumerate((A, B)):
        folder = tmp_path / f"run{k}"
        folder.mkdir()
        opts = ["SEED", str(k), "MODEL.INIT.WEIGHTS", f"{k}.pth", "TEST.EVAL_PERIOD", str(k)]
        opts += ["DATASETS.OPTIONS.caviar.split", str(k)]
        (folder / "config.yaml").write_text(load_cfg(yaml, opts).dump())
        (folder / "model_final.pth").touch()
        files.append(folder / "results_caviar.json")
        files[-1].write_text(json.dumps(base))
    command = ["sweep", "--mean", *map(str, files), "--out", str(tmp_path / "mean")]
    assert main(command) == 0
    assert "note" not in capsys.readouterr().out
    config = tmp_path / "run1" / "config.yaml"
    config.write_text(load_cfg(yaml, ["MODEL.BACKBONE.DEPTH", "x1_0"]).dump())
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "run1" in said and "run0" in said and "MODEL.BACKBONE.DEPTH was x0_25" in said
    # Scored elsewhere: the config beside the checkpoint counts.
    scored = tmp_path / "results_caviar.json"
    scored.write_text(json.dumps({**B, "checkpoint": str(config.parent / "model_final.pth")}))
    command[3] = str(scored)
    assert main(command) == 2
    assert "MODEL.BACKBONE.DEPTH" in capsys.readouterr().err
    config.unlink()
    assert main(command) == 0
    assert f"note: {scored}: the config of the training is not at hand" in capsys.readouterr().out


def test_results_of_other_weights_or_keys_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training; what evaluates is put aside, and counts."""
    evaluated: list[str] = []

    def run_config(config: Path, overrides: list[str], **options: Any) -> None:
        assert options["evaluate"]
        cfg = load_cfg(str(config), overrides)
        split = int(cfg.OUTPUT_DIR[-1])
        trials = [[10.0, 40.0]] * cfg.TEST.TRIALS
        results = content(split, trials, 50.0, checkpoint=cfg.MODEL.WEIGHTS)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        (Path(cfg.OUTPUT_DIR) / "results_caviar.json").write_text(json.dumps(results))
        evaluated.append(cfg.OUTPUT_DIR)

    monkeypatch.setattr("lrreid_ext.engine.sweep.run_config", run_config)
    weights, other = tmp_path / "w.pth", tmp_path / "other.pth"
    weights.write_bytes(b"one")
    other.write_bytes(b"two")
    config = str(ROOT / "configs" / "osnet_hr.yml")

    def times(*opts: str, weights: Path = weights) -> int:
        evaluated.clear()
        words = ["sweep", config, "--splits", "0-1", "--eval-only"]
        words += ["DATASETS.TESTS", "['caviar']", "OUTPUT_DIR", str(tmp_path / "sp")]
        assert main([*words, "MODEL.WEIGHTS", str(weights), "TEST.TRIALS", "4", *opts]) == 0
        return len(evaluated)

    assert times() == 2
    capsys.readouterr()
    assert times("MODEL.DEVICE", "cpu", "TEST.NUM_WORKERS", "0") == 0
    assert "split 1: done before" in capsys.readouterr().out
    assert times("TEST.TRIALS", "5") == 2
    assert "evaluated again: TEST.TRIALS was 4, and now is 5" in capsys.readouterr().out
    assert times("TEST.TRIALS", "5", weights=other) == 2
    assert "MODEL.WEIGHTS was" in capsys.readouterr().out
    other.write_bytes(b"three")
    assert times("TEST.TRIALS", "5", weights=other) == 2
    assert "other.pth has other weights now" in capsys.readouterr().out
    # Something else evaluated into the folder, or nothing tells what did.
    file = tmp_path / "sp" / "split_1" / "results_caviar.json"
    file.write_text(file.read_text().replace("10.0", "20.0"))
    assert times("TEST.TRIALS", "5", weights=other) == 1
    (file.parent / "evaluated.json").unlink()
    assert times("TEST.TRIALS", "5", weights=other) == 1
    assert "no evaluated.json" in capsys.readouterr().out


def test_two_splits_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        *TINY_OSNET, "SOLVER.MAX_EPOCH", "1", "SOLVER.IMS_PER_BATCH", "4",
        "DATASETS.NAMES", "['synth_pedestrians']", "DATASETS.TESTS", "['synth_pedestrians']",
        "DATASETS.ROOT", str(tmp_path / "sets"), "OUTPUT_DIR", str(tmp_path / "run"),
    ]  # fmt: skip
    for key, value in (("identities", 16), ("cameras", 2), ("shots", 1)):
        options += [f"DATASETS.OPTIONS.synth_pedestrians.{key}", str(value)]
    config = ["sweep", str(ROOT / "configs" / "osnet_hr.yml")]
    # TEST.EVAL_PERIOD is 0: what training doesn't evaluate is evaluated afterwards.
    assert main([*config, "--splits", "0,1", *options]) == 0
    run = tmp_path / "run"
    parts = [json.loads((run / f"split_{k}/results_synth_pedestrians.json").read_text())
             for k in (0, 1)]  # fmt: skip
    assert [part["info"]["split"] for part in parts] == [0, 1]
    assert parts[0]["manifest_hash"] != parts[1]["manifest_hash"]
    found = json.loads((run / "results_synth_pedestrians.json").read_text())
    own = [part["groups"]["query"]["multi_shot"]["mAP"] for part in parts]
    query = found["groups"]["query"]
    assert query["multi_shot"]["mAP"] == pytest.approx(np.mean(own), abs=1e-5)
    assert query["multi_shot"]["mAP_std"] == pytest.approx(np.std(own, ddof=1), abs=1e-5)
    assert len(query["single_shot"]["trials"]) == 6
    assert "2 splits x 3 trials" in capsys.readouterr().out
    # What is done is not run again.
    before = (run / "split_0" / "model_final.pth").stat().st_mtime_ns
    assert main([*config, "--splits", "0-1", *options]) == 0
    assert (run / "split_0" / "model_final.pth").stat().st_mtime_ns == before
    assert "split 1: done before" in capsys.readouterr().out
    # Evaluated by other keys meanwhile, it is evaluated again, not trained.
    keys = ["TEST.TRIALS", "4", "OUTPUT_DIR", str(run / "split_0")]
    assert main(["eval", "--config-file", config[1], *options, *keys]) == 0
    assert main([*config, "--splits", "0-1", *options]) == 0
    assert "split 0, evaluated again: the results are not" in capsys.readouterr().out
    assert (run / "split_0" / "model_final.pth").stat().st_mtime_ns == before
    # Nor is it taken for another training's.
    assert main([*config, "--splits", "0-1", *options, "SOLVER.BASE_LR", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "split 0: the run in" in said and "SOLVER.BASE_LR was 0.0" in said
    # And the same mean of files.
    files = [str(run / f"split_{k}/results_synth_pedestrians.json") for k in (0, 1)]
    assert main(["sweep", "--mean", *files, "--out", str(tmp_path / "mean")]) == 0
    again = json.loads((tmp_path / "mean/results_synth_pedestrians.json").read_text())
    assert again["groups"] == found["groups"]
    assert main(["sweep", "--mean", *files, "--out", str(run / "split_0")]) == 2
    assert "is one of the results" in capsys.readouterr().err
