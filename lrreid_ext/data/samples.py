"""What a test set is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

QUERY, GALLERY, QUERY_HR = "query", "gallery", "query_hr"


def factor_group(factor: float) -> str:
    """Group name of the queries degraded by one common factor: ``x2``, ``x2.5``."""
    return f"x{factor:g}"


@dataclass(frozen=True)
class Sample:
    """One test image.

    Attributes:
        path: image file.
        pid: identity; 0 a distractor (in the gallery, never right), below 0 junk (left out).
        camid: camera.
        group: ``query``, ``gallery``, ``query_hr`` (the high-resolution twin of a query), or
            ``x2``, ``x3`` ... (every query's twin degraded by that factor).
        factor: how much the image is reduced, >= 1; 1 means not at all, NaN that it is
            low-resolution by nature and nobody knows by how much.
        degrade: if above 1, the file is reduced by this factor when it is read.
        kernel: the degradation kernel used for ``degrade``.
        seed: of what the kernel draws, together with the file's name.
    """

    path: str
    pid: int
    camid: int
    group: str
    factor: float = 1.0
    degrade: float = 1.0
    kernel: str = "bicubic"
    seed: int = 0


@dataclass(frozen=True)
class TestSet:
    """All images of one evaluation, features of which are extracted once.

    Attributes:
        name: the data set's name as in ``DATASETS.TESTS``.
        samples: all groups; their positions are the batch's ``index``.
        manifest_hash: hash of the recipe's manifest, or "" for a data set without one.
        info: what a report should name beside the figures (recipe, seed, split ...).
        synthetic: whether the images show nobody, so that they may be pictured anywhere.
    """

    __test__ = False  # pytest must not take this for a test class

    name: str
    samples: list[Sample]
    manifest_hash: str = ""
    info: dict[str, object] = field(default_factory=dict)
    synthetic: bool = False

    @property
    def files(self) -> int:
        """How many image files there are; some are looked at several times, reduced."""
        return len({sample.path for sample in self.samples})
