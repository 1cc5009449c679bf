"""A gallery of mixed resolutions: part of its images reduced, which ones drawn by file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrreid_ext.data.degrade import draw_factor, hash_unit
from lrreid_ext.data.samples import GALLERY, TestSet
from lrreid_ext.errors import ConfigError

__all__ = ["mixed_gallery"]


def mixed_gallery(
    test_set: TestSet, share: float, factors: Sequence[float], seed: int, kernel: str = "bicubic"
) -> TestSet:
    """The test set with part of its HR gallery images reduced when they are read.

    Whether an image is reduced, and by which factor, depends on its file's name and the seed alone:
    neither on the other images nor on their order. Images that are low-resolution already stay as
    they are. Queries are not touched.

    Args:
        test_set: the images.
        share: how likely an image is to be reduced, 0 to 1.
        factors: the factors to draw from, each > 1.
        seed: of the draws.
        kernel: one of :func:`lrreid_ext.data.degrade.known_kernels`.

    Raises:
        ConfigError: the gallery has no HR image.
    """
    if share <= 0:
        return test_set
    if not any(s.group == GALLERY and s.factor == 1 for s in test_set.samples):
        raise ConfigError(
            f"TEST.GALLERY.LR_SHARE: {test_set.name}'s gallery has no HR image to reduce; set it 0"
        )
    samples = []
    for sample in test_set.samples:
        name = Path(sample.path).name
        drawn = hash_unit(f"gallery {name}", seed) < share
        if sample.group == GALLERY and sample.factor == 1 and drawn:
            factor = draw_factor(f"gallery factor {name}", seed, factors)
            sample = replace(sample, factor=factor, degrade=factor, kernel=kernel, seed=seed)
        samples.append(sample)
    how = {"share": share, "factors": [float(f) for f in factors], "kernel": kernel, "seed": seed}
    return replace(test_set, samples=samples, info={**test_set.info, "mixed_gallery": how})
