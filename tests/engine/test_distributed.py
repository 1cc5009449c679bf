"""Two gloo processes on a CPU train a model with an adversary, and evaluate as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY_OSNET, assert_same

from lrreid_ext.cli import main
from lrreid_ext.engine.trainer import Trainer

CONFIG = "configs/osnet_copies.yml"
PLUGINS = [str(ROOT / "tests" / "plugins" / name) for name in ("duel.py", "ranks.py")]
DUEL = [
    *TINY_OSNET, "PLUGINS", str(PLUGINS), "HOOKS", "['NoteRank']",
    "MODEL.META_ARCHITECTURE", "Duel", "INPUT.LR.TRAIN_ON", "both",
    "SOLVER.OPTIMIZERS.critic.EVERY", "2", "SOLVER.ACCUMULATE", "2",
]  # fmt: skip


def options(market: Path, out: Path) -> list[str]:
    return [*DUEL, "DATASETS.ROOT", str(market), "OUTPUT_DIR", str(out)]


def in_two_processes(*words: str) -> None:
    """tools/train_net.py, which starts them."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), "--num-processes", "2",
         "--config-file", str(ROOT / CONFIG), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def groups(out: Path) -> dict[str, Any]:
    return json.loads((out / "results_mlr_market1501.json").read_text())["groups"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, market_root: Path) -> Path:
    """A checkpoint made by two processes."""
    out = tmp_path_factory.mktemp("two")
    in_two_processes(*options(market_root, out))
    return out / "model_final.pth"


def test_both_optimisers_train(trained: Path, make_cfg: Any) -> None:
    saved = torch.load(trained, weights_only=True)
    assert set(saved["trainer"]["optimizers"]) == {"main", "critic"}
    fresh = Trainer(make_cfg(CONFIG, DUEL)).raw_model.state_dict()
    assert not torch.equal(saved["model"]["critic.0.weight"], fresh["critic.0.weight"])
    assert not torch.equal(saved["model"]["heads.fc.0.weight"], fresh["heads.fc.0.weight"])


def test_processes_draw_apart_and_learn_the_same(trained: Path) -> None:
    one, two = (torch.load(trained.parent / f"rank{r}.pth", weights_only=True) for r in (0, 1))
    assert_same(one["parameters"], two["parameters"])
    seeds = [*one["seeds"], *two["seeds"]]
    assert len(seeds) == len(set(seeds)) == 4  # of two epochs
    samples = [sample for notes in (one, two) for epoch in notes["samples"] for sample in epoch]
    assert len({seed for _, seed in samples}) == len(samples) > 0


def test_two_processes_evaluate_as_one(trained: Path, market_root: Path, tmp_path: Path) -> None:
    weights = ["MODEL.WEIGHTS", str(trained), "TEST.IMS_PER_BATCH", "16"]
    one, two = tmp_path / "one", tmp_path / "two"
    torch.set_num_threads(1)
    command = ["--config-file", str(ROOT / CONFIG), "--eval-only"]
    assert main(["train", *command, *options(market_root, one), *weights]) == 0
    in_two_processes("--eval-only", *options(market_root, two), *weights)
    assert groups(one)["query"]["queries"] == 12
    assert groups(two) == groups(one)


def test_checkpoint_says_how_it_was_made(trained: Path) -> None:
    state = torch.load(trained, weights_only=True)
    assert state["trainer"]["epoch"] == 1
    assert "--num-processes 2" in state["trainer"]["info"]["command"]
