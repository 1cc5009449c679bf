"""Recipes of cross-resolution data sets, their builder, manifests and data sets.

Importing this package registers the recipes, and for each a fastreid data set of the same name.
"""

from lrreid_ext.data.recipes.base import (
    RECIPE_REGISTRY,
    Recipe,
    RecipeError,
    SourceImage,
    build_recipe,
    preset,
)
from lrreid_ext.data.recipes.builder import build
from lrreid_ext.data.recipes.cuhk01 import CUHK01Recipe
from lrreid_ext.data.recipes.dataset import RecipeDataset, add_recipe, find_source, test_set_of
from lrreid_ext.data.recipes.manifest import (
    ImageRecord,
    Manifest,
    ManifestError,
    load_manifest,
    verify,
)
from lrreid_ext.data.recipes.market1501 import MarketRecipe
from lrreid_ext.data.recipes.synth import SynthRecipe

__all__ = [
    "RECIPE_REGISTRY",
    "CUHK01Recipe",
    "ImageRecord",
    "Manifest",
    "ManifestError",
    "MarketRecipe",
    "Recipe",
    "RecipeDataset",
    "RecipeError",
    "SourceImage",
    "SynthRecipe",
    "add_recipe",
    "build",
    "build_recipe",
    "find_source",
    "load_manifest",
    "preset",
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
):
    add_recipe(_entry)
