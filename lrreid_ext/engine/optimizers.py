"""Optimisers and learning rates: one phase of training has its own, a model may have several.

Most models have one optimiser, ``main``. A model with adversaries says which parts another one
steps, and returns that one's losses apart::

    def optimizer_parts(self):
        return {"critic": ["critics"]}       # prefixes of module names; the rest belongs to main

    def train_joint(self, batch):
        ...
        losses = {"loss_cls": ..., "loss_adversarial": ...}
        return StepOutput(losses, other_losses={"critic": {"loss_critic": ...}})

One forward gives all losses and one backward of their sum all gradients, so gradient accumulation,
mixed precision and DistributedDataParallel work as with one. That is right as long as no loss of
one optimiser reaches parameters of another: an adversary's own loss is computed of detached inputs,
and what the others learn from it inside :func:`lrreid_ext.modeling.adversary.held`.

Each optimiser has its own rate, schedule, clipping and scaler::

    SOLVER:
      OPTIMIZERS:
        critic: {OPT: Adam, BASE_LR: 1.0e-4, EVERY: 2}   # SOLVER keys; EVERY: steps only each 2nd
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastreid.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lrreid_ext.config import CfgNode, widened
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import MAIN, HasOptimizers
from lrreid_ext.registry import suggest

SCHEDULES = ("MultiStepLR", "CosineAnnealingLR", "OneCycleLR", "Constant")
EVERY = "EVERY"
# SOLVER keys that hold for the whole training step, and so for all optimisers alike.
SHARED = (
    *("OPTIMIZERS", "ACCUMULATE", "AMP", "MAX_EPOCH", "IMS_PER_BATCH", "FIND_UNUSED"),
    *("CHECKPOINT_PERIOD", "LOG_PERIOD", "FREEZE_ITERS"),
)


@dataclass
class NamedOptimizer:
    """One optimiser with its schedule.

    Attributes:
        optimizer, scheduler: stepped together, but for idle steps.
        scaler: of its losses in float16 on a GPU, or None.
        every: it steps at the first and then each ``every``-th step of the training.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler | None = None
    every: int = 1

    def idle(self, step: int) -> bool:
        """Whether it rests at this step, counted from 0 within the phase."""
        return step % self.every != 0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(self, step: int) -> None:
        """Step, unless idle or gradients overflow float16; the schedule goes on all the same."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        if not self.idle(step):
            if self.scaler is None:
                self.optimizer.step()
            elif any(p.grad is not None for p in parameters):  # which a scaler insists on
                self.scaler.step(self.optimizer)
                self.scaler.update()
        with warnings.catch_warnings():
            # A scaler leaves the first steps out, until its scale fits; PyTorch takes that for a
            # schedule that is stepped too early.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()

    @property
    def rate(self) -> float:
        """The learning rate of its largest group of parameters."""
        group = max(self.optimizer.param_groups, key=lambda g: sum(p.numel() for p in g["params"]))
        return float(group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def build_optimizers(
    cfg: CfgNode, model: nn.Module, steps_per_epoch: int, *, scaled: bool = False
) -> dict[str, NamedOptimizer]:
    """Every optimiser that has something to train, ``main`` first.

    Args:
        cfg: a phase's config.
        model: the whole model; see :class:`~lrreid_ext.modeling.contract.HasOptimizers`.
        steps_per_epoch: optimiser steps in one epoch.
        scaled: whether each gets a gradient scaler.

    Raises:
        ConfigError: SOLVER.OPTIMIZERS names an optimiser that the model lacks, or an unknown key;
            or the phase trains nothing.
    """
    shares = shares_of(model)
    for name in cfg.SOLVER.OPTIMIZERS:
        if name not in shares:
            raise ConfigError(
                f"SOLVER.OPTIMIZERS: {type(model).__name__} has no optimiser {name!r}."
                f"{suggest(name, shares)} There are: {', '.join(shares)}"
            )
    built = {}
    for name, parameters in shares.items():
        if not any(p.requires_grad for p in parameters.values()):
            continue
        merged, every = optimizer_cfg(cfg, name)
        optimizer = build_optimizer(merged, model, set(parameters))
        built[name] = NamedOptimizer(
            optimizer,
            build_scheduler(merged, optimizer, steps_per_epoch),
            torch.amp.GradScaler(cfg.MODEL.DEVICE.split(":")[0]) if scaled else None,
            every,
        )
    if not built:
        raise ConfigError("nothing to train: the phase freezes every parameter of the model")
    return built


def shares_of(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that each optimiser steps, by name; every parameter belongs to one.

    Raises:
        ConfigError: ``optimizer_parts`` names a module that the model lacks, or one twice.
    """
    parts = model.optimizer_parts() if isinstance(model, HasOptimizers) else {}
    modules = {name for name, _ in model.named_modules()}
    shares: dict[str, dict[str, nn.Parameter]] = {MAIN: {}, **{name: {} for name in parts}}
    owners: dict[str, str] = {}
    for name, prefixes in parts.items():
        for prefix in prefixes:
            if prefix not in modules:
                raise ConfigError(
                    f"{type(model).__name__}.optimizer_parts: {name}: the model has no module "
                    f"{prefix!r}.{suggest(prefix, modules)}"
                )
            if prefix in owners:
                raise ConfigError(
                    f"{type(model).__name__}.optimizer_parts: {prefix} belongs to both "
                    f"{owners[prefix]} and {name}"
                )
            owners[prefix] = name
    for key, parameter in model.named_parameters():
        prefixes = [p for p in owners if key.startswith(p + ".")]
        shares[owners[max(prefixes, key=len)] if prefixes else MAIN][key] = parameter
    return shares


