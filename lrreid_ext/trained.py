"""A trained model: its network, its config, and how it was trained. One class, one way to load."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from lrreid_ext.config import CfgNode, changed, load_cfg, phases_of
from lrreid_ext.data.pictures import Images, Picture, pictures
from lrreid_ext.data.resolution import native_size
from lrreid_ext.data.samples import Batch
from lrreid_ext.data.validation import check_fold
from lrreid_ext.devices import check_device, usable_device
from lrreid_ext.errors import ConfigError, ImageError
from lrreid_ext.modeling.build import (
    build_model,
    classes_in,
    set_step,
    with_num_classes,
    without_initial_weights,
)
from lrreid_ext.modeling.contract import Restores
from lrreid_ext.modeling.inference import Isolated, Restoring, evaluating
from lrreid_ext.results.provenance import config_hash, weights_hash
from lrreid_ext.weights import CONFIG_FILE, HUB, download, load_strictly, read_checkpoint

__all__ = [
    "TrainedModel",
    "TrainedWeights",
    "load_model",
    "load_trained",
    "name_and_path",
    "read_weights",
    "run_cfg",
    "run_names",
    "weights_path",
]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model that takes images as they come.

    Attributes:
        name: tables and legends call it so.
        cfg: the config it was trained with; MODEL.WEIGHTS is the file that was loaded.
        module: the network, in evaluation mode, on ``cfg.MODEL.DEVICE``.
        training: how it was trained (command, commit, seed, phase ...), or {}.
    """

    name: str
    cfg: CfgNode
    module: nn.Module
    training: dict[str, Any]

    def __repr__(self) -> str:
        return f"TrainedModel({self.name!r}, {self.cfg.MODEL.META_ARCHITECTURE})"

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
            native_size: (N, 2), or (2,) for all, height and width in pixels of the images before
                any enlargement. By default the images' own sizes, or with INPUT.NATIVE_SIZE
                estimated those that their spectra show.
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
        flip = self.cfg.TEST.FLIP.ENABLED if flip is None else flip
        queue = pictures(images)
        sizes = _native_sizes(native_size, len(queue))
        factors = _factors(factor, len(queue))
        rows = []
        with evaluating(self.module):
            for start in range(0, len(queue), batch_size):
                part = slice(start, start + batch_size)
                batch = self._batch(
                    queue[part], None if sizes is None else sizes[part], factors[part]
                )
                features = self._features(batch)
                if flip:
                    batch["images"] = batch["images"].flip(dims=[3])
                    features = (features + self._features(batch)) / 2
                rows.append(features.to("cpu", torch.float32))
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
        queue = pictures(image)
        if len(queue) > 1:
            raise ImageError(f"{len(queue)} images were given; restore takes one at a time")
        batch = self._batch(queue, _native_sizes(native_size, 1), _factors(None, 1))
        with evaluating(self.module):
            out = Isolated(Restoring(self.module))(batch).images
        pixels = out[0].float().round().clamp(0, 255).to("cpu", torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def _features(self, batch: Batch) -> Tensor:
        out = Isolated(self.module)(batch)
        if not isinstance(out, Tensor) or out.ndim not in (2, 3):
            raise TypeError(
                f"{type(self.module).__name__}: in evaluation a model returns features (B, D) or "
                "(B, K, D)"
            )
        return out

    def _batch(self, queue: Sequence[Picture], sizes: Tensor | None, factors: Tensor) -> Batch:
        """A batch as the test loader makes it."""
        transform = build_transforms(self.cfg, is_train=False)
        loaded = [picture() for picture in queue]
        if sizes is None:
            source = self.cfg.INPUT.NATIVE_SIZE
            sizes = torch.tensor([native_size(image, source) for image in loaded])
        with warnings.catch_warnings():
            # fastreid's way to make tensors.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            images = torch.stack([transform(image) for image in loaded])
        return {"images": images, "native_size": sizes, "factor": factors}


@dataclass(frozen=True)
class TrainedWeights:
    """A run's weights, before its network is built.

    Attributes:
        cfg: the run's, with MODEL.WEIGHTS and MODEL.HEADS.NUM_CLASSES filled in.
        state: tensors by name.
        training: how they were trained, or {}.
    """

    cfg: CfgNode
    state: dict[str, Tensor]
    training: dict[str, Any]

    def build(self, name: str) -> TrainedModel:
        """Build the network, in evaluation mode. Its step is that of TEST.PHASE, or else of the
        phase that the weights come from.

        Raises:
            ConfigError: TEST.PHASE names no phase.
            WeightsError: the weights aren't for this model.
        """
        test = self.cfg.TEST
        model = build_model(without_initial_weights(self.cfg))
        load_strictly(model, self.state, f"MODEL.WEIGHTS: {self.cfg.MODEL.WEIGHTS}")
        if test.ON_FOLD:
            check_fold(self.cfg, self.training, self.cfg.MODEL.WEIGHTS)
        steps = {phase.name: phase.step for phase in phases_of(self.cfg)}
        if test.PHASE and test.PHASE not in steps:
            raise ConfigError(f"TEST.PHASE: no phase {test.PHASE!r}; there are {', '.join(steps)}")
        phase = test.PHASE or self.training.get("phase", "")
        set_step(model, steps.get(phase, list(steps.values())[-1]))
        return TrainedModel(name, self.cfg, model.eval(), self.training)


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", opts: Sequence[str] = ()
) -> TrainedModel:
    """A trained model.

    Args:
        path: a folder that ``lrreid train`` trained into (its last checkpoint is loaded); a
            checkpoint (``.pth`` or ``.safetensors``) beside its ``config.yaml``; a folder with
            ``config.yaml`` and one ``.safetensors`` file; or ``hub:owner/name[@revision]`` of the
            Hugging Face hub. A name may precede it, as in ``NAME=PATH``.
        device: where it runs: ``cpu``, ``cuda``, ``cuda:1`` ...; "" as MODEL.DEVICE says.
        opts: ``KEY VALUE`` overrides of its config, as on the command line.

    Raises:
        FileNotFoundError: no such folder or file, or no training in it.
        ConfigError: a config or device that can't be used.
        WeightsError: weights that aren't for this model.
    """
    if device:
        check_device(str(device), "device")
    text = str(path)
    return load_trained(run_cfg(text, opts, str(device)), name_and_path(text)[0])


