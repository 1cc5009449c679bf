"""Initial weights of backbones, with failures that say what to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import timm
import torch
from fastreid.config import CfgNode
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError, PretrainedError, WeightsError
from lrreid_ext.registry import BACKBONE_REGISTRY, lookup
from lrreid_ext.weights import load_strictly, read_state_dict

logger = logging.getLogger(__name__)

PATH_KEY = "MODEL.BACKBONE.PRETRAIN_PATH"
WAYS_OUT = (
    f"Download the weights where there is a network and name the file in {PATH_KEY} "
    "(.pth or .safetensors), or train from scratch with MODEL.BACKBONE.PRETRAIN False."
)


def build_backbone(cfg: CfgNode, name: str = "", key: str = "MODEL.BACKBONE.NAME") -> nn.Module:
    """Build a backbone, fastreid's or ours.

    fastreid's own backbones load without complaint a file that has nothing in common with them, and
    fail without a hint when they can't download; both are errors here.

    Args:
        cfg: the config.
        name: which backbone; "" is the one named in ``MODEL.BACKBONE.NAME``.
        key: the config key that holds the name, for the message.

    Raises:
        ConfigError: the name isn't registered, or ``MODEL.BACKBONE.FEAT_DIM`` isn't the width of
            the map that one of fastreid's makes, or it has no ``MODEL.BACKBONE.DEPTH``.
        FileNotFoundError: ``MODEL.BACKBONE.PRETRAIN_PATH`` names no file.
        PretrainedError: pretrained weights can't be downloaded or loaded.
        WeightsError: none of the file's names belongs to the backbone.
    """
    node = cfg.MODEL.BACKBONE
    name = name or node.NAME
    builder = lookup(BACKBONE_REGISTRY, name, key)
    if not builder.__module__.startswith("fastreid."):
        return builder(cfg)
    try:
        backbone = _with_host_weights(cfg, name, builder) if node.PRETRAIN else builder(cfg)
    except KeyError as error:
        if error.args != (node.DEPTH,):
            raise
        raise ConfigError(f"MODEL.BACKBONE.DEPTH: {name} has no depth {node.DEPTH!r}") from error
    width = map_width(backbone, tuple(cfg.INPUT.SIZE_TRAIN))
    if width != node.FEAT_DIM:
        raise ConfigError(
            f"MODEL.BACKBONE.FEAT_DIM is {node.FEAT_DIM}; {name} makes maps of {width} channels"
        )
    return backbone


def map_width(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Channels of the map (B, C, h, w) that a backbone makes of images of a size, height first.

    Nothing is computed: shapes alone pass through it.
    """
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    images = torch.empty(2, 3, *size, device="meta")
    with torch.no_grad():
        return int(torch.func.functional_call(backbone, shapes, (images,)).shape[1])


def _with_host_weights(
    cfg: CfgNode, name: str, builder: Callable[[CfgNode], nn.Module]
) -> nn.Module:
    path = cfg.MODEL.BACKBONE.PRETRAIN_PATH
    file = read_state_dict(path, PATH_KEY) if path else None
    try:
        backbone = builder(cfg)
    except Exception as error:  # a missing gdown, and whatever gdown and torch raise
        what = f"load {PATH_KEY} {path}" if path else "download its pretrained weights"
        raise PretrainedError(
            f"{name} could not {what} ({type(error).__name__}: {error}). {WAYS_OUT}"
        ) from error
    if file is not None and not file.keys() & backbone.state_dict().keys():
        raise WeightsError(
            f"{PATH_KEY}: {path} is not for {name}: not one name agrees "
            f"(the file has {', '.join(list(file)[:3])} ...)"
        )
    return backbone


def load_pretrained(
    model: nn.Module,
    cfg: CfgNode,
    hub: Callable[[], Mapping[str, Tensor]],
    classifier: Iterable[str],
) -> None:
    """Load ImageNet weights if ``MODEL.BACKBONE.PRETRAIN`` is set.

    From the file in ``MODEL.BACKBONE.PRETRAIN_PATH``, or from timm's hub if that is empty. Strict,
    but for what belongs to the classifier, which a re-ID network doesn't have.

    Args:
        model: a timm model without its classifier, or a module with the same names.
        cfg: the config.
        hub: returns the whole model's weights from timm's hub; see :func:`hub_weights`.
        classifier: prefixes of names that are left out.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: lists the names and shapes that differ.
        PretrainedError: the weights can't be downloaded.
    """
    if not cfg.MODEL.BACKBONE.PRETRAIN:
        return
    path = cfg.MODEL.BACKBONE.PRETRAIN_PATH
    source = f"{PATH_KEY}: {path}" if path else "timm's hub"
    state: Mapping[str, Tensor] = read_state_dict(path, PATH_KEY) if path else hub()
    state = filtered(model, state)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(classifier))}
    # Files older than PyTorch 0.4.1 don't count batches.
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    load_strictly(model, {**counters, **state}, source)
    logger.info("Backbone weights taken from %s", source)


def filtered(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What timm makes of a file for a model: names that changed, position embeddings resized."""
    modules = [kind.__module__ for kind in type(model).__mro__]
    of_timm = [name for name in modules if name.startswith("timm.models.")]
    adapt = getattr(sys.modules[of_timm[0]], "checkpoint_filter_fn", None) if of_timm else None
    return dict(state) if adapt is None else adapt(dict(state), model)


def hub_weights(name: str, *, ways_out: str = WAYS_OUT, **kwargs: Any) -> Mapping[str, Tensor]:
    """All weights of a timm model from timm's hub, classifier included.

    Args:
        name: the model, by timm's name.
        ways_out: what to do instead, for the message.
        kwargs: of ``timm.create_model``.

    Raises:
        PretrainedError: they can't be downloaded, or there are none; says what to do instead.
    """
    try:
        return timm.create_model(name, pretrained=True, **kwargs).state_dict()
    except Exception as error:  # each of timm's hubs raises its own kinds
        raise PretrainedError(
            f"pretrained weights of {name!r} could not be downloaded "
            f"({type(error).__name__}: {error}). {ways_out}"
        ) from error
