"""What architectures, backbones, heads and evaluators may offer beyond their registry's contract.

A part that offers a method below has it called; one that doesn't is left alone. The core asks
``isinstance(part, Protocol)``, which looks at the name of the method alone. No class needs to
derive from a protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from fastreid.config import CfgNode
from torch import Tensor, nn

from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError

__all__ = [
    "MAIN",
    "Attaches",
    "BackboneWithLosses",
    "ChecksConfig",
    "ChecksPhase",
    "ConvertsMaps",
    "HasLevelsRoot",
    "HasOptimizers",
    "HasSteps",
    "HasWeightRoots",
    "MayRest",
    "PreparesExport",
    "PreparesTraining",
    "Represents",
    "Restores",
    "StepOutput",
]

#: The optimiser of all parameters that no other one steps.
MAIN = "main"


@dataclass
class StepOutput:
    """What an architecture returns in training.

    Attributes:
        losses: scalars to minimise, by the name they are logged under (``loss_...``). The optimiser
            ``main`` follows their sum.
        figures: scalars that are logged only.
        other_losses: losses that another optimiser follows, by its name; see
            :class:`HasOptimizers`.
    """

    losses: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    other_losses: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def by_optimizer(self) -> dict[str, dict[str, Tensor]]:
        """The losses of each optimiser, ``main`` first.

        Raises:
            ConfigError: losses of two optimisers have one name, which a log couldn't tell apart.
        """
        shares = {MAIN: self.losses, **self.other_losses}
        names = [name for share in shares.values() for name in share]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"losses of two optimisers have the same name: {', '.join(twice)}")
        return shares


# So DistributedDataParallel sees which losses a step leaves out (SOLVER.FIND_UNUSED).
torch.export.register_dataclass(StepOutput)


# ------------------------------------------------------------------ architectures
@runtime_checkable
class HasSteps(Protocol):
    """An architecture with several training steps (``PHASES.<name>.STEP``)."""

    def set_step(self, step: str) -> None:
        """Choose what ``forward`` trains and evaluates; "" is the first step.

        Raises:
            ConfigError: there is no such step.
        """


@runtime_checkable
class ChecksPhase(Protocol):
    """An architecture that finds mistakes in a phase's config before training begins."""

    def check_phase(self, cfg: CfgNode) -> None:
        """Look at a phase's config, once its step has been set.

        Raises:
            ConfigError: names the key.
        """


@runtime_checkable
class HasOptimizers(Protocol):
    """An architecture with adversaries, which other optimisers than ``main`` step."""

    def optimizer_parts(self) -> Mapping[str, Sequence[str]]:
        """Prefixes of module names by the optimiser's name; ``main`` steps all other parameters."""


@runtime_checkable
class Restores(Protocol):
    """An architecture whose front-end's images can be looked at and scored."""

    def restore(self, batch: Batch) -> Any:
        """The :class:`~lrreid_ext.modeling.frontends.FrontendOutput` of a batch's ``images``."""


# ------------------------------------------------------------------ any module of a model
@runtime_checkable
class PreparesTraining(Protocol):
    """A module that learns something from the training set before training begins."""

    def prepare(self, dataset: Any) -> None:
        """Look at the training set, once, when initial weights are loaded.

        What is learnt belongs in buffers, so that checkpoints hold it.
        """


@runtime_checkable
class PreparesExport(Protocol):
    """A module that fixes, before a model is exported, what a graph can't compute."""

    def before_export(self, size: Sequence[int]) -> None:
        """Settle for images of a (height, width)."""


@runtime_checkable
class HasWeightRoots(Protocol):
    """A module that holds published networks in some of its parts, not at its top."""

    weight_roots: Sequence[str]  # names of those parts


@runtime_checkable
class MayRest(Protocol):
    """A module that in some batches no image passes; its optimiser then leaves it as it is."""

    may_rest: ClassVar[bool]


# ------------------------------------------------------------------ backbones and heads
@runtime_checkable
class BackboneWithLosses(Protocol):
    """A backbone with losses of its own."""

    def forward_with_extras(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Normalised images (B, 3, H, W) to the features, and what :meth:`losses` needs."""

    def losses(self, extras: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name (``loss_...``)."""


@runtime_checkable
class HasLevelsRoot(Protocol):
    """A backbone whose levels are named from one of its modules, not from itself."""

    levels_root: ClassVar[str]


@runtime_checkable
class ConvertsMaps(Protocol):
    """A backbone whose modules return something else than maps (B, C, h, w)."""

    def as_map(self, output: Any, size: Sequence[int]) -> Tensor:
        """A module's output for images of a (height, width) as a map (B, C, h, w).

        Raises:
            ValueError: it can't be made a map.
        """


@runtime_checkable
class Represents(Protocol):
    """A head that gives all its outputs without targets, as a teacher's must."""

    def represent(self, features: Any) -> dict[str, Any]:
        """The outputs that it has in training, in either mode."""


# ------------------------------------------------------------------ evaluators
@runtime_checkable
class Attaches(Protocol):
    """An evaluator that wants other outputs than features.

    The flip test is for features, and is left out.
    """

    def attach(self, model: nn.Module) -> nn.Module:
        """What is run in place of the model; ``process`` receives its outputs."""


@runtime_checkable
class ChecksConfig(Protocol):
    """An evaluator's class that finds mistakes in a config before anything is computed."""

    def check(self, cfg: CfgNode) -> None:
        """Look at a config; a static or class method.

        Raises:
            ConfigError: names the key.
        """