def load_trained(cfg: CfgNode, name: str = "") -> TrainedModel:
    """The model of a config: MODEL.WEIGHTS, or OUTPUT_DIR's last checkpoint.

    With TEST.INITIAL, the network as MODEL.INIT fills it, without training.

    Args:
        cfg: the config.
        name: tables call it so; by default like OUTPUT_DIR.

    Raises:
        FileNotFoundError: there is neither.
        ConfigError: TEST.PHASE names no phase, or TEST.INITIAL without MODEL.INIT.WEIGHTS.
        WeightsError: the file isn't for this model.
    """
    name = name or Path(cfg.OUTPUT_DIR).name
    if not cfg.TEST.INITIAL:
        return read_weights(cfg).build(name)
    if not cfg.MODEL.INIT.WEIGHTS:
        raise ConfigError("TEST.INITIAL: there are no initial weights; name MODEL.INIT.WEIGHTS")
    # Nobody trained the classifier, and it isn't evaluated: its size doesn't matter.
    cfg = with_num_classes(cfg, 1)
    model = build_model(cfg)
    set_step(model, phases_of(cfg)[-1].step)
    cfg = changed(cfg, ("MODEL.WEIGHTS", cfg.MODEL.INIT.WEIGHTS))
    return TrainedModel(name, cfg, model.eval(), {})


def read_weights(cfg: CfgNode) -> TrainedWeights:
    """Read MODEL.WEIGHTS, or OUTPUT_DIR's last checkpoint.

    Raises:
        FileNotFoundError: there is neither.
        WeightsError: not a file of weights.
    """
    path = weights_path(cfg)
    state, training = read_checkpoint(path, "MODEL.WEIGHTS")
    if not cfg.MODEL.HEADS.NUM_CLASSES:
        cfg = with_num_classes(cfg, classes_in(state))
    return TrainedWeights(changed(cfg, ("MODEL.WEIGHTS", path)), state, training)


