"""A plugin in one file outside the repository trains and evaluates, tools untouched."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY_OSNET
from torch import nn

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode, get_cfg, load_cfg, phase_cfg, phases_of
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import PluginError
from lrreid_ext.modeling.build import build_model, set_step
from lrreid_ext.plugins import bundled_projects
from lrreid_ext.registry import DATASET_REGISTRY, lookup

EXAMPLE = ROOT / "docs" / "examples" / "sharpen.py"


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "plugin.md").read_text()
    assert EXAMPLE.read_text() in re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_a_front_end_in_one_file_trains_and_evaluates(
    market_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    (tmp_path / "sharpen.py").write_text(EXAMPLE.read_text())
    (tmp_path / "mine.yml").write_text(
        f"_BASE_: {ROOT / 'configs' / 'osnet_copies.yml'}\n"
        "PLUGINS: [sharpen.py]\n"
        "MODEL: {SR: {NAME: Sharpen, SHARPEN: {WIDTH: 4}}}\n"
    )
    options = [*TINY_OSNET, "DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(tmp_path / "out")]
    # From another folder: nothing may depend on where one stands.
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    command = ["train", "--config-file", "mine.yml", *options]
    assert main([*command, "TEST.EVAL_PERIOD", "2"]) == 0
    assert "loss_sr" in capfd.readouterr().out
    results = tmp_path / "out" / "results_mlr_market1501.json"
    trained = json.loads(results.read_text())
    results.unlink()
    assert main([*command, "--eval-only"]) == 0
    assert json.loads(results.read_text())["groups"] == trained["groups"]


def test_hooks_and_evaluators_are_registered_by_name(make_cfg, tmp_path: Path):
    (tmp_path / "extra.py").write_text(
        "from fastreid.engine.hooks import HookBase\n"
        "from fastreid.evaluation import DatasetEvaluator\n"
        "from lrreid_ext.registry import EVALUATOR_REGISTRY, HOOK_REGISTRY\n"
        "SEEN = []\n"
        "@HOOK_REGISTRY.register()\n"
        "class Spy(HookBase):\n"
        "    def __init__(self, cfg): pass\n"
        "    def after_epoch(self): SEEN.append(self.trainer.epoch)\n"
        "@EVALUATOR_REGISTRY.register()\n"
        "class Count(DatasetEvaluator):\n"
        "    def __init__(self, cfg, test_set, output_dir): self.n = 0\n"
        "    def reset(self): self.n = 0\n"
        "    def process(self, inputs, outputs): self.n += len(outputs)\n"
        "    def evaluate(self): return {'images': float(self.n)}\n"
    )
    cfg = make_cfg(
        "configs/osnet_hr.yml", TINY_OSNET, "PLUGINS", f"['{tmp_path / 'extra.py'}']",
        "HOOKS", "['Spy']", "TEST.EVALUATORS", "['Count']", "TEST.EVAL_PERIOD", "2",
    )  # fmt: skip
    results = Trainer(cfg).train()
    module = next(m for n, m in sys.modules.items() if n.startswith("lrreid_plugin_extra_"))
    assert module.SEEN == [0, 1]
    assert results == {"mlr_market1501/images": 12 * 3 + 24}  # query, its HR and x2 twins; gallery


def test_bundled_projects_load_like_any_plugin():
    assert "PSHRNet" in bundled_projects()
    assert get_cfg().PSHRNET.PS_WEIGHT == 0.5


def test_a_missing_plugin_is_named(tmp_path: Path):
    with pytest.raises(PluginError, match="no_such_module"):
        get_cfg(["no_such_module"])


def yamls() -> list[Path]:
    paths = [*ROOT.glob("configs/*.yml"), *ROOT.glob("projects/**/*.yml")]
    # Sweep files are no configs, and have tests of their own.
    return sorted(p.relative_to(ROOT) for p in paths if "\nVARIANTS:" not in p.read_text())


@functools.lru_cache(1)
def network(config: str) -> nn.Module:
    """The network of a config in YAML; neighbours among the files often have the same one."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.unsafe_load(config)))
    return build_model(cfg)


@pytest.mark.parametrize("path", yamls(), ids=str)
def test_every_yaml_loads_and_builds(path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg: CfgNode = load_cfg(
        str(ROOT / path),
        [
            "MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "10", "MODEL.INIT.WEIGHTS", "",
            "MODEL.BACKBONE.PRETRAIN", "False",
        ],
    )  # fmt: skip
    # Weights aren't looked at, and drawing them takes most of the time.
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    decisive = cfg.clone()
    decisive.defrost()
    for key in ("DATASETS", "DATALOADER", "OUTPUT_DIR", "PHASES", "SOLVER", "TEST"):
        decisive.pop(key)
    model = network(decisive.dump())
    for phase in phases_of(cfg):
        set_step(model, phase.step)
        phase_cfg(cfg, phase)
        for prefix in phase.train:
            model.get_submodule(prefix)
    for name in (*cfg.DATASETS.NAMES, *cfg.DATASETS.TESTS):
        lookup(DATASET_REGISTRY, name, "DATASETS")


def test_a_plugin_whose_keys_fail_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.py").write_text("def add_config(cfg):\n    cfg.NOTHING.HERE = 1\n")
    with pytest.raises(PluginError, match=r"keys\.py' \(PLUGINS\): its add_config fails"):
        get_cfg([str(tmp_path / "keys.py")])
