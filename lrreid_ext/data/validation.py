"""The training identities that a fold leaves out, as a test set: for tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrreid_ext.config import CfgNode, ConfigError
from lrreid_ext.data.degrade import draw_factor, hash_unit
from lrreid_ext.data.folds import fold_of
from lrreid_ext.data.recipes.dataset import RecipeDataset
from lrreid_ext.data.recipes.dataset import _twin_samples as twin_samples
from lrreid_ext.data.samples import GALLERY, QUERY, Sample, TestSet


def validation_set(cfg: CfgNode, data: Any, name: str) -> TestSet:
    """The identities left out by ``DATASETS.FOLD``, arranged as the test set is.

    Queries are the images of the recipe's LR camera (of the first camera, if the data set is no
    recipe; of a random one for each identity, if the recipe says so), degraded on reading by
    INPUT.LR's factors, drawn by file name; genuinely small ones stay as they are. The gallery is
    what the other cameras took.

    Args:
        cfg: DATASETS.FOLD, INPUT.LR, TEST.FACTORS, TEST.HR and SEED.
        data: the data set.
        name: its name in DATASETS.TESTS.

    Raises:
        ConfigError: there is no fold, or its queries or gallery are empty.
    """
    if not cfg.DATASETS.FOLD:
        raise ConfigError(
            "DATASETS.FOLD: is empty, so that every training identity was trained on; train with "
            "[i, k], which leaves the i-th of k parts out"
        )
    items = fold_of(sorted(data.train), cfg.DATASETS.FOLD, cfg.SEED, left_out=True)
    identities = {pid: i for i, pid in enumerate(sorted({p for _, p, _ in items}, key=str), 1)}
    cameras = {cam: i for i, cam in enumerate(sorted({c for *_, c in data.train}, key=str), 1)}
    genuine = {f"{name}_{number}" for number in getattr(data, "genuine_lr", ())}
    lr = cfg.INPUT.LR
    samples, twins = [], []
    for path, pid, camera in items:
        own = sorted({c for _, p, c in items if p == pid}, key=str)
        place = (path, identities[pid], cameras[camera])
        if camera != _lr_camera(data, name, pid, own, sorted(cameras, key=str)):
            samples.append(Sample(*place, GALLERY))
        elif camera in genuine:
            samples.append(Sample(*place, QUERY, factor=float("nan")))
        else:
            span = (lr.RANGE[0], lr.RANGE[1]) if lr.RANGE else None
            drawn = None if span else lr.FACTORS
            factor = draw_factor(Path(path).name, cfg.SEED, drawn, span)
            samples.append(Sample(*place, QUERY, factor, factor, lr.KERNEL))
            twins.append(place)
    for role in (QUERY, GALLERY):
        if not any(s.group == role for s in samples):
            raise ConfigError(f"DATASETS.FOLD: {name} has no image left out that could be {role}")
    samples += twin_samples(twins, cfg.TEST.FACTORS, cfg.TEST.HR, lr.KERNEL)
    info = {"validation": "training identities left out", "fold": list(cfg.DATASETS.FOLD)}
    manifest_hash = data.manifest.hash if isinstance(data, RecipeDataset) else ""
    return TestSet(f"{name}_validation", samples, manifest_hash, info)


def _lr_camera(data: Any, name: str, pid: Any, own: list[Any], all_cameras: list[Any]) -> Any:
    wanted = data.recipe.lr_camera if isinstance(data, RecipeDataset) else None
    if isinstance(wanted, int):
        return f"{name}_{wanted}"
    if wanted is None:
        return all_cameras[0]
    return own[int(hash_unit(f"validation camera of {pid}", 0) * len(own))]