def weights_path(cfg: CfgNode) -> str:
    """The file of MODEL.WEIGHTS, or of OUTPUT_DIR's last checkpoint.

    Raises:
        FileNotFoundError: there is neither.
    """
    if cfg.MODEL.WEIGHTS:
        return str(cfg.MODEL.WEIGHTS)
    last = Path(cfg.OUTPUT_DIR, "last_checkpoint")
    if not last.is_file():
        raise FileNotFoundError(
            "no trained model: name a checkpoint in MODEL.WEIGHTS, or the OUTPUT_DIR of a run "
            f"(OUTPUT_DIR {cfg.OUTPUT_DIR} has no last_checkpoint)"
        )
    return os.path.join(cfg.OUTPUT_DIR, last.read_text().strip())


def run_cfg(text: str, opts: Sequence[str] = (), device: str = "") -> CfgNode:
    """The config that a run was trained with.

    Args:
        text: as ``path`` of :func:`load_model`.
        opts: ``KEY VALUE`` overrides.
        device: overrules MODEL.DEVICE; "" leaves it.

    Returns:
        The config with OUTPUT_DIR the folder, MODEL.WEIGHTS the checkpoint or "" for the folder's
        last one, and a MODEL.DEVICE that this machine has.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or no ``config.yaml``.
        ConfigError: a config that can't be used, or a hub repository that can't be downloaded.
    """
    path = name_and_path(text)[1]
    if str(path).startswith(HUB):
        path = download(str(path))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run; name the OUTPUT_DIR of a training")
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: holds no {CONFIG_FILE}; name a folder that lrreid train trained into"
        )
    cfg = load_cfg(str(file), opts)
    return changed(
        cfg,
        ("OUTPUT_DIR", str(folder)),
        # Not the weights that training began with.
        ("MODEL.WEIGHTS", _shared_weights(path) if path.is_dir() else str(path)),
        ("MODEL.DEVICE", usable_device(device or cfg.MODEL.DEVICE)),
    )


def _shared_weights(folder: Path) -> str:
    """The file in a folder of weights to share; "" in one that was trained into."""
    if (folder / "last_checkpoint").is_file():
        return ""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise ConfigError(f"{folder}: holds several files of weights ({names}); name one")
    return str(files[0]) if files else ""


def run_names(texts: Sequence[str]) -> list[str]:
    """The names of ``[NAME=]RUN``s.

    Raises:
        ConfigError: two runs of one name.
    """
    names = [name_and_path(text)[0] for text in texts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two runs are called {twice[0]!r}; call one of them NAME=RUN")
    return names


def name_and_path(text: str) -> tuple[str, Path]:
    """Split ``[NAME=]PATH``; without a name it is the last part of the path."""
    name, sign, path = text.partition("=")
    # A path may hold the sign itself.
    if not sign or not name or Path(text).exists():
        name, path = "", text
    if name:
        return name, Path(path)
    if path.startswith(HUB):
        return path.removeprefix(HUB).partition("@")[0], Path(path)
    full = Path(path).resolve()
    return (full.name if full.is_dir() else f"{full.parent.name}/{full.stem}"), Path(path)


def _native_sizes(sizes: ArrayLike | Tensor | None, count: int) -> Tensor | None:
    """(count, 2) int64, or None as it came."""
    if sizes is None:
        return None
    sizes = torch.as_tensor(np.asarray(sizes))
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


def _factors(factors: ArrayLike | Tensor | None, count: int) -> Tensor:
    """(count,) float32, NaN where unknown."""
    if factors is None:
        return torch.full((count,), torch.nan)
    factors = torch.as_tensor(np.asarray(factors), dtype=torch.float32)
    if factors.ndim == 0:
        factors = factors.expand(count)
    if factors.shape != (count,) or bool((factors < 1).any()):
        raise ValueError(
            f"factor: a number >= 1 for each of {count} images is needed (NaN: unknown)"
        )
    return factors