def optimizer_cfg(cfg: CfgNode, name: str) -> tuple[CfgNode, int]:
    """``cfg`` with one optimiser's SOLVER keys merged in, and how often it steps."""
    options = dict(cfg.SOLVER.OPTIMIZERS.get(name) or {})
    key = f"SOLVER.OPTIMIZERS.{name}"
    every = options.pop(EVERY, 1)
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"{key}.{EVERY}: {every!r} must be a whole number from 1")
    keys = [k for k in cfg.SOLVER if k not in SHARED]
    for option in options:
        if option in SHARED:
            raise ConfigError(f"{key}.{option}: holds for all optimisers; set SOLVER.{option}")
        if option not in keys:
            raise ConfigError(f"{key}.{option} is not a key.{suggest(option, [*keys, EVERY])}")
    merged = cfg.clone()
    merged.defrost()
    try:
        merged.SOLVER.merge_from_other_cfg(CfgNode(widened(options, merged.SOLVER)))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{key}: {error.args[0]}") from error
    merged.freeze()
    return merged, every


def build_optimizer(
    cfg: CfgNode, model: nn.Module, only: Container[str] | None = None
) -> torch.optim.Optimizer:
    """The optimiser named in SOLVER.OPT over every parameter that learns.

    Args:
        cfg: its SOLVER keys.
        model: the whole model.
        only: names of the parameters that it may step; None is all.

    Groups are fastreid's (one per parameter, with its decay and rate); SOLVER.LR_FACTORS scales the
    rate by module. fastreid's own builder wraps the parameters in contiguous buffers, which on
    today's PyTorch leave the weights unchanged; this one doesn't.

    Raises:
        ConfigError: an unknown optimiser, or SOLVER.LR_FACTORS that fit no module.
    """
    if cfg.MODEL.FREEZE_LAYERS:
        raise ConfigError("MODEL.FREEZE_LAYERS: write PHASES.<name>.TRAIN instead")
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        heads_lr_factor=solver.HEADS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    names = {id(p): name for name, p in model.named_parameters()}
    if only is not None:
        groups = [group for group in groups if names[id(group["params"][0])] in only]
    parts = {name for name, _ in model.named_modules()} | set(names.values())
    for pair in solver.LR_FACTORS:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise ConfigError(f"SOLVER.LR_FACTORS: [module, factor] is needed, not {pair!r}")
        prefix = pair[0]
        if prefix not in parts:
            raise ConfigError(
                f"SOLVER.LR_FACTORS: the model has no part {prefix!r}.{suggest(prefix, parts)}"
            )
    for group in groups:
        group.pop("freeze_status", None)
        group["lr"] *= _lr_factor(names[id(group["params"][0])], solver.LR_FACTORS)
    kind = getattr(torch.optim, solver.OPT, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        kinds = [n for n, c in vars(torch.optim).items() if isinstance(c, type)]
        raise ConfigError(
            f"SOLVER.OPT: torch.optim has no {solver.OPT!r}.{suggest(solver.OPT, kinds)}"
        )
    extra: dict[str, Any] = {}
    if solver.OPT == "SGD":
        extra = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    return maybe_add_gradient_clipping(cfg, kind)(_merge(groups), **extra)


def _lr_factor(name: str, factors: list[Any]) -> float:
    best, value = -1, 1.0
    for prefix, factor in factors:
        if (name == prefix or name.startswith(prefix + ".")) and len(prefix) > best:
            best, value = len(prefix), float(factor)
    return value


def _merge(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # One group per distinct setting: optimisers step all parameters of a group at once.
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in groups:
        key = tuple(sorted((k, v) for k, v in group.items() if k != "params"))
        if key in merged:
            merged[key]["params"] += group["params"]
        else:
            merged[key] = {**group, "params": list(group["params"])}
    return list(merged.values())


def build_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, iters_per_epoch: int
) -> LRScheduler:
    """A schedule that is stepped after every optimiser step.

    Args:
        cfg: SOLVER.SCHED and its keys; MAX_EPOCH is the phase's length.
        optimizer: whose rates are scheduled.
        iters_per_epoch: optimiser steps in one epoch.

    Raises:
        ConfigError: an unknown schedule.
    """
    solver = cfg.SOLVER
    total = solver.MAX_EPOCH * iters_per_epoch
    if solver.SCHED == "OneCycleLR":
        if not 0 <= solver.ONE_CYCLE_PCT_START <= 1:
            raise ConfigError(
                f"SOLVER.ONE_CYCLE_PCT_START: {solver.ONE_CYCLE_PCT_START} must be from 0 to 1"
            )
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            pct_start=solver.ONE_CYCLE_PCT_START,
            cycle_momentum=solver.ONE_CYCLE_MOMENTUM,
        )
    if solver.SCHED not in SCHEDULES:
        raise ConfigError(
            f"SOLVER.SCHED: {solver.SCHED!r} is none of {', '.join(SCHEDULES)}."
            f"{suggest(solver.SCHED, SCHEDULES)}"
        )

    def factor(step: int) -> float:
        return _warmup(solver, step) * _decay(solver, step, iters_per_epoch, total)

    return LambdaLR(optimizer, factor)


