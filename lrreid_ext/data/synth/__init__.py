"""The embedded data source: procedural synthetic pedestrians.

People whose gross colours repeat and whose fine texture decides who they are, seen by six cameras.
Nothing is downloaded and nobody is real; :func:`render` draws any image from four integers.
"""

from lrreid_ext.data.synth.identity import CLUSTER_SIZE, Appearance, appearance_of, cluster_of
from lrreid_ext.data.synth.render import NUM_CAMERAS, render

__all__ = ["CLUSTER_SIZE", "NUM_CAMERAS", "Appearance", "appearance_of", "cluster_of", "render"]
