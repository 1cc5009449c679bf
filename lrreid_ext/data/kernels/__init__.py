"""Degradation kernels: plain downsampling, and realistic chains of blur, noise and JPEG.

Importing this package registers them. One of your own is a function in a plugin::

    @KERNEL_REGISTRY.register()
    def night(image, size, draws):
        dark = image.point(lambda v: v * draws.uniform("gain", 0.2, 0.6))
        return dark.resize((size[1], size[0]))
"""

from lrreid_ext.data.kernels.chains import REALISTIC
from lrreid_ext.data.kernels.draws import Draws, Parameters, hash_unit
from lrreid_ext.data.kernels.plain import PLAIN
from lrreid_ext.registry import KERNEL_REGISTRY

__all__ = ["PLAIN", "REALISTIC", "Draws", "Parameters", "hash_unit"]

for _name, _kernel in {**PLAIN, **REALISTIC}.items():
    _kernel.__name__ = _name
    KERNEL_REGISTRY.register(_kernel)
