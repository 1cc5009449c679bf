"""Phases, freezing, schedules and the choice of twins, against hand-worked cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_OSNET, TINY_PSHRNET
from mini_systems import MINI
from torch import nn

from lrreid_ext.config import Phase, load_cfg, phase_at, phase_cfg, phases_of
from lrreid_ext.data.paired import select
from lrreid_ext.engine.optimizers import build_optimizer, build_scheduler
from lrreid_ext.engine.phases import freeze_for, set_modes
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.modeling.published import init_weights

PSHRNET = "projects/PSHRNet/mlr_market.yml"


def small_model() -> nn.Module:
    return nn.ModuleDict(
        {
            "frontend": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
        }
    )


def test_phases_follow_each_other(make_cfg):
    phases = phases_of(make_cfg(PSHRNET, TINY_PSHRNET, "PHASES.teacher.EPOCHS", "3"))
    assert [(p.name, p.start, p.end) for p in phases] == [("teacher", 0, 3), ("student", 3, 5)]
    assert [phase_at(phases, e).name for e in range(6)] == ["teacher"] * 3 + ["student"] * 3
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_EPOCH"):
        phases_of(make_cfg("configs/osnet_hr.yml", TINY_OSNET, "SOLVER.MAX_EPOCH", "0"))


def test_frozen_modules_neither_learn_nor_gather_statistics():
    model = small_model()
    phase = Phase("p", 1, 0, train=("backbone",))
    freeze_for(model, phase, {n for n, _ in model.named_parameters()})
    set_modes(model, phase)
    assert not any(p.requires_grad for p in model["frontend"].parameters())
    assert all(p.requires_grad for p in model["backbone"].parameters())
    assert not model["frontend"][1].training
    assert model["backbone"][1].training
    assert model.training


def test_a_module_inside_a_frozen_one_can_learn():
    model = small_model()
    phase = Phase("p", 1, 0, train=("backbone.0",))
    freeze_for(model, phase, {n for n, _ in model.named_parameters()})
    set_modes(model, phase)
    assert model["backbone"][0].weight.requires_grad
    assert not model["backbone"][1].weight.requires_grad
    assert not model["backbone"][1].training


def test_a_module_whose_name_begins_like_a_chosen_one_is_frozen():
    model = nn.ModuleDict({"x2": nn.BatchNorm1d(2), "x2_5": nn.BatchNorm1d(2)})
    phase = Phase("p", 1, 0, train=("x2",))
    freeze_for(model, phase, {n for n, _ in model.named_parameters()})
    set_modes(model, phase)
    for name, learns in (("x2", True), ("x2_5", False)):
        assert model[name].training == learns
        assert all(p.requires_grad == learns for p in model[name].parameters())


@pytest.mark.parametrize(
    ("sched", "extra", "expected"),
    [
        ("Constant", [], [1, 1, 1, 1, 1, 1, 1, 1]),
        ("MultiStepLR", ["SOLVER.STEPS", "[1, 3]"], [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (
            "MultiStepLR",
            ["SOLVER.STEPS", "[3]", "SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.2"],
            [0.2, 0.4, 0.6, 0.8, 1, 1, 0.1, 0.1],
        ),
        (
            "CosineAnnealingLR",
            ["SOLVER.ETA_MIN_LR", "0.0"],
            [(1 + torch.cos(torch.tensor(torch.pi * t / 8)).item()) / 2 for t in range(8)],
        ),
    ],
)
def test_schedules(make_cfg, sched, extra, expected):
    cfg = make_cfg(
        "configs/osnet_hr.yml", TINY_OSNET, "SOLVER.WARMUP_ITERS", "0", "SOLVER.SCHED", sched,
        "SOLVER.MAX_EPOCH", "4", "SOLVER.BASE_LR", "1.0", "SOLVER.OPT", "SGD", *extra,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, small_model())
    scheduler = build_scheduler(cfg, optimizer, iters_per_epoch=2)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_rates_by_module(make_cfg):
    cfg = make_cfg(
        "configs/osnet_hr.yml", TINY_OSNET, "SOLVER.BASE_LR", "1.0",
        "SOLVER.LR_FACTORS", "[['frontend', 0.5], ['frontend.1', 0.1]]",
    )  # fmt: skip
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model["frontend"][0].weight)] == 0.5
    assert rate[id(model["frontend"][1].weight)] == 0.1
    assert rate[id(model["backbone"][0].weight)] == 1.0


def batch() -> dict:
    hr = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    return {
        "images_hr": hr,
        "images_lr": hr + 100,
        "native_size_hr": torch.full((4, 2), 8),
        "native_size_lr": torch.full((4, 2), 2),
        "factor_hr": torch.ones(4),
        "factor_lr": torch.tensor([2.0, 3.0, 4.0, 2.0]),
        "lr_mask": torch.tensor([True, False, True, False]),
        "targets": torch.tensor([0, 0, 1, 1]),
        "camids": torch.zeros(4, dtype=torch.int64),
        "img_paths": list("abcd"),
    }


@pytest.mark.parametrize(
    ("train_on", "pixels", "factors"),
    [
        ("hr", [0, 1, 2, 3], [1, 1, 1, 1]),
        ("lr", [100, 101, 102, 103], [2, 3, 4, 2]),
        ("mixed", [100, 1, 102, 3], [2, 1, 4, 1]),
        ("both", [0, 1, 2, 3, 100, 101, 102, 103], [1, 1, 1, 1, 2, 3, 4, 2]),
    ],
)
def test_select(train_on, pixels, factors):
    out = select(batch(), train_on)
    assert out["images"][:, 0, 0, 0].tolist() == pixels
    assert out["factor"].tolist() == factors
    assert out["images_hr"][:, 0, 0, 0].tolist() == [p % 100 for p in pixels]
    assert out["native_size"][:, 0].tolist() == [2 if f > 1 else 8 for f in factors]
    assert len(out["img_paths"]) == len(out["targets"]) == len(pixels)


def test_null_takes_back_what_a_base_says(make_cfg, tmp_path):
    base = tmp_path / "base.yml"
    base.write_text("PHASES:\n  one: {EPOCHS: 1, LOSS_WEIGHTS: {loss_sr: 0}}\n  two: {EPOCHS: 2}\n")
    top = tmp_path / "top.yml"
    top.write_text("_BASE_: base.yml\nPHASES: {one: {LOSS_WEIGHTS: ~}, two: ~}\n")
    phases = phases_of(load_cfg(str(top)))
    assert [(p.name, p.loss_weights) for p in phases] == [("one", {})]


def phased(folder: Path, phases: str) -> str:
    """A YAML of the OSNet baseline with these phases."""
    path = folder / "phased.yml"
    path.write_text(f"_BASE_: {ROOT / 'configs/osnet_copies.yml'}\nPHASES: {phases}\n")
    return str(path)


def test_a_phase_has_its_own_training_images(make_cfg, tmp_path):
    phases = "{a: {EPOCHS: 1, INPUT: {LR: {SYNTHETIC: 2}}}, b: {EPOCHS: 1}}"
    cfg = make_cfg(phased(tmp_path, phases), [*TINY_OSNET, *MINI])
    first, second = (phase_cfg(cfg, p) for p in phases_of(cfg))
    assert (first.INPUT.LR.SYNTHETIC, second.INPUT.LR.SYNTHETIC) == (2.0, 0.0)
    trainer = Trainer(cfg)
    synthetic = []
    run_step = trainer.run_step

    def watch() -> None:
        synthetic.append(trainer.data_loader.dataset.synthetic)
        run_step()

    trainer.run_step = watch
    trainer.train()
    per_epoch = trainer.iters_per_epoch
    assert synthetic == [2.0] * per_epoch + [0.0] * per_epoch


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{LR: {FACTORZ: [2]}}", r"PHASES\.a\.INPUT: .*FACTORZ"),
        ("{LR: {SYNTHETIC: 0.5}}", r"INPUT\.LR\.SYNTHETIC: 0\.5"),
        ("{LR: {WIDTHS: [9, 3]}}", r"INPUT\.LR\.WIDTHS"),
    ],
)
def test_faults_of_a_later_phases_images_are_found_at_once(make_cfg, tmp_path, entry, message):
    phases = f"{{z: {{EPOCHS: 1}}, a: {{EPOCHS: 1, INPUT: {entry}}}}}"
    cfg = make_cfg(phased(tmp_path, phases), [*TINY_OSNET, *MINI])
    with pytest.raises(ConfigError, match=message):
        Trainer(cfg)


def test_parts_see_the_training_set_once(make_cfg):
    cfg = make_cfg("configs/osnet_copies.yml", [*TINY_OSNET, *MINI])
    trainer = Trainer(cfg)
    looks = []
    trainer.raw_model.heads.prepare = lambda dataset: looks.append(len(dataset))
    trainer.train()
    assert looks == [len(trainer.data_loader.dataset)]
    again = Trainer(cfg)
    again.raw_model.heads.prepare = looks.append
    again.resume_or_load(True)
    again.train()
    assert len(looks) == 1


def test_one_key_of_a_file_can_fill_several_parts(make_cfg, tmp_path):
    model = small_model()
    path = tmp_path / "weights.pth"
    torch.save({"conv.bias": torch.tensor([1.0, 2, 3]), "rest": torch.zeros(1)}, path)
    targets = ["frontend.0.", "frontend.1."]
    init_weights(model, path, [[r"^conv\.", targets], [r"^", ""]])
    for part in model["frontend"]:
        assert part.bias.tolist() == [1, 2, 3]
    with pytest.raises(WeightsError, match="another key maps to as well"):
        init_weights(model, path, [[r"^conv\.", ["frontend.0.", "frontend.0."]], [r"^", ""]])
