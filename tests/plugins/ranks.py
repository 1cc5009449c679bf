"""A plugin for tests: a hook that notes what each process trained with, and what it learnt."""

from __future__ import annotations

from pathlib import Path

import torch
from fastreid.engine.hooks import HookBase
from fastreid.utils import comm

from lrreid_ext.config import CfgNode
from lrreid_ext.registry import HOOK_REGISTRY


@HOOK_REGISTRY.register()
class NoteRank(HookBase):
    """``rank<n>.pth``: by epoch the seed, and each sample's number and seed; the parameters."""

    def __init__(self, cfg: CfgNode) -> None:
        self.folder = Path(cfg.OUTPUT_DIR)
        self.seeds: list[int] = []
        self.samples: list[list[tuple[int, int]]] = []

    def before_epoch(self) -> None:
        self.seeds.append(torch.initial_seed())
        self.samples.append([sample for batch in self.trainer.sampler for sample in batch])

    def after_train(self) -> None:
        parameters = {n: p.detach() for n, p in self.trainer.raw_model.named_parameters()}
        notes = {"seeds": self.seeds, "samples": self.samples, "parameters": parameters}
        torch.save(notes, self.folder / f"rank{comm.get_rank()}.pth")
