"""Front-ends that don't learn: none, and other interpolations than the loader's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import Tensor

from lrreid_ext.modeling.frontends.base import Frontend, FrontendOutput
from lrreid_ext.modeling.routing import is_exporting
from lrreid_ext.registry import FRONTEND_REGISTRY


class _Fixed(Frontend):
    """A front-end without parameters and options."""

    learns = False

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}


@FRONTEND_REGISTRY.register()
class Identity(_Fixed):
    """Hands the images on as they are."""

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        """The images themselves."""
        return FrontendOutput(images)


class _Interpolation(_Fixed):
    """Enlarges each image's native pixels with another kernel than the loader's.

    The loader enlarges by bicubic interpolation, which is linear and loses nothing: the least
    squares fit gives the native pixels back, exact but for the loader's rounding. They are then
    enlarged by ``mode``. (Reducing the image by an antialiasing filter instead would blur it: 5
    grey levels off at a factor of 2, against 0.5.) Both steps together are one matrix per side.

    An image with as many native pixels as the input, or more, is left as it is, side by side. So is
    every image if the native size isn't known. What augmentation has put into an image that no
    enlargement could produce (an edge moved by cropping or erasing) is fitted as well as possible.
    """

    mode: str
    table_rows: Tensor
    table_columns: Tensor

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        """Re-interpolate a batch; images of one native size are done together.

        Raises:
            ValueError: ``native_size`` isn't (B, 2), or not positive.
        """
        if native_size is None:
            return FrontendOutput(images)
        native_size = native_size.to(images.device, torch.int64)
        if native_size.shape != (images.shape[0], 2) or (
            not is_exporting() and bool((native_size < 1).any())
        ):
            raise ValueError(
                f"native_size must be {images.shape[0]} positive (height, width) pairs, not "
                f"{native_size.tolist()}"
            )
        height, width = images.shape[-2:]
        if is_exporting():
            return FrontendOutput(self._refitted(images, native_size))
        native = native_size.minimum(native_size.new_tensor([height, width]))
        sizes, group = native.unique(dim=0, return_inverse=True)
        out = torch.empty_like(images)
        for i, (h, w) in enumerate(sizes.tolist()):
            chosen = group == i
            batch = images[chosen]
            with torch.autocast(images.device.type, enabled=False):
                if h < height:
                    batch = _refit(h, height, self.mode).to(batch) @ batch
                if w < width:
                    batch = batch @ _refit(w, width, self.mode).to(batch).T
            out[chosen] = batch
        return FrontendOutput(out)

    def before_export(self, size: Sequence[int]) -> None:
        """Work out the matrices of every native size, for a graph can't: 75 MB at 256x128."""
        for name, side in zip(("rows", "columns"), size, strict=True):
            matrices = [_refit(n, side, self.mode) for n in range(1, side)]
            # At full size nothing is refitted.
            table = torch.stack([*matrices, torch.eye(side, dtype=torch.float64)]).float()
            self.register_buffer(f"table_{name}", table, persistent=False)

    def _refitted(self, images: Tensor, native_size: Tensor) -> Tensor:
        """All images by their own matrices, looked up."""
        rows, columns = self.table_rows, self.table_columns
        down = rows[native_size[:, 0].clamp(max=len(rows)) - 1][:, None]
        across = columns[native_size[:, 1].clamp(max=len(columns)) - 1][:, None]
        return down @ images @ across.transpose(2, 3)


@FRONTEND_REGISTRY.register()
class Bilinear(_Interpolation):
    """Images as bilinear interpolation of their native pixels would have made them."""

    mode = "bilinear"


@FRONTEND_REGISTRY.register()
class Bicubic(_Interpolation):
    """Images as bicubic interpolation of their native pixels makes them.

    The loader's images come back unchanged, but for rounding. What augmentation added at a finer
    grain is removed.
    """

    mode = "bicubic"


@lru_cache(maxsize=1024)
def resampling(native: int, size: int, mode: str) -> Tensor:
    """(size, native) float64: the matrix that resizes one side.

    With ``antialias`` torch's bicubic kernel is Pillow's (a = -0.5); nothing is smoothed when
    enlarging, as there is nothing to smooth.
    """
    unit = torch.eye(native, dtype=torch.float64)[None, None]
    return F.interpolate(unit, size=(size, native), mode=mode, antialias=True)[0, 0]


@lru_cache(maxsize=1024)
def _refit(native: int, size: int, mode: str) -> Tensor:
    """(size, size) float64: from a side enlarged by bicubic to the same enlarged by ``mode``."""
    return resampling(native, size, mode) @ torch.linalg.pinv(resampling(native, size, "bicubic"))
