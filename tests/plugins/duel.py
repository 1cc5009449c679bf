"""A plugin for tests: OSNet's features against a critic that tells LR from HR images."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import configurable
from torch import nn
from torch.nn import functional as F

from lrreid_ext.config import CfgNode
from lrreid_ext.modeling.adversary import held
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.meta_arch import Pipeline
from lrreid_ext.registry import META_ARCH_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """How hard the critic's word weighs."""
    cfg.DUEL = CfgNode()
    cfg.DUEL.WEIGHT = 0.1


@META_ARCH_REGISTRY.register()
class Duel(Pipeline):
    """A pipeline with one adversary."""

    @configurable
    def __init__(self, *, weight: float, **others: Any) -> None:
        super().__init__(**others)
        self.weight = weight
        self.critic = nn.Sequential(
            nn.LazyLinear(16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)
        )
        with torch.no_grad():
            self.critic(self.backbone(torch.zeros(2, 3, 64, 32)).mean((2, 3)))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "weight": cfg.DUEL.WEIGHT}

    def optimizer_parts(self) -> dict[str, list[str]]:
        return {"critic": ["critic"]}

    def train_reid(self, batch: dict[str, Any]) -> StepOutput:
        maps = self.backbone(self.normalise(batch["images"]))
        outputs = self.heads(maps, batch["targets"])
        pooled, low = maps.mean((2, 3)), (batch["factor"] > 1).float()[:, None]
        with held(self.critic):
            fooled = F.binary_cross_entropy_with_logits(self.critic(pooled), 1 - low)
        losses, figures = self.identity_losses(outputs, batch["targets"])
        losses["loss_fool"] = self.weight * fooled
        loss = F.binary_cross_entropy_with_logits(self.critic(pooled.detach()), low)
        return StepOutput(losses, figures, {"critic": {"loss_critic": loss}})
