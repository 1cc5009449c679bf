"""SRCNN (Dong et al., ECCV 2014), the front-end of SING."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.modeling.frontends.restoration import Restoration, init_he, init_last
from lrreid_ext.registry import FRONTEND_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`SRCNN`."""
    # Kernel sizes (9, 1, 5) or (9, 5, 5), and filters.
    cfg.MODEL.SR.KERNELS = [9, 1, 5]
    cfg.MODEL.SR.FILTERS = [64, 32]


@FRONTEND_REGISTRY.register()
class SRCNN(Restoration):
    """Three convolutions with ReLU between, same size in and out.

    The network has no skip connection. So that a re-ID network behind it sees images from the first
    step on, three filters of each layer start as copies of the three colours (which ReLU lets
    through, as they aren't negative) and the first output is the input give or take a few grey
    levels. The other filters start as He et al. 2015 and, in the last layer, as Dong et al.

    Args:
        kernels: three odd kernel sizes, (9, 1, 5) or (9, 5, 5).
        filters: channels of the first two layers, at least 3 each.
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Raises:
        ValueError: other numbers of kernels or filters, or even kernel sizes.
    """

    @configurable
    def __init__(
        self,
        *,
        kernels: Sequence[int] = (9, 1, 5),
        filters: Sequence[int] = (64, 32),
        loss: str = "mse",
    ) -> None:
        super().__init__(loss)
        if len(kernels) != 3 or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"MODEL.SR.KERNELS must be three odd numbers, not {list(kernels)}")
        if len(filters) != 2 or min(filters) < 3:
            raise ValueError(
                f"MODEL.SR.FILTERS must be two numbers of at least 3, not {list(filters)}"
            )
        channels = (3, *filters, 3)
        convs = [
            nn.Conv2d(i, o, k, padding=k // 2)
            for i, o, k in zip(channels[:-1], channels[1:], kernels, strict=True)
        ]
        self.layers = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        for conv in convs[:2]:
            init_he(conv)
        init_last(convs[2])
        with torch.no_grad():
            for conv in convs:
                # The last layer has no other filters; it must go on hearing the other channels.
                conv.weight[:3, : 3 if conv is convs[2] else None] = 0.0
                middle = conv.kernel_size[0] // 2
                for colour in range(3):
                    conv.weight[colour, colour, middle, middle] = 1.0

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same."""
        return self.layers(images)
