"""A plugin: the process is killed in the middle of the epoch that GOLDEN_KILL_AT names."""

from __future__ import annotations

import os
import signal

from fastreid.config import CfgNode
from fastreid.engine.hooks import HookBase

from lrreid_ext.registry import HOOK_REGISTRY


@HOOK_REGISTRY.register()
class KillGolden(HookBase):
    """As the kernel does it when memory runs out."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.epoch = int(os.environ["GOLDEN_KILL_AT"])
        self.steps = 0

    def before_epoch(self) -> None:
        self.steps = 0

    def after_step(self) -> None:
        self.steps += 1
        if self.trainer.epoch == self.epoch and self.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
