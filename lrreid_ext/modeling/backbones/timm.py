"""Any timm model as a backbone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from fastreid.config import CfgNode
from timm.layers import PatchEmbed
from timm.models.volo import VOLO
from torch import Tensor, nn

from lrreid_ext.modeling.backbones.pretrained import hub_weights, load_pretrained
from lrreid_ext.modeling.inference import evaluating
from lrreid_ext.registry import BACKBONE_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Keys of :func:`build_timm_backbone`."""
    # A timm model for build_timm_backbone, by timm's name.
    cfg.MODEL.BACKBONE.TIMM_NAME = "resnet50"


class TimmBackbone(nn.Module):
    """A timm model without pooling and classifier that returns one map.

    Maps with the channels last (Swin) are turned round. Tokens (ViT, Mixer) are laid out on their
    grid again, without the class token, distillation token and registers.

    Args:
        name: timm's name, with or without a weights tag.
        size: height and width of the input. Given to models that are built for one size.
        dynamic: whether other sizes come as well; position embeddings are then interpolated, where
            the model can do that.

    Attributes:
        model: the timm model.
        out_channels: channels of the map.

    Raises:
        ValueError: an unknown name, or a model that makes no map out of an image of this size, such
            as one whose patches don't fill it.
    """

    #: Levels are named as timm names the model's modules.
    levels_root = "model"
    weight_roots = ("model",)

    def __init__(
        self, name: str, size: Sequence[int] = (256, 128), *, dynamic: bool = False
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
            raise ValueError(
                f"MODEL.BACKBONE.TIMM_NAME: timm {timm.__version__} has no model {name!r}. "
                f"Nearest: {', '.join(near) or 'none'}. timm.list_models() lists them all"
            )
        self.name = name
        self.size = (int(size[0]), int(size[1]))
        # Some models' pooling can't be left out; what comes before it is then called by its name.
        self.unpooled = True
        try:
            self.model = self._create(dynamic, global_pool="")
        except AssertionError:  # so timm refuses options that a model lacks
            self.unpooled = False
            try:
                self.model = self._create(dynamic)
            except AssertionError as error:
                raise self._refused(self.size, error) from error
        self.out_channels = self.channels_at(self.size)

    def _create(self, dynamic: bool, **options: Any) -> nn.Module:
        options["num_classes"] = 0
        sized: list[dict[str, Any]] = [{"img_size": self.size}, {}]
        if dynamic:
            # What ViTs and Swins call it.
            sized = [{**sized[0], "dynamic_img_size": True}, {**sized[0], "strict_img_size": False}]
            sized += [{"img_size": self.size}, {}]
        for more in sized[:-1]:
            try:
                return timm.create_model(self.name, **options, **more)
            except TypeError as error:
                if not any(option in str(error) for option in more):
                    raise
        return timm.create_model(self.name, **options)

    def _patch(self) -> tuple[int, int] | None:
        """Height and width of a patch of a model that cuts images into whole ones."""
        embed = getattr(self.model, "patch_embed", None)
        if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
            return None
        return int(embed.patch_size[0]), int(embed.patch_size[1])

    def _unsuitable(self, why: object) -> ValueError:
        return ValueError(f"MODEL.BACKBONE.TIMM_NAME: {self.name} makes no feature map: {why}")

    def _refused(self, size: Sequence[int], error: Exception) -> ValueError:
        return self._unsuitable(f"{list(size)} pixels: {str(error) or 'timm asserts another size'}")

    def channels_at(self, size: Sequence[int]) -> int:
        """Channels of the map that a (height, width) image gives, found by trying one.

        Raises:
            ValueError: the model doesn't take images of this size.
        """
        patch = self._patch()
        if patch is not None and (size[0] % patch[0] or size[1] % patch[1]):
            raise ValueError(
                f"INPUT.SIZE_TRAIN, SIZE_TEST: {list(size)} pixels aren't multiples of "
                f"{self.name}'s patches, {list(patch)}"
            )
        parameter = next(self.model.parameters())
        image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
        try:
            with evaluating(self.model):
                return self(image).shape[1]
        except (AssertionError, RuntimeError) as error:
            raise self._refused(size, error) from error

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, out_channels, h, w)."""
        model: Any = self.model
        y = model(x) if self.unpooled else model.forward_features(x)
        return self.as_map(y, x.shape[-2:])

    def as_map(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """What the model, or a module of it, returns for images of this size, as (B, C, h, w).

        Raises:
            ValueError: it can't be made a map.
        """
        if not isinstance(y, Tensor):
            raise self._unsuitable(f"it returns a {type(y).__name__}")
        if y.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                return y.permute(0, 3, 1, 2).contiguous()
            return y
        if y.ndim == 3:
            y = y[:, self._prefix_tokens() :]
            height, width = self._grid(y.shape[1], size)
            return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], height, width)
        raise self._unsuitable(f"it returns {tuple(y.shape)}")

    def _prefix_tokens(self) -> int:
        """How many tokens before those of the grid the model returns."""
        model: Any = self.model
        # VOLO joins its class token to the others without saying so as ViTs do.
        unsaid = isinstance(model, VOLO) and model.cls_token is not None
        return getattr(model, "num_prefix_tokens", int(unsaid))

    def _grid(self, tokens: int, size: Sequence[int]) -> tuple[int, int]:
        patch = self._patch()
        if patch is not None and tokens == (size[0] // patch[0]) * (size[1] // patch[1]):
            return size[0] // patch[0], size[1] // patch[1]
        # A grid has the image's proportions, give or take what a patch cuts off.
        height = max(1, round(math.sqrt(tokens * size[0] / size[1])))
        if tokens % height:
            raise self._unsuitable(
                f"{tokens} tokens don't fill a grid in the proportions of {list(size)} pixels"
            )
        return height, tokens // height


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """The timm model named in ``MODEL.BACKBONE.TIMM_NAME``.

    Raises:
        ValueError: an unknown name; a wrong ``MODEL.BACKBONE.FEAT_DIM`` (names the right one); or a
            model for one size only, and ``INPUT.SIZE_TEST`` differs from ``INPUT.SIZE_TRAIN``.
        PretrainedError, WeightsError: see
            :func:`~lrreid_ext.modeling.backbones.pretrained.load_pretrained`.
    """
    name = cfg.MODEL.BACKBONE.TIMM_NAME
    other = list(cfg.INPUT.SIZE_TEST) != list(cfg.INPUT.SIZE_TRAIN)
    backbone = TimmBackbone(name, cfg.INPUT.SIZE_TRAIN, dynamic=other)
    if backbone.out_channels != cfg.MODEL.BACKBONE.FEAT_DIM:
        raise ValueError(
            f"MODEL.BACKBONE.FEAT_DIM is {cfg.MODEL.BACKBONE.FEAT_DIM}; {name} has "
            f"{backbone.out_channels}"
        )
    if other:
        backbone.channels_at(cfg.INPUT.SIZE_TEST)
    if cfg.MODEL.BACKBONE.PRETRAIN:
        whole = timm.create_model(name).state_dict()
        left_out = whole.keys() - backbone.model.state_dict().keys()
        load_pretrained(backbone.model, cfg, lambda: hub_weights(name), left_out)
    return backbone
