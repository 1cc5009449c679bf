"""A front-end of one's own in one file: learned sharpening, stronger where fewer pixels were real.

Name it in a YAML (PLUGINS: [sharpen.py]) and choose it (MODEL: {SR: {NAME: Sharpen}}).
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.modeling.frontends import Frontend, FrontendOutput, to_pixels, to_unit
from lrreid_ext.modeling.losses import image_loss
from lrreid_ext.registry import FRONTEND_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Keys of this plugin; they exist before any YAML is merged."""
    cfg.MODEL.SR.SHARPEN = CfgNode()
    # Width of the filter bank.
    cfg.MODEL.SR.SHARPEN.WIDTH = 16


@FRONTEND_REGISTRY.register()
class Sharpen(Frontend):
    """Adds a learned detail image, scaled by how much the image was enlarged.

    Args:
        width: filters between the two convolutions.
        loss: pixel loss, l1 or mse.
    """

    @configurable
    def __init__(self, *, width: int, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.detail = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)
        )
        self.gain = nn.Parameter(torch.tensor(0.1))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"width": cfg.MODEL.SR.SHARPEN.WIDTH, "loss": cfg.MODEL.SR.LOSS}

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        x = to_unit(images)
        strength = self.gain
        if native_size is not None:
            enlarged = (images.shape[2] / native_size[:, 0]).clamp(min=1)
            strength = strength * enlarged.view(-1, 1, 1, 1)
        return FrontendOutput(to_pixels(x + strength * self.detail(x)))

    def losses(self, output: FrontendOutput, hr: Tensor) -> dict[str, Tensor]:
        return {"loss_sr": image_loss(output.images, hr, self.loss)}
