"""FFSR + RIFE: four phases by one command, what each trains, and going on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY

from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.evaluation.run import evaluate_trained

YAML = "projects/FFSR_RIFE/synth.yml"
SMALL = [
    *TINY,
    "MODEL.SR.WIDTH", "4",
    "DATALOADER.SAMPLER_TRAIN", "TrainingSampler",
    "PHASES.mse.EPOCHS", "1",
    "PHASES.ffsr.EPOCHS", "1",
    "PHASES.rife.EPOCHS", "2",
    "PHASES.joint.EPOCHS", "1",
]  # fmt: skip


def weights(trainer: Trainer, prefix: str) -> dict[str, torch.Tensor]:
    state = trainer.raw_model.state_dict()
    return {k: v.clone() for k, v in state.items() if k.startswith(prefix)}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[k], after[k]) for k in before)


def test_one_command_runs_four_phases(make_cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg(YAML, SMALL)
    trainer = Trainer(cfg)
    seen: list[tuple[str, set[str], dict[str, bool]]] = []
    after_epoch = trainer.after_epoch
    last = {p: weights(trainer, p) for p in ("frontend", "backbone.low", "backbone.high", "heads")}

    def watch() -> None:
        now = {p: weights(trainer, p) for p in last}
        assert trainer.phase is not None
        names = {k for k in trainer.storage.latest() if k.startswith("loss_")}
        seen.append((trainer.phase.name, names, {p: changed(last[p], now[p]) for p in last}))
        last.update(now)
        after_epoch()

    monkeypatch.setattr(trainer, "after_epoch", watch)
    results = trainer.train()
    assert [name for name, *_ in seen] == ["mse", "ffsr", "rife", "rife", "joint"]
    learnt = [{p for p, moved in parts.items() if moved} for *_, parts in seen]
    reid = {"backbone.low", "backbone.high", "heads"}
    assert learnt == [{"frontend"}, {"frontend"}, reid, reid, {"frontend", *reid}]
    # storage.latest() keeps what earlier phases logged, so each name is looked for where it begins.
    assert seen[0][1] == {"loss_sr"}
    assert seen[1][1] - seen[0][1] == {"loss_foreground"}
    assert seen[2][1] - seen[1][1] == {"loss_gates", "loss_smooth_cross_entropy"}
    assert int(trainer.raw_model.backbone.widest) == 32
    again = evaluate_trained(cfg)["mlr_market1501"]
    assert {f"mlr_market1501/{k}": v for k, v in again.items()} == results


def test_a_killed_run_goes_on_bit_for_bit(make_cfg: Any) -> None:
    whole = Trainer(make_cfg(YAML, SMALL))
    whole.train()
    cfg = make_cfg(YAML, SMALL, "OUTPUT_DIR", str(Path(whole.cfg.OUTPUT_DIR).parent / "killed"))

    class Killed(Exception):
        pass

    first = Trainer(cfg)
    steps = first.run_step

    def run_step() -> None:
        if first.epoch == 3:  # the second epoch of rife is being run
            raise Killed
        steps()

    first.run_step = run_step
    with pytest.raises(Killed):
        first.train()
    second = Trainer(cfg)
    second.resume_or_load(True)
    assert second.start_epoch == 3
    second.train()
    ours, theirs = second.raw_model.state_dict(), whole.raw_model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
