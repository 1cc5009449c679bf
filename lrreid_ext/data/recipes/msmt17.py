"""VR-MSMT17."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lrreid_ext.data.recipes.base import GALLERY, QUERY, TRAIN, SourceImage, WholeNumbers
from lrreid_ext.data.recipes.rules import VariedWidthRecipe
from lrreid_ext.data.recipes.sources import read_text
from lrreid_ext.errors import RecipeError

__all__ = ["VRMSMT17Recipe"]

# Folders of the training and the test images, in versions 1 and 2 (faces blurred).
VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_LINE = re.compile(r"(\S*?\d+_\d+_(\d+)_[^/\s]*) (\d+)")


class VRMSMT17Recipe(VariedWidthRecipe):
    """VR-MSMT17: 15 cameras, 1041 people train and 3060 test.

    Read by its lists, whose lines are ``0000/0000_000_01_0303morning_0008_0.jpg 0``: the file, its
    third number the camera, and the identity. Identities begin at 0 in the training lists and again
    in the test lists; here the training ones are n + 1, and the test ones follow after them.

    Images are as wide as they were cut out, so factors differ; the drawn widths are 32 to 127.
    Train with INPUT.LR.WIDTHS [32, 128].

    Attributes:
        val: train on ``list_val.txt`` too, as most published figures do.
        train_identities, test_identities: how many the lists must name.
    """

    source_name = "MSMT17"
    where_to_get = "https://www.pkuvmc.com/dataset.html (signed release agreement)"
    terms = "release agreement: academic research only, not to be passed on"
    source_folders = ("MSMT17_V1", "MSMT17", "msmt17", "MSMT17_V2")
    expected = f"{', '.join(LISTS)}, and the folders train and test"
    listed = True

    widths: WholeNumbers = (32, 128)
    val: bool = True
    train_identities: int = 1041
    test_identities: int = 3060

    def holds(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in LISTS) and any(
            _has(folder, version) for version in VERSIONS
        )

    def read(self, root: Path) -> list[SourceImage]:
        train, test = next(version for version in VERSIONS if _has(root, version))
        training = [*_lines(root, LISTS[0], train)]
        if self.val:
            training += _lines(root, LISTS[1], train)
        tests = [
            (*line, role)
            for name, role in zip(LISTS[2:], (QUERY, GALLERY), strict=True)
            for line in _lines(root, name, test)
        ]
        self._check(root, "train", {pid for _, _, pid in training})
        self._check(root, "test", {pid for _, _, pid, _ in tests})
        after = max(pid for _, _, pid in training) + 1
        return [
            *(SourceImage(path, pid + 1, camid, TRAIN) for path, camid, pid in training),
            *(SourceImage(path, after + pid + 1, camid, role) for path, camid, pid, role in tests),
        ]

    def _check(self, root: Path, split: str, people: set[int]) -> None:
        option = f"{split}_identities"
        expected = getattr(self, option)
        if len(people) != expected:
            raise RecipeError(
                f"{root}: the lists name {len(people)} {split} identities where {expected} are "
                f"expected. Complete the lists, or set the option {option}."
            )


def _has(root: Path, version: tuple[str, str]) -> bool:
    return all((root / folder).is_dir() for folder in version)


def _lines(root: Path, name: str, folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, camera and identity of each line of a list.

    Raises:
        RecipeError: a list or line that can't be read, or a file that isn't there; names it.
    """
    for number, line in enumerate(read_text(root / name).splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise RecipeError(
                f"{root / name}, line {number}: {line!r} is not "
                "'0000/0000_000_01_0303morning_0008_0.jpg 0' (file, identity)."
            )
        if not (root / folder / match[1]).is_file():
            raise RecipeError(
                f"{root / name}, line {number}: no such file {root / folder / match[1]}."
            )
        yield f"{folder}/{match[1]}", int(match[2]), int(match[3])
