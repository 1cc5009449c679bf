"""The inception network of Xiao et al. (CVPR 2016, "Domain Guided Dropout"), backbone of SING."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from fastreid.config import CfgNode
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError, PretrainedError
from lrreid_ext.modeling.backbones.pretrained import PATH_KEY, load_pretrained
from lrreid_ext.registry import BACKBONE_REGISTRY

STEM_CHANNELS = 32
# Channels of every convolution in a pair of inception blocks, the second with stride 2.
BLOCK_CHANNELS = (64, 128, 256)


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`DGD`."""
    # Factor on every layer's channels.
    cfg.MODEL.BACKBONE.DGD = CfgNode()
    cfg.MODEL.BACKBONE.DGD.WIDTH = 1.0


def _unit(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Branches of BN-Inception with equally many channels in every convolution, concatenated.

    With stride 1: 1x1; 1x1 - 3x3; 1x1 - 3x3 - 3x3; average pool - 1x1. With stride 2, which the
    last convolution of a branch takes: 1x1 - 3x3; 1x1 - 3x3 - 3x3; max pool. The 1x1 convolutions
    that read the block's input are one convolution, cut up afterwards.

    Args:
        in_channels: channels of the input.
        channels: channels of each convolution.
        stride: 1 or 2.

    Attributes:
        out_channels: 4 * channels with stride 1, 2 * channels + in_channels with stride 2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        if stride == 1:
            self.reduce = _unit(in_channels, 3 * channels, 1)
            self.pool: nn.Module = nn.Sequential(
                nn.AvgPool2d(3, stride=1, padding=1), _unit(in_channels, channels, 1)
            )
            self.out_channels = 4 * channels
        else:
            self.reduce = _unit(in_channels, 2 * channels, 1)
            # Padded, so that odd sizes are halved as the convolutions halve them.
            self.pool = nn.MaxPool2d(3, stride, padding=1)
            self.out_channels = 2 * channels + in_channels
        self.single3x3 = _unit(channels, channels, 3, stride)
        self.double3x3 = nn.Sequential(
            _unit(channels, channels, 3), _unit(channels, channels, 3, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h', w'), each side over stride rounded up."""
        *direct, single, double = self.reduce(x).split(self.channels, 1)
        branches = [*direct, self.single3x3(single), self.double3x3(double), self.pool(x)]
        return torch.cat(branches, 1)


class DGD(nn.Module):
    """Three 3x3 convolutions, a pooling, and six inception blocks, to 1536 channels.

    Channels and strides are those of the paper; every convolution is followed by batch norm and
    ReLU. At 160x72 pixels::

        layer        1x1   1x1-3x3   1x1-3x3-3x3   pool           channels   size
        three 3x3                                                 32         160x72
        pool                                       max 2x2        32         81x37
        1a           64    64-64     64-64-64      average, 64    256        81x37
        1b                 64-64     64-64-64      max            384        41x19
        2a           128   128-128   128-128-128   average, 128   512        41x19
        2b                 128-128   128-128-128   max            768        21x10
        3a           256   256-256   256-256-256   average, 256   1024       21x10
        3b                 256-256   256-256-256   max            1536       11x5

    With an FC of 256 behind a global average pooling these are 6.75 M parameters, and 7.10 M with
    an FC for the 1367 training identities of MLR-CUHK03 as well. 2.46 GMAC at 160x72 follow from
    padding the first pooling by 1, as the paper's first author does in his PyTorch program;
    unpadded, as in the paper (80x36), they would be 2.25.

    Where the paper is silent: convolutions have no bias, since batch norm follows, and start as He
    et al. 2015. Its dropout belongs to the head (``MODEL.HEADS.DROPOUT``); the domain guided one
    needs several data sets and isn't part of SING.

    Args:
        width: factor on every layer's channels, which are rounded to whole numbers.

    Attributes:
        out_channels: channels of the map, 1536 * width for widths that leave nothing to round.

    Raises:
        ConfigError: a width that isn't positive.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        if not width > 0:
            raise ConfigError(f"MODEL.BACKBONE.DGD.WIDTH must be positive, not {width}")
        channels = max(1, round(STEM_CHANNELS * width))
        self.stem = nn.Sequential(
            *(_unit(i, channels, 3) for i in (3, channels, channels)),
            nn.MaxPool2d(2, stride=2, padding=1),
        )
        blocks = []
        for count in BLOCK_CHANNELS:
            for stride in (1, 2):
                block = Inception(channels, max(1, round(count * width)), stride)
                channels = block.out_channels
                blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features of a normalised batch.

        Args:
            x: (B, 3, H, W), any height and width.

        Returns:
            (B, out_channels, h, w) at stride 16.
        """
        return self.blocks(self.stem(x))


@BACKBONE_REGISTRY.register()
def build_dgd_backbone(cfg: CfgNode) -> DGD:
    """The DGD network, ``MODEL.BACKBONE.DGD.WIDTH`` times as wide.

    Nobody publishes weights for it: ``MODEL.BACKBONE.PRETRAIN`` needs a file in
    ``MODEL.BACKBONE.PRETRAIN_PATH``, which is loaded strictly.

    Raises:
        ConfigError: the width isn't positive, or ``MODEL.BACKBONE.FEAT_DIM`` isn't what it makes.
        PretrainedError, WeightsError: see
            :func:`~lrreid_ext.modeling.backbones.pretrained.load_pretrained`.
    """
    node = cfg.MODEL.BACKBONE
    model = DGD(width=node.DGD.WIDTH)
    if model.out_channels != node.FEAT_DIM:
        raise ConfigError(
            f"MODEL.BACKBONE.FEAT_DIM is {node.FEAT_DIM}; with MODEL.BACKBONE.DGD.WIDTH "
            f"{node.DGD.WIDTH} build_dgd_backbone has {model.out_channels}"
        )

    def unpublished() -> Mapping[str, Tensor]:
        raise PretrainedError(
            "no pretrained weights are published for build_dgd_backbone. Set "
            f"MODEL.BACKBONE.PRETRAIN False, or name a file in {PATH_KEY}"
        )

    load_pretrained(model, cfg, unpublished, classifier=())
    return model
