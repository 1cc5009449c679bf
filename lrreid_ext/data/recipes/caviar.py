"""CAVIAR4REID, whose second camera is low-resolution by nature."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import NonNegativeInt

from lrreid_ext.data.recipes.base import EITHER, GALLERY, TRAIN, SourceImage
from lrreid_ext.data.recipes.rules import ByCamera
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.data.recipes.splits import IdentitySplit, drawn_identities
from lrreid_ext.errors import RecipeError

__all__ = ["CaviarRecipe", "SALRCaviarRecipe"]

_NAME = re.compile(r"(\d{4})(\d{3})\.jpg")
HR_CAMERA, LR_CAMERA = 1, 2
# Images of each identity by each camera that saw it.
SHOTS = 10


class CaviarRecipe(IdentitySplit, ByCamera):
    """CAVIAR4REID: LR queries from the far camera, HR gallery from the near one.

    Files are called PPPPIII.jpg, PPPP the identity, III 001-010 from the near camera (number 1
    here) and 011-020 from the far one (number 2), ten each; 72 people, 50 seen by both cameras.

    Nothing is reduced: the far camera's images are small by nature. Their factor is unknown (null
    in the manifest, NaN in a test set), in the training split too, and they have no HR twins, so
    that a test set has neither ``query_hr`` nor groups by factor.

    Attributes:
        identities: how many seen by both cameras the source must hold; those seen by one are left
            out.
        one_camera: how many of those seen by one camera train nevertheless, the first of their
            sorted names permuted as the others are.
    """

    source_name = "CAVIAR4REID"
    where_to_get = "http://www.lorisbazzani.info/caviar4reid.html"
    terms = "no licence is stated; made for research, cite Cheng et al. 2011"
    source_folders = ("CAVIAR4REID", "caviar", "CAVIARa")
    expected = "a folder of files called PPPPIII.jpg (0001001.jpg ...)"
    genuine_lr = frozenset({LR_CAMERA})

    identities: int = 50
    train_identities: int = 25
    one_camera: NonNegativeInt = 0

    def holds(self, folder: Path) -> bool:
        return any(_NAME.fullmatch(name) for name in image_names(folder))

    def read(self, root: Path) -> list[SourceImage]:
        files = []
        shots: Counter[tuple[str, int]] = Counter()
        for name in image_names(root):
            match = _NAME.fullmatch(name)
            if match is None or not 1 <= int(match[2]) <= 20 or int(match[1]) == 0:
                raise RecipeError(
                    f"{root / name}: not a CAVIAR4REID name (PPPPIII.jpg, III 001 to 020)."
                )
            camid = HR_CAMERA if int(match[2]) <= 10 else LR_CAMERA
            shots[match[1], camid] += 1
            files.append((name, match[1], camid))
        people = {person for person, _ in shots}
        both = {person for person in people if len({(person, 1), (person, 2)} & shots.keys()) == 2}
        train = self.training(root, both) | self._one_camera(people - both)
        for (person, camid), count in sorted(shots.items()):
            if count != SHOTS:
                raise RecipeError(
                    f"{root}: identity {person} has {count} images by camera {camid}, not {SHOTS}. "
                    "Get the data set again."
                )
        return [
            SourceImage(
                path=name,
                pid=int(person),
                camid=camid,
                role=TRAIN if person in train else EITHER,
            )
            for name, person, camid in files
            if person in both | train
        ]

    def _one_camera(self, people: set[str]) -> set[str]:
        if self.one_camera > len(people):
            raise self.error(
                "one_camera", f"{self.one_camera}; only {len(people)} are seen by one camera"
            )
        return drawn_identities(people, self.one_camera, self.split)

    def lr_cameras(self, images: Sequence[SourceImage]) -> dict[int, int]:
        return self.fixed_camera(images, LR_CAMERA)


class SALRCaviarRecipe(CaviarRecipe):
    """CAVIAR4REID as CSR-GAN has it: HR queries, LR gallery; 44 people train, 10 test.

    CSR-GAN keeps 54 people and calls 18 seen by one camera; SING finds 22, and 50 seen by both.
    Both hold if four of the 22 are kept, who can but train: 40 + 4 train here, 10 test.
    """

    lr_role = GALLERY

    train_identities: int = 40
    one_camera: int = 4
