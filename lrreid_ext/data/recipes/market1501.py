"""MLR- and VR-Market-1501, and any folder in Market-1501's naming."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from lrreid_ext.data.labels import market_label
from lrreid_ext.data.recipes.base import (
    EITHER,
    GALLERY,
    QUERY,
    TRAIN,
    Recipe,
    SourceImage,
    one_of,
)
from lrreid_ext.data.recipes.rules import MLRRecipe, VariedWidthRecipe
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.errors import RecipeError

__all__ = ["FolderRecipe", "MarketRecipe", "MarketSource", "VRMarketRecipe"]

logger = logging.getLogger(__name__)

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
QUERIES = ("query", "all")


class MarketSource(Recipe):
    """Market-1501, or any data set named like it: ``PPPP_cCsS_FFFFFF_NN.jpg`` or ``.png``.

    P is the identity (0000 a distractor, -1 junk, which is dropped) and C the camera. The folder
    ``query`` holds possible queries, ``bounding_box_test`` the gallery.
    """

    source_name = "Market-1501"
    where_to_get = (
        "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html (Market-1501-v15.09.15.zip)"
    )
    terms = "for academic research only"
    source_folders: ClassVar[tuple[str, ...]] = (
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501",
    )
    expected = f"the folders {', '.join(FOLDERS)}"
    #: Image files in the three folders of the data set itself; () where there is no such set.
    whole: ClassVar[tuple[int, ...]] = (12936, 3368, 19732)

    def holds(self, folder: Path) -> bool:
        needed = FOLDERS if self.needs_train else FOLDERS[1:]
        return all((folder / name).is_dir() for name in needed)

    def read(self, root: Path) -> list[SourceImage]:
        listed = {
            folder: image_names(root / folder)
            for folder in FOLDERS
            if self.needs_train or (root / folder).is_dir()
        }
        self._check_counts(root, {folder: len(names) for folder, names in listed.items()})
        images = []
        for folder, names in listed.items():
            for name in names:
                label = market_label(name)
                if label is None:
                    raise RecipeError(
                        f"{root / folder / name}: not named as Market-1501 does "
                        "(0002_c1s1_000451_03.jpg: identity, camera, ...)."
                    )
                pid, camid = label
                if pid < 0:
                    continue
                images.append(
                    SourceImage(
                        path=f"{folder}/{name}",
                        pid=pid,
                        camid=camid,
                        role=self._source_role(folder, pid),
                    )
                )
        return images

    def _check_counts(self, root: Path, held: Mapping[str, int]) -> None:
        """Other data sets may be named alike, and hold what they do. But where one folder is as
        large as the data set's own, another that isn't was cut short."""
        for folder, count in held.items():
            if not count:
                raise RecipeError(f"{root / folder}: holds no image.")
        counts = tuple(held.values())
        if not self.whole or counts == self.whole:
            return
        same = [count == whole for count, whole in zip(counts, self.whole, strict=True)]
        if any(same):
            wrong = same.index(False)
            raise RecipeError(
                f"{root / FOLDERS[wrong]}: holds {counts[wrong]} images; {self.source_name} has "
                f"{self.whole[wrong]} there, and {FOLDERS[same.index(True)]} is as in it. Get the "
                "data set again."
            )
        logger.warning(
            "%s: holds %s images where %s has %s. Is this another data set in its naming, or "
            "a part of it?",
            *(root, " + ".join(map(str, counts)), self.source_name),
            " + ".join(map(str, self.whole)),
        )

    def _source_role(self, folder: str, pid: int) -> str:
        return {"bounding_box_train": TRAIN, "query": QUERY}.get(folder, GALLERY)


class MarketRecipe(MarketSource, MLRRecipe):
    """MLR-Market-1501. Queries are the LR camera's images; the gallery is what the other cameras
    took of ``bounding_box_test``, distractors included. Training images keep their resolution.

    Attributes:
        queries: ``query``, the LR camera's images in the folder ``query``; or ``all``, those in
            ``bounding_box_test`` too (distractors excepted).
    """

    queries: Annotated[str, one_of(QUERIES)] = "query"

    def _source_role(self, folder: str, pid: int) -> str:
        role = super()._source_role(folder, pid)
        return EITHER if role == GALLERY and self.queries == "all" and pid > 0 else role


class FolderRecipe(MarketRecipe):
    """Your own images, in folders and files named as Market-1501 names its own.

    ``bounding_box_train``, ``query`` and ``bounding_box_test`` hold files called
    ``0002_c1<anything>.jpg`` (or png, bmp): identity 2, camera 1. Identity 0 is a distractor, which
    only the gallery may hold, and -1 is passed over. Without the first folder the set is for
    testing alone.
    """

    source_name = "a folder in Market-1501's naming"
    where_to_get = (
        "you name the files, bounding_box_train/0002_c1_<anything>.jpg: identity 2, camera 1"
    )
    terms = "those of your images; the people in them have a say"
    source_folders = ()
    expected = f"the folders {' and '.join(FOLDERS[1:])}"
    whole = ()
    needs_train = False


class VRMarketRecipe(MarketSource, VariedWidthRecipe):
    """VR-Market-1501: folder ``query`` against ``bounding_box_test``, all of them reduced.

    Images are 64 pixels wide, so the widths 8 to 31 are factors from above 2 to 8: train with
    INPUT.LR.WIDTHS [8, 32], or INPUT.LR.RANGE [2, 8].
    """
