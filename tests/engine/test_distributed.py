"""Two gloo processes on a CPU give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_OSNET


def run(tmp: Path, market: Path, out: str, *args: str) -> dict:
    """tools/train_net.py in its own process; the results file it wrote."""
    command = [
        sys.executable, str(ROOT / "tools" / "train_net.py"),
        "--config-file", str(ROOT / "configs" / "osnet_copies.yml"), *args,
    ]  # fmt: skip
    options = [*TINY_OSNET, "DATASETS.ROOT", str(market), "OUTPUT_DIR", str(tmp / out)]
    split = len(args) - next((i for i, a in enumerate(args) if a.isupper()), len(args))
    at = len(command) - split
    done = subprocess.run(
        [*command[:at], *options, *command[at:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp / out / "results_mlr_market1501.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, market_root: Path) -> Path:
    """A checkpoint made by two processes."""
    tmp = tmp_path_factory.mktemp("two")
    run(tmp, market_root, "train", "--num-processes", "2", "DATALOADER.NUM_INSTANCE", "2")
    return tmp / "train" / "model_final.pth"


def test_two_processes_evaluate_as_one(trained: Path, market_root: Path, tmp_path: Path):
    weights = ["MODEL.WEIGHTS", str(trained), "TEST.IMS_PER_BATCH", "16"]
    one = run(tmp_path, market_root, "one", "--eval-only", *weights)
    two = run(tmp_path, market_root, "two", "--eval-only", "--num-processes", "2", *weights)
    assert one["groups"]["query"]["queries"] == 12
    assert two["groups"] == one["groups"]


def test_checkpoint_says_how_it_was_made(trained: Path):
    import torch

    state = torch.load(trained, weights_only=True)
    assert state["trainer"]["epoch"] == 1
    assert "--num-processes 2" in state["trainer"]["info"]["command"]
