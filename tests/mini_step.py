"""A small architecture with two optimisers and parts that take no part, trained by hand on a batch.

A plugin for tests: with ``HOOKS ['TrainsSmall']`` every process of a run trains the model on its
share of one batch when the run's own training has ended.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from fastreid.engine.hooks import HookBase
from fastreid.utils import comm
from torch import Tensor, nn

from lrreid_ext.config import CfgNode, changed
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.registry import HOOK_REGISTRY, META_ARCH_REGISTRY

SETTINGS = (
    ("MODEL.META_ARCHITECTURE", "Small"),
    ("HOOKS", []),
    ("TEST.EVAL_PERIOD", 0),
    ("INPUT.LR.TRAIN_ON", "hr"),
    ("SOLVER.OPT", "SGD"),
    ("SOLVER.SCHED", "Constant"),
    ("SOLVER.BASE_LR", 0.1),
    ("SOLVER.ACCUMULATE", 1),
    ("SOLVER.FIND_UNUSED", True),
    ("SOLVER.OPTIMIZERS", CfgNode()),
    ("PHASES", CfgNode({"main": {"EPOCHS": 2, "LOSS_WEIGHTS": {"loss_dropped": 0.0}}})),
)


@META_ARCH_REGISTRY.register()
class Small(nn.Module):
    """Three colours to a loss, without batch norm: a batch is what its halves are on average."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.body, self.critic = nn.Linear(3, 4), nn.Linear(4, 1)
        self.dropped = nn.Linear(4, 1)  # the phase leaves its loss out
        self.idle = nn.Linear(1, 1)  # nothing passes it

    def optimizer_parts(self) -> dict[str, list[str]]:
        """The critic has its own."""
        return {"critic": ["critic"]}

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        """All losses are means over the batch."""
        features = self.body(batch["images"].mean((2, 3)))
        losses = {
            "loss_main": (features.sum(1) - batch["targets"]).square().mean(),
            "loss_dropped": self.dropped(features).square().mean(),
        }
        critic = self.critic(features.detach()).exp().mean()
        return StepOutput(losses, {"size": features.norm()}, {"critic": {"loss_critic": critic}})


def train_small(cfg: CfgNode, out: str) -> dict[str, Tensor]:
    """Weights after two steps on a batch of four images, each process with its share of them."""
    trainer = Trainer(changed(cfg, *SETTINGS, ("OUTPUT_DIR", out)))
    rows = slice(comm.get_rank(), None, comm.get_world_size())
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    batch = {
        "images_hr": images[rows],
        "native_size_hr": torch.full((4, 2), 2)[rows],
        "factor_hr": torch.ones(4)[rows],
        "targets": torch.arange(4)[rows],
    }
    trainer.data_loader = [batch]
    trainer.iters_per_epoch, trainer.max_iter = 1, 2
    trainer.train()
    return trainer.raw_model.state_dict()


@HOOK_REGISTRY.register()
class TrainsSmall(HookBase):
    """Train the small model after the run's own; ``small/weights.pth`` is what comes out."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def after_train(self) -> None:
        """In every process."""
        out = os.path.join(self.cfg.OUTPUT_DIR, "small")
        weights = train_small(self.cfg, out)
        if comm.is_main_process():
            torch.save(weights, os.path.join(out, "weights.pth"))
