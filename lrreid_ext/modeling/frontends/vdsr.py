"""VDSR (Kim et al., CVPR 2016) and VDSR-CA, the front-end of PS-HRNet."""

from __future__ import annotations

from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.modeling.frontends.restoration import (
    ChannelAttention,
    Restoration,
    conv3x3,
    init_he,
    init_last,
)
from lrreid_ext.registry import FRONTEND_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Keys of the VDSR family."""
    # Convolutions.
    cfg.MODEL.SR.DEPTH = 20


class _VeryDeep(Restoration):
    """``depth`` 3x3 convolutions with ReLU between, and the input added to the last's output.

    Weights start as He et al. 2015, the last layer's small, so that the first output is the input
    give or take a few grey levels.
    """

    def __init__(self, depth: int, width: int, bottleneck: int | None, loss: str) -> None:
        super().__init__(loss)
        if depth < 3:
            raise ValueError(f"MODEL.SR.DEPTH must be at least 3, not {depth}")
        layers: list[nn.Module] = []
        for i in range(depth - 1):
            conv = conv3x3(width if i else 3, width)
            init_he(conv)
            layers += [conv, nn.ReLU(inplace=True)]
            if i and bottleneck is not None:
                # A gate starts near one half: twice the weights keep the signal's size.
                conv.weight.data.mul_(2.0)
                layers.append(ChannelAttention(width, bottleneck))
        last = conv3x3(width, 3)
        init_last(last)
        self.layers = nn.Sequential(*layers, last)

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same."""
        return images + self.layers(images)


@FRONTEND_REGISTRY.register()
class VDSR(_VeryDeep):
    """20 convolutions, 64 wide, learning the residual; 32.79 GMAC at 384x128.

    Args:
        depth: convolutions, at least 3.
        width: channels between them.
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Raises:
        ValueError: fewer than three convolutions.
    """

    @configurable
    def __init__(self, *, depth: int = 20, width: int = 64, loss: str = "mse") -> None:
        super().__init__(depth, width, None, loss)


@FRONTEND_REGISTRY.register()
class VDSRCA(_VeryDeep):
    """VDSR with channel attention after every middle convolution and its ReLU (PS-HRNet, III-B).

    "Between every two layers", says the paper, and a layer of VDSR ends in its ReLU. 0.68 M
    parameters and 21.9 GMAC at 256x128 with the defaults.

    Args:
        depth: convolutions, at least 3.
        width: channels between them.
        bottleneck: channels of the attention's bottleneck (the paper's r = 4).
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Raises:
        ValueError: fewer than three convolutions, or an empty bottleneck.
    """

    @configurable
    def __init__(
        self, *, depth: int = 20, width: int = 64, bottleneck: int = 4, loss: str = "l1"
    ) -> None:
        super().__init__(depth, width, bottleneck, loss)
