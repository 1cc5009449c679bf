"""Re-ID heads, in fastreid's registry."""

from lrreid_ext.modeling.heads.hrnet_reid import HRNetReIDHead
from lrreid_ext.modeling.heads.linear_neck import LinearNeckHead

__all__ = ["HRNetReIDHead", "LinearNeckHead"]
