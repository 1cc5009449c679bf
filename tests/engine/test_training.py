"""The host's silent faults, mended: weights change, frozen ones don't, resuming is exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_OSNET, TINY_PSHRNET, assert_same, killed_at, state
from fastreid.evaluation import DatasetEvaluator

from lrreid_ext.config import load_cfg, phases_of
from lrreid_ext.data.loaders import build_test_loader, build_test_set
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.evaluation.features import extract
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.contract import StepOutput

OSNET = "configs/osnet_copies.yml"
PSHRNET = "projects/PSHRNet/mlr_market.yml"


# With fastreid's own head, whose batch-norm bias is meant to stay frozen.
TINY_RESNET = [
    *TINY_OSNET, "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.WITH_BNNECK", "True",
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
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
    meant = {n for n, p in build_model(trainer.cfg).named_parameters() if p.requires_grad}
    learning = {n for n, p in trainer.raw_model.named_parameters() if p.requires_grad}
    assert learning == {n for n in meant if not n.startswith("teacher.")}
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


def test_resuming_after_a_kill_gives_the_same_weights(make_cfg):
    whole = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out="whole"))
    assert whole.iters_per_epoch == 4
    whole.train()
    for iteration in (1, 5, 7, 13):  # before, in and between both phases
        killed = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out=f"killed{iteration}"))
        killed_at(killed, iteration)
        again = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, out=f"killed{iteration}"))
        again.resume_or_load(resume=iteration >= 4)  # nothing was saved in the first epoch
        again.train()
        assert_same(state(whole), state(again))


def test_workers_change_nothing_and_resuming_with_them_is_exact(make_cfg):
    """Dropout and all: a loader's iterator must not touch the generators that the model uses."""
    more = ["SOLVER.ACCUMULATE", "2", "SOLVER.SCHED", "OneCycleLR", "PHASES.student.EPOCHS", "3"]
    alone = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *more, out="alone"))
    alone.train()
    workers = [*more, "DATALOADER.NUM_WORKERS", "1"]
    killed = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *workers, out="killed"))
    killed_at(killed, 4 * killed.iters_per_epoch + 1)
    again = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *workers, out="killed"))
    again.resume_or_load(resume=True)
    again.train()
    assert_same(state(alone), state(again))


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


class Code:
    """Unpickled, it runs."""

    def __reduce__(self):
        return print, ("it ran",)


def test_code_in_a_checkpoint_is_not_run(make_cfg, capsys):
    trainer = Trainer(make_cfg(OSNET, TINY_OSNET))
    folder = Path(trainer.cfg.OUTPUT_DIR)
    torch.save({"model": state(trainer), "trainer": Code()}, folder / "model_last.pth")
    (folder / "last_checkpoint").write_text("model_last.pth")
    with pytest.raises(WeightsError, match=r"model_last\.pth can't be read"):
        trainer.resume_or_load(resume=True)
    assert "it ran" not in capsys.readouterr().out


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
    alone = evaluate_trained(make_cfg(OSNET, list(options)))
    for name, value in alone["mlr_market1501"].items():
        assert figures[f"mlr_market1501/{name}"] == pytest.approx(value, abs=1e-4)


def test_of_equal_results_the_first_is_the_best(make_cfg):
    options = ("TEST.EVAL_PERIOD", "1", "SOLVER.MAX_EPOCH", "3")
    trainer = Trainer(make_cfg(OSNET, TINY_OSNET, *options))
    values = iter([10.0, 10.0, 9.0])
    trainer.test = lambda cfg, model: {"mAP": next(values)}
    trainer.train()
    assert trainer.best == {"metric": "mAP", "value": 10.0, "epoch": 0}


def test_accumulated_gradients_are_the_mean_of_the_batches(make_cfg):
    """Two batches of one step: the gradient at the step against each batch's own."""
    options = [*TINY_PSHRNET, "SOLVER.OPT", "SGD", "SOLVER.SCHED", "Constant"]
    seen: dict[str, list[torch.Tensor]] = {}
    for count in ("1", "2"):
        cfg = make_cfg(
            PSHRNET, options, "SOLVER.ACCUMULATE", count, "SOLVER.BASE_LR", "0.0",
            "PHASES.teacher.EPOCHS", "0", "PHASES.student.STEP", "sr",
            "PHASES.student.TRAIN", "['frontend']", "PHASES.student.EPOCHS", "1", out=count,
        )  # fmt: skip
        trainer = Trainer(cfg)
        trainer.enter(trainer.phases[0], resumed=False)
        weight = trainer.raw_model.frontend.layers[0].weight
        seen[count] = grads = []
        optimizer = trainer.optimizers["main"].optimizer
        step = optimizer.step

        def spy(*args, w=weight, g=grads, s=step, **kwargs):
            g.append(w.grad.clone())
            return s(*args, **kwargs)

        optimizer.step = spy
        trainer.train()
    one, two = seen["1"], seen["2"]
    assert len(one) == 4
    assert len(two) == 2
    for k in range(2):
        torch.testing.assert_close(two[k], (one[2 * k] + one[2 * k + 1]) / 2)


