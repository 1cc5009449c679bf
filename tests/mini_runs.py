"""Runs small enough for a test, on the embedded people: one trained, one as it begins."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import ROOT, TINY_OSNET

from lrreid_ext.cli import main
from lrreid_ext.config import load_cfg
from lrreid_ext.modeling.build import build_model

SYNTH = [
    "DATASETS.NAMES", "['synth_pedestrians']",
    "DATASETS.TESTS", "['synth_pedestrians']",
    "DATASETS.OPTIONS.synth_pedestrians.identities", "16",
    "DATASETS.OPTIONS.synth_pedestrians.cameras", "3",
    "DATASETS.OPTIONS.synth_pedestrians.shots", "1",
    "DATASETS.OPTIONS.synth_pedestrians.height", "64",
    "DATASETS.OPTIONS.synth_pedestrians.width", "32",
    "INPUT.SIZE_TRAIN", "[48, 24]",
    "INPUT.SIZE_TEST", "[48, 24]",
]  # fmt: skip

# A front-end, and two streams with gates.
DUAL = [
    "MODEL.SR.NAME", "SRCNN",
    "MODEL.SR.FILTERS", "[8, 4]",
    "MODEL.BACKBONE.NAME", "build_dual_stream_backbone",
    "MODEL.BACKBONE.DUAL.BASE", "build_osnet_backbone",
    "MODEL.BACKBONE.DUAL.GATE_DIM", "8",
    "MODEL.BACKBONE.DUAL.WIDEST", "32",
]  # fmt: skip


def trained_run(root: Path, folder: Path) -> Path:
    """A folder that ``tools/train_net.py`` trained into: SRCNN and dual streams, two epochs."""
    status = main(["train", 
            "--config-file", str(ROOT / "configs/osnet_copies.yml"), *TINY_OSNET, *SYNTH, *DUAL,
            "SOLVER.LOG_PERIOD", "1", "TEST.EVAL_PERIOD", "2",
            "DATASETS.ROOT", str(root), "OUTPUT_DIR", str(folder),
            "TEST.EVALUATORS", "['CrossResolutionEvaluator', 'ImageQualityEvaluator']",
        ])  # fmt: skip
    assert status == 0
    return folder


def untrained_run(root: Path, folder: Path, *options: str) -> Path:
    """What loading needs of a run, and nothing else: its config and first weights.

    Args:
        root: folder of data sets.
        folder: of the run.
        options: overrides; :data:`SYNTH` for the embedded people, else those of ``conftest``.
    """
    paths = ["DATASETS.ROOT", str(root), "OUTPUT_DIR", str(folder)]
    config = str(ROOT / "configs/osnet_copies.yml")
    cfg = load_cfg(config, [*TINY_OSNET, *paths, "MODEL.HEADS.NUM_CLASSES", "6", *options])
    torch.manual_seed(0)
    folder.mkdir()
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder
