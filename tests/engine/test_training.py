"""The host's silent faults, mended: weights change, frozen ones don't, resuming is exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, TINY_OSNET, TINY_PSHRNET, assert_same, killed_at, state
from fastreid.evaluation import DatasetEvaluator
from mini_systems import MINI

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
ONE_LAYER = [*TINY_OSNET, *MINI]

# With fastreid's own head, whose batch-norm bias is meant to stay frozen.
HOST_HEAD = [*ONE_LAYER, "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.WITH_BNNECK", "True"]
SCHEDULE = ["SOLVER.ACCUMULATE", "2", "SOLVER.SCHED", "OneCycleLR"]
STUDENT_ALONE = ["PHASES.teacher.EPOCHS", "0", "PHASES.student.EPOCHS", "1"]


@pytest.fixture(scope="module")
def finished(market_root, tmp_path_factory):
    """A whole run of PS-HRNet, evaluated at the end of each phase."""
    torch.set_num_threads(1)
    out = str(tmp_path_factory.mktemp("finished"))
    words = [*TINY_PSHRNET, *SCHEDULE, "TEST.EVAL_PERIOD", "9"]
    paths = ["DATASETS.ROOT", str(market_root), "OUTPUT_DIR", out]
    trainer = Trainer(load_cfg(str(ROOT / PSHRNET), [*words, *paths]))
    trainer.train()
    return trainer


@pytest.mark.parametrize(("yaml", "options"), [(OSNET, HOST_HEAD), (PSHRNET, TINY_PSHRNET)])
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


def test_teacher_is_bit_identical_after_the_student_phase(finished):
    saved, now = of_teacher_phase(finished), state(finished)
    teacher = {k for k in now if k.startswith("teacher.")}
    assert teacher
    assert all(torch.equal(now[k], saved[k]) for k in teacher)
    moved = [k for k in now if k.startswith("backbone.") and not torch.equal(now[k], saved[k])]
    assert moved


def of_teacher_phase(trainer):
    path = Path(trainer.cfg.OUTPUT_DIR, "phase_teacher.pth")
    return torch.load(path, weights_only=True)["model"]


def test_resuming_after_kills_gives_the_same_weights(make_cfg, finished):
    """With dropout and workers: a loader's iterator must not draw from the model's generators."""
    assert finished.iters_per_epoch == 4
    cfg = make_cfg(PSHRNET, TINY_PSHRNET, *SCHEDULE, "DATALOADER.NUM_WORKERS", "1")
    for iteration in (1, 5, 7, 13, None):  # before, in and between both phases
        trainer = Trainer(cfg)
        # Nothing is saved in the first epoch.
        trainer.resume_or_load(resume=iteration not in (1, 5))
        if iteration is not None:
            killed_at(trainer, iteration)
    trainer.train()
    assert_same(state(finished), state(trainer))


def test_checkpoints_of_a_finished_run(make_cfg):
    cfg = make_cfg(OSNET, ONE_LAYER)
    first, resumed = Trainer(cfg), Trainer(cfg)
    first.train()
    resumed.resume_or_load(resume=True)
    resumed.train()  # nothing is left to do
    assert_same(state(first), state(resumed))

    weights = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"]
    loaded = Trainer(make_cfg(OSNET, ONE_LAYER, *weights, out="loaded"))
    loaded.resume_or_load()
    assert_same(state(first), state(loaded))
    other = Trainer(make_cfg(OSNET, ONE_LAYER, *weights, "MODEL.HEADS.EMBEDDING_DIM", "64"))
    before = state(other)
    with pytest.raises(WeightsError, match=r"heads\.fc\.0\.weight"):
        other.resume_or_load()
    assert_same(before, state(other))

    anew = Trainer(cfg)
    anew.resume_or_load()
    assert not anew.checkpointer.has_checkpoint()
    with pytest.raises(FileNotFoundError, match="last_checkpoint"):
        anew.resume_or_load(resume=True)


class Code:
    """Unpickled, it runs."""

    def __reduce__(self):
        return print, ("it ran",)


def test_code_in_a_checkpoint_is_not_run(make_cfg, capsys):
    trainer = Trainer(make_cfg(OSNET, ONE_LAYER))
    folder = Path(trainer.cfg.OUTPUT_DIR)
    torch.save({"model": state(trainer), "trainer": Code()}, folder / "model_last.pth")
    (folder / "last_checkpoint").write_text("model_last.pth")
    with pytest.raises(WeightsError, match=r"model_last\.pth can't be read"):
        trainer.resume_or_load(resume=True)
    assert "it ran" not in capsys.readouterr().out


def test_best_survives_a_resume(make_cfg):
    options = (*ONE_LAYER, "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_EPOCH", "3")
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
    trainer = Trainer(make_cfg(OSNET, ONE_LAYER, *options))
    values = iter([10.0, 10.0, 9.0])
    trainer.test = lambda cfg, model: {"mAP": next(values)}
    trainer.train()
    assert trainer.best == {"metric": "mAP", "value": 10.0, "epoch": 0}


def test_accumulated_gradients_are_the_mean_of_the_batches(make_cfg):
    """Two batches of one step: the gradient at the step against each batch's own."""
    options = [*TINY_PSHRNET, "SOLVER.OPT", "SGD", "SOLVER.SCHED", "Constant"]
    gradients: dict[str, list[torch.Tensor]] = {}
    for count in ("1", "2"):
        cfg = make_cfg(
            PSHRNET, options, "SOLVER.ACCUMULATE", count, "SOLVER.BASE_LR", "0.0",
            *STUDENT_ALONE, "PHASES.student.STEP", "sr", "PHASES.student.TRAIN", "['frontend']",
            out=count,
        )  # fmt: skip
        trainer = Trainer(cfg)
        trainer.enter(trainer.phases[0], resumed=False)
        weight = trainer.raw_model.frontend.layers[0].weight
        gradients[count] = grads = []
        optimizer = trainer.optimizers["main"].optimizer
        step = optimizer.step

        def spy(*args, w=weight, g=grads, s=step, **kwargs):
            g.append(w.grad.clone())
            return s(*args, **kwargs)

        optimizer.step = spy
        trainer.train()
    one, two = gradients["1"], gradients["2"]
    assert len(one) == 4
    assert len(two) == 2
    for k in range(2):
        torch.testing.assert_close(two[k], (one[2 * k] + one[2 * k + 1]) / 2)


