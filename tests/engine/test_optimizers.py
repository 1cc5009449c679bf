"""Several named optimisers in one step: apart from each other, scheduled, saved, in processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY_OSNET, assert_resumes
from mini_systems import MINI
from torch import nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.paired import select
from lrreid_ext.engine.optimizers import NamedOptimizer, shares_of
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.adversary import held
from lrreid_ext.modeling.contract import StepOutput

PLUGIN = str(ROOT / "tests" / "plugins" / "duel.py")
DUEL = [
    *TINY_OSNET, *MINI, "PLUGINS", f"['{PLUGIN}']", "MODEL.META_ARCHITECTURE", "Duel",
    "INPUT.LR.TRAIN_ON", "both",
]  # fmt: skip

Make = Callable[..., CfgNode]


@pytest.fixture
def duel(make_cfg: Make, tmp_path: Path) -> Make:
    """``duel(*overrides, phase="{EPOCHS: 1}")``: a config of one phase, or as the base has it."""

    def make(*overrides: str, phase: str = "", out: str = "run") -> CfgNode:
        yaml = tmp_path / "duel.yml"
        phases = f"PHASES: {{one: {phase}}}\n" if phase else ""
        yaml.write_text(f"_BASE_: {ROOT / 'configs' / 'osnet_copies.yml'}\n{phases}")
        return make_cfg(str(yaml), DUEL, *overrides, out=out)

    return make


def entered(cfg: CfgNode) -> Trainer:
    trainer = Trainer(cfg)
    trainer.enter(trainer.phases[0], resumed=False)
    return trainer


def a_batch(trainer: Trainer) -> dict[str, Any]:
    return select(next(iter(trainer.data_loader)), "both")


def parts(trainer: Trainer) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    shares = shares_of(trainer.raw_model)
    return shares["main"], shares["critic"]


def test_no_loss_reaches_anothers_parameters(duel):
    trainer = entered(duel())
    main, critic = parts(trainer)
    assert set(critic) == {n for n, _ in trainer.raw_model.named_parameters() if "critic." in n}
    shares = trainer.raw_model.train()(a_batch(trainer)).by_optimizer()
    for name, share, other in (("main", main, critic), ("critic", critic, main)):
        total = sum(shares[name].values())
        learning = [p for p in share.values() if p.requires_grad]
        rest = [p for p in other.values() if p.requires_grad]
        grads = torch.autograd.grad(total, learning, retain_graph=True, allow_unused=True)
        assert all(g is not None for g in grads)
        grads = torch.autograd.grad(total, rest, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)


def test_held_passes_gradients_through_and_keeps_statistics():
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    critic[2].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    x = torch.randn(6, 3, requires_grad=True)
    plain = critic(x).detach()
    critic.load_state_dict(before)
    with held(critic):
        out = critic(x)
    out.sum().backward()
    torch.testing.assert_close(out, plain)
    assert x.grad is not None
    assert all(p.grad is None for p in critic.parameters())
    assert all(torch.equal(v, before[k]) for k, v in critic.state_dict().items())
    assert [p.requires_grad for p in critic.parameters()] == [True] * 5 + [False]


def test_each_has_its_own_rate_schedule_and_frequency(duel):
    cfg = duel(
        "SOLVER.OPTIMIZERS.critic.OPT", "SGD", "SOLVER.OPTIMIZERS.critic.BASE_LR", "0.5",
        "SOLVER.OPTIMIZERS.critic.SCHED", "MultiStepLR", "SOLVER.OPTIMIZERS.critic.STEPS", "[1]",
        "SOLVER.OPTIMIZERS.critic.WARMUP_ITERS", "0", "SOLVER.OPTIMIZERS.critic.EVERY", "3",
        "SOLVER.SCHED", "Constant", "SOLVER.WARMUP_ITERS", "0", "SOLVER.LOG_PERIOD", "1",
    )  # fmt: skip
    trainer = Trainer(cfg)
    step, moved, rates = trainer.run_step, [], []

    def watch() -> None:
        main, critic = parts(trainer)
        before = [next(iter(share.values())).detach().clone() for share in (main, critic)]
        rates.append([optimizer.rate for optimizer in trainer.optimizers.values()])
        step()
        after = [next(iter(share.values())) for share in (main, critic)]
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])

    trainer.run_step = watch  # type: ignore[method-assign]
    trainer.train()
    assert type(trainer.optimizers["critic"].optimizer) is torch.optim.SGD
    assert type(trainer.optimizers["main"].optimizer) is torch.optim.Adam
    count = 2 * trainer.iters_per_epoch
    assert [m for m, _ in moved] == [True] * count
    assert [c for _, c in moved] == [k % 3 == 0 for k in range(count)]
    assert [r for r, _ in rates] == [cfg.SOLVER.BASE_LR] * count
    expected = [0.5] * trainer.iters_per_epoch + [0.05] * trainer.iters_per_epoch
    assert [r for _, r in rates] == pytest.approx(expected)
    log = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    row = json.loads(log[0])
    assert row["lr_critic"] == 0.5
    assert {"loss_critic", "loss_fool", "total_loss", "total_loss_critic"} <= set(row)


def test_gradients_that_overflow_move_nothing_and_say_nothing(recwarn):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
    named = NamedOptimizer(optimizer, schedule, torch.amp.GradScaler("cpu", init_scale=4.0))
    moved = []
    for step, slope in enumerate((torch.inf, 1.0, 1.0)):
        before = weight.item()
        optimizer.zero_grad()
        named.scaled(slope * weight.sum()).backward()
        named.step(step)
        moved.append(before - weight.item())
    assert moved == pytest.approx([0, 0.5, 0.05])
    assert named.scaler is not None and named.scaler.get_scale() == 2
    assert not [str(w.message) for w in recwarn if "lr_scheduler" in str(w.message)]
    resumed = NamedOptimizer(optimizer, schedule, torch.amp.GradScaler("cpu"))
    resumed.load_state_dict(named.state_dict())
    assert resumed.scaler is not None and resumed.scaler.get_scale() == 2


def test_clipping_is_each_ones_own(duel):
    clip = "{'ENABLED': True, 'CLIP_TYPE': 'norm', 'CLIP_VALUE': 1.0e-9, 'NORM_TYPE': 2.0}"
    decays = [f"SOLVER.OPTIMIZERS.critic.WEIGHT_DECAY{of}" for of in ("", "_NORM", "_BIAS")]
    cfg = duel(
        "SOLVER.OPTIMIZERS.critic.CLIP_GRADIENTS", clip, "SOLVER.OPTIMIZERS.critic.OPT", "SGD",
        *[word for key in decays for word in (key, "0.0")], "SOLVER.MAX_EPOCH", "1",
    )  # fmt: skip
    trainer = Trainer(cfg)
    main, critic = ({n: p.detach().clone() for n, p in s.items()} for s in parts(trainer))
    trainer.train()
    now = dict(trainer.raw_model.named_parameters())
    assert max(float((now[n] - p).detach().abs().max()) for n, p in critic.items()) < 1e-9
    assert max(float((now[n] - p).detach().abs().max()) for n, p in main.items()) > 1e-5


def test_resuming_after_a_kill_gives_the_same_weights(duel):
    more = ["SOLVER.OPTIMIZERS.critic.EVERY", "2", "SOLVER.ACCUMULATE", "2"]
    assert_resumes(lambda out: Trainer(duel(*more, out=out)), epochs=1)


def test_a_frozen_adversary_has_no_optimizer_and_stays(duel):
    trainer = Trainer(duel(phase="{EPOCHS: 1, TRAIN: [backbone, heads]}"))
    _, critic = parts(trainer)
    before = {n: p.detach().clone() for n, p in critic.items()}
    trainer.train()
    assert list(trainer.optimizers) == ["main"]
    now = dict(trainer.raw_model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in before.items())


def test_a_phase_has_its_own_settings_of_an_optimizer(duel):
    phase = "{EPOCHS: 1, SOLVER: {OPTIMIZERS: {critic: {BASE_LR: 0.25}}}}"
    trainer = entered(duel("SOLVER.OPTIMIZERS.critic.OPT", "SGD", phase=phase))
    assert type(trainer.optimizers["critic"].optimizer) is torch.optim.SGD
    groups = trainer.optimizers["critic"].optimizer.param_groups
    assert {group["max_lr"] for group in groups} == {0.25}  # of the one cycle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.OPTIMIZERS.critik.BASE_LR", "1.0"], "Did you mean 'critic'"),
        (["SOLVER.OPTIMIZERS.critic.BASE_LRR", "1.0"], "Did you mean 'BASE_LR'"),
        (["SOLVER.OPTIMIZERS.critic.ACCUMULATE", "2"], r"set SOLVER\.ACCUMULATE"),
        (["SOLVER.OPTIMIZERS.critic.EVERY", "0"], "EVERY: 0"),
    ],
)
def test_bad_settings_are_named(duel, options, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(duel(*options))


def test_an_optimizer_without_losses_is_an_error(duel):
    trainer = Trainer(duel(phase="{EPOCHS: 1, LOSS_WEIGHTS: {loss_critic: 0}}"))
    with pytest.raises(ConfigError, match="for the optimiser 'critic'"):
        trainer.train()


def test_losses_of_one_name_are_refused():
    zero = torch.zeros(())
    with pytest.raises(ConfigError, match="loss_x"):
        StepOutput({"loss_x": zero}, other_losses={"critic": {"loss_x": zero}}).by_optimizer()
