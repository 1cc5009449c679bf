"""The host's silent faults, mended: weights change, frozen ones don't, resuming is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY_OSNET, TINY_PSHRNET

from lrreid_ext.config import ConfigError
from lrreid_ext.engine.checkpoint import WeightsError
from lrreid_ext.engine.trainer import Trainer, eval_only

OSNET = "configs/osnet_copies.yml"
PSHRNET = "projects/PSHRNet/mlr_market.yml"


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.raw_model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


class Killed(Exception):
    pass


def killed_at(trainer: Trainer, iteration: int) -> None:
    """Run a trainer until it dies in the middle of that iteration's epoch."""
    step = trainer.run_step

    def dying() -> None:
        if trainer.iter == iteration:
            raise Killed
        step()

    trainer.run_step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train()


TINY_RESNET = [
    *TINY_OSNET, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
    "MODEL.BACKBONE.FEAT_DIM", "512",
]  # fmt: skip


@pytest.mark.parametrize(("yaml", "options"), [(OSNET, TINY_RESNET), (PSHRNET, TINY_PSHRNET)])
def test_one_step_changes_every_trainable_parameter(make_cfg, yaml, options):
    trainer = Trainer(make_cfg(yaml, options, "DATALOADER.NUM_INSTANCE", "4"))
    phase = trainer.phases[-1]
    trainer.enter(phase, resumed=False)
    before = {n: p.detach().clone() for n, p in trainer.raw_model.named_parameters()}
    trainer.start_epoch = trainer.epoch = phase.start
    trainer.max_epoch, trainer.iters_per_epoch = phase.start + 1, 1
    trainer.train()
    learning = {n for n, p in trainer.raw_model.named_parameters() if p.requires_grad}
    same = {n for n, p in trainer.raw_model.named_parameters() if torch.equal(p, before[n])}
    assert learning
    assert not same & learning
    assert same == set(before) - learning


def test_teacher_is_bit_identical_after_the_student_phase(make_cfg):
    trainer = Trainer(make_cfg(PSHRNET, TINY_PSHRNET))
    trainer.train()
    saved = torch.load(Path(trainer.cfg.OUTPUT_DIR) / "phase_teacher.pth", weights_only=True)[
        "model"
    ]
    now = state(trainer)
    teacher = {k for k in now if k.startswith("teacher.")}
    assert teacher
    assert all(torch.equal(now[k], saved[k]) for k in teacher)
    moved = [k for k in now if k.startswith("backbone.") and not torch.equal(now[k], saved[k])]
    assert moved


@pytest.mark.parametrize("iteration", [1, 5, 7, 13])  # before, in and between both phases
def test_resuming_after_a_kill_gives_the_same_weights(make_cfg, iteration):
    whole = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out="whole"))
    assert whole.iters_per_epoch == 4
    whole.train()
    killed = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out="killed"))
    killed_at(killed, iteration)
    again = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out="killed"))
    again.resume_or_load(resume=iteration >= 4)  # nothing was saved in the first epoch
    again.train()
    assert_same(state(whole), state(again))


def test_workers_do_not_change_the_weights(make_cfg):
    alone = Trainer(make_cfg(OSNET, TINY_OSNET, out="alone"))
    alone.train()
    shared = Trainer(make_cfg(OSNET, TINY_OSNET, "DATALOADER.NUM_WORKERS", "2", out="shared"))
    shared.train()
    assert_same(state(alone), state(shared))


def test_a_finished_run_can_be_resumed_and_does_nothing(make_cfg):
    cfg = make_cfg(OSNET, TINY_OSNET)
    first = Trainer(cfg)
    first.train()
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert_same(state(first), state(again))


def test_checkpoint_round_trip_is_exact_and_strict(make_cfg):
    cfg = make_cfg(OSNET, TINY_OSNET)
    trainer = Trainer(cfg)
    trainer.train()
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    again = Trainer(make_cfg(OSNET, TINY_OSNET, "MODEL.WEIGHTS", path, out="again"))
    again.resume_or_load()
    assert_same(state(trainer), state(again))
    other = Trainer(
        make_cfg(OSNET, TINY_OSNET, "MODEL.WEIGHTS", path, "MODEL.HEADS.EMBEDDING_DIM", "64")
    )
    before = state(other)
    with pytest.raises(WeightsError, match=r"heads\.fc\.0\.weight"):
        other.resume_or_load()
    assert_same(before, state(other))


def test_best_survives_a_resume(make_cfg):
    options = (*TINY_OSNET, "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_EPOCH", "3")
    cfg = make_cfg(OSNET, list(options))
    killed = Trainer(cfg)
    killed_at(killed, 2 * killed.iters_per_epoch + 1)
    best = dict(killed.best)
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.best == best
    again.train()
    assert again.best["value"] >= best["value"]
    figures = again.last_results
    assert again.best["metric"] in figures
    # What a fresh process reads off the final checkpoint is what training reported last.
    alone = eval_only(make_cfg(OSNET, list(options)))
    for name, value in alone["mlr_market1501"].items():
        assert figures[f"mlr_market1501/{name}"] == pytest.approx(value, abs=1e-4)


def test_accumulation_equals_a_larger_batch(make_cfg):
    """With a loss that is a mean over samples and no batch statistics, two halves make a whole."""
    common = ["MODEL.BACKBONE.NORM", "BN", "SOLVER.OPT", "SGD", "SOLVER.SCHED", "Constant"]
    trainer = Trainer(
        make_cfg(OSNET, TINY_OSNET, *common, "SOLVER.ACCUMULATE", "2", "SOLVER.MAX_EPOCH", "1")
    )
    steps = []
    trainer.enter(trainer.phases[0], resumed=False)
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (steps.append(trainer.iter), step(*a, **k))[1]
    trainer.train()
    assert steps == [1, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["PHASES.student.TRAIN", "['bakbone']"], "Did you mean 'backbone'"),
        (["START_PHASE", "studnet"], "Did you mean 'student'"),
        (["PHASES.student.STEP", "pupil"], "no step 'pupil'"),
        (["SOLVER.IMS_PER_BATCH", "800"], "more than the"),
        (["SOLVER.OPT", "Adan"], "Did you mean"),
        (["INPUT.LR.FACTORS", "[0.5]"], "factors are numbers >= 1"),
    ],
)
def test_bad_configs_say_which_key(make_cfg, overrides, message):
    with pytest.raises((ConfigError, KeyError), match=message):
        Trainer(make_cfg(PSHRNET, TINY_PSHRNET, "PHASES.teacher.EPOCHS", "0", *overrides)).train()


def test_unknown_keys_suggest_the_nearest(make_cfg):
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_RL is not a config key.*SOLVER\.BASE_LR"):
        make_cfg(OSNET, TINY_OSNET, "SOLVER.BASE_RL", "1")


def test_resume_without_a_checkpoint_says_so(make_cfg):
    with pytest.raises(FileNotFoundError, match="last_checkpoint"):
        Trainer(make_cfg(OSNET, TINY_OSNET)).resume_or_load(resume=True)


def test_start_at_a_named_phase(make_cfg):
    trainer = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, "START_PHASE", "student"))
    assert [p.name for p in trainer.phases] == ["student"]
    assert trainer.max_epoch == 2
