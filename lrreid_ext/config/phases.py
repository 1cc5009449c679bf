"""Training in phases, written down in the config.

::

    PHASES:
      teacher:                     # phases run in the order written
        EPOCHS: 70
        STEP: teacher              # which of the model's training steps; "" the model's default
        TRAIN: [teacher]           # modules that learn, by prefix; [] all. The rest is frozen
        TRAIN_ON: hr               # INPUT.LR.TRAIN_ON in this phase; "" as it is
        SOLVER: {BASE_LR: 8.5e-3}  # SOLVER keys of this phase
        INPUT: {LR: {SYNTHETIC: 2}} # INPUT keys of this phase, for its training images
        LOSS_WEIGHTS: {loss_sr: 0} # factors on losses by name; 0 leaves a loss out
        WEIGHTS: ""                # checkpoint to load on entering, strictly
        COPY: {backbone: teacher}  # modules that start from another's weights, {to: from}
        HAND_ON: {backbone: teacher} # the same, but when the phase has ended

An entry that is null (``~``), or a whole phase, counts as not written: so a YAML takes back what
its ``_BASE_`` says. EPOCHS 0 skips a phase. A phase is derived from the epoch, so resuming needs no
more than the epoch's number. Frozen modules keep their weights and their batch-norm statistics, bit
for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from fastreid.config import CfgNode

from lrreid_ext.config.editing import widened
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest


@dataclass(frozen=True)
class Phase:
    """One stretch of training; the module's docstring says what each entry means."""

    name: str
    epochs: int
    start: int  # the first epoch of the phase, counted over all phases
    step: str = ""
    train: tuple[str, ...] = ()
    train_on: str = ""
    solver: dict[str, Any] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    copy: dict[str, str] = field(default_factory=dict)
    hand_on: dict[str, str] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The epoch after the last."""
        return self.start + self.epochs


def phases_of(cfg: CfgNode) -> list[Phase]:
    """The phases that ``cfg`` asks for, from START_PHASE on.

    Raises:
        ConfigError: an unknown key, a phase without EPOCHS, or an unknown START_PHASE.
    """
    if not cfg.PHASES:
        if cfg.START_PHASE:
            raise ConfigError(f"START_PHASE: {cfg.START_PHASE!r}: the config has no PHASES")
        if cfg.SOLVER.MAX_EPOCH < 1:
            raise ConfigError(f"SOLVER.MAX_EPOCH: {cfg.SOLVER.MAX_EPOCH} must be at least 1")
        return [Phase("main", cfg.SOLVER.MAX_EPOCH, 0)]
    keys = [f.name.upper() for f in fields(Phase) if f.name not in ("name", "start")]
    names = list(cfg.PHASES)
    if cfg.START_PHASE and cfg.START_PHASE not in names:
        raise ConfigError(
            f"START_PHASE: no phase is called {cfg.START_PHASE!r}."
            f"{suggest(cfg.START_PHASE, names)} Phases: {', '.join(names)}"
        )
    first = names.index(cfg.START_PHASE) if cfg.START_PHASE else 0
    phases: list[Phase] = []
    start = 0
    for name in names[first:]:
        if cfg.PHASES[name] is None:
            continue
        entry = {k: v for k, v in cfg.PHASES[name].items() if v is not None}
        for key in entry:
            if key not in keys:
                raise ConfigError(f"PHASES.{name}.{key} is not a key.{suggest(key, keys)}")
        epochs = entry.pop("EPOCHS", None)
        if not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"PHASES.{name}.EPOCHS: a whole number of epochs is needed")
        if epochs == 0:
            continue
        values: dict[str, Any] = {
            k.lower(): dict(v) if isinstance(v, CfgNode) else v for k, v in entry.items()
        }
        values["train"] = tuple(values.get("train", ()))
        if phases and phases[-1].hand_on:
            values["copy"] = {**phases[-1].hand_on, **values.get("copy", {})}
        phases.append(Phase(name, epochs, start, **values))
        start += epochs
    if not phases:
        raise ConfigError("PHASES: every phase has EPOCHS 0; nothing to train")
    return phases


def phases_done(cfg: CfgNode, epochs: int | None = None) -> list[Phase]:
    """The phases that a network has been through, the last one perhaps not to its end.

    Those behind the phase of TEST.PHASE, whose network is evaluated, don't count.

    Args:
        cfg: the run's.
        epochs: after how many; None: after all.
    """
    phases = phases_of(cfg)
    ends = [phase.end for phase in phases if phase.name == cfg.TEST.PHASE]
    last = min([phases[-1].end, *ends, *([] if epochs is None else [epochs])])
    return [phase for phase in phases if phase.start < last]


def phase_at(phases: list[Phase], epoch: int) -> Phase:
    """The phase that ``epoch`` belongs to; past the end, the last one."""
    return next((p for p in phases if epoch < p.end), phases[-1])


def phase_cfg(cfg: CfgNode, phase: Phase) -> CfgNode:
    """``cfg`` with the phase's own SOLVER and INPUT keys and TRAIN_ON merged in."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_EPOCH = phase.epochs
    solver = dict(phase.solver)
    for name, keys in (solver.pop("OPTIMIZERS", None) or {}).items():
        # These hold any key, which a merge of configs would not add.
        optimizers = cfg.SOLVER.OPTIMIZERS
        optimizers[name] = CfgNode({**(optimizers.get(name) or {}), **keys})
    for branch, keys in (("SOLVER", solver), ("INPUT", phase.input)):
        try:
            cfg[branch].merge_from_other_cfg(CfgNode(widened(keys, cfg[branch], f"{branch}.")))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"PHASES.{phase.name}.{branch}: {error.args[0]}") from error
    if phase.train_on:
        cfg.INPUT.LR.TRAIN_ON = phase.train_on
    cfg.freeze()
    return cfg
