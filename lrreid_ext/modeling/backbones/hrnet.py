"""HRNet (Wang et al., TPAMI 2020) with four outputs, or with its own classification path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastreid.config import CfgNode
from timm.models.hrnet import HighResolutionNet
from torch import Tensor

from lrreid_ext.errors import PretrainedError
from lrreid_ext.modeling.backbones.pretrained import PATH_KEY, hub_weights, load_pretrained
from lrreid_ext.registry import BACKBONE_REGISTRY

OUT_CHANNELS = (128, 256, 512, 1024)
FUSED_CHANNELS = 2048
# Widths that were trained on ImageNet with four blocks per branch and modules 1, 4, 3.
PUBLISHED_WIDTHS = (18, 30, 32, 40, 44, 48, 64)


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`HRNet`."""
    # Width of the highest-resolution branch (32: HRNet-W32), modules in stages 2 to 4,
    # blocks per branch, and channels of the four "incre" outputs.
    cfg.MODEL.BACKBONE.HRNET = CfgNode()
    cfg.MODEL.BACKBONE.HRNET.WIDTH = 32
    cfg.MODEL.BACKBONE.HRNET.MODULES = [1, 4, 3]
    cfg.MODEL.BACKBONE.HRNET.BLOCKS = 4
    cfg.MODEL.BACKBONE.HRNET.STAGE1_BLOCKS = 4


class HRNet(HighResolutionNet):
    """Four parallel branches, each with its "incre" module; timm's parameter names.

    Args:
        width: channels of the branch with the highest resolution; the others have 2, 4 and 8 times
            as many.
        modules: exchange units in stages 2, 3 and 4.
        blocks: residual blocks per branch and unit.
        stage1_blocks: bottleneck blocks before the first split.
        fused: whether the four outputs are joined as in HRNet-W32-C (False: handed on).

    Attributes:
        out_channels: channels of each output, whatever the width.

    Raises:
        ValueError: numbers that make no network.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
        stage1_blocks: int = 4,
        fused: bool = False,
    ) -> None:
        if len(modules) != 3 or min(*modules, width, blocks, stage1_blocks) < 1:
            raise ValueError(
                "MODEL.BACKBONE.HRNET: MODULES must be three numbers, and all of MODULES, WIDTH, "
                "BLOCKS and STAGE1_BLOCKS at least 1; got "
                f"{list(modules)}, {width}, {blocks}, {stage1_blocks}"
            )
        stages: dict[str, Any] = {
            f"stage{n}": {
                "num_modules": count,
                "num_branches": n,
                "block_type": "BASIC",
                "num_blocks": (blocks,) * n,
                "num_channels": tuple(width * 2**i for i in range(n)),
                "fuse_method": "SUM",
            }
            for n, count in zip((2, 3, 4), modules, strict=True)
        }
        stages["stage1"] = {
            "num_modules": 1,
            "num_branches": 1,
            "block_type": "BOTTLENECK",
            "num_blocks": (stage1_blocks,),
            "num_channels": (64,),
            "fuse_method": "SUM",
        }
        super().__init__(
            {"stem_width": 64, **stages},
            num_classes=0,
            head="classification" if fused else "incre",
        )
        self.fused = fused
        self.out_channels = (FUSED_CHANNELS,) if fused else OUT_CHANNELS

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Features of a normalised batch.

        Args:
            x: (B, 3, H, W), H and W multiples of 32.

        Returns:
            Four maps with 128, 256, 512 and 1024 channels at strides 4, 8, 16 and 32; or one with
            2048 at stride 32 if ``fused``.

        Raises:
            ValueError: another height or width.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(
                f"HRNet needs a height and width in multiples of 32, not {tuple(x.shape[-2:])}"
            )
        if self.fused:
            return self.forward_features(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        branches = self.stages(x)
        return [incre(y) for incre, y in zip(self.incre_modules, branches, strict=True)]


def _build(cfg: CfgNode, fused: bool) -> HRNet:
    node = cfg.MODEL.BACKBONE.HRNET
    model = HRNet(
        width=node.WIDTH,
        modules=node.MODULES,
        blocks=node.BLOCKS,
        stage1_blocks=node.STAGE1_BLOCKS,
        fused=fused,
    )

    def hub() -> Any:
        shape = (list(node.MODULES), node.BLOCKS, node.STAGE1_BLOCKS)
        if node.WIDTH not in PUBLISHED_WIDTHS or shape != ([1, 4, 3], 4, 4):
            raise PretrainedError(
                "no pretrained weights are published for this MODEL.BACKBONE.HRNET. Set "
                f"MODEL.BACKBONE.PRETRAIN False, or name a file in {PATH_KEY}"
            )
        return hub_weights(f"hrnet_w{node.WIDTH}")

    heads = ("classifier.",) if fused else ("classifier.", "downsamp_modules.", "final_layer.")
    load_pretrained(model, cfg, hub, heads)
    return model


@BACKBONE_REGISTRY.register()
def build_hrnet_backbone(cfg: CfgNode) -> HRNet:
    """HRNet with four outputs, for ``HRNetReIDHead``; see ``MODEL.BACKBONE.HRNET``.

    Raises:
        ValueError: numbers that make no network.
        PretrainedError, WeightsError: see
            :func:`~lrreid_ext.modeling.backbones.pretrained.load_pretrained`.
    """
    return _build(cfg, fused=False)


@BACKBONE_REGISTRY.register()
def build_hrnet_cls_backbone(cfg: CfgNode) -> HRNet:
    """HRNet-W32-C: the four outputs joined to one map of 2048 channels, for any ordinary head.

    Raises:
        ValueError: numbers that make no network, or ``MODEL.BACKBONE.FEAT_DIM`` isn't 2048.
        PretrainedError, WeightsError: see
            :func:`~lrreid_ext.modeling.backbones.pretrained.load_pretrained`.
    """
    if cfg.MODEL.BACKBONE.FEAT_DIM != FUSED_CHANNELS:
        raise ValueError(
            f"MODEL.BACKBONE.FEAT_DIM is {cfg.MODEL.BACKBONE.FEAT_DIM}; build_hrnet_cls_backbone "
            f"has {FUSED_CHANNELS}"
        )
    return _build(cfg, fused=True)
