"""Sources with two camera folders that hold one image each of every identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from lrreid_ext.data.recipes.base import EITHER, TRAIN, SourceImage
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.data.recipes.splits import IdentitySplit
from lrreid_ext.errors import RecipeError

__all__ = ["CAMERA_FOLDERS", "PairSource"]

#: Cameras A and B, numbered 1 and 2.
CAMERA_FOLDERS = ("cam_a", "cam_b")


class PairSource(IdentitySplit):
    """Folders ``cam_a`` and ``cam_b`` with one image each of every identity.

    Built files are called after folder and file, ``cam_a_<name>``, for both folders use one name.
    """

    expected = f"the folders {' and '.join(CAMERA_FOLDERS)}"
    #: What image files are called; its first group is the identity's number.
    file_name: ClassVar[re.Pattern[str]]
    #: What the names of images begin with, where folders hold other image files too.
    prefix: ClassVar[str] = ""
    #: Such a name.
    example: ClassVar[str]
    #: What is added to the identity's number, for 0 means a distractor.
    pid_offset: ClassVar[int] = 0

    def _people(self, folder: Path) -> dict[str, str]:
        """Name of each identity's image in one camera's folder.

        Raises:
            RecipeError: an identity that has two.
        """
        names: dict[str, str] = {}
        for name in image_names(folder):
            if not name.startswith(self.prefix):
                continue
            match = self.file_name.fullmatch(name)
            if match is None:
                raise RecipeError(
                    f"{folder / name}: not named as {self.source_name} does ({self.example})."
                )
            if match[1] in names:
                raise RecipeError(
                    f"{folder}: {names[match[1]]} and {name} are both of identity {match[1]}; "
                    f"{self.source_name} has one image for each identity and camera."
                )
            names[match[1]] = name
        return names

    def holds(self, folder: Path) -> bool:
        return all((folder / camera).is_dir() for camera in CAMERA_FOLDERS)

    def read(self, root: Path) -> list[SourceImage]:
        cameras = [self._people(root / camera) for camera in CAMERA_FOLDERS]
        if lone := sorted(cameras[0].keys() ^ cameras[1].keys()):
            lacking = root / CAMERA_FOLDERS[lone[0] in cameras[0]]
            raise RecipeError(f"{lacking}: holds no image of identity {lone[0]}.")
        train = self.training(root, cameras[0])
        return [
            SourceImage(
                path=f"{folder}/{name}",
                pid=int(person) + self.pid_offset,
                camid=camid,
                role=TRAIN if person in train else EITHER,
                name=f"{folder}_{name}",
            )
            for camid, (folder, people) in enumerate(
                zip(CAMERA_FOLDERS, cameras, strict=True), start=1
            )
            for person, name in sorted(people.items())
        ]
