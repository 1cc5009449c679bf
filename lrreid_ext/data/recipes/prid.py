"""SALR-PRID."""

from __future__ import annotations

import re

from lrreid_ext.data.recipes.pairs import PairSource
from lrreid_ext.data.recipes.rules import SALRRecipe

__all__ = ["SALRPridRecipe"]


class SALRPridRecipe(PairSource, SALRRecipe):
    """SALR-PRID, of PRID450S: HR queries from camera A, LR gallery from camera B; 400 people
    train, 50 test.

    Files are called ``cam_a/img_NNNN.png``, N the identity; others beside them, such as masks, are
    passed over. Images keep their own size; CSR-GAN
    brought all to 168 x 80 before reducing them, which the ratio doesn't depend on.
    """

    source_name = "PRID450S"
    where_to_get = (
        "https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/prid450s"
    )
    terms = "no licence is stated; made for research, cite Roth et al. 2014"
    source_folders = ("prid_450s", "prid450s", "PRID450S")
    file_name = re.compile(r"img_(\d*[1-9]\d*)\.png")
    prefix = "img_"
    example = "img_0001.png"

    identities: int = 450
    train_identities: int = 400
