"""Configs: overrides, plugins' keys, and messages that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from lrreid_ext.config import load_cfg, phase_cfg, phases_of
from lrreid_ext.errors import ConfigError

SYNTH = str(ROOT / "projects" / "PSHRNet" / "synth.yml")


def test_whole_numbers_are_floats_where_floats_are_meant(tmp_path: Path):
    (tmp_path / "a.yml").write_text("SOLVER: {BASE_LR: 1}\nPSHRNET: {PS_WEIGHT: 0}\n")
    cfg = load_cfg(str(tmp_path / "a.yml"), ["MODEL.SR.LOSS_WEIGHT", "2"])
    assert (cfg.SOLVER.BASE_LR, cfg.PSHRNET.PS_WEIGHT, cfg.MODEL.SR.LOSS_WEIGHT) == (1.0, 0.0, 2.0)
    assert all(isinstance(v, float) for v in (cfg.SOLVER.BASE_LR, cfg.MODEL.SR.LOSS_WEIGHT))


def test_lists_may_be_written_as_fastreids_yamls_write_them(tmp_path: Path):
    (tmp_path / "a.yml").write_text(
        'DATASETS:\n  NAMES: ("Market1501",)\nSOLVER:\n  STEPS: (40, 90)\n'
    )
    cfg = load_cfg(str(tmp_path / "a.yml"))
    assert (cfg.DATASETS.NAMES, cfg.SOLVER.STEPS) == (("Market1501",), [40, 90])


def test_phases_and_recipe_options_can_be_overridden():
    cfg = load_cfg(
        SYNTH,
        [
            "PHASES.student.SOLVER.BASE_LR", "0.5",
            "PHASES.teacher.LOSS_WEIGHTS", "{'loss_sequence_triplet': 0.0}",
            "DATASETS.OPTIONS.synth_pedestrians.identities", "12",
            "DATASETS.OPTIONS.mlr_cuhk01.split", "3",
        ],
    )  # fmt: skip
    teacher, student = phases_of(cfg)
    assert phase_cfg(cfg, student).SOLVER.BASE_LR == 0.5
    assert phase_cfg(cfg, teacher).SOLVER.BASE_LR == cfg.SOLVER.BASE_LR
    assert teacher.loss_weights == {"loss_sequence_triplet": 0.0}
    assert cfg.DATASETS.OPTIONS.synth_pedestrians.identities == 12
    assert cfg.DATASETS.OPTIONS.synth_pedestrians.cameras == 6
    assert cfg.DATASETS.OPTIONS.mlr_cuhk01.split == 3


def test_plugins_are_found_beside_the_yaml_that_names_them(tmp_path: Path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "keys.py").write_text("def add_config(cfg):\n    cfg.MINE = 1\n")
    (tmp_path / "base" / "base.yml").write_text("PLUGINS: [keys.py]\nMINE: 2\n")
    (tmp_path / "top.yml").write_text("_BASE_: base/base.yml\n")
    assert load_cfg(str(tmp_path / "top.yml")).MINE == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "SOLVER: {BASE_RL: 1}",
            [],
            r"a\.yml: SOLVER\.BASE_RL is not a config key.*SOLVER\.BASE_LR",
        ),
        ("SOLVER: [", [], r"a\.yml: can't be read"),
        ("PLUGINS: keys.py", [], "PLUGINS: a list"),
        ("SEED: 1", ["SEED"], "has no partner"),
        ("SEED: 1", ["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR"),
        ("SEED: 1", ["PHASES.nap.EPOCHS", "1"], "PHASES.nap.EPOCHS"),
        ("TEST: {FACTORS: [2, x]}", [], r"a\.yml: TEST\.FACTORS: numbers are needed, not 'x'"),
        ("SEED: 1", ["INPUT.LR.RANGE", "['low', 4]"], r"INPUT\.LR\.RANGE: numbers .* 'low'"),
        ("SEED: 1", ["TEST.FUSION.ANCHORS", "['x']"], r"FUSION\.ANCHORS: numbers .* 'x'"),
        ("SEED: 1", ["DATASETS.NAMES", "[3]"], r"DATASETS\.NAMES: names are needed, not 3"),
        ("hello", [], r"a\.yml: holds 'hello'; a config has keys"),
        ("", [], r"a\.yml: is empty"),
        ("SEED: \udcff", [], r"a\.yml: can't be read"),
        ("MODEL: 3", [], r"a\.yml: MODEL: holds keys of its own, not 3"),
        ("SEED: 1", ["DATASETS.NAMES", "caviar"], r"DATASETS\.NAMES: a list is needed, .*caviar"),
        ("SEED: 1", ["INPUT.SIZE_TEST", "[128, '64']"], r"INPUT\.SIZE_TEST: numbers .* '64'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text, options, message):
    (tmp_path / "a.yml").write_bytes(f"{text}\n".encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_cfg(str(tmp_path / "a.yml"), options)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yml: no such file"):
        load_cfg("nowhere.yml")


def test_the_command_line_says_it_in_one_line(capsys: pytest.CaptureFixture[str]):
    from lrreid_ext.cli import main

    assert main(["train", "--config-file", SYNTH, "SOLVER.BASE_RL", "1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: command line: SOLVER.BASE_RL")
    assert "SOLVER.BASE_LR" in err
    assert len(err.splitlines()) == 1
    assert main(["train", "--config-file", SYNTH, "PHASES.studnt.EPOCHS", "1"]) == 2
    err = capsys.readouterr().err
    assert "no phase is called 'studnt'. Did you mean 'student'? Phases: teacher, student" in err


def test_evaluation_has_its_own_help(capsys: pytest.CaptureFixture[str]):
    from lrreid_ext.cli import main

    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    said = capsys.readouterr().out
    assert "Evaluate trained models" in said and "--resume" not in said
    assert main(["eval", "--config-file", SYNTH, "MODEL.WEIGHTS", "nowhere.pth"]) == 2
    assert "nowhere.pth" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from lrreid_ext.cli import main

    (tmp_path / "run").touch()
    assert main(["train", "--config-file", SYNTH, "OUTPUT_DIR", str(tmp_path / "run")]) == 2
    assert f"OUTPUT_DIR: {tmp_path / 'run'} is a file" in capsys.readouterr().err
