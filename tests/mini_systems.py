"""The systems so small that tracing them takes little time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lrreid_ext.config import CfgNode
from lrreid_ext.registry import BACKBONE_REGISTRY

OSNET = ["MODEL.INIT.WEIGHTS", "", "MODEL.BACKBONE.DEPTH", "x0_25"]
# Tracing takes time with the number of layers: where the backbone doesn't matter, it is one.
MINI = ["MODEL.BACKBONE.NAME", "_build_mini_backbone", "MODEL.BACKBONE.FEAT_DIM", "8"]
# YAML, and what makes it small.
SYSTEMS: dict[str, tuple[str, Sequence[str]]] = {
    "PSHRNet": (
        "projects/PSHRNet/synth.yml",
        [
            "MODEL.BACKBONE.PRETRAIN", "False", "MODEL.BACKBONE.HRNET.WIDTH", "4",
            "MODEL.BACKBONE.HRNET.MODULES", "[1, 1, 1]", "MODEL.BACKBONE.HRNET.BLOCKS", "1",
            "MODEL.BACKBONE.HRNET.STAGE1_BLOCKS", "1", "MODEL.SR.DEPTH", "3",
            "MODEL.SR.WIDTH", "8",
        ],
    ),
    "SING": (
        "projects/SING/synth.yml",
        [
            *MINI, "MODEL.SR.FILTERS", "[4, 3]", "MODEL.HEADS.EMBEDDING_DIM", "16",
            "MODEL.ANCHORS.FACTORS", "[2, 3]",
        ],
    ),
    "RIFE": ("projects/FFSR_RIFE/synth.yml", ["MODEL.SR.WIDTH", "4"]),
    "CSRGAN": (
        "projects/CSRGAN/synth.yml",
        [*MINI, "MODEL.SR.CASCADE.WIDTH", "4", "CSRGAN.DISCRIMINATOR.WIDTH", "4"],
    ),
    "RAIN": ("projects/RAIN/synth.yml", ["RAIN.CRITIC_WIDTH", "4"]),
    "Bilinear": ("configs/osnet_copies.yml", [*OSNET, *MINI, "MODEL.SR.NAME", "Bilinear"]),
}  # fmt: skip


@BACKBONE_REGISTRY.register()
def _build_mini_backbone(cfg: CfgNode) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
