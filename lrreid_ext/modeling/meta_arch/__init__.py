"""Architectures: how front-end, backbone and head are joined."""

from lrreid_ext.modeling.meta_arch.anchors import Anchors
from lrreid_ext.modeling.meta_arch.pipeline import Pipeline, Step, build_heads, build_losses, take

__all__ = ["Anchors", "Pipeline", "Step", "build_heads", "build_losses", "take"]
