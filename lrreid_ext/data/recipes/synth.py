"""Seeded procedural people: a data set that needs no download and shows nobody."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from PIL import Image

from lrreid_ext.data.recipes.base import EITHER, TRAIN, SourceImage
from lrreid_ext.data.recipes.rules import MLRRecipe

__all__ = ["SynthRecipe"]

# The renderer draws this many consecutive identities alike, apart from fine texture.
LOOK_ALIKES = 4


@cache
def _renderer_digest() -> str:
    """SHA-256 of the renderer's code: another renderer draws other images."""
    module = importlib.import_module("lrreid_ext.data.synth")
    file = Path(str(module.__file__))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SynthRecipe(MLRRecipe):
    """Rendered people; cameras are numbered from 0, identities from 1.

    Clusters of look-alikes, which differ by fine texture only, are never divided between train and
    test. ``seed`` gives the people, the split (with ``split``) and the factors.

    Attributes:
        split: number of the split.
        identities: how many people.
        cameras: how many cameras see each of them.
        shots: images of each person by each camera.
        height, width: of the undegraded images, in pixels.
        train_fraction: share of the clusters that trains.
    """

    source_name: ClassVar[str] = "nothing (rendered)"
    where_to_get: ClassVar[str] = "made here, no download"
    terms: ClassVar[str] = "this project's licence; no real person is shown"
    needs_source: ClassVar[bool] = False
    synthetic: ClassVar[bool] = True

    split: int = 0
    identities: int = 240
    cameras: int = 4
    shots: int = 2
    height: int = 128
    width: int = 64
    train_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, least in (
            ("split", 0),
            ("seed", 0),
            ("cameras", 2),
            ("shots", 1),
            ("height", 32),
            ("width", 16),
        ):
            self._at_least(option, least)
        if self.identities <= LOOK_ALIKES:
            raise self.error(
                "identities",
                f"{self.identities}; needs more than {LOOK_ALIKES}, for {LOOK_ALIKES} look-alikes "
                "at a time share a split",
            )
        if not 0 < self.train_fraction < 1:
            raise self.error("train_fraction", f"{self.train_fraction:g}; lies between 0 and 1")

    def locate(self, source: Path) -> Path:
        from lrreid_ext.data.synth import NUM_CAMERAS

        if self.cameras > NUM_CAMERAS:
            raise self.error("cameras", f"{self.cameras}; the renderer has {NUM_CAMERAS}")
        return source

    def read(self, root: Path) -> list[SourceImage]:
        clusters = -(-self.identities // LOOK_ALIKES)
        order = np.random.default_rng([self.seed, self.split]).permutation(clusters)
        count = min(max(round(self.train_fraction * clusters), 1), clusters - 1)
        train = set(order[:count].tolist())
        images = []
        for identity in range(self.identities):
            trains = identity // LOOK_ALIKES in train
            images += [
                SourceImage(
                    path=f"{identity + 1:05d}_c{camera}_{shot:03d}.png",
                    pid=identity + 1,
                    camid=camera,
                    split="train" if trains else "test",
                    role=TRAIN if trains else EITHER,
                )
                for camera in range(self.cameras)
                for shot in range(self.shots)
            ]
        return images

    def load(self, root: Path, image: SourceImage) -> Image.Image:
        from lrreid_ext.data.synth import render

        shot = int(PurePosixPath(image.path).stem.rsplit("_", 1)[1])
        pixels = render(
            image.pid - 1,
            image.camid,
            shot,
            seed=self.seed,
            height=self.height,
            width=self.width,
        )
        return Image.fromarray(pixels)

    def source_digest(self, root: Path, image: SourceImage) -> str:
        return _renderer_digest()
