"""What every super-resolution front-end offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lrreid_ext.registry import FRONTEND_REGISTRY, lookup
from lrreid_ext.weights import load_weights

# Restored images and their high-resolution twins, stage by stage.
Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class FrontendOutput:
    """What a front-end hands on.

    Attributes:
        images: (B, 3, H, W) RGB, 0-255 float, the images that the re-ID network sees.
        extras: whatever the front-end's own losses need (intermediate stages, masks): tensors with
            a row for each image.
    """

    images: Tensor
    extras: dict[str, Any] = field(default_factory=dict)

    def rows(self, chosen: Tensor) -> FrontendOutput:
        """The output of some of the images.

        Args:
            chosen: (B,) bool.
        """
        return FrontendOutput(self.images[chosen], {k: v[chosen] for k, v in self.extras.items()})

    def spread(self, images: Tensor, chosen: Tensor) -> FrontendOutput:
        """This output, of some rows of a batch, in its place; the other rows' extras are 0.

        Args:
            images: (B, 3, H, W), the whole batch as it came.
            chosen: (B,) bool, the rows that this is the output of.
        """
        at = chosen.nonzero()[:, 0]

        def placed(whole: Tensor, part: Tensor) -> Tensor:
            return whole.index_copy(0, at, part.to(whole.dtype))

        extras = {
            key: placed(value.new_zeros(len(images), *value.shape[1:]), value)
            for key, value in self.extras.items()
        }
        return FrontendOutput(placed(images, self.images), extras)


class Frontend(nn.Module):
    """Base class of the front-ends.

    A front-end maps images at the network's input size to images of the same size. It sees what
    interpolation made of the camera's pixels, and ``native_size`` says how many there really were.

    Attributes:
        learns: whether there is anything to train.
        size_divisor: height and width must be multiples of this.
        stages: how many pairs :meth:`pairs` returns.
    """

    learns: bool = True
    size_divisor: int = 1
    stages: int = 1

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        """Restore a batch.

        Args:
            images: (B, 3, H, W) RGB, 0-255 float; never changed in place.
            native_size: (B, 2) int64, height and width in pixels as the camera delivered them, or
                None when unknown.
        """
        raise NotImplementedError

    def losses(self, output: FrontendOutput, hr: Tensor) -> dict[str, Tensor]:
        """The front-end's training losses, each a scalar under a name that starts ``loss_``.

        Args:
            output: what :meth:`forward` returned for the LR images.
            hr: (B, 3, H, W) RGB, 0-255 float, the high-resolution twins.
        """
        return {}

    def pairs(self, output: FrontendOutput, hr: Tensor) -> Pairs:
        """Restored images and their twins, stage by stage, for losses that know no front-end.

        Args:
            output: what :meth:`forward` returned for the LR images.
            hr: (B, 3, H, W) RGB, 0-255 float, the high-resolution twins.

        Returns:
            :attr:`stages` pairs of (n, 3, h, w) RGB, 0-255.
        """
        return [(output.images, hr)]


def build_frontend(cfg: Any) -> Frontend:
    """Build the front-end named in ``MODEL.SR.NAME`` and load ``MODEL.SR.WEIGHTS`` if given."""
    frontend: Frontend = lookup(FRONTEND_REGISTRY, cfg.MODEL.SR.NAME, "MODEL.SR.NAME")(cfg)
    divisor = frontend.size_divisor
    for key in ("SIZE_TRAIN", "SIZE_TEST"):
        height, width = cfg.INPUT[key]
        if height % divisor or width % divisor:
            raise ValueError(
                f"INPUT.{key} {[height, width]}: {cfg.MODEL.SR.NAME} needs multiples of {divisor}"
            )
    if cfg.MODEL.SR.WEIGHTS:
        load_weights(frontend, cfg.MODEL.SR.WEIGHTS, key="MODEL.SR.WEIGHTS", prefix="frontend.")
    return frontend


def to_unit(images: Tensor) -> Tensor:
    """0-255 to 0-1."""
    return images / 255.0


def to_pixels(images: Tensor) -> Tensor:
    """0-1 to 0-255. Not clamped: clamping would cut the gradient of saturated pixels."""
    return images * 255.0
