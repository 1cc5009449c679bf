"""Backbones, in fastreid's registry."""

from lrreid_ext.modeling.backbones.dgd import DGD, build_dgd_backbone
from lrreid_ext.modeling.backbones.dual_stream import DualStream, build_dual_stream_backbone
from lrreid_ext.modeling.backbones.hrnet import (
    HRNet,
    build_hrnet_backbone,
    build_hrnet_cls_backbone,
)
from lrreid_ext.modeling.backbones.levels import Level, find_levels, levels_of, tapped
from lrreid_ext.modeling.backbones.pretrained import build_backbone
from lrreid_ext.modeling.backbones.timm import TimmBackbone, build_timm_backbone

__all__ = [
    "DGD",
    "DualStream",
    "HRNet",
    "Level",
    "TimmBackbone",
    "build_backbone",
    "build_dgd_backbone",
    "build_dual_stream_backbone",
    "build_hrnet_backbone",
    "build_hrnet_cls_backbone",
    "build_timm_backbone",
    "find_levels",
    "levels_of",
    "tapped",
]
