"""LOMO features with XQDA, NFST or plain Euclidean distance: the classical rows of SING's Table 2.

lrreid classical --config-file projects/SING/mlr_cuhk01.yml --metric xqda --sr Bicubic
lrreid classical --config-file projects/SING/mlr_cuhk01.yml --metric nfst --sr model_final.pth \\
    MODEL.SR.NAME SRCNN MODEL.SR.APPLY lr

The config names the data sets, INPUT.LR and TEST; its network plays no part but for a front-end.
Images are enlarged by the front-end to 128x48, and described by LOMO. The metric is learned from
the training identities, each image once: those of the low-resolution camera, as the recipe has it,
are reduced by a factor of INPUT.LR (drawn by file name and SEED) unless they are small by nature;
the others stay as they are.

Results are written into OUTPUT_DIR/<metric>_<front-end>, as tools/train_net.py writes them;
tools/update_tables.py makes tables of them.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.data.loaders import (
    build_dataset_of,
    build_test_loader,
    build_test_set,
    check_input,
    training_items,
)
from lrreid_ext.data.lr_images import with_factors
from lrreid_ext.data.samples import QUERY, Batch, Sample, TestSet
from lrreid_ext.devices import usable_device
from lrreid_ext.engine.run import start_log
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import CrossResolutionEvaluator
from lrreid_ext.modeling.frontends import Frontend, build_frontend
from lrreid_ext.options import add_overrides, at_least
from lrreid_ext.registry import FRONTEND_REGISTRY, names, suggest
from lrreid_ext.weights import read_checkpoint
from projects.SING.classical import DIMENSIONS, NFST, XQDA, lomo_batches, worker_pool
from projects.SING.classical.lomo import HEIGHT, WIDTH

INTERRUPTED = "nothing was written"

METRICS = ("xqda", "nfst", "euclidean")

# What LOMO and its distances leave no choice in.
FIXED: dict[str, Any] = {
    "INPUT.SIZE_TRAIN": [HEIGHT, WIDTH],
    "INPUT.SIZE_TEST": [HEIGHT, WIDTH],
    "INPUT.CROP.ENABLED": False,
    "INPUT.MASKS": "",
    "DATASETS.COMBINEALL": False,
    "TEST.METRIC": "euclidean",
    "TEST.FLIP.ENABLED": False,
    "TEST.EVALUATORS": ["CrossResolutionEvaluator"],
}

Features = NDArray[np.float32]
Embed = Callable[[Features], NDArray[np.floating]]
# Index and native size of a set of images, and their features, batch by batch.
Describe = Callable[[TestSet], Iterator[tuple[Batch, Features]]]

logger = logging.getLogger("projects.SING.classical")


# ---------------------------------------------------------------- config
def settings(args: argparse.Namespace) -> CfgNode:
    """The config with what LOMO needs, the front-end of --sr, and the run's own OUTPUT_DIR.

    Raises:
        ConfigError: an override of a key that is fixed here, or a front-end that can't be had.
    """
    if given := sorted(set(args.opts[::2]) & FIXED.keys()):
        raise ConfigError(f"{given[0]}: is always {FIXED[given[0]]} here; leave it out")
    cfg = load_cfg(args.config_file, args.opts)
    cfg.defrost()
    for key, value in FIXED.items():
        cfg.merge_from_list([key, value])
    choose_frontend(cfg, args.sr)
    if cfg.MODEL.SR.APPLY not in ("all", "lr"):
        raise ConfigError(f"MODEL.SR.APPLY: {cfg.MODEL.SR.APPLY!r} is neither 'all' nor 'lr'")
    check_input(cfg)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    # What a results file names as its checkpoint.
    cfg.MODEL.WEIGHTS = cfg.MODEL.SR.WEIGHTS
    parts = [args.metric, cfg.MODEL.SR.NAME.lower()]
    parts += ["noretinex"] if args.no_retinex else []
    parts += [f"limit{args.limit}"] if args.limit else []
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "_".join(parts))
    cfg.freeze()
    return cfg


def choose_frontend(cfg: CfgNode, choice: str) -> None:
    """Set MODEL.SR to a front-end's name, or to a checkpoint of the one that it names."""
    known = names(FRONTEND_REGISTRY)
    if choice in known:
        cfg.MODEL.SR.NAME = choice
        if not FRONTEND_REGISTRY.get(choice).learns:
            cfg.MODEL.SR.WEIGHTS = ""
        elif not cfg.MODEL.SR.WEIGHTS:
            raise ConfigError(
                f"--sr {choice}: has to be trained; name its checkpoint in MODEL.SR.WEIGHTS"
            )
        return
    if not os.path.isfile(choice):
        raise ConfigError(
            f"--sr {choice}: neither a checkpoint nor a front-end.{suggest(choice, known)} "
            f"Front-ends: {', '.join(known)}"
        )
    if cfg.MODEL.SR.NAME in known and not FRONTEND_REGISTRY.get(cfg.MODEL.SR.NAME).learns:
        raise ConfigError(
            f"--sr {choice}: the config's front-end {cfg.MODEL.SR.NAME} has no weights; say which "
            "one the checkpoint is of, e.g. MODEL.SR.NAME SRCNN"
        )
    cfg.MODEL.SR.WEIGHTS = choice