def test_bfloat16_trains_on_a_cpu(make_cfg):
    cfg = make_cfg(
        PSHRNET, TINY_PSHRNET, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"
    )
    trainer = Trainer(cfg)
    seen = set()
    trainer.raw_model.backbone.conv1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    before = state(trainer)
    trainer.train()
    after = state(trainer)
    assert seen == {torch.bfloat16}
    assert all(v.dtype == before[k].dtype for k, v in after.items())
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])


def test_phases_load_copy_and_weigh(make_cfg):
    first = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, "PHASES.student.EPOCHS", "0", out="first"))
    first.train()
    path = f"{first.cfg.OUTPUT_DIR}/phase_teacher.pth"
    cfg = make_cfg(
        PSHRNET, TINY_PSHRNET, "SEED", "5", "START_PHASE", "student",
        "PHASES.student.WEIGHTS", path,
        "PHASES.student.COPY", "{'backbone': 'teacher.backbone'}",
        "PHASES.student.LOSS_WEIGHTS.loss_ps", "0.0",
        "PHASES.student.LOSS_WEIGHTS.loss_sr", "0.25", out="second",
    )  # fmt: skip
    second = Trainer(cfg)
    second.enter(second.phases[0], resumed=False)
    a, b = state(first), state(second)
    for name in a:
        source = "teacher." + name if name.startswith("backbone.") else name
        assert torch.equal(b[name], a[source]), name
    output = StepOutput({"loss_ps": torch.tensor(1.0), "loss_sr": torch.tensor(2.0)})
    assert second.weigh(output) == {"main": {"loss_sr": torch.tensor(0.5)}}
    with pytest.raises(ConfigError, match="no loss 'loss_ps'"):
        second.weigh(StepOutput({"loss_sr": torch.tensor(2.0)}))


def test_a_checkpoint_is_evaluated_as_its_phase(make_cfg):
    """The teacher's checkpoint must not be scored through an untrained student."""
    cfg = make_cfg(PSHRNET, [*TINY_PSHRNET, "TEST.EVAL_PERIOD", "9"])
    trainer = Trainer(cfg)
    trainer.train()
    teacher = evaluate_trained(
        make_cfg(PSHRNET, TINY_PSHRNET, "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/phase_teacher.pth")
    )["mlr_market1501"]
    written = json.loads(
        (Path(cfg.OUTPUT_DIR) / "teacher" / "results_mlr_market1501.json").read_text()
    )
    found = written["groups"]["query"]["multi_shot"]["mAP"]
    assert teacher["multi_shot/query/mAP"] == pytest.approx(found, abs=1e-4)
    assert written["info"]["training"]["phase"] == "teacher"


def test_a_dumped_config_runs_the_same_phases(make_cfg, tmp_path):
    cfg = make_cfg(PSHRNET, TINY_PSHRNET)
    (tmp_path / "config.yaml").write_text(cfg.dump(sort_keys=False))
    again = load_cfg(str(tmp_path / "config.yaml"))
    assert phases_of(again) == phases_of(cfg)
    assert again == cfg


def test_flip_averages_two_passes_also_for_host_architectures(make_cfg):
    """fastreid's Baseline normalises its input in place; the flip pass must not see that."""
    cfg = make_cfg(
        OSNET, TINY_OSNET, "MODEL.META_ARCHITECTURE", "Baseline", "TEST.FLIP.ENABLED", "True",
        "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "6",
    )  # fmt: skip
    model = build_model(cfg)
    seen: list[torch.Tensor] = []

    class Keep(DatasetEvaluator):
        def process(self, inputs, outputs):
            seen.append(outputs.clone())

        def evaluate(self):
            return {}

    test_set = build_test_set(cfg, "mlr_market1501")
    loader = build_test_loader(cfg, test_set)
    extract(model, loader, Keep(), flip=True)
    model.eval()
    with torch.no_grad():
        for batch, found in zip(loader, seen, strict=True):
            images = batch["images"]
            plain = model({**batch, "images": images.clone()})
            mirrored = model({**batch, "images": images.flip(3)})
            torch.testing.assert_close(found, (plain + mirrored) / 2)


def test_a_new_start_forgets_the_old_runs_checkpoint(make_cfg):
    cfg = make_cfg(OSNET, TINY_OSNET)
    Trainer(cfg).train()
    again = Trainer(cfg)
    again.resume_or_load(resume=False)
    assert not again.checkpointer.has_checkpoint()


