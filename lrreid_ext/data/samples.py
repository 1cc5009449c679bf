"""What a batch holds, and what a test set is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

QUERY, GALLERY, QUERY_HR = "query", "gallery", "query_hr"


class Batch(TypedDict, total=False):
    """B images. Training batches have the keys of both blocks, test batches the first and
    ``index``; what a model is given to embed needs ``images`` alone.

    Images are (B, 3, H, W) float, RGB, 0-255, at the network's input size. Native sizes are (B, 2)
    int64: height and width in pixels before resizing. Factors are (B,) float >= 1: how much the
    image was reduced; 1 not at all, NaN unknown.
    """

    #: What the network sees.
    images: Tensor
    native_size: Tensor
    factor: Tensor
    #: (B,) int64, the identity; in training its class, -1 without a label.
    targets: Tensor
    #: (B,) int64.
    camids: Tensor
    #: B paths of files.
    img_paths: list[str]
    #: (B,) int64, positions in :attr:`TestSet.samples`; in tests alone.
    index: Tensor

    #: The HR twins. Of images known only small, the small image.
    images_hr: Tensor
    native_size_hr: Tensor
    factor_hr: Tensor
    #: The LR twins; none with INPUT.LR.TRAIN_ON hr.
    images_lr: Tensor
    native_size_lr: Tensor
    factor_lr: Tensor
    #: The twins reduced by the one factor INPUT.LR.SYNTHETIC, if there is such a factor.
    images_synthetic: Tensor
    native_size_synthetic: Tensor
    factor_synthetic: Tensor
    #: (B,) bool, False for images known only small.
    has_hr: Tensor
    #: (B,) bool, whether training on mixed resolutions takes the LR twin.
    lr_mask: Tensor
    #: (B, 1, H, W) float, 0-1, the foreground; if INPUT.MASKS names a folder.
    masks: Tensor


#: The keys of each twin: images, native sizes, factors.
HR_TWIN = ("images_hr", "native_size_hr", "factor_hr")
LR_TWIN = ("images_lr", "native_size_lr", "factor_lr")
SYNTHETIC_TWIN = ("images_synthetic", "native_size_synthetic", "factor_synthetic")


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some of a batch's images: those at these positions (N,), or chosen by a mask (B,)."""
    positions = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
    values = {
        key: value[positions.to(value.device)]
        if isinstance(value, Tensor)
        else [value[i] for i in positions.tolist()]  # type: ignore[index]
        for key, value in batch.items()
    }
    return cast(Batch, values)


def with_twin(batch: Batch, twin: tuple[str, str, str]) -> Batch:
    """The batch with one of the twins as what the network sees: ``images``, ``native_size`` and
    ``factor``."""
    values: dict[str, Any] = dict(batch)
    values["images"], values["native_size"], values["factor"] = (values[key] for key in twin)
    return cast(Batch, values)


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