# ---------------------------------------------------------------- images
def training_set(cfg: CfgNode, limit: int = 0) -> tuple[TestSet, NDArray[np.bool_]]:
    """All training images, those of the low-resolution side degraded.

    Args:
        cfg: DATASETS.NAMES and FOLD, INPUT.LR and SEED.
        limit: if not 0, so many identities of each data set.

    Returns:
        The images, identities counted from 0, and (N,) which are of the low-resolution side.
    """
    samples: list[Sample] = []
    low: list[bool] = []
    for name in cfg.DATASETS.NAMES:
        data = build_dataset_of(cfg, name, "DATASETS.NAMES")
        items = training_items(cfg, data)
        people = sorted({pid for _, pid, _ in items}, key=str)[: limit or None]
        first = 1 + max((s.pid for s in samples), default=-1)
        pids = {pid: first + k for k, pid in enumerate(people)}
        items = [item for item in items if item[1] in pids]
        cameras = {c: k for k, c in enumerate(sorted({c for *_, c in items}, key=str))}
        for image in with_factors(cfg, data, name, items):
            place = (image.path, pids[image.pid], cameras[image.camera], "train")
            kernel = cfg.INPUT.LR.KERNEL
            samples.append(Sample(*place, image.factor, image.degrade, kernel, cfg.SEED))
            low.append(image.low)
    if not any(low) or all(low):
        raise ConfigError(
            "DATASETS.NAMES: every training image is of one side, low or high resolution; a "
            "cross-view metric needs both"
        )
    return TestSet("training images", samples), np.array(low)


def limited(test_set: TestSet, limit: int) -> TestSet:
    """The test set with the first ``limit`` identities of its queries alone; 0 leaves it whole."""
    if not limit:
        return test_set
    people = sorted({s.pid for s in test_set.samples if s.group == QUERY and s.pid > 0})[:limit]
    kept = [s for s in test_set.samples if s.pid in set(people)]
    return replace(test_set, samples=kept, info={**test_set.info, "limit": limit})


