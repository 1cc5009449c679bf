"""Each method on the embedded people by the command a user types: train, resume, evaluate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from lrreid_ext.cli import main

SMALL = [
    "DATASETS.OPTIONS.synth_pedestrians.identities", "8",
    "DATASETS.OPTIONS.synth_pedestrians.cameras", "3",
    "DATASETS.OPTIONS.synth_pedestrians.shots", "2",
    "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "8", "SOLVER.CHECKPOINT_PERIOD", "1",
    "TEST.TRIALS", "2", "TEST.FACTORS", "[2]",
]  # fmt: skip
METHODS = {
    "SING": (
        ["srcnn", "dgd", "x2", "x3", "x4"],
        ["MODEL.BACKBONE.DGD.WIDTH", "0.125", "MODEL.BACKBONE.FEAT_DIM", "192"],
    ),
    "CSRGAN": (
        ["reid", "generators", "together"],
        ["MODEL.SR.CASCADE.WIDTH", "4", "CSRGAN.DISCRIMINATOR.WIDTH", "4"],
    ),
    "FFSR_RIFE": (["mse", "ffsr", "rife", "joint"], ["MODEL.SR.WIDTH", "4"]),
    "RAIN": (
        ["joint"],
        ["RAIN.CRITIC_WIDTH", "4", "DATASETS.LABELLED", "0.5", "DATALOADER.NUM_INSTANCE", "2"],
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture
def train_net(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``train_net(*words, status=0)`` in this process: what tools/train_net.py runs."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)

    def run(*words: str, status: int = 0) -> None:
        assert main(["train", *words]) == status

    return run


def new_process(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "tools/train_net.py", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", METHODS)
def test_trains_goes_on_and_evaluates_by_one_command(
    method: str, root: Path, tmp_path: Path, train_net: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    phases, own = METHODS[method]
    # A method of one phase is interrupted within it.
    epochs = "1" if phases[1:] else "2"
    once = [word for name in phases for word in (f"PHASES.{name}.EPOCHS", epochs)]
    command = [
        "--config-file", f"projects/{method}/synth.yml", *SMALL, *own, *once,
        "DATASETS.ROOT", str(root), "OUTPUT_DIR", str(tmp_path),
    ]  # fmt: skip
    train_net(*command)
    said = capsys.readouterr().out
    assert [f"Phase {name}" in said for name in phases] == [True] * len(phases)
    results = tmp_path / "results_synth_pedestrians.json"
    first = json.loads(results.read_text())
    assert set(first["groups"]) >= {"query", "query_hr", "x2"}
    for name in phases[:-1]:
        assert (tmp_path / name / results.name).is_file()

    results.unlink()
    if phases[1:]:
        # As a run that was killed after its last but one phase leaves its folder.
        (tmp_path / "last_checkpoint").write_text(f"phase_{phases[-2]}.pth")
    else:
        stop = ["PLUGINS", f"['{ROOT / 'tests/plugins/stop.py'}']", "HOOKS", "['StopAtTheSecond']"]
        train_net(*command, *stop, status=130)
        assert "--resume goes on" in capsys.readouterr().err
        assert not results.exists()
    new_process("--resume", *command)
    again = json.loads(results.read_text())
    assert again["groups"] == first["groups"]
    results.unlink()
    train_net("--eval-only", *command)
    assert json.loads(results.read_text())["groups"] == first["groups"]
