"""Each method by the command a user types: its phases, going on after a stop, evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import ROOT
from fastreid.engine.hooks import HookBase
from mini_systems import METHODS, PEOPLE

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode
from lrreid_ext.registry import HOOK_REGISTRY

# By phase: its epochs, the parts that learn in it, and the losses that are first logged in it.
Phases = dict[str, tuple[int, set[str], set[str]]]
STREAMS = {f"loss_smooth_cross_entropy_{stream}" for stream in ("h", "h2l", "l")}
DUAL = {"backbone.low", "backbone.high", "heads"}
PLAN: dict[str, Phases] = {
    "PSHRNet": {
        "teacher": (1, {"teacher"}, {"loss_smooth_cross_entropy", "loss_sequence_triplet"}),
        "student": (2, {"frontend", "backbone", "heads"}, {"loss_ps", "loss_sr"}),
    },
    "SING": {
        "srcnn": (1, {"anchors.x2.frontend"}, {"loss_sr"}),
        "dgd": (1, {"anchors.x2.backbone", "anchors.x2.heads"}, {"loss_smooth_cross_entropy"}),
        "x2": (1, {f"anchors.x2.{p}" for p in ("frontend", "backbone", "heads")}, STREAMS),
        "x3": (2, {"anchors.x3"}, set()),
        "x4": (1, {"anchors.x4"}, set()),
    },
    "CSRGAN": {
        "reid": (1, {"backbone", "heads"}, {"loss_smooth_cross_entropy"}),
        "generators": (1, {"frontend"}, {"loss_sr"}),
        "together": (
            2,
            {"frontend", "backbone", "heads", "discriminators"},
            {"loss_adversarial", "loss_discriminator"},
        ),
    },
    "FFSR_RIFE": {
        "mse": (1, {"frontend"}, {"loss_sr"}),
        "ffsr": (1, {"frontend"}, {"loss_foreground"}),
        "rife": (2, DUAL, {"loss_gates", "loss_smooth_cross_entropy"}),
        "joint": (1, {"frontend", *DUAL}, set()),
    },
    "RAIN": {
        "joint": (
            2,
            {"backbone", "heads", "critics", "decoder"},
            {f"loss_{k}_{level}" for k in ("adversarial", "critic") for level in ("conv3", "conv5")}
            | {
                f"loss_{k}_{side}"
                for k in ("smooth_cross_entropy", "batch_hard_triplet")
                for side in ("h", "l")
            }
            | {"loss_reconstruction"},
        ),
    },
}
SET = "synth_pedestrians"


@HOOK_REGISTRY.register()
class Watch(HookBase):
    """Notes after each epoch what moved and what was logged; may stop as Ctrl-C does."""

    epochs: ClassVar[list[tuple[str, set[str], set[str]]]] = []
    stop_at = -1

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.steps = 0

    def before_epoch(self) -> None:
        self.steps = 0
        self.before = self._weights()

    def before_step(self) -> None:
        self.steps += 1
        if self.trainer.epoch == self.stop_at and self.steps == 2:
            raise KeyboardInterrupt

    def after_epoch(self) -> None:
        now = self._weights()
        moved = {k for k, v in now.items() if not torch.equal(v, self.before[k])}
        losses = {k for k in self.trainer.storage.latest() if k.startswith("loss_")}
        self.epochs.append((self.trainer.phase.name, moved, losses))

    def _weights(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.trainer.raw_model.state_dict().items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture
def train(
    method: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict]:
    """``train(folder, *words, status=0)``: the results of ``lrreid train`` into that folder."""
    monkeypatch.setattr(Watch, "epochs", [])
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    epochs = [w for k, (n, *_) in PLAN[method].items() for w in (f"PHASES.{k}.EPOCHS", str(n))]

    def run(folder: str, *words: str, status: int = 0) -> dict:
        results = tmp_path / folder / f"results_{SET}.json"
        results.unlink(missing_ok=True)
        command = [
            "train", "--config-file", f"projects/{method}/synth.yml", *words,
            *PEOPLE, *METHODS[method], *epochs, "HOOKS", "['Watch']",
            "DATASETS.ROOT", str(root), "OUTPUT_DIR", str(tmp_path / folder),
        ]  # fmt: skip
        assert main(command) == status
        assert results.exists() == (status == 0)
        return json.loads(results.read_text()) if results.exists() else {}

    return run


@pytest.mark.parametrize("method", PLAN)
def test_each_phase_trains_its_parts_and_a_stopped_run_goes_on(
    method: str, tmp_path: Path, train: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = PLAN[method]
    whole = train("whole")
    assert set(whole["groups"]) >= {"query", "query_hr", "x2"}
    assert [name for name, *_ in Watch.epochs] == [
        k for k, (n, *_) in plan.items() for _ in range(n)
    ]
    parts = {part for _, parts, _ in plan.values() for part in parts}
    # The storage keeps what earlier phases logged.
    logged: set[str] = set()
    for name, moved, losses in Watch.epochs:
        _, learning, new = plan[name]
        seen = {part for part in parts if any(k.startswith(f"{part}.") for k in moved)}
        assert seen == learning, name
        assert losses - logged == new - logged, name
        logged |= losses
    for name in list(plan)[:-1]:
        assert (tmp_path / "whole" / name / f"results_{SET}.json").is_file()

    # In the second epoch of the phase that has two.
    longest = [n for n, *_ in plan.values()].index(2)
    stop_at = sum(n for n, *_ in list(plan.values())[:longest]) + 1
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "stop_at", stop_at)
        train("stopped", status=130)
    assert "--resume goes on" in capsys.readouterr().err
    assert train("stopped", "--resume")["groups"] == whole["groups"]
    weights = [torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]
               for folder in ("whole", "stopped")]  # fmt: skip
    assert weights[0].keys() == weights[1].keys()
    assert not [k for k, v in weights[0].items() if not torch.equal(v, weights[1][k])]
    assert train("stopped", "--eval-only")["groups"] == whole["groups"]
