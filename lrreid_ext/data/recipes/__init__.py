"""Recipes of cross-resolution data sets, their builder, manifests and data sets.

Importing this package registers the recipes, and for each a fastreid data set of the same name.
"""

from lrreid_ext.data.recipes.base import (
    RECIPE_REGISTRY,
    PlannedImage,
    Recipe,
    SourceImage,
    build_recipe,
    file_digest,
    preset,
)
from lrreid_ext.data.recipes.builder import build
from lrreid_ext.data.recipes.caviar import CaviarRecipe, SALRCaviarRecipe
from lrreid_ext.data.recipes.cuhk01 import CUHK01Recipe
from lrreid_ext.data.recipes.cuhk03 import CUHK03Recipe
from lrreid_ext.data.recipes.dataset import RecipeDataset, add_recipe, find_source, test_set_of
from lrreid_ext.data.recipes.duke import DukeRecipe
from lrreid_ext.data.recipes.manifest import (
    MANIFEST_FILE,
    ImageRecord,
    Manifest,
    load_manifest,
    verify,
)
from lrreid_ext.data.recipes.market1501 import FolderRecipe, MarketRecipe, VRMarketRecipe
from lrreid_ext.data.recipes.msmt17 import VRMSMT17Recipe
from lrreid_ext.data.recipes.prid import SALRPridRecipe
from lrreid_ext.data.recipes.rules import MLRRecipe, SALRRecipe, VariedWidthRecipe
from lrreid_ext.data.recipes.synth import SynthRecipe
from lrreid_ext.data.recipes.sysu import SysuRecipe
from lrreid_ext.data.recipes.table import TableRecipe
from lrreid_ext.data.recipes.viper import SALRViperRecipe, ViperRecipe
from lrreid_ext.data.recipes.written import recipe_named, register_recipe_file

__all__ = [
    "MANIFEST_FILE",
    "RECIPE_REGISTRY",
    "CUHK01Recipe",
    "CUHK03Recipe",
    "CaviarRecipe",
    "DukeRecipe",
    "FolderRecipe",
    "ImageRecord",
    "MLRRecipe",
    "Manifest",
    "MarketRecipe",
    "PlannedImage",
    "Recipe",
    "RecipeDataset",
    "SALRCaviarRecipe",
    "SALRPridRecipe",
    "SALRRecipe",
    "SALRViperRecipe",
    "SourceImage",
    "SynthRecipe",
    "SysuRecipe",
    "TableRecipe",
    "VRMSMT17Recipe",
    "VRMarketRecipe",
    "VariedWidthRecipe",
    "ViperRecipe",
    "add_recipe",
    "build",
    "build_recipe",
    "file_digest",
    "find_source",
    "load_manifest",
    "preset",
    "recipe_named",
    "register_recipe_file",
    "test_set_of",
    "verify",
]

for _entry in (
    preset(
        SynthRecipe,
        "synth_pedestrians",
        "procedural people, no download; camera 1 low-resolution, factors 2, 3 and 4 per image",
    ),
    preset(
        MarketRecipe,
        "mlr_market1501",
        "Market-1501, camera 1 low-resolution, factors 2, 3 and 4 per image",
    ),
    preset(
        MarketRecipe,
        "mlr_market1501_prpr",
        "Market-1501, all test images of camera 1 are queries, reduced without antialiasing, JPEG",
        queries="all",
        kernel="cv2-linear",
        encoding="jpeg",
    ),
    preset(
        MarketRecipe,
        "mlr_market1501_c3",
        "Market-1501, camera 3 low-resolution, factors 2, 3 and 4 per image",
        lr_camera=3,
    ),
    preset(
        MarketRecipe,
        "mlr_market1501_per_identity",
        "Market-1501, a random camera low-resolution for each identity, Lanczos",
        lr_camera="random",
        kernel="lanczos",
    ),
    preset(
        CUHK01Recipe,
        "mlr_cuhk01",
        "CUHK01, camera B low-resolution, factors 2, 3 and 4 per image, 485/486 identities",
    ),
    preset(
        CUHK03Recipe,
        "mlr_cuhk03",
        "CUHK03, one camera of each pair low-resolution, factors 2, 3 and 4 per image, 1367/100",
    ),
    preset(
        ViperRecipe,
        "mlr_viper",
        "VIPeR, camera B low-resolution, factors 2, 3 and 4 per image, 316/316 identities",
    ),
    preset(
        SysuRecipe,
        "mlr_sysu",
        "SYSU-mReID, camera 2 low-resolution, factors 2, 3 and 4 per image, 251/251 identities",
    ),
    preset(
        DukeRecipe,
        "mlr_dukemtmc",
        "DukeMTMC-reID, withdrawn by its owners: the recipe without a source; camera 1 "
        "low-resolution, factors 2, 3 and 4 per image",
    ),
    preset(
        FolderRecipe,
        "mlr_folder",
        "your own images in Market-1501's naming; camera 1 low-resolution, factors 2, 3 and 4 per "
        "image",
    ),
    preset(
        TableRecipe,
        "mlr_csv",
        "your own images, listed in a CSV file; camera 1 low-resolution, factors 2, 3 and 4 per "
        "image",
    ),
    preset(
        CaviarRecipe,
        "caviar",
        "CAVIAR4REID, far camera low-resolution by nature, nothing degraded, 25/25 identities",
    ),
    preset(
        SALRViperRecipe,
        "salr_viper",
        "VIPeR, HR queries of camera A, gallery of camera B at 0.1 to 0.25 of its size, 532/100",
    ),
    preset(
        SALRPridRecipe,
        "salr_prid",
        "PRID450S, HR queries of camera A, gallery of camera B at 0.1 to 0.25 of its size, 400/50",
    ),
    preset(
        SALRCaviarRecipe,
        "salr_caviar",
        "CAVIAR4REID, HR queries, gallery of the far camera, nothing degraded, 44/10 identities",
    ),
    preset(
        VRMarketRecipe,
        "vr_market1501",
        "Market-1501, every query and gallery image 8 to 31 pixels wide",
    ),
    preset(
        VRMSMT17Recipe,
        "vr_msmt17",
        "MSMT17, every query and gallery image 32 to 127 pixels wide",
    ),
):
    add_recipe(_entry)
