"""A trained model from a camera's pixels to the embedding that is compared, as one module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.data.transforms import build_transforms
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import EPSILON
from lrreid_ext.evaluation.fusion import chosen_anchors
from lrreid_ext.export.resize import pillow_may_begin_with_height, resize_crops
from lrreid_ext.modeling.contract import PreparesExport
from lrreid_ext.modeling.meta_arch import Pipeline

__all__ = ["Deployable", "expected", "pack"]

Crop = NDArray[np.uint8]

# Parts of an architecture that evaluation needs for some images.
PARTS = ("frontend", "backbone", "heads")


class Deployable(nn.Module):
    """What the evaluator does to an image, in one graph.

    Resize by bicubic interpolation, as Pillow does it; the model, with native sizes and without
    factors, so that images with fewer native rows than the input count as low-resolution; the mean
    with the mirror image's features with TEST.FLIP; unit length with the cosine metric. Works on
    the CPU, in float32, on a copy of the model.

    A module of the model may have ``before_export(size)``, called once with the input's height and
    width, to compute what a graph can't.

    Args:
        cfg: the config of :func:`lrreid_ext.trained.load_trained`.
        model: its model.
        resized: images come at the network's input size; otherwise at any size, each in the top
            left corner of its image.

    Attributes:
        size: height and width of the network's input.
        factors: of the anchors in the embedding (B, K, D), or None: the embedding is (B, D).

    Raises:
        ConfigError: test images are cropped, or the model gives no features.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, *, resized: bool = False) -> None:
        super().__init__()
        if cfg.INPUT.CROP.ENABLED:
            raise ConfigError("INPUT.CROP.ENABLED: a model whose images are cropped isn't exported")
        height, width = cfg.INPUT.SIZE_TEST
        self.size = (int(height), int(width))
        self.resized = resized
        self.normalised = cfg.TEST.METRIC == "cosine"
        self.flip = bool(cfg.TEST.FLIP.ENABLED)
        self.height_first = pillow_may_begin_with_height()
        copied = copy.deepcopy(model).to("cpu", torch.float32)
        copied = copied.to(memory_format=torch.contiguous_format)
        self.model = copied.eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, PreparesExport):
                module.before_export(self.size)
        self.anchors: list[int] | None = None
        self.factors: list[float] | None = None
        blank = {
            "images": torch.zeros(2, 3, *self.size),
            # An HR and an LR image, so that both routes by resolution are called.
            "native_size": torch.tensor([self.size, (1, 1)]),
        }
        with torch.no_grad(), _called(self.model) as called:
            features = self.model(blank)
        _drop(self.model, called)
        if not isinstance(features, Tensor) or features.ndim not in (2, 3):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE} gives no features (B, D) "
                "or (B, K, D) in evaluation, so there is nothing to export"
            )
        if features.ndim == 3:
            self.anchors = chosen_anchors(cfg, features)
            self.factors = [float(cfg.MODEL.ANCHORS.FACTORS[k]) for k in self.anchors]

    def forward(self, images: Tensor, native_size: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            native_size: (B, 2) int64, height and width in pixels as the camera delivered them; of
                images at any size at most H and W, for there the crop ends. What lies outside of 1
                to H or W counts as the nearest that doesn't.

        Returns:
            (B, D) float32, or (B, K, D) of the anchors :attr:`factors`; of unit length where the
            metric is cosine.
        """
        native_size = native_size.clamp(min=1)
        if self.resized:
            pixels = images.to(torch.float32)
        else:
            rows, columns = native_size[:, 0], native_size[:, 1]
            native_size = torch.stack(
                [rows.clamp(max=images.shape[2]), columns.clamp(max=images.shape[3])], dim=1
            )
            pixels = resize_crops(images, native_size, *self.size, self.height_first)
        features = self.model({"images": pixels, "native_size": native_size})
        if self.flip:
            mirrored = self.model({"images": pixels.flip(3), "native_size": native_size})
            features = (features + mirrored) / 2
        if self.anchors is not None:
            features = features[:, self.anchors]
        features = features.to(torch.float32)
        return F.normalize(features, dim=-1, eps=EPSILON) if self.normalised else features


@contextmanager
def _called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that are called inside the block."""
    called: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda m, *_: called.add(m)) for m in model.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _drop(model: nn.Module, called: set[nn.Module]) -> None:
    """Leave out what only training needs, such as teachers, critics and decoders."""
    for parent in [model, *(m for m in model.modules() if isinstance(m, Pipeline))]:
        for name, child in list(parent.named_children()):
            if name not in PARTS and not called.intersection(child.modules()):
                setattr(parent, name, nn.Identity())


def pack(crops: Sequence[Crop], size: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Crops of several sizes as one batch.

    Args:
        crops: (h, w, 3) uint8 arrays, RGB.
        size: height and width to resize to first; None packs the crops as they are.

    Returns:
        Images (B, 3, H, W) uint8, each crop in the top left corner and 0 elsewhere; and native
        sizes (B, 2) int64.
    """
    native = torch.tensor([crop.shape[:2] for crop in crops])
    if size is not None:
        bicubic = Image.Resampling.BICUBIC
        sides = (size[1], size[0])
        crops = [np.asarray(Image.fromarray(crop).resize(sides, bicubic)) for crop in crops]
    height, width = (max(crop.shape[side] for crop in crops) for side in (0, 1))
    images = torch.zeros(len(crops), 3, height, width, dtype=torch.uint8)
    for image, crop in zip(images, crops, strict=True):
        image[:, : crop.shape[0], : crop.shape[1]] = torch.tensor(crop).permute(2, 0, 1)
    return images, native


@torch.no_grad()
def expected(cfg: CfgNode, model: nn.Module, crops: Sequence[Crop]) -> Tensor:
    """The evaluation's features of crops, resized by Pillow.

    Args:
        cfg, model: of :func:`lrreid_ext.trained.load_trained`.
        crops: (h, w, 3) uint8 arrays, RGB.

    Returns:
        As :meth:`Deployable.forward`, on the CPU.
    """
    transform = build_transforms(cfg, is_train=False)
    images = torch.stack([transform(Image.fromarray(crop)) for crop in crops])
    native = torch.tensor([crop.shape[:2] for crop in crops])
    device = next(model.parameters()).device

    def embed(pixels: Tensor) -> Tensor:
        # Copies: some of fastreid's architectures normalise in place.
        batch: dict[str, Any] = {"images": pixels.to(device, copy=True)}
        return model({**batch, "native_size": native.to(device)}).float().cpu()

    features = embed(images)
    if cfg.TEST.FLIP.ENABLED:
        features = (features + embed(images.flip(3))) / 2
    if features.ndim == 3:
        features = features[:, chosen_anchors(cfg, features)]
    return F.normalize(features, dim=-1, eps=EPSILON) if cfg.TEST.METRIC == "cosine" else features