def test_bfloat16_trains_on_a_cpu(make_cfg):
    cfg = make_cfg(
        PSHRNET, TINY_PSHRNET, *STUDENT_ALONE,
        "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16",
    )  # fmt: skip
    trainer = Trainer(cfg)
    dtypes = set()
    trainer.raw_model.backbone.conv1.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    before = state(trainer)
    trainer.train()
    after = state(trainer)
    assert dtypes == {torch.bfloat16}
    assert all(v.dtype == before[k].dtype for k, v in after.items())
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])


def test_phases_load_copy_and_weigh(make_cfg, finished):
    path = f"{finished.cfg.OUTPUT_DIR}/phase_teacher.pth"
    cfg = make_cfg(
        PSHRNET, TINY_PSHRNET, "SEED", "5", "START_PHASE", "student",
        "PHASES.student.WEIGHTS", path,
        "PHASES.student.COPY", "{'backbone': 'teacher.backbone'}",
        "PHASES.student.LOSS_WEIGHTS.loss_ps", "0.0",
        "PHASES.student.LOSS_WEIGHTS.loss_sr", "0.25",
    )  # fmt: skip
    second = Trainer(cfg)
    assert [(p.name, p.start, p.end) for p in second.phases] == [("student", 0, 2)]
    second.enter(second.phases[0], resumed=False)
    saved = of_teacher_phase(finished)
    for name, tensor in state(second).items():
        source = "teacher." + name if name.startswith("backbone.") else name
        assert torch.equal(tensor, saved[source]), name
    output = StepOutput({"loss_ps": torch.tensor(1.0), "loss_sr": torch.tensor(2.0)})
    assert second.weigh(output) == {"main": {"loss_sr": torch.tensor(0.5)}}
    with pytest.raises(ConfigError, match="no loss 'loss_ps'"):
        second.weigh(StepOutput({"loss_sr": torch.tensor(2.0)}))


def test_a_checkpoint_is_evaluated_as_its_phase(make_cfg, finished):
    """The teacher's checkpoint must not be scored through an untrained student."""
    folder = Path(finished.cfg.OUTPUT_DIR)
    cfg = make_cfg(PSHRNET, TINY_PSHRNET, "MODEL.WEIGHTS", str(folder / "phase_teacher.pth"))
    figures = evaluate_trained(cfg)["mlr_market1501"]
    written = json.loads((folder / "teacher" / "results_mlr_market1501.json").read_text())
    trained = written["groups"]["query"]["multi_shot"]["mAP"]
    assert figures["multi_shot/query/mAP"] == pytest.approx(trained, abs=1e-4)
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
        OSNET, ONE_LAYER, "MODEL.META_ARCHITECTURE", "Baseline", "TEST.FLIP.ENABLED", "True",
        "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)", "MODEL.HEADS.NUM_CLASSES", "6",
    )  # fmt: skip
    model = build_model(cfg)
    features: list[torch.Tensor] = []

    class Keep(DatasetEvaluator):
        def process(self, inputs, outputs):
            features.append(outputs.clone())

        def evaluate(self):
            return {}

    test_set = build_test_set(cfg, "mlr_market1501")
    loader = build_test_loader(cfg, test_set)
    extract(model, loader, Keep(), flip=True)
    model.eval()
    with torch.no_grad():
        for batch, average in zip(loader, features, strict=True):
            images = batch["images"]
            plain = model({**batch, "images": images.clone()})
            mirrored = model({**batch, "images": images.flip(3)})
            torch.testing.assert_close(average, (plain + mirrored) / 2)


def test_resuming_under_other_phases_is_refused(make_cfg, finished):
    folder = ["OUTPUT_DIR", finished.cfg.OUTPUT_DIR]
    for change in (["PHASES.teacher.EPOCHS", "3"], ["START_PHASE", "student"]):
        with pytest.raises(ConfigError, match="begun with the phases"):
            Trainer(make_cfg(PSHRNET, TINY_PSHRNET, *change, *folder)).resume_or_load(resume=True)


def test_several_test_sets_and_host_data_sets(make_cfg):
    cfg = make_cfg(
        OSNET, ONE_LAYER, "DATASETS.TESTS", "['mlr_market1501', 'synth_pedestrians']",
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


def test_frozen_reid_behind_a_separately_trained_front_end(make_cfg):
    cfg = make_cfg(
        "configs/resnet50_frozen_sr.yml", TINY, *MINI, "MODEL.SR.DEPTH", "3",
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
    assert not torch.equal(initial["backbone.0.weight"], between["backbone.0.weight"])
