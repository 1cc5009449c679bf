"""A plugin for tests: a run that is interrupted when its second epoch begins."""

from __future__ import annotations

from fastreid.config import CfgNode
from fastreid.engine.hooks import HookBase

from lrreid_ext.registry import HOOK_REGISTRY


@HOOK_REGISTRY.register()
class StopAtTheSecond(HookBase):
    """As Ctrl-C does it."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()

    def before_epoch(self) -> None:
        if self.trainer.epoch == 1:
            raise KeyboardInterrupt
