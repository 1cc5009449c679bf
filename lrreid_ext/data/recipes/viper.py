"""MLR- and SALR-VIPeR."""

from __future__ import annotations

import re

from lrreid_ext.data.recipes.pairs import PairSource
from lrreid_ext.data.recipes.rules import Camera, MLRRecipe, SALRRecipe

__all__ = ["SALRViperRecipe", "ViperRecipe", "ViperSource"]


class ViperSource(PairSource):
    """VIPeR: 632 people, one image each from cameras A and B, 128 x 48 pixels.

    Files are called ``cam_a/NNN_VV.bmp``: N the identity's number, V the viewpoint in degrees. As
    numbers begin at 000, identity N is number N + 1 in the manifest.
    """

    source_name = "VIPeR"
    where_to_get = "https://vision.soe.ucsc.edu/node/178 (VIPeR.v1.0.zip)"
    terms = "no licence is stated; made for research, cite Gray and Tao 2008"
    source_folders = ("VIPeR", "viper", "VIPeR.v1.0")
    image_size = (128, 48)
    file_name = re.compile(r"(\d+)_\d+\.bmp")
    example = "000_45.bmp"
    pid_offset = 1

    identities: int = 632
    train_identities: int = 316


class ViperRecipe(ViperSource, MLRRecipe):
    """MLR-VIPeR: camera B is low-resolution, camera A the gallery; 316 train, 316 test."""

    lr_camera: Camera = 2


class SALRViperRecipe(ViperSource, SALRRecipe):
    """SALR-VIPeR: HR queries from camera A, LR gallery from camera B; 532 train, 100 test."""

    train_identities: int = 532
