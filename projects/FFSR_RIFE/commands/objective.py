"""What resolution does to distances: same-person over different-person, as resolution falls.

lrreid objective logs/pshrnet "HR only=logs/hr" --out logs/objective

draws O(r1, r2) of FFSR + RIFE (Eq. 2, Fig. 2 and 4) of one or more trained models on the HR images
of the test set, reduced to each resolution r: both images (r1 = r2), and one against HR (r2 = 1).
Lower and flatter is better. Writes objective.csv, .svg, .png, and objective.json with where the
figures came from. projects/FFSR_RIFE/objective.py says which pairs count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import Tensor

from lrreid_ext.config import changed
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import comparable
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.evaluation.fusion import chosen_anchors
from lrreid_ext.options import add_data_set, add_run, at_least
from lrreid_ext.report.plots import write_figure
from lrreid_ext.results.provenance import provenance
from lrreid_ext.trained import TrainedModel, load_model, run_names
from projects.FFSR_RIFE.objective import (
    PANELS,
    RESOLUTIONS,
    Objective,
    curves,
    draw,
    hr_images,
    pair_counts,
    reduced,
    table,
)


def measure(
    run: TrainedModel,
    data_set: str = "",
    resolutions: Sequence[float] = RESOLUTIONS,
    *,
    limit: int = 0,
    same_camera: bool = False,
) -> tuple[dict[str, list[Objective]], dict[str, Any]]:
    """Both curves of one run, and where they come from.

    Args:
        run: the trained model.
        data_set: name of the test set; "" is the first of the run's DATASETS.TESTS.
        resolutions: values of r, above 0 and at most 1.
        limit: at most this many images; 0 means all.
        same_camera: whether pairs of one person and one camera count.

    Raises:
        ConfigError: no test set, or one without HR images or without pairs to compare.
    """
    if not data_set and not run.cfg.DATASETS.TESTS:
        raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
    name = data_set or run.cfg.DATASETS.TESTS[0]
    cfg = changed(run.cfg, ("TEST.HR", True), ("TEST.FACTORS", [2]))
    test_set = build_test_set(cfg, name)
    images = hr_images(test_set, limit)
    labels = [s.pid for s in images], [s.camid for s in images]
    if not all(pair_counts(*labels, same_camera=same_camera)):
        raise ConfigError(
            f"{name}: the {len(images)} HR images hold no two of one person in two cameras, or of "
            "one person alone; raise --limit, or count pairs of one camera with --same-camera"
        )
    kernel = next((s.kernel for s in test_set.samples if s.degrade > 1), cfg.INPUT.LR.KERNEL)

    def features_at(resolution: float) -> Tensor:
        extracted = extract_features(cfg, run.module, reduced(images, resolution, kernel, name))
        assert extracted is not None  # this is the only process
        features = extracted.features
        anchors = chosen_anchors(cfg, features) if features.ndim == 3 else []
        return comparable(features, cfg.TEST.METRIC, anchors)

    panels = curves(images, features_at, resolutions, same_camera=same_camera)
    return panels, {
        "test_set": test_set.name,
        "manifest_hash": test_set.manifest_hash,
        "images": len(images),
        "identities": len({sample.pid for sample in images}),
        "kernel": kernel,
        "metric": cfg.TEST.METRIC,
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        "training": run.training,
        **provenance(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE),
    }


def screen(runs: dict[str, dict[str, list[Objective]]], resolutions: Sequence[float]) -> str:
    """The objective by resolution, a row per run and panel."""
    rows = [
        [run, panel, *(f"{o.value:.3f}" for o in values)]
        for run, panels in runs.items()
        for panel, values in panels.items()
    ]
    headers = ["run", "O"] + [f"r={r:.3g}" for r in resolutions]
    align = ["left", "left"] + ["right"] * len(resolutions)
    return tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("logs/objective"), help="folder to write")
    add_data_set(parser, "the first of each run's tests")
    parser.add_argument(
        "--resolutions", type=float, nargs="+", default=list(RESOLUTIONS), metavar="R",
        help="default: 8 from 0.125 to 1",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=at_least(0), default=0, metavar="N",
        help="at most N images, of persons drawn at random (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--same-camera", action="store_true", help="count pairs of one person in one camera too"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    resolutions = sorted(set(args.resolutions))
    if not all(0 < r <= 1 for r in resolutions):
        raise ConfigError("--resolutions must be above 0 and at most 1")
    results: dict[str, dict[str, list[Objective]]] = {}
    notes: dict[str, dict[str, Any]] = {}
    for name, text in zip(run_names(args.runs), args.runs, strict=True):
        results[name], notes[name] = measure(
            load_model(text, "", args.opts), args.data_set, resolutions,
            limit=args.limit, same_camera=args.same_camera,
        )  # fmt: skip
    print(screen(results, resolutions))
    content = {
        name: {
            **note,
            "resolutions": resolutions,
            "same_camera": args.same_camera,
            **{panel: [asdict(o) for o in results[name][panel]] for panel in PANELS},
        }
        for name, note in notes.items()
    }
    print()
    figure = draw(results, resolutions)
    write_figure(args.out / "objective", table(results, resolutions), {"runs": content}, figure)
