"""What a phase of training changes in a model: which modules learn, and from what they start."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from lrreid_ext.config import Phase
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest


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
    """Look at a phase's COPY before training.

    Raises:
        ConfigError: it names parts that the model lacks, or parts that don't agree.
    """
    for target, source in phase.copy.items():
        key = f"PHASES.{phase.name}.COPY: {{{target}: {source}}}"
        try:
            parts = model.get_submodule(target), model.get_submodule(source)
        except AttributeError as error:
            raise ConfigError(f"{key}: {error}") from error
        shapes = [{name: t.shape for name, t in part.state_dict().items()} for part in parts]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"{key}: their parameters differ in name or shape")


def copy_modules(model: nn.Module, phase: Phase) -> None:
    """Let modules start from others' weights (COPY)."""
    for target, source in phase.copy.items():
        model.get_submodule(target).load_state_dict(model.get_submodule(source).state_dict())
