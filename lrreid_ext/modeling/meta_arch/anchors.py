"""Several models of one architecture, each trained for one factor, evaluated as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.config import configurable
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Batch, factor_group
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import ChecksPhase, HasOptimizers
from lrreid_ext.modeling.frontends import FrontendOutput
from lrreid_ext.modeling.meta_arch.pipeline import Pipeline
from lrreid_ext.modeling.routing import is_exporting
from lrreid_ext.registry import META_ARCH_REGISTRY, lookup


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`Anchors`."""
    # The architecture that there is one of for each factor, and the
    # factors, in the order they are trained in.
    cfg.MODEL.ANCHORS = CfgNode()
    cfg.MODEL.ANCHORS.OF = "Pipeline"
    cfg.MODEL.ANCHORS.FACTORS = [2, 3, 4]


@META_ARCH_REGISTRY.register()
class Anchors(nn.Module):
    """SING's anchor models (Jiao et al. 2018, "Multi-Resolution Adaptive Fusion"), of any method.

    There is one model of MODEL.ANCHORS.OF for each of MODEL.ANCHORS.FACTORS, in
    ``anchors.x2``, ``anchors.x3`` ... Each has a phase of training:

    ::

        PHASES:
          x2: {EPOCHS: 60, STEP: x2, TRAIN: [anchors.x2], INPUT: {LR: {SYNTHETIC: 2}}}
          x3: {EPOCHS: 60, STEP: x3, TRAIN: [anchors.x3], INPUT: {LR: {SYNTHETIC: 3}}}

    A step is an anchor's name, and after a dot the step of the model itself where it isn't its
    first: ``x2.sr``. In evaluation the features of all anchors are handed on side by side, those of
    an anchor that hasn't been trained as NaN, and :mod:`lrreid_ext.evaluation.fusion` fuses the
    distances of the others. (Of a model that hasn't been trained at all, the step's anchor counts.)

    Args:
        factors: the anchors' factors, different ones, each >= 1.
        build: makes one model.

    Raises:
        ConfigError: no factor, a factor below 1, or one that comes twice.
    """

    trained: Tensor

    @configurable
    def __init__(self, *, factors: Sequence[float], build: Callable[[], Pipeline]) -> None:
        super().__init__()
        factors = [float(f) for f in factors]
        if not factors or min(factors) < 1 or len(set(factors)) < len(factors):
            raise ConfigError(
                f"MODEL.ANCHORS.FACTORS: {factors} must be different factors >= 1, at least one"
            )
        self.factors = factors
        self.names = [factor_group(f) for f in factors]
        # A module's name can't hold a dot: x2.5 is kept as x2_5.
        self.anchors = nn.ModuleDict({n.replace(".", "_"): build() for n in self.names})
        self.current = len(factors) - 1
        # Which have been trained; in checkpoints, so that an evaluation knows it.
        self.register_buffer("trained", torch.zeros(len(factors), dtype=torch.bool))
        self._settled: list[int] = []

    @property
    def weight_roots(self) -> list[str]:
        """Every anchor takes published weights."""
        return [f"anchors.{name}" for name in self.anchors]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        architecture = lookup(META_ARCH_REGISTRY, cfg.MODEL.ANCHORS.OF, "MODEL.ANCHORS.OF")
        if not issubclass(architecture, Pipeline):
            raise ConfigError(f"MODEL.ANCHORS.OF: {cfg.MODEL.ANCHORS.OF} is no Pipeline")
        return {"factors": cfg.MODEL.ANCHORS.FACTORS, "build": lambda: architecture(cfg)}

    def model(self, index: int) -> Any:
        """The anchor at a position of :attr:`factors`."""
        return self.anchors[self.names[index].replace(".", "_")]

    def optimizer_parts(self) -> dict[str, list[str]]:
        """The named optimisers of the models; one of a name steps its parts in all anchors."""
        parts: dict[str, list[str]] = {}
        for anchor, model in self.anchors.items():
            if not isinstance(model, HasOptimizers):
                continue
            for name, prefixes in model.optimizer_parts().items():
                parts.setdefault(name, []).extend(f"anchors.{anchor}.{p}" for p in prefixes)
        return parts

    def check_phase(self, cfg: CfgNode) -> None:
        """What the step's anchor has to say of a phase's config."""
        model = self.model(self.current)
        if isinstance(model, ChecksPhase):
            model.check_phase(cfg)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.model(0).device

    def set_step(self, step: str) -> None:
        """Choose the anchor that is trained, and its step; "" is the last anchor's first."""
        fitting = [n for n in self.names if step == n or step.startswith(f"{n}.")]
        if step and not fitting:
            raise ConfigError(
                f"PHASES.*.STEP: {step!r} names none of the anchors {', '.join(self.names)}"
            )
        # The longest: "x2" is the beginning of the anchor "x2.5" too.
        name = max(fitting, key=len) if step else self.names[-1]
        self.current = self.names.index(name)
        self.model(self.current).set_step(step[len(name) + 1 :])

    def forward(self, batch: Batch) -> Any:
        """In training, what the step's anchor gives; in evaluation, features (B, K, D) of all K
        anchors, NaN of those that are untrained."""
        if self.training:
            self.trained[self.current] = True
            return self.model(self.current)(batch)
        ready = self.ready
        features = {k: self.model(k).embed(batch) for k in ready}
        untrained = torch.full_like(features[ready[0]], torch.nan)
        return torch.stack([features.get(k, untrained) for k in range(len(self.factors))], dim=1)

    def before_export(self, size: Sequence[int]) -> None:
        """Keep what a graph can't read off a buffer: which anchors are trained."""
        self._settled = self.ready

    @property
    def ready(self) -> list[int]:
        """Positions of the trained anchors; of the step's, while none is."""
        if is_exporting():
            return self._settled
        return self.trained.nonzero().flatten().tolist() or [self.current]

    def restore(self, batch: Batch) -> FrontendOutput:
        """Images (B, 3, H, W) as the front-end of the trained anchor nearest to each image's factor
        restores them; as the first one does where the factor isn't known."""
        ready = self.ready
        factors = [self.factors[k] for k in ready]
        factor = batch.get("factor", torch.full((len(batch["images"]),), factors[0]))
        scale = 1 / factor.nan_to_num(factors[0]).to(batch["images"].device)
        ratios = torch.tensor(factors, device=scale.device).reciprocal()
        nearest = (scale[:, None] - ratios).abs().argmin(dim=1)
        out = batch["images"].clone()
        for i in nearest.unique().tolist():
            chosen = nearest == i
            part = {n: v[chosen] if isinstance(v, Tensor) else v for n, v in batch.items()}
            out[chosen] = self.model(ready[i]).restore(part).images.to(out.dtype)
        return FrontendOutput(out)
