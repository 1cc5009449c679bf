"""Super-resolution front-ends behind one registry."""

from lrreid_ext.modeling.frontends.base import (
    Frontend,
    FrontendOutput,
    Pairs,
    build_frontend,
    to_pixels,
    to_unit,
)
from lrreid_ext.modeling.frontends.ffsr import FFSR
from lrreid_ext.modeling.frontends.interpolation import Bicubic, Bilinear, Identity
from lrreid_ext.modeling.frontends.rcan import RCAN
from lrreid_ext.modeling.frontends.restoration import ChannelAttention, Restoration
from lrreid_ext.modeling.frontends.spandrel import Spandrel
from lrreid_ext.modeling.frontends.srcnn import SRCNN
from lrreid_ext.modeling.frontends.srgan import CascadedSRGAN, SRGANGenerator
from lrreid_ext.modeling.frontends.vdsr import VDSR, VDSRCA

__all__ = [
    "FFSR",
    "RCAN",
    "SRCNN",
    "VDSR",
    "VDSRCA",
    "Bicubic",
    "Bilinear",
    "CascadedSRGAN",
    "ChannelAttention",
    "Frontend",
    "FrontendOutput",
    "Identity",
    "Pairs",
    "Restoration",
    "SRGANGenerator",
    "Spandrel",
    "build_frontend",
    "to_pixels",
    "to_unit",
]
