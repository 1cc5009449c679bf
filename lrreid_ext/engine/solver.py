"""Optimisers and learning rates. One phase of training has its own."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch
from fastreid.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest

SCHEDULES = ("MultiStepLR", "CosineAnnealingLR", "OneCycleLR", "Constant")


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
        ConfigError: an unknown optimiser, or nothing to train.
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
    if not groups:
        raise ConfigError("nothing to train: the phase freezes every parameter of the model")
    known = {name for name, _ in model.named_modules()} | set(names.values())
    for pair in solver.LR_FACTORS:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise ConfigError(f"SOLVER.LR_FACTORS: [module, factor] is needed, not {pair!r}")
        prefix = pair[0]
        if prefix not in known:
            raise ConfigError(
                f"SOLVER.LR_FACTORS: the model has no part {prefix!r}.{suggest(prefix, known)}"
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
