"""A plugin in one file outside the repository trains and evaluates, tools untouched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_OSNET

from lrreid_ext.config import CfgNode, get_cfg, load_cfg
from lrreid_ext.errors import PluginError
from lrreid_ext.plugins import bundled_projects

EXAMPLE = ROOT / "docs" / "examples" / "sharpen.py"


def run_tool(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "plugin.md").read_text()
    assert EXAMPLE.read_text() in re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_a_front_end_in_one_file_trains_and_evaluates(market_root: Path, tmp_path: Path):
    (tmp_path / "sharpen.py").write_text(EXAMPLE.read_text())
    (tmp_path / "mine.yml").write_text(
        f"_BASE_: {ROOT / 'configs' / 'osnet_copies.yml'}\n"
        "PLUGINS: [sharpen.py]\n"
        "MODEL: {SR: {NAME: Sharpen, SHARPEN: {WIDTH: 4}}}\n"
    )
    options = [*TINY_OSNET, "DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(tmp_path / "out")]
    # From another folder: nothing may depend on where one stands.
    done = run_tool(
        "--config-file", str(tmp_path / "mine.yml"), *options, "TEST.EVAL_PERIOD", "2",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss_sr" in done.stdout
    trained = json.loads((tmp_path / "out" / "results_mlr_market1501.json").read_text())

    (tmp_path / "out" / "results_mlr_market1501.json").unlink()
    done = run_tool(
        "--config-file", str(tmp_path / "mine.yml"), "--eval-only", *options, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone = json.loads((tmp_path / "out" / "results_mlr_market1501.json").read_text())
    assert alone["groups"] == trained["groups"]


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
    from lrreid_ext.engine.trainer import Trainer

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
    found = [*ROOT.glob("configs/*.yml"), *ROOT.glob("projects/**/*.yml")]
    # The files of tools/sweep.py, which have tests of their own, are no configs.
    return sorted(p.relative_to(ROOT) for p in found if "\nVARIANTS:" not in p.read_text())


@pytest.mark.parametrize("path", yamls(), ids=str)
def test_every_yaml_loads_and_builds(path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    from lrreid_ext.config import phase_cfg, phases_of
    from lrreid_ext.modeling.build import build_model, set_step
    from lrreid_ext.registry import DATASET_REGISTRY, lookup

    cfg: CfgNode = load_cfg(
        str(ROOT / path),
        [
            "MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "10", "MODEL.INIT.WEIGHTS", "",
            "MODEL.BACKBONE.PRETRAIN", "False",
        ],
    )  # fmt: skip
    # Weights aren't looked at, and drawing them takes most of the time.
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda t, *a, **k: t)
    monkeypatch.setattr(torch.nn.init, "normal_", lambda t, *a, **k: t)
    model = build_model(cfg)
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
