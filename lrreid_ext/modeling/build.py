"""Build a model from a config."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrreid_ext.config import CfgNode, changed
from lrreid_ext.data.seeding import derive, seed_everything
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import HasSteps
from lrreid_ext.modeling.published import init_weights
from lrreid_ext.registry import META_ARCH_REGISTRY, lookup

__all__ = [
    "build_model",
    "classes_in",
    "set_step",
    "with_num_classes",
    "without_initial_weights",
]


def build_model(cfg: CfgNode) -> nn.Module:
    """The architecture MODEL.META_ARCHITECTURE on MODEL.DEVICE, its weights seeded by SEED."""
    seed_everything(derive("model", cfg.SEED))
    build = lookup(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    try:
        model = build(cfg)
    except ValueError as error:  # parts can be built without a config, and know no ConfigError
        raise ConfigError(str(error)) from error
    if cfg.MODEL.INIT.WEIGHTS:
        node = cfg.MODEL.INIT
        init_weights(model, node.WEIGHTS, node.MAP, node.FORMAT)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    return model.to(torch.device(cfg.MODEL.DEVICE))


def set_step(model: nn.Module, step: str) -> None:
    """Choose one of an architecture's training steps; "" is its default."""
    if isinstance(model, HasSteps):
        model.set_step(step)
    elif step:
        raise ConfigError(f"PHASES.*.STEP: {type(model).__name__} has no steps, so not {step!r}")


def with_num_classes(cfg: CfgNode, num_classes: int) -> CfgNode:
    """``cfg`` with MODEL.HEADS.NUM_CLASSES filled in where it is 0."""
    if cfg.MODEL.HEADS.NUM_CLASSES:
        return cfg
    return changed(cfg, ("MODEL.HEADS.NUM_CLASSES", num_classes))


def classes_in(state: Mapping[str, Tensor]) -> int:
    """How many identities the classifier in a checkpoint has.

    Raises:
        ConfigError: there is no classifier of a known name.
    """
    for name, tensor in state.items():
        # Of a model with anchors or a teacher, any: all have the same identities.
        if f".{name}".endswith((".heads.weight", ".heads.classifier.weight")):
            return tensor.shape[0]
    raise ConfigError("MODEL.HEADS.NUM_CLASSES: the checkpoint doesn't say how many; set it")


def without_initial_weights(cfg: CfgNode) -> CfgNode:
    """``cfg`` with every key that names a file of weights emptied, plugins' keys too.

    A checkpoint replaces them all, so that the files need not be at hand.
    """

    def blank(node: CfgNode) -> None:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                blank(value)
            elif key.endswith("WEIGHTS") and isinstance(value, str):
                node[key] = ""

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    blank(cfg)
    cfg.freeze()
    return cfg
