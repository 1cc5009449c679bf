"""MLR-SYSU."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pydantic import PositiveInt

from lrreid_ext.data.degrade import hash_unit
from lrreid_ext.data.labels import market_label
from lrreid_ext.data.recipes.base import EITHER, TRAIN, SourceImage
from lrreid_ext.data.recipes.rules import Camera, MLRRecipe
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.data.recipes.splits import IdentitySplit
from lrreid_ext.errors import RecipeError

__all__ = ["SysuRecipe"]

CAMERA_FOLDERS = ("cam1", "cam2")


class SysuRecipe(IdentitySplit, MLRRecipe):
    """MLR-SYSU, of SYSU-mReID: 502 people, two cameras, camera 2 low-resolution.

    SYSU-mReID (not the infrared SYSU-MM01) is sent by its authors, and nothing public says how its
    folders are laid out. Two layouts are read; sort your copy into one of them:

    * ``cam1/<identity>/<file>`` and ``cam2/<identity>/<file>``, identities as numbers from 1;
    * all files in one folder, named as Market-1501 does: ``0001_c1_<anything>.jpg``.

    Of each identity and camera, ``shots`` images are drawn by a hash of the file's path and the
    seed, in the training split too; where there are fewer, all are taken.

    Attributes:
        shots: images of each identity and camera.
    """

    source_name = "SYSU-mReID"
    where_to_get = (
        "its authors send it (Chen, Zheng, Lai and Yuen, TCSVT 2017; Sun Yat-sen University)"
    )
    terms = "for research, as agreed with its authors"
    source_folders = ("SYSU-mReID", "sysu-mreid", "SYSU")

    expected = (
        "cam1/<identity>/<file> and cam2/<identity>/<file>, or files called 0001_c1_<...>.jpg"
    )

    lr_camera: Camera = 2
    identities: int = 502
    train_identities: int = 251
    shots: PositiveInt = 3

    def holds(self, folder: Path) -> bool:
        return all((folder / camera).is_dir() for camera in CAMERA_FOLDERS) or any(
            market_label(name) for name in image_names(folder)
        )

    def read(self, root: Path) -> list[SourceImage]:
        nested = (root / CAMERA_FOLDERS[0]).is_dir()
        paths_of = _nested(root) if nested else _flat(root)
        cameras: dict[int, set[int]] = defaultdict(set)
        for person, camid in paths_of:
            cameras[person].add(camid)
        train = self.training(root, {f"{person:04d}" for person in cameras})
        if lone := sorted(person for person, seen in cameras.items() if len(seen) < 2):
            raise RecipeError(f"{root}: identity {lone[0]} has images of one camera only.")
        return [
            SourceImage(
                path=path,
                pid=person,
                camid=camid,
                role=TRAIN if f"{person:04d}" in train else EITHER,
                name=path.replace("/", "_"),
            )
            for (person, camid), paths in sorted(paths_of.items())
            for path in self._drawn(paths)
        ]

    def _drawn(self, paths: list[str]) -> list[str]:
        # Not the name that the factor is drawn by: images of small hashes would get small factors.
        return sorted(paths, key=lambda path: hash_unit(f"shot {path}", self.seed))[: self.shots]


def _nested(root: Path) -> dict[tuple[int, int], list[str]]:
    """Paths by identity and camera, of ``cam1/<identity>/<file>``."""
    paths_of: dict[tuple[int, int], list[str]] = {}
    for camid, camera in enumerate(CAMERA_FOLDERS, start=1):
        for folder in sorted(path for path in (root / camera).iterdir() if path.is_dir()):
            if not folder.name.isdecimal() or int(folder.name) == 0:
                raise RecipeError(f"{folder}: not the number of an identity, from 1.")
            paths = [f"{camera}/{folder.name}/{name}" for name in image_names(folder)]
            if not paths:
                raise RecipeError(f"{folder}: holds no image.")
            paths_of.setdefault((int(folder.name), camid), []).extend(paths)
    return paths_of


def _flat(root: Path) -> dict[tuple[int, int], list[str]]:
    """Paths by identity and camera, of files named as Market-1501 does."""
    paths_of: dict[tuple[int, int], list[str]] = {}
    for name in image_names(root):
        label = market_label(name)
        if label is None or label[0] < 1 or label[1] not in (1, 2):
            raise RecipeError(
                f"{root / name}: not named 0001_c1_<...>.jpg, identity from 1 and camera 1 or 2."
            )
        paths_of.setdefault(label, []).append(name)
    return paths_of
