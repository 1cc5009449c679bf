"""Two gloo processes on a CPU train a model with an adversary, and evaluate as one does.

One launch serves all tests: a run that evaluates at its end, and then trains ``mini_step.Small``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY_OSNET, assert_same
from mini_step import train_small
from mini_systems import MINI

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.engine.trainer import Trainer

CONFIG = str(ROOT / "configs/osnet_copies.yml")
PLUGINS = [str(ROOT / "tests" / "plugins" / name) for name in ("duel.py", "ranks.py")]
DUEL = [
    *TINY_OSNET, *MINI, "PLUGINS", str([*PLUGINS, "mini_step", "mini_systems"]),
    "MODEL.META_ARCHITECTURE", "Duel", "INPUT.LR.TRAIN_ON", "both", "TEST.IMS_PER_BATCH", "16",
    "SOLVER.OPTIMIZERS.critic.EVERY", "2", "SOLVER.ACCUMULATE", "2",
]  # fmt: skip


def options(market: Path, out: Path) -> list[str]:
    return [*DUEL, "DATASETS.ROOT", str(market), "OUTPUT_DIR", str(out)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, market_root: Path) -> Path:
    """The folder of a run of two processes."""
    out = tmp_path_factory.mktemp("two")
    words = ["train", "--num-processes", "2", "--config-file", CONFIG, *options(market_root, out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lrreid", *words])
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([*words, "TEST.EVAL_PERIOD", "2", "HOOKS", "['NoteRank', 'TrainsSmall']"]) == 0
    return out


@pytest.fixture
def cfg(market_root: Path, tmp_path: Path) -> CfgNode:
    torch.set_num_threads(1)
    return load_cfg(CONFIG, options(market_root, tmp_path / "one"))


def test_both_optimisers_train(trained: Path, cfg: CfgNode) -> None:
    saved = torch.load(trained / "model_final.pth", weights_only=True)
    assert set(saved["trainer"]["optimizers"]) == {"main", "critic"}
    fresh = Trainer(cfg).raw_model.state_dict()
    for name in ("critic.0.weight", "heads.fc.0.weight"):
        assert not torch.equal(saved["model"][name], fresh[name])
    assert saved["trainer"]["epoch"] == 1
    assert "--num-processes 2" in saved["trainer"]["info"]["command"]


def test_processes_draw_apart_and_learn_the_same(trained: Path) -> None:
    one, two = (torch.load(trained / f"rank{r}.pth", weights_only=True) for r in (0, 1))
    assert_same(one["parameters"], two["parameters"])
    seeds = [*one["seeds"], *two["seeds"]]
    assert len(seeds) == len(set(seeds)) == 4  # of two epochs
    samples = [sample for notes in (one, two) for epoch in notes["samples"] for sample in epoch]
    assert len({seed for _, seed in samples}) == len(samples) > 0


def test_two_processes_evaluate_as_one(trained: Path, market_root: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    words = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), *options(market_root, tmp_path)]
    assert main(["train", "--config-file", CONFIG, "--eval-only", *words]) == 0
    one, two = groups(tmp_path), groups(trained)
    assert one["query"]["queries"] == 12
    assert two == one


def groups(out: Path) -> dict[str, Any]:
    return json.loads((out / "results_mlr_market1501.json").read_text())["groups"]


def test_gradients_of_two_processes_are_those_of_one(trained: Path, cfg: CfgNode) -> None:
    """By the weights after two steps, with parameters that take no part in them."""
    two = torch.load(trained / "small" / "weights.pth", weights_only=True)
    torch.testing.assert_close(two, train_small(cfg, cfg.OUTPUT_DIR))