def restored(
    cfg: CfgNode, frontend: Frontend, images: TestSet
) -> Iterator[tuple[Batch, NDArray[np.uint8]]]:
    """Images at LOMO's size, after the front-end, batch by batch.

    MODEL.SR.APPLY decides which pass through it, as in
    :class:`lrreid_ext.modeling.meta_arch.pipeline.Pipeline`.

    Yields:
        ``index`` and ``native_size`` of the batch, and the images (B, 128, 48, 3) uint8, RGB.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    loader = build_test_loader(cfg, images)
    for batch in tqdm(loader, desc=f"LOMO, {images.name}", unit="batch", disable=None):
        pixels, native = batch["images"].to(device, torch.float32), batch["native_size"]
        small = native[:, 0] < HEIGHT
        low = torch.where(batch["factor"].isnan(), small, batch["factor"] > 1)
        if cfg.MODEL.SR.APPLY == "all":
            low[:] = True
        if bool(low.any()):
            with torch.no_grad():
                pixels[low] = frontend(pixels[low], native[low]).images.to(pixels)
        rounded = pixels.round().clamp(0, 255).to("cpu", torch.uint8)
        where: Batch = {"index": batch["index"], "native_size": native}
        yield where, np.ascontiguousarray(rounded.permute(0, 2, 3, 1).numpy())


# ---------------------------------------------------------------- metrics
def learned(
    metric: str, features: Features, labels: NDArray[np.int64], low: NDArray[np.bool_]
) -> tuple[Embed, dict[str, Any]]:
    """Learn a metric.

    Args:
        metric: one of :data:`METRICS`.
        features: (N, D) of the training images.
        labels: (N,) identities.
        low: (N,), images of an LR camera, XQDA's query view.

    Returns:
        What embeds features so that Euclidean distance is the metric, and facts for the report.
    """
    if metric == "xqda":
        xqda = XQDA().fit(features[low], features[~low], labels[low], labels[~low])
        directions = len(xqda.eigenvalues)
        facts = {
            "dimensions": xqda.projection.shape[1],
            "reg": xqda.reg,
            # Whose weight in the metric would be zero or less.
            "directions_left_out": directions - xqda.projection.shape[1],
        }
        return xqda.embed, facts
    nfst = NFST().fit(features, labels)
    return nfst.embed, {
        "dimensions": nfst.coefficients.shape[1],
        "kernel": nfst.kernel,
        "bandwidth": nfst.bandwidth,
    }


def run(args: argparse.Namespace) -> None:
    """Learn the metric and evaluate it on every data set of DATASETS.TESTS."""
    if args.limit == 1:
        raise ConfigError("--limit takes 2 identities or more (0: all)")
    cfg = settings(args)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    start_log(cfg.OUTPUT_DIR)
    with worker_pool(args.workers) as pool:
        frontend = build_frontend(cfg).to(cfg.MODEL.DEVICE).eval()

        def described(images: TestSet) -> Iterator[tuple[Batch, Features]]:
            return lomo_batches(restored(cfg, frontend, images), pool, not args.no_retinex)

        facts: dict[str, Any] = {
            "feature": "LOMO",
            "metric": args.metric,
            "retinex": not args.no_retinex,
            "sr": cfg.MODEL.SR.NAME,
            "sr_apply": cfg.MODEL.SR.APPLY,
        }
        embed: Embed = np.asarray
        if args.metric != "euclidean":
            embed, more = trained(cfg, args.metric, args.limit, described)
            facts |= more
        evaluate(cfg, facts, args.limit, described, embed)


def trained(
    cfg: CfgNode, metric: str, limit: int, described: Describe
) -> tuple[Embed, dict[str, Any]]:
    """Learn the metric from the training images: see :func:`learned` for what is returned."""
    train, low = training_set(cfg, limit)
    labels = np.array([sample.pid for sample in train.samples])
    features = np.empty((len(labels), DIMENSIONS), np.float32)
    for batch, rows in described(train):
        features[batch["index"].numpy()] = rows
    facts: dict[str, Any] = {
        "train_images": len(labels),
        "train_images_lr": int(low.sum()),
        "train_identities": len(np.unique(labels)),
    }
    lr = cfg.INPUT.LR
    facts |= {"range": list(lr.RANGE)} if lr.RANGE else {"factors": list(lr.FACTORS)}
    logger.info("Learning %s: %s", metric, _listed(facts))
    try:
        embed, more = learned(metric, features, labels, low)
    except ValueError as error:
        sets = ", ".join(cfg.DATASETS.NAMES)
        raise ConfigError(f"DATASETS.NAMES {sets}: can't be learned from: {error}") from error
    logger.info("Learned %s: %s", metric, _listed(more))
    return embed, facts | more


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def evaluate(
    cfg: CfgNode, facts: dict[str, Any], limit: int, described: Describe, embed: Embed
) -> None:
    """Evaluate on every data set of DATASETS.TESTS, and write the results with ``facts``."""
    more: dict[str, Any] = {"classical": facts}
    if cfg.MODEL.WEIGHTS:  # of the front-end
        _, training = read_checkpoint(cfg.MODEL.WEIGHTS, "MODEL.SR.WEIGHTS")
        more |= {"training": training} if training else {}
    for name in cfg.DATASETS.TESTS:
        test_set = limited(build_test_set(cfg, name), limit)
        test_set = replace(test_set, info={**test_set.info, **more})
        evaluator = CrossResolutionEvaluator(cfg, test_set, cfg.OUTPUT_DIR)
        for batch, rows in described(test_set):
            evaluator.process(batch, torch.from_numpy(embed(rows)))
        evaluator.evaluate()


# ---------------------------------------------------------------- command line
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="YAML that names the data"
    )
    parser.add_argument("--metric", required=True, choices=METRICS)
    parser.add_argument(
        "--sr",
        required=True,
        metavar="NAME|CHECKPOINT",
        help="front-end by name (Bilinear, Bicubic ...), or weights of the config's own",
    )
    parser.add_argument("--no-retinex", action="store_true", help="colours as the camera took them")
    parser.add_argument(
        "--limit",
        type=at_least(0),
        default=0,
        metavar="N",
        help="N identities only, for a quick trial",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that compute features (default: one per processor)",
    )
    add_overrides(parser)
