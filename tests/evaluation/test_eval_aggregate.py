"""Means over splits and runs, against sums done by hand; and the command that makes the splits."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TINY_OSNET

from lrreid_ext.commands import splits as tool
from lrreid_ext.config import load_cfg
from lrreid_ext.errors import ConfigError, ResultsError
from lrreid_ext.evaluation.aggregate import aggregate
from lrreid_ext.evaluation.report import figure, results_table


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


def test_mean_over_splits_x_trials() -> None:
    found = aggregate({"a": A, "b": B})
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
    assert figure(found, "multi_shot/query/mAP") == (60, pytest.approx(200**0.5))
    table = results_table([found], names=["SING"])
    assert "40.0 ± 25.8" in table
    assert "2 splits x 2 trials" in table
    assert "multi-shot, 2 splits" in table


def test_runs_of_the_same_data() -> None:
    same = deepcopy(B)
    same["manifest_hash"], same["info"] = A["manifest_hash"], A["info"]
    same["groups"] = {"query": B["groups"]["query"]}
    found = aggregate({"a": A, "b": same})
    assert (found["over"], found["manifest_hash"]) == ("runs", "hash 0")
    assert "2 runs x 2 trials" in results_table([found])


def test_one_missing_figure_is_no_mean() -> None:
    lacking = deepcopy(B)
    lacking["groups"]["query"]["multi_shot"]["mAP"] = None
    found = aggregate({"a": A, "b": lacking})["groups"]["query"]["multi_shot"]
    assert found["mAP"] is None
    assert found["mAP_std"] is None
    assert found["Rank-1"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "euclidean"}, "b: metric is 'euclidean', but 'cosine' in a"),
        ({"trials": 3}, "b: trials is 3"),
        ({"draw": "per_query"}, "b: draw"),
        ({"info": {"options": {"seed": 1}}}, "b: the data set was built by other options"),
    ],
)
def test_figures_that_were_measured_otherwise(change: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        aggregate({"a": A, "b": {**B, **change}})


def ranked(split: int, ranks: tuple[int, ...]) -> Any:
    """Results whose Rank-k are k, in every trial."""
    found = content(split, [[1.0, 5.0]] * 2, 50.0)
    entry = found["groups"]["query"]
    entry["single_shot"] = {"unmatched": 0, "trials": [[float(k) for k in ranks]] * 2}
    for k in ranks:
        entry["single_shot"] |= {f"Rank-{k}": float(k), f"Rank-{k}_std": 0.0}
    return found


def test_other_ranks_are_never_averaged() -> None:
    mean = aggregate({"a": ranked(0, (1, 10)), "b": ranked(1, (1, 10))})
    assert mean["groups"]["query"]["single_shot"]["Rank-10"] == 10
    for other in ((1, 20), (1,), (10, 1), (1, 10, 20)):
        with pytest.raises(ResultsError, match=r"b: single_shot/query has .* Rank-10 in a; "):
            aggregate({"a": ranked(0, (1, 10)), "b": ranked(1, other)})
    lacking = deepcopy(B)
    del lacking["groups"]["query"]["multi_shot"]["mAP"]
    with pytest.raises(ResultsError, match="b: multi_shot/query has the figures Rank-1, but"):
        aggregate({"a": A, "b": lacking})


TRAINED = {"seed": 0, "data_sets": ["caviar"], "fold": [], "phase": "main", "epochs": 9}


def told(base: Any, training: Any, **info: Any) -> Any:
    """Results whose ``info`` says more."""
    return {**base, "info": {**base["info"], "training": training, **info}}


@pytest.mark.parametrize(
    ("training", "info", "message"),
    [
        (TRAINED, {"mixed_gallery": {"share": 0.5}}, r"info.mixed_gallery is {.*, but not there"),
        (TRAINED, {"validation": "left out", "fold": [0, 5]}, "info.validation is 'left out'"),
        ({**TRAINED, "data_sets": ["viper"]}, {}, r"data_sets is \['viper'\], but .* in a"),
        ({**TRAINED, "fold": [1, 5]}, {}, r"training.fold is \[1, 5\]"),
        ({**TRAINED, "phase": "teacher"}, {}, "training.phase is 'teacher', but 'main' in a"),
        ({}, {}, "info.training is not there, but"),
    ],
)
def test_what_the_files_say_of_themselves(training: Any, info: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=f"b: .*{message}"):
        aggregate({"a": told(A, TRAINED), "b": told(B, training, **info)})


def test_other_seeds_weights_and_earlier_files_have_a_mean() -> None:
    earlier = {"seed": 1, "phase": "main", "epochs": 8}
    found = aggregate({"a": told(A, {**TRAINED, "seed": 2}), "b": told(B, earlier)})
    assert [part["training"]["seed"] for part in found["parts"]] == [2, 1]


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
    command = ["--mean", *map(str, files), "--out", str(tmp_path / "mean")]
    assert tool.main(command) == 0
    assert "note" not in capsys.readouterr().out
    config = tmp_path / "run1" / "config.yaml"
    config.write_text(load_cfg(yaml, ["MODEL.BACKBONE.DEPTH", "x1_0"]).dump())
    assert tool.main(command) == 2
    said = capsys.readouterr().err
    assert "run1" in said and "run0" in said and "MODEL.BACKBONE.DEPTH was x0_25" in said
    # Scored elsewhere: the config beside the checkpoint counts.
    scored = tmp_path / "results_caviar.json"
    scored.write_text(json.dumps({**B, "checkpoint": str(config.parent / "model_final.pth")}))
    command[2] = str(scored)
    assert tool.main(command) == 2
    assert "MODEL.BACKBONE.DEPTH" in capsys.readouterr().err
    config.unlink()
    assert tool.main(command) == 0
    assert f"note: {scored}: the config of the training is not at hand" in capsys.readouterr().out


def test_too_few_and_twice() -> None:
    with pytest.raises(ResultsError, match="at least two"):
        aggregate({"a": A})
    with pytest.raises(ResultsError, match="c: of the same data as a"):
        aggregate({"a": A, "b": B, "c": A})
    short = deepcopy(B)
    del short["groups"]["query"]["single_shot"]["trials"]
    with pytest.raises(ResultsError, match="b: query has no figures per trial"):
        aggregate({"a": A, "b": short})


# ---------------------------------------------------------------- the command
def test_numbers() -> None:
    assert tool.numbers("0-3,7") == [0, 1, 2, 3, 7]
    for bad in ("", "3-1", "-1", "a", "0,,1"):
        with pytest.raises(ConfigError, match="--splits"):
            tool.numbers(bad)
    with pytest.raises(ConfigError, match="twice"):
        tool.numbers("0-3,2")


def test_every_recipe_with_splits_is_given_one() -> None:
    cfg = load_cfg(
        str(ROOT / "configs" / "osnet_hr.yml"),
        ["DATASETS.NAMES", "['mlr_viper', 'mlr_market1501']", "DATASETS.TESTS", "['caviar']"],
    )
    assert tool.split_options(cfg, 3) == [
        "DATASETS.OPTIONS.mlr_viper.split", "3", "DATASETS.OPTIONS.caviar.split", "3"
    ]  # fmt: skip
    cfg.defrost()
    cfg.DATASETS.TESTS = ["mlr_market1501"]
    with pytest.raises(ConfigError, match="mlr_market1501 has no option 'split'"):
        tool.split_options(cfg, 3)


def test_results_of_other_weights_or_keys_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training; what evaluates is put aside, and counts."""
    made: list[list[str]] = []

    def evaluate(argv: list[str]) -> int:
        at = argv.index("--eval-only")
        cfg = load_cfg(argv[1], argv[at + 1 :])
        split = int(cfg.OUTPUT_DIR[-1])
        trials = [[10.0, 40.0]] * cfg.TEST.TRIALS
        results = content(split, trials, 50.0, checkpoint=cfg.MODEL.WEIGHTS)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        (Path(cfg.OUTPUT_DIR) / "results_caviar.json").write_text(json.dumps(results))
        made.append(argv)
        return 0

    monkeypatch.setattr(tool, "train", evaluate)
    weights, other = tmp_path / "w.pth", tmp_path / "other.pth"
    weights.write_bytes(b"one")
    other.write_bytes(b"two")
    config = str(ROOT / "configs" / "osnet_hr.yml")

    def times(*opts: str, weights: Path = weights) -> int:
        made.clear()
        words = ["--config-file", config, "--splits", "0-1", "--eval-only"]
        words += ["DATASETS.TESTS", "['caviar']", "OUTPUT_DIR", str(tmp_path / "sp")]
        assert tool.main([*words, "MODEL.WEIGHTS", str(weights), "TEST.TRIALS", "4", *opts]) == 0
        return len(made)

    assert times() == 2
    capsys.readouterr()
    assert times("MODEL.DEVICE", "cpu", "TEST.NUM_WORKERS", "0") == 0
    assert "split 1: " in capsys.readouterr().out
    assert times("TEST.TRIALS", "5") == 2
    assert "evaluated again, for TEST.TRIALS was 4, and now is 5" in capsys.readouterr().out
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
    config = ["--config-file", str(ROOT / "configs" / "osnet_hr.yml")]
    # TEST.EVAL_PERIOD is 0: what training doesn't evaluate is evaluated afterwards.
    assert tool.main([*config, "--splits", "0,1", *options]) == 0
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
    # What stands is not run again.
    before = (run / "split_0" / "model_final.pth").stat().st_mtime_ns
    assert tool.main([*config, "--splits", "0-1", *options]) == 0
    assert (run / "split_0" / "model_final.pth").stat().st_mtime_ns == before
    assert "split 1: " in capsys.readouterr().out
    # Evaluated by other keys meanwhile, it is evaluated again, not trained.
    keys = ["TEST.TRIALS", "4", "OUTPUT_DIR", str(run / "split_0")]
    assert tool.train([*config, "--eval-only", *options, *keys]) == 0
    assert tool.main([*config, "--splits", "0-1", *options]) == 0
    assert "split 0: evaluated again, for its results aren't" in capsys.readouterr().out
    assert (run / "split_0" / "model_final.pth").stat().st_mtime_ns == before
    # Nor is it taken for another training's.
    assert tool.main([*config, "--splits", "0-1", *options, "SOLVER.BASE_LR", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "split 0: the run in" in said and "SOLVER.BASE_LR was 0.0" in said
    # And the same mean of files.
    files = [str(run / f"split_{k}/results_synth_pedestrians.json") for k in (0, 1)]
    assert tool.main(["--mean", *files, "--out", str(tmp_path / "mean")]) == 0
    again = json.loads((tmp_path / "mean/results_synth_pedestrians.json").read_text())
    assert again["groups"] == found["groups"]
    assert tool.main(["--mean", *files, "--out", str(run / "split_0")]) == 2
    assert "is one of the results" in capsys.readouterr().err
