"""Seeded procedural people: a data set that needs no download and shows nobody."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

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

    source_name = "nothing (rendered)"
    where_to_get = "made here, no download"
    terms = "this project's licence; no real person is shown"
    needs_source = False
    synthetic = True

    seed: NonNegativeInt = 0
    split: NonNegativeInt = 0
    # Look-alikes share a split, so that fewer people can't be divided.
    identities: Annotated[int, Field(gt=LOOK_ALIKES)] = 240
    cameras: Annotated[int, Field(ge=2)] = 4
    shots: PositiveInt = 2
    height: Annotated[int, Field(ge=32)] = 128
    width: Annotated[int, Field(ge=16)] = 64
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5

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
