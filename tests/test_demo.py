"""tools/demo.py at miniature size: it trains, keeps what is done, and goes on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import load_script, run_script
from mini_results import results

demo = load_script("tools/demo.py")

TINY = [
    "DATASETS.OPTIONS.synth_pedestrians.identities", "16",
    "DATASETS.OPTIONS.synth_pedestrians.cameras", "2",
    "DATASETS.OPTIONS.synth_pedestrians.shots", "2",
    "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    "PHASES.student.EPOCHS", "1",
    "SOLVER.IMS_PER_BATCH", "8", "TEST.FACTORS", "[2]", "TEST.TRIALS", "2",
    "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_WORKERS", "0",
]  # fmt: skip


def test_demo_runs_once_and_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    args = ["--out", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), *TINY]
    assert run_script(demo, args) == 0
    first = capfd.readouterr().out
    for row in ("HR only", "HR and LR copies", "PS-HRNet", "x2", "points of Rank-1"):
        assert row in first
    weights = tmp_path / "runs" / "pshrnet" / "model_final.pth"
    trained = weights.stat().st_mtime_ns
    assert run_script(demo, args) == 0
    again = capfd.readouterr().out
    assert again.count("done before") == 2
    assert weights.stat().st_mtime_ns == trained


def test_verdict():
    runs = [results(20), results(31), results(30.5)]
    lines = demo.verdict(runs)
    assert "HR only: +10.5" in lines[0]
    assert "more than the spread" in lines[0]
    assert "copies: -0.5" in lines[1]
    assert "within the spread" in lines[1]
