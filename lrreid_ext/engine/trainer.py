"""fastreid's training loop, made right on today's stack, and able to run phases.

Keeps the contract that fastreid's hooks rely on (``cfg``, ``iter``, ``epoch``, ``max_epoch``,
``max_iter``, ``start_iter``, ``warmup_iters``, ``delay_epochs``, ``storage``, ``grad_scaler``,
``model``, ``test``). A :class:`fastreid.engine.DefaultTrainer` builds optimiser, checkpointer and
hooks once, inside ``__init__``; phases need them anew, so this derives from its base instead.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.engine.hooks import HookBase, IterationTimer, PeriodicWriter
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lrreid_ext.config import CfgNode, Phase, changed, phase_at, phase_cfg, phases_of
from lrreid_ext.data.loaders import build_train_dataset, build_train_loader, to_device
from lrreid_ext.data.paired import select
from lrreid_ext.data.seeding import derive, seed_everything
from lrreid_ext.engine.checkpoint import Checkpointer
from lrreid_ext.engine.hooks import BestCheckpointer, Evaluate, Progress
from lrreid_ext.engine.optimizers import NamedOptimizer, build_optimizers
from lrreid_ext.engine.phases import check_copy, copy_modules, freeze_for, set_modes
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.run import evaluate
from lrreid_ext.modeling.build import build_model, set_step, with_num_classes
from lrreid_ext.modeling.contract import (
    ChecksConfig,
    ChecksPhase,
    MayRest,
    PreparesTraining,
    StepOutput,
)
from lrreid_ext.modeling.routing import rest
from lrreid_ext.registry import EVALUATOR_REGISTRY, HOOK_REGISTRY, lookup
from lrreid_ext.results.provenance import provenance
from lrreid_ext.weights import load_weights

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Train by the phases of a config, evaluate, keep the best, and resume bit for bit.

    Args:
        cfg: a config of :func:`lrreid_ext.config.load_cfg`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        self.phases = phases_of(cfg)
        self.use_data(phase_cfg(cfg, self.phases[0]))
        dataset: Any = self.data_loader.dataset
        self.cfg = with_num_classes(cfg, dataset.num_classes)
        self.phase: Phase | None = None
        self.raw_model = build_model(self.cfg)
        # What an architecture froze by itself stays so in every phase.
        self.learnable = {n for n, p in self.raw_model.named_parameters() if p.requires_grad}
        self.model: nn.Module = self.raw_model
        self.device = torch.device(self.cfg.MODEL.DEVICE)
        self.optimizers: dict[str, NamedOptimizer] = {}
        self.grad_scaler: Any = None  # of the main optimiser, for the host's hooks

        self.iters_per_epoch = len(self.data_loader)
        self.start_epoch = 0
        self.max_epoch = self.phases[-1].end
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.epoch = 0
        self.warmup_iters = self.cfg.SOLVER.WARMUP_ITERS
        self.delay_epochs = self.cfg.SOLVER.DELAY_EPOCHS
        self.best: dict[str, Any] = {}
        self.last_results: dict[str, Any] = {}
        self._stored: dict[str, Any] = {}
        self.provenance = provenance(device=self.cfg.MODEL.DEVICE)
        self.checkpointer = Checkpointer(
            self.raw_model,
            self.cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            trainer=self,
        )
        self.register_hooks(self.build_hooks())
        self.check_phases()

    def check_phases(self) -> None:
        """Find faults of later phases before the first one has run for hours.

        Raises:
            ConfigError, FileNotFoundError: what :meth:`enter` would raise.
        """
        for name in self.cfg.TEST.EVALUATORS:
            evaluator = lookup(EVALUATOR_REGISTRY, name, "TEST.EVALUATORS")
            if isinstance(evaluator, ChecksConfig):
                evaluator.check(self.cfg)
        checked = [self.data_input]
        for phase in self.phases:
            cfg = phase_cfg(self.cfg, phase)
            set_step(self.raw_model, phase.step)
            freeze_for(self.raw_model, phase, self.learnable)
            try:
                build_optimizers(cfg, self.raw_model, self.iters_per_epoch)
            except ConfigError as error:
                raise ConfigError(f"phase {phase.name}: {error}") from error
            check_copy(self.raw_model, phase)
            if cfg.INPUT not in checked:
                build_train_dataset(cfg)
                checked.append(cfg.INPUT)
            if isinstance(self.raw_model, ChecksPhase):
                self.raw_model.check_phase(cfg)
            amp_dtype(cfg)
            if phase.weights and not os.path.isfile(phase.weights):
                raise FileNotFoundError(
                    f"PHASES.{phase.name}.WEIGHTS: {phase.weights}: no such file"
                )

    # ---------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the weights."""
        return {
            "epoch": self.epoch,
            "phase": self.phase.name if self.phase else "",
            "phases": [[p.name, p.epochs] for p in self.phases],
            "optimizers": {
                name: optimizer.state_dict() for name, optimizer in self.optimizers.items()
            },
            "best": self.best,
            "results": self.last_results,
            "info": self.training_info() if self.phase else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; optimisers follow once their phase has begun."""
        phases = [[p.name, p.epochs] for p in self.phases]
        if state["phases"] != phases:
            raise ConfigError(
                f"--resume: the run in {self.cfg.OUTPUT_DIR} was begun with the phases and epochs "
                f"{state['phases']}, the config now says {phases}. Put PHASES, START_PHASE and "
                "SOLVER.MAX_EPOCH back, or start anew in another OUTPUT_DIR"
            )
        self.start_epoch = state["epoch"] + 1
        self.best = dict(state["best"])
        self.last_results = state["results"]
        self._stored = state

    def resume_or_load(self, resume: bool = False) -> None:
        """Resume from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS if given.

        Raises:
            FileNotFoundError: ``resume`` without a checkpoint to resume from.
        """
        if resume:
            if not self.checkpointer.has_checkpoint():
                raise FileNotFoundError(
                    f"--resume: no last_checkpoint in OUTPUT_DIR {self.cfg.OUTPUT_DIR}; "
                    "leave --resume out to start anew"
                )
            self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            return
        if comm.is_main_process():
            # A run begun anew isn't to be resumed from what an older one left here.
            Path(self.cfg.OUTPUT_DIR, "last_checkpoint").unlink(missing_ok=True)
        if self.cfg.MODEL.WEIGHTS:
            load_weights(self.raw_model, self.cfg.MODEL.WEIGHTS, key="MODEL.WEIGHTS")

    # ---------------------------------------------------------------- hooks
    def build_hooks(self) -> list[HookBase]:
        """fastreid's timer and writers, evaluation, checkpoints, and the hooks named in HOOKS."""
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ConfigError("TEST.PRECISE_BN: not available with training in phases")
        # The host's printer divides by zero in a run shorter than the timer's warm-up.
        hooks: list[HookBase] = [IterationTimer(warmup_iter=1)]
        hooks += [lookup(HOOK_REGISTRY, name, "HOOKS")(cfg) for name in cfg.HOOKS]
        if cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TESTS:
            hooks.append(Evaluate(cfg.TEST.EVAL_PERIOD))
        hooks.append(BestCheckpointer(cfg.SOLVER.CHECKPOINT_PERIOD))
        if comm.is_main_process():
            writers = [
                CommonMetricPrinter(self.max_iter),
                JSONWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
                TensorboardXWriter(cfg.OUTPUT_DIR),
            ]
            hooks += [PeriodicWriter(writers, cfg.SOLVER.LOG_PERIOD), Progress()]
        return hooks

    # ---------------------------------------------------------------- phases
    def use_data(self, cfg: CfgNode) -> None:
        """Train on what ``cfg`` (a phase's) says; the number of batches is the same in all."""
        self.data_loader = build_train_loader(cfg)
        self.sampler: Any = self.data_loader.batch_sampler
        self.data_input = cfg.INPUT

    def enter(self, phase: Phase, *, resumed: bool) -> None:
        """Begin a phase, or go on in the middle of one.

        Args:
            phase: the phase.
            resumed: whether some of its epochs have been run already.
        """
        cfg = phase_cfg(self.cfg, phase)
        self.phase = phase
        if self.data_input != cfg.INPUT:
            self.use_data(cfg)
        set_step(self.raw_model, phase.step)
        if not resumed:
            if phase.weights:
                load_weights(self.raw_model, phase.weights, key=f"PHASES.{phase.name}.WEIGHTS")
            copy_modules(self.raw_model, phase)
            self.best = {}
            if self.epoch == 0:
                for module in self.raw_model.modules():
                    if isinstance(module, PreparesTraining):
                        module.prepare(self.data_loader.dataset)
        freeze_for(self.raw_model, phase, self.learnable)
        modules = self.raw_model.modules()
        self.resting = [m for m in modules if isinstance(m, MayRest) and m.may_rest]
        self.train_on = cfg.INPUT.LR.TRAIN_ON
        self.accumulate = cfg.SOLVER.ACCUMULATE
        steps = self.iters_per_epoch // self.accumulate
        if steps == 0:
            raise ConfigError(
                f"SOLVER.ACCUMULATE: {self.accumulate} is more than the {self.iters_per_epoch} "
                "batches of an epoch"
            )
        self.amp_dtype = amp_dtype(cfg)
        scaled = self.amp_dtype == torch.float16 and self.device.type == "cuda"
        self.optimizers = build_optimizers(cfg, self.raw_model, steps, scaled=scaled)
        self.grad_scaler = next(iter(self.optimizers.values())).scaler
        if resumed:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(self._stored["optimizers"][name])
        self._stored = {}
        self.model = self.raw_model
        if comm.get_world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.raw_model, device_ids=ids, find_unused_parameters=cfg.SOLVER.FIND_UNUSED
            )
        learn = sum(p.numel() for p in self.raw_model.parameters() if p.requires_grad)
        logger.info(
            "Phase %s: epochs %d to %d, %.2f M parameters learn, on %s images",
            *(phase.name, phase.start + 1, phase.end, learn / 1e6, self.train_on),
        )

    # ---------------------------------------------------------------- loop
    def train(self) -> dict[str, Any]:
        """Run all epochs that remain.

        Returns:
            The last evaluation's results by data set, or an empty dict.
        """
        if self.start_epoch >= self.max_epoch:
            logger.info("All %d epochs of this run are trained; nothing to do", self.max_epoch)
            return self.last_results
        self.epoch = self.start_epoch
        super().train(self.start_epoch, self.max_epoch, self.iters_per_epoch)
        return self.last_results

    def before_epoch(self) -> None:
        """Enter the epoch's phase, and seed everything by the epoch."""
        phase = phase_at(self.phases, self.epoch)
        if phase is not self.phase:
            resumed = bool(self._stored) and self.epoch > phase.start
            self.enter(phase, resumed=resumed)
        set_modes(self.raw_model, phase)
        self.sampler.epoch = self.epoch
        self._batches = iter(self.data_loader)
        # After the iterator was made, for a new one may draw from the global generator.
        seed_everything(derive("train", self.cfg.SEED, self.epoch, comm.get_rank()))
        super().before_epoch()

    def run_step(self) -> None:
        """One batch: forward, backward, and after ACCUMULATE of them a step of each optimiser."""
        assert self.phase is not None and self.optimizers
        start = time.perf_counter()
        batch = to_device(next(self._batches), self.device)
        batch = select(batch, self.train_on)
        data_time = time.perf_counter() - start

        done = self.iter % self.iters_per_epoch + 1
        steps = done % self.accumulate == 0
        past = (self.epoch - self.phase.start) * (self.iters_per_epoch // self.accumulate)
        count = past + (done - 1) // self.accumulate
        # Gradients left over at an epoch's end are dropped: no epoch depends on another's.
        if (done - 1) % self.accumulate == 0:
            for optimizer in self.optimizers.values():
                optimizer.optimizer.zero_grad(set_to_none=True)
        ddp = self.model if isinstance(self.model, DistributedDataParallel) else None
        wait = ddp.no_sync() if ddp is not None and not steps else nullcontext()
        with wait:
            with torch.autocast(
                self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                output = self.model(batch)
            if not isinstance(output, StepOutput):
                output = StepOutput(output)  # fastreid's architectures return a dict of losses
            losses = self.weigh(output)
            backward = torch.zeros((), device=self.device)
            for name, share in losses.items():
                optimizer = self.optimizers[name]
                total = sum(share.values()) / self.accumulate
                # Times 0 when idle: every process has to give the same gradients.
                backward = backward + optimizer.scaled(
                    0.0 * total if optimizer.idle(count) else total
                )
            backward.backward()
        self._log(losses, output.figures, data_time)
        if steps:
            rest(self.resting)
            for optimizer in self.optimizers.values():
                optimizer.step(count)

    def weigh(self, output: StepOutput) -> dict[str, dict[str, Tensor]]:
        """The losses that each optimiser follows, weighed by the phase."""
        assert self.phase is not None
        here, weights = f"PHASES.{self.phase.name}", self.phase.loss_weights
        shares = output.by_optimizer()
        shares = {name: share for name, share in shares.items() if name in self.optimizers}
        names = [loss for share in shares.values() for loss in share]
        for name in weights:
            if name not in names:
                raise ConfigError(
                    f"{here}.LOSS_WEIGHTS: no loss {name!r} in this step; there "
                    f"are {', '.join(names)}"
                )
        weighed = {
            name: {k: weights.get(k, 1.0) * v for k, v in share.items() if weights.get(k, 1.0) != 0}
            for name, share in shares.items()
        }
        for name in self.optimizers:
            if not weighed.get(name):
                which = "" if len(self.optimizers) == 1 else f" for the optimiser {name!r}"
                raise ConfigError(
                    f"{here}: no loss is left to train with{which}; see STEP, LOSS_WEIGHTS, TRAIN"
                )
        return weighed

    def _log(
        self, losses: dict[str, dict[str, Tensor]], figures: dict[str, Tensor], data_time: float
    ) -> None:
        named = {k: v for share in losses.values() for k, v in share.items()} | figures
        values = torch.stack([v.detach().float().reshape(()) for v in named.values()]).tolist()
        row = dict(zip(named, values, strict=True)) | {"data_time": data_time}
        rows = comm.gather(row)
        if not comm.is_main_process():
            return
        mean = {k: float(np.mean([r[k] for r in rows])) for k in row}
        for name, share in losses.items():
            total = sum(mean[k] for k in share)
            if not np.isfinite(total):
                raise FloatingPointError(
                    f"the loss is not finite at iteration {self.iter}: {mean}. "
                    "Lower SOLVER.BASE_LR, or look at the images of this batch"
                )
            # The host's writers know one loss and one rate by these names: the first optimiser's.
            first = name == next(iter(losses))
            self.storage.put_scalar("total_loss" if first else f"total_loss_{name}", total)
            rate = self.optimizers[name].rate
            self.storage.put_scalar("lr" if first else f"lr_{name}", rate, smoothing_hint=False)
        self.storage.put_scalars(**mean)

    # ---------------------------------------------------------------- test
    def test(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate; an earlier phase's results go into a folder of its name below OUTPUT_DIR."""
        assert self.phase is not None
        last = self.phase is self.phases[-1]
        out = cfg.OUTPUT_DIR if last else os.path.join(cfg.OUTPUT_DIR, self.phase.name)
        # The weights scored are those in memory, not the ones that training began with.
        return evaluate(changed(cfg, ("MODEL.WEIGHTS", "")), model, out, self.training_info())

    def training_info(self) -> dict[str, Any]:
        """How the weights came about: command, commit, machine, seed, data, phase and epochs."""
        assert self.phase is not None
        return {
            **{k: self.provenance[k] for k in ("command", "commit", "machine")},
            "seed": self.cfg.SEED,
            "data_sets": list(self.cfg.DATASETS.NAMES),
            "fold": list(self.cfg.DATASETS.FOLD),
            "phase": self.phase.name,
            "epochs": self.epoch + 1,
            "of": self.max_epoch,
        }


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The mixed-precision type of SOLVER.AMP, or None."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if cfg.SOLVER.AMP.DTYPE not in kinds:
        raise ConfigError(f"SOLVER.AMP.DTYPE: {cfg.SOLVER.AMP.DTYPE!r} is none of {list(kinds)}")
    if cfg.SOLVER.AMP.DTYPE == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise ConfigError("SOLVER.AMP.DTYPE: float16 needs a GPU; bfloat16 runs on a CPU")
    return kinds[cfg.SOLVER.AMP.DTYPE]
