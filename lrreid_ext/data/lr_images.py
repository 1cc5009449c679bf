"""Which training images are low-resolution ones, and by what factor, as in the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lrreid_ext.config import CfgNode
from lrreid_ext.data.degrade import draw_factor, draw_width
from lrreid_ext.data.folds import Item
from lrreid_ext.data.recipes import RecipeDataset, SourceImage
from lrreid_ext.data.recipes.base import EITHER
from lrreid_ext.data.recipes.rules import ByCamera, VariedWidthRecipe

__all__ = ["TrainingImage", "low_resolution_cameras", "with_factors"]


@dataclass(frozen=True)
class TrainingImage:
    """One training image.

    Attributes:
        path, pid, camera: as the data set's ``train`` has them.
        low: whether it is a low-resolution image.
        factor: what it is to be reduced by; 1 of the others, NaN if it is small by nature.
    """

    path: str
    pid: Any
    camera: Any
    low: bool
    factor: float

    @property
    def degrade(self) -> float:
        """The factor to reduce the file by: 1 leaves it as it is."""
        return self.factor if self.factor > 1 else 1.0


def low_resolution_cameras(data: Any, name: str, items: Sequence[Item]) -> Mapping[Any, Any]:
    """The low-resolution camera of each identity, as ``items`` names both.

    The recipe's own rule decides. Of a data set that is no recipe, or whose recipe has no such
    camera, it is the first one.

    Args:
        data: the data set.
        name: its name in the config.
        items: ``(path, identity, camera)``, some of ``data.train``.
    """
    if not (isinstance(data, RecipeDataset) and isinstance(data.recipe, ByCamera)):
        first = min({camera for *_, camera in data.train}, key=str)
        return dict.fromkeys({pid for _, pid, _ in items}, first)
    known = {f"{name}_{r.pid}": r.pid for r in data.manifest.of_role("train")}
    images = [
        # As if they were test images, of which the recipe has to find queries and gallery.
        SourceImage(path, known[pid], int(str(camera).rsplit("_", 1)[1]), EITHER)
        for path, pid, camera in items
    ]
    cameras = data.recipe.lr_cameras(images)
    return {pid: f"{name}_{cameras[number]}" for pid, number in known.items() if number in cameras}


def with_factors(cfg: CfgNode, data: Any, name: str, items: Sequence[Item]) -> list[TrainingImage]:
    """Training images, with a factor for each that is to be low-resolution.

    Args:
        cfg: INPUT.LR (FACTORS, RANGE or WIDTHS: what a factor is drawn from, by the file's name and
            SEED).
        data: the data set.
        name: its name in the config.
        items: ``(path, identity, camera)``, some of ``data.train``.
    """
    lr = cfg.INPUT.LR
    everything = isinstance(data, RecipeDataset) and isinstance(data.recipe, VariedWidthRecipe)
    cameras = {} if everything else low_resolution_cameras(data, name, items)
    genuine = {f"{name}_{number}" for number in getattr(data, "genuine_lr", ())}
    span = (lr.RANGE[0], lr.RANGE[1]) if lr.RANGE else None

    def factor_of(path: str) -> float:
        if lr.WIDTHS:
            wanted = draw_width(Path(path).name, cfg.SEED, lr.WIDTHS)
            with Image.open(path) as image:
                return max(1.0, image.width / wanted)
        return draw_factor(Path(path).name, cfg.SEED, None if span else lr.FACTORS, span)

    out = []
    for path, pid, camera in items:
        low = everything or cameras.get(pid) == camera
        factor = 1.0
        if low:
            factor = float("nan") if camera in genuine else factor_of(path)
        out.append(TrainingImage(path, pid, camera, low, factor))
    return out
