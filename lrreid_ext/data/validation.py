"""The training identities that a fold leaves out, as a test set: for tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrreid_ext.config import CfgNode, ConfigError
from lrreid_ext.data.degrade import draw_factor, hash_unit
from lrreid_ext.data.folds import fold_of
from lrreid_ext.data.recipes import Recipe
from lrreid_ext.data.recipes.dataset import RecipeDataset, twin_samples
from lrreid_ext.data.recipes.rules import RANDOM_CAMERA, ByCamera, VariedWidthRecipe
from lrreid_ext.data.samples import GALLERY, QUERY, Sample, TestSet


def validation_set(cfg: CfgNode, data: Any, name: str) -> TestSet:
    """The identities left out by ``DATASETS.FOLD``, arranged as the test set is.

    The images of the low-resolution camera are the queries (the gallery, where the recipe's test
    set has it so), degraded on reading by INPUT.LR's factors, drawn by file name; genuinely small
    ones stay as they are. What the other cameras took is the other side. Which camera it is says
    the recipe; where it draws one for each identity, so does this; of a data set that is no recipe
    it is the first.

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
    genuine = {f"{name}_{number}" for number in getattr(data, "genuine_lr", ())}
    lr = cfg.INPUT.LR
    span = (lr.RANGE[0], lr.RANGE[1]) if lr.RANGE else None
    samples, twins = [], []
    for path, pid, camera in items:
        own = sorted({c for _, p, c in items if p == pid}, key=str)
        place = (path, identities[pid], cameras[camera])
        if camera != _lr_camera(recipe, name, pid, own, min(cameras, key=str), genuine):
            samples.append(Sample(*place, hr_role))
        elif camera in genuine:
            samples.append(Sample(*place, lr_role, factor=float("nan")))
        else:
            factors = None if span else lr.FACTORS
            factor = draw_factor(Path(path).name, cfg.SEED, factors, span)
            samples.append(Sample(*place, lr_role, factor, factor, lr.KERNEL))
            twins += [place] if lr_role == QUERY else []
    for role in (QUERY, GALLERY):
        if not any(s.group == role for s in samples):
            raise ConfigError(f"DATASETS.FOLD: {name} has no image left out that could be {role}")
    samples += twin_samples(twins, cfg.TEST.FACTORS, cfg.TEST.HR, lr.KERNEL)
    info: dict[str, object] = {"validation": "training identities left out"}
    info["fold"] = list(cfg.DATASETS.FOLD)
    manifest_hash = data.manifest.hash if isinstance(data, RecipeDataset) else ""
    return TestSet(f"{name}_validation", samples, manifest_hash, info)


def _lr_camera(
    recipe: Recipe | None, name: str, pid: Any, own: list[Any], first: Any, genuine: set[str]
) -> Any:
    """Of the cameras that training images name."""
    if genuine:
        return next(iter(genuine))
    if recipe is None:
        return first
    wanted = getattr(recipe, "lr_camera", RANDOM_CAMERA)
    if isinstance(wanted, int):
        return f"{name}_{wanted}"
    return own[int(hash_unit(f"validation camera of {pid}", 0) * len(own))]
