"""What the front-ends that learn to restore images have in common."""

from __future__ import annotations

import inspect
from typing import Any

from fastreid.config import CfgNode
from torch import Tensor, nn

from lrreid_ext.modeling.frontends.base import Frontend, FrontendOutput, to_pixels, to_unit
from lrreid_ext.modeling.losses.functional import IMAGE_LOSSES, image_loss

# Standard deviation of the last convolution's initial weights (Dong et al. 2014 use it for SRCNN).
# Small enough that the first output is the input give or take a few grey levels; not 0, because
# then no other layer would get a gradient in the first step.
LAST_STD = 1e-3


def add_config(cfg: CfgNode) -> None:
    """Keys that several networks share."""
    # Width (of FFSR: of its first layer), and bottleneck of the channel attention.
    cfg.MODEL.SR.WIDTH = 64
    cfg.MODEL.SR.BOTTLENECK = 4


def check_loss(loss: str) -> None:
    """Raise ValueError if there is no pixel loss of this name."""
    if loss not in IMAGE_LOSSES:
        raise ValueError(f"MODEL.SR.LOSS: {loss!r} is not one of {', '.join(IMAGE_LOSSES)}")


class Restoration(Frontend):
    """A front-end with one pixel loss, ``loss_sr``, that works on the 0-1 scale inside.

    A subclass whose ``__init__`` is ``@configurable`` takes each keyword from the key of
    ``MODEL.SR`` with its name in upper case.

    Restored images are not clamped to 0-255, in training or evaluation, so that the re-ID network
    sees the same function in both. Whoever writes or scores such an image clamps it.

    Args:
        loss: pixel loss, ``l1`` or ``mse``, a mean on the 0-1 scale.

    Raises:
        ValueError: another loss.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        check_loss(loss)
        self.loss = loss

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {name: cfg.MODEL.SR[name.upper()] for name in inspect.signature(cls).parameters}

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same."""
        raise NotImplementedError

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        """Restore a batch; ``native_size`` is not used."""
        return FrontendOutput(to_pixels(self.restore(to_unit(images))))

    def losses(self, output: FrontendOutput, hr: Tensor) -> dict[str, Tensor]:
        """``loss_sr``, without the weight ``MODEL.SR.LOSS_WEIGHT``."""
        return {"loss_sr": image_loss(output.images, hr, self.loss)}


class ChannelAttention(nn.Module):
    """Weighs each channel by a gate computed from all channels' means (RCAN, Eq. 9-11).

    Global average pool, 1x1 convolution to ``bottleneck`` channels, ReLU, 1x1 convolution back,
    sigmoid, product with the input.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"MODEL.SR.BOTTLENECK must be at least 1, not {bottleneck}")
        down = nn.Conv2d(width, bottleneck, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            down,
            nn.ReLU(inplace=True),
            nn.Conv2d(bottleneck, width, 1),
            nn.Sigmoid(),
        )
        # Of four ReLUs that see much the same channel means for every image, all may start dead,
        # and the gate would never learn to look at its input.
        _fill_bias(down, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x * self.gate(x)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image's size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _fill_bias(conv: nn.Conv2d, value: float) -> None:
    assert conv.bias is not None
    nn.init.constant_(conv.bias, value)


def init_he(conv: nn.Conv2d) -> None:
    """Initial weights as He et al. 2015, no bias."""
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    _fill_bias(conv, 0.0)


def init_last(conv: nn.Conv2d) -> None:
    """Give the last convolution of a residual network small weights and no bias."""
    nn.init.normal_(conv.weight, std=LAST_STD)
    _fill_bias(conv, 0.0)
