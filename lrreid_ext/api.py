"""The project from a program: load a model, embed and restore images, build data sets, evaluate.

::

    from lrreid_ext import load_model

    model = load_model("logs/demo/pshrnet")
    features = model.embed(["query.png", "gallery.png"])

Everything here is also at the package's top.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastreid.data.datasets.bases import ImageDataset

from lrreid_ext.config import CfgNode, merge
from lrreid_ext.data.loaders import build_dataset_of, test_set_in
from lrreid_ext.data.recipes import (
    MANIFEST_FILE,
    RecipeDataset,
    build,
    build_recipe,
    load_manifest,
    recipe_named,
)
from lrreid_ext.data.validation import check_fold
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.run import score
from lrreid_ext.export.hub import push_to_hub, save_pretrained
from lrreid_ext.registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, lookup, names
from lrreid_ext.trained import TrainedModel, load_model

__all__ = [
    "TrainedModel",
    "build_dataset",
    "evaluate",
    "load_model",
    "push_to_hub",
    "save_pretrained",
]


def build_dataset(
    recipe: str,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    **options: Any,
) -> RecipeDataset:
    """Build a cross-resolution data set from an ordinary one.

    May be interrupted and called again: finished files are checked and kept.

    Args:
        recipe: its name, as ``tools/build_dataset.py list`` shows them, or a YAML file
            (:mod:`lrreid_ext.data.recipes.written`).
        source: folder of the ordinary data set; None for a recipe that needs none, or names it.
        out: an empty or new folder, or one that the same recipe was built into.
        options: fields of the recipe to change.

    Returns:
        The data set, with ``train``, ``query`` and ``gallery``, its ``folder`` and ``manifest``.

    Raises:
        RecipeError: an unknown recipe or option, or a source or folder that can't be used.
    """
    folder = Path(out)
    made = build_recipe(recipe_named(recipe), options)
    build(made, None if source is None else Path(source), folder)
    return _built(folder)


def evaluate(
    model: TrainedModel,
    dataset: str | os.PathLike[str] | ImageDataset,
    *,
    root: str | os.PathLike[str] = "",
    out: str | os.PathLike[str] = "",
    **test: Any,
) -> dict[str, float]:
    """Figures of a model on a test set, by the evaluators and protocols of its config.

    Args:
        model: from :func:`load_model`.
        dataset: what :func:`build_dataset` returns, the folder of a built data set, the name of a
            recipe or of another of fastreid's data sets, or a recipe's YAML file.
        root: folder of data sets that a name is looked for in; by default DATASETS.ROOT.
        out: folder for the evaluators' results files; "" writes none.
        test: keys of TEST to change, in upper or lower case:
            ``trials=20, protocols=["multi_shot"], flip={"enabled": True}``.

    Returns:
        Figures in percent by ``protocol/group/figure``, such as ``single_shot/query/Rank-1`` and
        ``multi_shot/x4/mAP``.

    Raises:
        ConfigError: a name, key or value that can't be used.
        RecipeError, FileNotFoundError: a data set that isn't there and can't be built.
    """
    options = _upper(test)
    if "PHASE" in options:
        raise ConfigError(
            "evaluate: TEST.PHASE is settled when a model is loaded: "
            'load_model(path, opts=["TEST.PHASE", ...])'
        )
    cfg = model.cfg.clone()
    cfg.defrost()
    merge(cfg, {"TEST": options}, "evaluate")
    if root:
        cfg.DATASETS.ROOT = str(root)
    cfg.freeze()
    if cfg.TEST.ON_FOLD:
        check_fold(cfg, model.training, cfg.MODEL.WEIGHTS)
    for evaluator in cfg.TEST.EVALUATORS:
        check = getattr(lookup(EVALUATOR_REGISTRY, evaluator, "TEST.EVALUATORS"), "check", None)
        if check is not None:
            check(cfg)
    data, name = _dataset(cfg, dataset)
    test_set = test_set_in(cfg, data, name)
    if model.training:
        test_set = replace(test_set, info={**test_set.info, "training": model.training})
    return score(cfg, model.module, test_set, str(out) or None)


def _dataset(
    cfg: CfgNode, dataset: str | os.PathLike[str] | ImageDataset
) -> tuple[ImageDataset, str]:
    """A data set, and what reports call it."""
    if isinstance(dataset, ImageDataset):
        name = getattr(dataset, "dataset_name", None) or type(dataset).__name__
        return dataset, name
    text = str(dataset)
    if Path(text, MANIFEST_FILE).is_file():
        built = _built(Path(text))
        return built, built.dataset_name
    if Path(text).is_dir() and text not in names(DATASET_REGISTRY):
        raise ConfigError(
            f"{text}: holds no {MANIFEST_FILE}; name a folder that build_dataset made, or a recipe"
        )
    name = recipe_named(text)
    return build_dataset_of(cfg, name, "dataset"), name


def _built(folder: Path) -> RecipeDataset:
    manifest = load_manifest(folder)
    entry = lookup(DATASET_REGISTRY, manifest.recipe, str(folder / MANIFEST_FILE))
    dataset: RecipeDataset = entry(folder=folder, options=manifest.options)
    return dataset


def _upper(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same with keys in upper case, as a config's are."""
    return {
        key.upper(): _upper(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
