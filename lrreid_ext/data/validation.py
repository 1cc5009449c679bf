"""The training identities that a fold leaves out, as a test set: for tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrreid_ext.config import CfgNode
from lrreid_ext.data.folds import fold_of
from lrreid_ext.data.lr_images import with_factors
from lrreid_ext.data.recipes.dataset import RecipeDataset, twin_samples
from lrreid_ext.data.recipes.rules import ByCamera, VariedWidthRecipe
from lrreid_ext.data.samples import GALLERY, QUERY, Sample, TestSet
from lrreid_ext.errors import ConfigError


def validation_set(cfg: CfgNode, data: Any, name: str) -> TestSet:
    """The identities left out by ``DATASETS.FOLD``, arranged as the test set is.

    The images of the low-resolution camera are the queries (the gallery, where the recipe's test
    set has it so), degraded on reading by INPUT.LR's factors, drawn by file name; genuinely small
    ones stay as they are. What the other cameras took is the other side.

    Args:
        cfg: DATASETS.FOLD, INPUT.LR, TEST.FACTORS, TEST.HR and SEED.
        data: the data set.
        name: its name in DATASETS.TESTS.

    Raises:
        ConfigError: there is no fold, one side is empty, or the recipe reduces both.
    """
    if not cfg.DATASETS.FOLD:
        raise ConfigError(
            "DATASETS.FOLD: is empty, so that every training identity was trained on; train with "
            "[i, k], which leaves the i-th of k parts out"
        )
    recipe = data.recipe if isinstance(data, RecipeDataset) else None
    if isinstance(recipe, VariedWidthRecipe):
        raise ConfigError(f"TEST.ON_FOLD: {name} reduces queries and gallery alike; no fold of it")
    lr_role = recipe.lr_role if isinstance(recipe, ByCamera) else QUERY
    hr_role = GALLERY if lr_role == QUERY else QUERY
    items = fold_of(sorted(data.train), cfg.DATASETS.FOLD, cfg.SEED, left_out=True)
    identities = {pid: i for i, pid in enumerate(sorted({p for _, p, _ in items}, key=str), 1)}
    cameras = {cam: i for i, cam in enumerate(sorted({c for *_, c in data.train}, key=str), 1)}
    samples, twins = [], []
    for image in with_factors(cfg, data, name, items):
        place = (image.path, identities[image.pid], cameras[image.camera])
        role = lr_role if image.low else hr_role
        kernel = cfg.INPUT.LR.KERNEL
        samples.append(Sample(*place, role, image.factor, image.degrade, kernel, cfg.SEED))
        if role == QUERY and image.low and image.factor == image.factor:  # its HR image is known
            twins.append(place)
    for role in (QUERY, GALLERY):
        if not any(s.group == role for s in samples):
            raise ConfigError(f"DATASETS.FOLD: {name} has no image left out that could be {role}")
    samples += twin_samples(twins, cfg.TEST.FACTORS, cfg.TEST.HR, cfg.INPUT.LR.KERNEL, cfg.SEED)
    info: dict[str, object] = {"validation": "training identities left out"}
    info["fold"] = list(cfg.DATASETS.FOLD)
    manifest_hash = data.manifest.hash if isinstance(data, RecipeDataset) else ""
    synthetic = recipe is not None and recipe.synthetic
    return TestSet(f"{name}_validation", samples, manifest_hash, info, synthetic)


def check_fold(cfg: CfgNode, training: Mapping[str, Any], path: str) -> None:
    """Refuse to evaluate on identities that the weights were trained with.

    Args:
        cfg: DATASETS.FOLD, SEED.
        training: what the checkpoint says of its training.
        path: the checkpoint, for the message.

    Raises:
        ConfigError: it was trained with another fold or seed, or doesn't say.
    """
    asked = [list(cfg.DATASETS.FOLD), cfg.SEED]
    trained = [list(training.get("fold", [])), training.get("seed")]
    if asked != trained:
        raise ConfigError(
            f"TEST.ON_FOLD: DATASETS.FOLD {asked[0]} with SEED {asked[1]} is asked for, but {path} "
            f"was trained with FOLD {trained[0]} and SEED {trained[1]}: it knows these identities"
        )
