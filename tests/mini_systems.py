"""The systems so small that tracing and training them takes little time."""

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

# For a training on the embedded people.
PEOPLE = [
    "DATASETS.OPTIONS.synth_pedestrians.identities", "8",
    "DATASETS.OPTIONS.synth_pedestrians.cameras", "3",
    "DATASETS.OPTIONS.synth_pedestrians.shots", "2",
    "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "8", "SOLVER.CHECKPOINT_PERIOD", "1",
    "TEST.TRIALS", "2", "TEST.FACTORS", "[2]",
]  # fmt: skip
SMALL_OSNET = ["MODEL.BACKBONE.DEPTH", "x0_25", "MODEL.BACKBONE.FEAT_DIM", "128"]
# By project, beside its synth.yml.
METHODS: dict[str, Sequence[str]] = {
    "PSHRNet": SYSTEMS["PSHRNet"][1],
    "SING": ["MODEL.SR.FILTERS", "[4, 3]", "MODEL.BACKBONE.DGD.WIDTH", "0.125",
             "MODEL.BACKBONE.FEAT_DIM", "192"],
    "CSRGAN": [*SYSTEMS["CSRGAN"][1], "MODEL.SR.CASCADE.BLOCKS", "1",
               "CSRGAN.DISCRIMINATOR.HIDDEN", "8"],
    "FFSR_RIFE": ["MODEL.SR.WIDTH", "4", "MODEL.BACKBONE.DUAL.BASE", "build_osnet_backbone",
                  *SMALL_OSNET],
    "RAIN": ["MODEL.BACKBONE.NAME", "build_osnet_backbone", *SMALL_OSNET,
             "RAIN.LEVELS", "['conv3', 'conv5']", "RAIN.DECODER.LEVEL", "conv5",
             "RAIN.CRITIC_WIDTH", "4", "DATASETS.LABELLED", "0.5",
             "DATALOADER.NUM_INSTANCE", "2"],
}  # fmt: skip


@BACKBONE_REGISTRY.register()
def _build_mini_backbone(cfg: CfgNode) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