def _warmup(solver: CfgNode, step: int) -> float:
    if step >= solver.WARMUP_ITERS:
        return 1.0
    progress = step / solver.WARMUP_ITERS
    if solver.WARMUP_METHOD == "constant":
        return float(solver.WARMUP_FACTOR)
    if solver.WARMUP_METHOD == "linear":
        return float(solver.WARMUP_FACTOR * (1 - progress) + progress)
    if solver.WARMUP_METHOD == "exp":
        return float(solver.WARMUP_FACTOR ** (1 - progress))
    raise ConfigError(f"SOLVER.WARMUP_METHOD: {solver.WARMUP_METHOD!r}, not constant/linear/exp")


def _decay(solver: CfgNode, step: int, iters_per_epoch: int, total: int) -> float:
    if solver.SCHED == "MultiStepLR":
        epoch = step // iters_per_epoch - solver.DELAY_EPOCHS
        return float(solver.GAMMA ** sum(epoch >= s for s in solver.STEPS))
    if solver.SCHED == "CosineAnnealingLR":
        start = max(solver.WARMUP_ITERS, solver.DELAY_EPOCHS * iters_per_epoch)
        if step < start:
            return 1.0
        floor = solver.ETA_MIN_LR / solver.BASE_LR
        progress = min((step - start) / max(total - start, 1), 1.0)
        return float(floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
    return 1.0
