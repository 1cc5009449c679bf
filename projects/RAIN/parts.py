"""RAIN's own networks, neither of which is needed after training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError

#: Widths of the decoder's steps but the last, as shares of what it reads: 2048 channels become
#: 1024, 512, 256, 64.
SHARES = (2, 4, 8, 32)
LEAST_WIDTH = 16


class ResolutionCritic(nn.Module):
    """Tells maps of HR images from maps of LR images, position by position.

    The paper doesn't say what its discriminators are; two 3x3 convolutions and a 1x1 here. No batch
    norm, which would tell by the batch.

    Args:
        channels: of the maps.
        width: of the convolutions.
    """

    def __init__(self, channels: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to logits (B, 1, h, w), high for HR."""
        return self.layers(maps)


class HRDecoder(nn.Module):
    """Makes the HR image of a map of the backbone: up-convolutions 2048-1024-512-256-64-3.

    Each step is a transposed convolution that doubles the size, with batch norm and a leaky ReLU
    but for the last. Where the backbone's stride asks for fewer doublings than there are steps, the
    first ones keep the size.

    Args:
        channels: of the map.
        stride: how many pixels of the image one position of the map stands for.
        widths: of the steps but the last; []: by :data:`SHARES`, at least 16.

    Raises:
        ConfigError: too few steps for the stride.
    """

    def __init__(self, channels: int, stride: int, widths: Sequence[int] = ()) -> None:
        super().__init__()
        widths = list(widths) or [max(channels // share, LEAST_WIDTH) for share in SHARES]
        steps = len(widths) + 1
        doublings = math.ceil(math.log2(stride)) if stride > 1 else 0
        if doublings > steps:
            raise ConfigError(
                f"RAIN.DECODER.WIDTHS: {len(widths)} widths make {steps} steps; a stride of "
                f"{stride} needs {doublings}"
            )
        self.widths = (channels, *widths, 3)
        layers: list[nn.Module] = []
        for step, (old, new) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            if step < steps - doublings:
                layers.append(nn.Conv2d(old, new, 3, padding=1))
            else:
                layers.append(nn.ConvTranspose2d(old, new, 4, stride=2, padding=1))
            if step < steps - 1:
                layers += [nn.BatchNorm2d(new), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """The images that maps stand for.

        Args:
            maps: (B, C, h, w).
            size: height and width of the images.

        Returns:
            (B, 3, *size), on the scale of the backbone's input. Where the size is no multiple of
            the stride, the maps stood for a little more; it is resized then.
        """
        images = self.layers(maps)
        if tuple(images.shape[-2:]) == tuple(size):
            return images
        return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)
