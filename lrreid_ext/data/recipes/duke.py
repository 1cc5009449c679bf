"""MLR-DukeMTMC-reID."""

from __future__ import annotations

from lrreid_ext.data.recipes.market1501 import MarketRecipe

__all__ = ["DukeRecipe"]


class DukeRecipe(MarketRecipe):
    """DukeMTMC-reID: eight cameras, 702 people train and 702 are queries; 408 more stand in the
    gallery only. Files are named nearly as Market-1501's, ``PPPP_cC_fFFFFFFF.jpg``.

    The owners withdrew the data set in 2019: it had been recorded and published beyond what their
    review board allowed.
    """

    source_name = "DukeMTMC-reID"
    where_to_get = "nowhere: its owners withdrew it in 2019"
    terms = "withdrawn by its owners; nobody gives leave to use it. Prefer another data set"
    source_folders = ("DukeMTMC-reID", "dukemtmc-reid")
    whole = (16522, 2228, 17661)
