"""Several named optimisers in one training step.

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

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lrreid_ext.config import CfgNode, widened
from lrreid_ext.engine.solver import build_optimizer, build_scheduler
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import MAIN, HasOptimizers
from lrreid_ext.registry import suggest

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
        if not self.idle(step):
            if self.scaler is None:
                self.optimizer.step()
            elif self._has_gradients():  # which a scaler insists on
                self.scaler.step(self.optimizer)
                self.scaler.update()
        with warnings.catch_warnings():
            # A scaler leaves the first steps out, until its scale fits; PyTorch takes that for a
            # schedule that is stepped too early.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def _has_gradients(self) -> bool:
        groups = self.optimizer.param_groups
        return any(p.grad is not None for group in groups for p in group["params"])

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
        ConfigError: SOLVER.OPTIMIZERS names an optimiser that the model hasn't got, or a key that
            isn't one; or nothing is to be trained at all.
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
        own, every = own_cfg(cfg, name)
        optimizer = build_optimizer(own, model, set(parameters))
        built[name] = NamedOptimizer(
            optimizer,
            build_scheduler(own, optimizer, steps_per_epoch),
            torch.amp.GradScaler(own.MODEL.DEVICE.split(":")[0]) if scaled else None,
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
        of = [p for p in owners if key.startswith(p + ".")]
        shares[owners[max(of, key=len)] if of else MAIN][key] = parameter
    return shares


def own_cfg(cfg: CfgNode, name: str) -> tuple[CfgNode, int]:
    """``cfg`` with one optimiser's SOLVER keys merged in, and how often it steps."""
    given = dict(cfg.SOLVER.OPTIMIZERS.get(name) or {})
    key = f"SOLVER.OPTIMIZERS.{name}"
    every = given.pop(EVERY, 1)
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"{key}.{EVERY}: {every!r} must be a whole number from 1")
    known = [k for k in cfg.SOLVER if k not in SHARED]
    for word in given:
        if word in SHARED:
            raise ConfigError(f"{key}.{word}: holds for all optimisers; set SOLVER.{word}")
        if word not in known:
            raise ConfigError(f"{key}.{word} is not a key.{suggest(word, [*known, EVERY])}")
    own = cfg.clone()
    own.defrost()
    try:
        own.SOLVER.merge_from_other_cfg(CfgNode(widened(given, own.SOLVER)))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{key}: {error.args[0]}") from error
    own.freeze()
    return own, every
