"""The project from a program: load a model, embed and restore images, build data sets, evaluate.

::

    from lrreid_ext import load_model

    model = load_model("logs/demo/pshrnet")
    features = model.embed(["query.png", "gallery.png"])

Everything here is also at the package's top.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.transforms import build_transforms
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from lrreid_ext.analysis.runs import Run, load_run
from lrreid_ext.config import CfgNode, merge
from lrreid_ext.data.loaders import build_dataset_of, test_set_in
from lrreid_ext.data.pictures import Images, Picture, pictures
from lrreid_ext.data.recipes import (
    MANIFEST_FILE,
    RecipeDataset,
    build,
    build_recipe,
    load_manifest,
    recipe_named,
)
from lrreid_ext.data.resolution import native_size
from lrreid_ext.data.samples import Batch
from lrreid_ext.data.validation import check_fold
from lrreid_ext.devices import check_device
from lrreid_ext.errors import ConfigError, ImageError
from lrreid_ext.evaluation.run import score
from lrreid_ext.export.hub import LICENSE, push_to_hub, save_pretrained
from lrreid_ext.hub import HUB
from lrreid_ext.modeling.contract import Restores
from lrreid_ext.modeling.inference import Isolated, evaluating
from lrreid_ext.registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, lookup, names
from lrreid_ext.results.provenance import config_hash, weights_hash

__all__ = ["TrainedModel", "build_dataset", "evaluate", "load_model"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model that takes images as they come.

    Attributes:
        name: what tables and legends call it.
        cfg: the config it was trained with.
        module: the network, in evaluation mode, on ``cfg.MODEL.DEVICE``.
        training: how the weights came about (command, commit, seed, phase ...), or {}.
    """

    name: str
    cfg: CfgNode
    module: nn.Module
    training: dict[str, Any]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights and of what of the config decides the features."""
        both = weights_hash(self.module) + config_hash(self.cfg)
        return hashlib.sha256(both.encode()).hexdigest()

    def embed(
        self,
        images: Images,
        native_size: ArrayLike | Tensor | None = None,
        batch_size: int = 64,
        flip: bool | None = None,
        factor: ArrayLike | Tensor | None = None,
    ) -> Tensor:
        """Features of images, read and resized as for evaluation.

        Args:
            images: a path, a PIL image, an array (H, W, 3) of uint8 in RGB, a tensor (3, H, W) or
                (B, 3, H, W) in RGB from 0 to 255, or a list of those; see
                :func:`lrreid_ext.data.pictures.pictures`.
            native_size: (N, 2), or (2,) for all, height and width in pixels that the images had
                before anybody enlarged them. By default the sizes that they come with, or with
                INPUT.NATIVE_SIZE estimated what their spectra speak for.
            batch_size: images at a time.
            flip: average the features of each image and of its mirror image; None does as
                TEST.FLIP.ENABLED of the config says.
            factor: (N,), or one number for all, by which the images were reduced. It matters only
                with MODEL.SR.APPLY lr; by default unknown, and native sizes decide.

        Returns:
            (N, D) float32 on the CPU; (N, K, D) of a model with K anchors, NaN of those that
            aren't trained.

        Raises:
            ImageError: an image that can't be read or used; says which.
            ValueError: sizes or factors that don't fit the images, or a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        found = pictures(images)
        sizes = _native_sizes(native_size, len(found))
        factors = _factors(factor, len(found))
        rows = []
        with evaluating(self.module):
            for start in range(0, len(found), batch_size):
                part = slice(start, start + batch_size)
                own = None if sizes is None else sizes[part]
                batch = self._batch(found[part], own, factors[part])
                out = self._features(batch)
                if self.cfg.TEST.FLIP.ENABLED if flip is None else flip:
                    batch["images"] = batch["images"].flip(dims=[3])
                    out = (out + self._features(batch)) / 2
                rows.append(out.to("cpu", torch.float32))
        return torch.cat(rows)

    def restore(self, image: Images, native_size: ArrayLike | Tensor | None = None) -> Image.Image:
        """What the front-end makes of one image, at the network's input size.

        Args:
            image: as for :meth:`embed`, one.
            native_size: (2,), as for :meth:`embed`.

        Returns:
            A PIL image in RGB; values are rounded, and clamped to 0 to 255.

        Raises:
            ConfigError: an architecture without front-end.
            ImageError: an image that can't be read or used, or several.
        """
        if not isinstance(self.module, Restores):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE: {type(self.module).__name__} restores no images; "
                "Pipeline and what derives from it do"
            )
        found = pictures(image)
        if len(found) > 1:
            raise ImageError(f"{len(found)} images were given; restore takes one at a time")
        batch = self._batch(found, _native_sizes(native_size, 1), _factors(None, 1))
        with evaluating(self.module):
            out = Isolated(_Restore(self.module))(batch).images
        pixels = out[0].float().round().clamp(0, 255).to("cpu", torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str = "", device: str = "cpu"
    ) -> TrainedModel:
        """A model of the Hugging Face hub, or of a folder that :meth:`save_pretrained` wrote.

        Args:
            name: ``owner/name``, or a folder.
            revision: a branch, tag or commit of the hub's repository; "" is its main branch.
            device: as for :func:`load_model`.

        Raises:
            ConfigError: a repository that can't be had, or whose config asks for code.
        """
        if Path(name).is_dir():
            return load_model(name, device)
        return load_model(f"{HUB}{name}" + (f"@{revision}" if revision else ""), device)

    def save_pretrained(self, folder: str | os.PathLike[str], *, license: str = LICENSE) -> None:
        """Write a folder for others: config, weights as safetensors, and a model card.

        Args:
            folder: made if need be.
            license: the hub's identifier of the license, such as ``mit``; it stands in the card.
        """
        run = Run(self.name, self.cfg, self.module, self.training)
        save_pretrained(run, Path(folder), license=license)

    def push_to_hub(
        self,
        repository: str,
        *,
        license: str = LICENSE,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes.

        Args:
            repository: ``owner/name``; made if need be.
            license: as for :meth:`save_pretrained`.
            private: whether a repository made here is seen by its owner alone.
            token: of the hub; by default the one that ``hf auth login`` left.

        Returns:
            The commit's address.

        Raises:
            ConfigError: the hub refuses, or can't be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license)
            return push_to_hub(Path(folder), repository, private=private, token=token)

    def _features(self, batch: Batch) -> Tensor:
        out = Isolated(self.module)(batch)
        if not isinstance(out, Tensor) or out.ndim not in (2, 3):
            raise TypeError(
                f"{type(self.module).__name__}: in evaluation a model returns features (B, D) or "
                "(B, K, D)"
            )
        return out

    def _batch(self, found: Sequence[Picture], sizes: Tensor | None, factors: Tensor) -> Batch:
        """A batch as the test loader makes it."""
        transform = build_transforms(self.cfg, is_train=False)
        loaded = [picture() for picture in found]
        if sizes is None:
            how = self.cfg.INPUT.NATIVE_SIZE
            sizes = torch.tensor([native_size(image, how) for image in loaded])
        with warnings.catch_warnings():
            # fastreid's way to make tensors.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            images = torch.stack([transform(image) for image in loaded])
        return {"images": images, "native_size": sizes, "factor": factors}


class _Restore(nn.Module):
    """A network whose forward is its ``restore``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Batch) -> Any:
        return self.model.restore(batch)


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", opts: Sequence[str] = ()
) -> TrainedModel:
    """A trained model.

    Args:
        path: a folder that ``tools/train_net.py`` trained into (its last checkpoint is taken); a
            checkpoint (``.pth`` or ``.safetensors``) beside its ``config.yaml``; a folder with
            ``config.yaml`` and one ``.safetensors`` file; or ``hub:owner/name[@revision]`` of the
            Hugging Face hub.
        device: where it runs: ``cpu``, ``cuda``, ``cuda:1`` ...
        opts: ``KEY VALUE`` overrides of its config, as on the command line.

    Raises:
        FileNotFoundError: no such folder or file, or none that was trained into.
        ConfigError: a config or device that can't be used.
        WeightsError: weights that aren't for this model.
    """
    device = str(device)
    check_device(device, "device")
    run = load_run(str(path), opts, device)
    return TrainedModel(run.name, run.cfg, run.model, run.training)


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


def _native_sizes(given: ArrayLike | Tensor | None, count: int) -> Tensor | None:
    """(count, 2) int64, or None if none are given."""
    if given is None:
        return None
    sizes = torch.as_tensor(np.asarray(given))
    if sizes.shape == (2,):
        sizes = sizes.expand(count, 2)
    if sizes.shape != (count, 2):
        raise ValueError(
            f"native_size: {tuple(sizes.shape)} isn't a height and a width for each of {count} "
            "images"
        )
    if bool((sizes < 1).any()) or bool((sizes != sizes.to(torch.int64)).any()):
        raise ValueError("native_size: whole numbers of pixels from 1 are needed")
    return sizes.to(torch.int64)


def _factors(given: ArrayLike | Tensor | None, count: int) -> Tensor:
    """(count,) float32, NaN where unknown."""
    if given is None:
        return torch.full((count,), torch.nan)
    factors = torch.as_tensor(np.asarray(given), dtype=torch.float32)
    if factors.ndim == 0:
        factors = factors.expand(count)
    if factors.shape != (count,) or bool((factors < 1).any()):
        raise ValueError(
            f"factor: a number >= 1 for each of {count} images is needed (NaN: unknown)"
        )
    return factors