def test_resuming_under_other_phases_is_refused(make_cfg):
    killed = Trainer(make_cfg(PSHRNET, TINY_PSHRNET))
    killed_at(killed, 5)
    for change in (["PHASES.teacher.EPOCHS", "3"], ["START_PHASE", "student"]):
        with pytest.raises(ConfigError, match="begun with the phases"):
            Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *change)).resume_or_load(resume=True)


def test_several_test_sets_and_host_data_sets(make_cfg):
    cfg = make_cfg(
        OSNET, TINY_OSNET, "DATASETS.TESTS", "['mlr_market1501', 'synth_pedestrians']",
        "DATASETS.OPTIONS.synth_pedestrians.identities", "8",
        "DATASETS.OPTIONS.synth_pedestrians.cameras", "2",
        "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_EPOCH", "1",
        "TEST.BEST_METRIC", "synth_pedestrians/multi_shot/query/mAP",
    )  # fmt: skip
    trainer = Trainer(cfg)
    results = trainer.train()
    assert trainer.best["metric"] == "synth_pedestrians/multi_shot/query/mAP"
    assert {k.split("/")[0] for k in results} == {"mlr_market1501", "synth_pedestrians"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["PHASES.student.TRAIN", "['bakbone']"], "Did you mean 'backbone'"),
        (["START_PHASE", "studnet"], "Did you mean 'student'"),
        (["PHASES.student.STEP", "pupil"], "no step 'pupil'"),
        (["SOLVER.IMS_PER_BATCH", "800"], "more than the"),
        (["SOLVER.OPT", "Adan"], "Did you mean"),
        (["INPUT.LR.FACTORS", "[0.5]"], "factors are numbers >= 1"),
        (["MODEL.SR.DEPTH", "2"], "MODEL.SR.DEPTH"),
        (["MODEL.SR.NAME", "VDSRC"], "Did you mean 'VDSR"),
        (["SOLVER.LR_FACTORS", "[['bakbone', 0.1]]"], "Did you mean 'backbone'"),
        (["PHASES.student.COPY", "{'backbone': 'teecher'}"], "COPY"),
        (["INPUT.RPT.ENABLED", "True"], "INPUT.RPT"),
        (["SOLVER.AMP.ENABLED", "True"], "bfloat16 runs on a CPU"),
        (["DATALOADER.NUM_INSTANCE", "0"], "DATALOADER.NUM_INSTANCE"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS"),
        (["TEST.NUM_WORKERS", "-1"], "TEST.NUM_WORKERS"),
        (["SOLVER.LR_FACTORS", "['backbone']"], "SOLVER.LR_FACTORS"),
        (["SOLVER.SCHED", "OneCycleLR", "SOLVER.ONE_CYCLE_PCT_START", "2.0"], "PCT_START"),
    ],
)
def test_bad_configs_say_which_key(make_cfg, overrides, message):
    # All of them before the first phase has run.
    with pytest.raises(ConfigError, match=message):
        Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *overrides))


def test_a_run_of_no_epochs_is_refused(make_cfg):
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_EPOCH"):
        Trainer(make_cfg(OSNET, TINY_OSNET, "SOLVER.MAX_EPOCH", "0"))


def test_resume_without_a_checkpoint_says_so(make_cfg):
    with pytest.raises(FileNotFoundError, match="last_checkpoint"):
        Trainer(make_cfg(OSNET, TINY_OSNET)).resume_or_load(resume=True)


def test_start_at_a_named_phase(make_cfg):
    trainer = Trainer(make_cfg(PSHRNET, TINY_PSHRNET, "START_PHASE", "student"))
    assert [p.name for p in trainer.phases] == ["student"]
    assert trainer.max_epoch == 2


def test_frozen_reid_behind_a_separately_trained_front_end(make_cfg):
    cfg = make_cfg(
        "configs/resnet50_frozen_sr.yml", TINY, "MODEL.BACKBONE.PRETRAIN", "False",
        "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "512", "MODEL.SR.DEPTH", "3",
        "PHASES.reid.EPOCHS", "1", "PHASES.sr.EPOCHS", "1", "TEST.EVAL_PERIOD", "0",
    )  # fmt: skip
    trainer = Trainer(cfg)
    initial = state(trainer)
    trainer.train()
    between = torch.load(Path(cfg.OUTPUT_DIR) / "phase_reid.pth", weights_only=True)["model"]
    final = state(trainer)
    front = [n for n in final if n.startswith("frontend.")]
    reid = [n for n in final if not n.startswith("frontend.")]
    assert all(torch.equal(initial[n], between[n]) for n in front)
    assert all(torch.equal(between[n], final[n]) for n in reid)
    assert all(not torch.equal(between[n], final[n]) for n in front if n.endswith("weight"))
    assert not torch.equal(initial["backbone.conv1.weight"], between["backbone.conv1.weight"])
