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

from collections.abc import Container
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from lrreid_ext.config import CfgNode, widened
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
    known = [f.name.upper() for f in fields(Phase) if f.name not in ("name", "start")]
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
            if key not in known:
                raise ConfigError(f"PHASES.{name}.{key} is not a key.{suggest(key, known)}")
        epochs = entry.pop("EPOCHS", None)
        if not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"PHASES.{name}.EPOCHS: a whole number of epochs is needed")
        if epochs == 0:
            continue
        values = {k.lower(): _plain(v) for k, v in entry.items()}
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


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, CfgNode) else value


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


def _below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def freeze_for(model: nn.Module, phase: Phase, learnable: Container[str]) -> None:
    """Let the phase's modules learn and freeze all others.

    Args:
        model: the whole model.
        phase: its TRAIN says which modules learn.
        learnable: names of the parameters that the architecture means to be trained at all.

    Raises:
        ConfigError: a name in TRAIN that no module has.
    """
    modules = [name for name, _ in model.named_modules()]
    for prefix in phase.train:
        if prefix not in modules:
            top = [name for name, _ in model.named_children()]
            raise ConfigError(
                f"PHASES.{phase.name}.TRAIN: the model has no module {prefix!r}."
                f"{suggest(prefix, modules)} Its parts: {', '.join(top)}"
            )
    for name, parameter in model.named_parameters():
        chosen = not phase.train or _below(name, phase.train)
        parameter.requires_grad_(chosen and name in learnable)
        if not parameter.requires_grad:
            parameter.grad = None


def set_modes(model: nn.Module, phase: Phase) -> None:
    """Training mode for the modules that learn, evaluation mode for the frozen ones."""
    model.train()
    if not phase.train:
        return
    for name, module in model.named_modules():
        # A parent of something that learns stays in training mode; only its frozen parts leave it.
        parent = any(p.startswith(name + ".") for p in phase.train) or name == ""
        if not parent and not _below(name, phase.train):
            module.training = False


def check_copy(model: nn.Module, phase: Phase) -> None:
    """Raise ConfigError if COPY names parts that the model lacks, or parts that don't agree."""
    for target, source in phase.copy.items():
        key = f"PHASES.{phase.name}.COPY: {{{target}: {source}}}"
        try:
            to, of = model.get_submodule(target), model.get_submodule(source)
        except AttributeError as error:
            raise ConfigError(f"{key}: {error}") from error
        if _shapes(to) != _shapes(of):
            raise ConfigError(f"{key}: their parameters differ in name or shape")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def copy_modules(model: nn.Module, phase: Phase) -> None:
    """Let modules start from others' weights (COPY)."""
    check_copy(model, phase)
    for target, source in phase.copy.items():
        model.get_submodule(target).load_state_dict(model.get_submodule(source).state_dict())
