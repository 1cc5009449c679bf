"""RCAN (Zhang et al., ECCV 2018) for equal input and output size."""

from __future__ import annotations

from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.modeling.frontends.restoration import (
    ChannelAttention,
    Restoration,
    conv3x3,
    init_last,
)
from lrreid_ext.registry import FRONTEND_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`RCAN`."""
    # Residual groups, and attention blocks in each.
    cfg.MODEL.SR.GROUPS = 10
    cfg.MODEL.SR.BLOCKS = 20


class _Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.body(x)


def _attention_block(width: int, bottleneck: int) -> nn.Module:
    """RCAB: convolution, ReLU, convolution, channel attention, and a skip (RCAN, Eq. 12-13)."""
    return _Residual(
        conv3x3(width, width),
        nn.ReLU(inplace=True),
        conv3x3(width, width),
        ChannelAttention(width, bottleneck),
    )


@FRONTEND_REGISTRY.register()
class RCAN(Restoration):
    """Residual groups of channel attention blocks, each with a skip, and one over all of them.

    The paper's network without its upsampler. Since input and output have one size here, the input
    is added to the output as in VDSR, and the last layer starts small: the first output is the
    input give or take a few grey levels. Other layers start as PyTorch does it, which keeps 400
    convolutions stable.

    Args:
        groups: residual groups.
        blocks: attention blocks in each.
        width: channels.
        bottleneck: channels of the attention's bottleneck (the paper: 64 / 16 = 4).
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Raises:
        ValueError: no group, no block, or an empty bottleneck.
    """

    @configurable
    def __init__(
        self,
        *,
        groups: int = 10,
        blocks: int = 20,
        width: int = 64,
        bottleneck: int = 4,
        loss: str = "l1",
    ) -> None:
        super().__init__(loss)
        if groups < 1 or blocks < 1:
            raise ValueError(
                f"MODEL.SR.GROUPS and MODEL.SR.BLOCKS must be at least 1, not {groups}, {blocks}"
            )
        self.head = conv3x3(3, width)
        self.body = _Residual(
            *(
                _Residual(
                    *(_attention_block(width, bottleneck) for _ in range(blocks)),
                    conv3x3(width, width),
                )
                for _ in range(groups)
            ),
            conv3x3(width, width),
        )
        self.tail = conv3x3(width, 3)
        init_last(self.tail)

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same."""
        return images + self.tail(self.body(self.head(images)))
