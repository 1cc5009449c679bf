"""MLR-CUHK01."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from lrreid_ext.data.recipes.base import EITHER, TRAIN, SourceImage
from lrreid_ext.data.recipes.rules import Camera, MLRRecipe
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.data.recipes.splits import IdentitySplit
from lrreid_ext.errors import RecipeError

__all__ = ["CUHK01Recipe"]

_NAME = re.compile(r"(\d{4})(00[1-4])\.png")
CAMERA_A, CAMERA_B = 1, 2


class CUHK01Recipe(IdentitySplit, MLRRecipe):
    """CUHK01: 971 people, two cameras, two images each; camera B is low-resolution.

    Files are called PPPPKKK.png, PPPP the identity, KKK 001-002 from camera A (number 1 here) and
    003-004 from camera B (number 2), 160 x 60 pixels.
    """

    source_name = "CUHK01"
    where_to_get = "https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html (CUHK01.zip)"
    terms = "for academic research; ask the authors for any other use"
    source_folders = ("CUHK01", "cuhk01", "campus", "CUHK01/campus")
    expected = "a folder of files called PPPPKKK.png (0001001.png ...)"
    image_size = (160, 60)

    lr_camera: Camera = CAMERA_B
    identities: int = 971
    train_identities: int = 485

    def holds(self, folder: Path) -> bool:
        return any(_NAME.fullmatch(name) for name in image_names(folder))

    def read(self, root: Path) -> list[SourceImage]:
        names = image_names(root)
        for name in names:
            if not _NAME.fullmatch(name):
                raise RecipeError(
                    f"{root / name}: not a CUHK01 name (PPPPKKK.png, KKK 001 to 004)."
                )
        counts = Counter(name[:4] for name in names)
        train = self.training(root, counts)
        if short := [person for person in sorted(counts) if counts[person] != 4]:
            raise RecipeError(f"{root}: identity {short[0]} has {counts[short[0]]} files, not 4.")
        return [
            SourceImage(
                path=name,
                pid=int(name[:4]),
                camid=CAMERA_A if name[4:7] in ("001", "002") else CAMERA_B,
                role=TRAIN if name[:4] in train else EITHER,
            )
            for name in names
        ]
