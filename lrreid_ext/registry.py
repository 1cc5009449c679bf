"""Registries, and look-ups whose errors name what there is.

The backbone, head, meta-architecture and data set registries are fastreid's own; the others are
ours. A plugin registers into either in the same way::

    @FRONTEND_REGISTRY.register()
    class MyFrontend(Frontend): ...
"""

from __future__ import annotations

from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils.registry import Registry

from lrreid_ext.errors import ConfigError, suggest

__all__ = [
    "BACKBONE_REGISTRY",
    "DATASET_REGISTRY",
    "EVALUATOR_REGISTRY",
    "FRONTEND_REGISTRY",
    "HOOK_REGISTRY",
    "KERNEL_REGISTRY",
    "LOSS_REGISTRY",
    "META_ARCH_REGISTRY",
    "REID_HEADS_REGISTRY",
    "REPORT_REGISTRY",
    "lookup",
    "names",
    "registered",
    "suggest",
    "unregister",
]

FRONTEND_REGISTRY = Registry("FRONTEND")
FRONTEND_REGISTRY.__doc__ = """
Super-resolution front-ends. Called as ``obj(cfg)``; returns a
:class:`lrreid_ext.modeling.frontends.Frontend`.
"""

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Identity losses named in ``MODEL.LOSSES.NAME``. Called as ``obj(cfg)``; returns a callable
``(outputs, targets) -> scalar tensor``, where ``outputs`` is the dict that a head returns in
training (``cls_outputs`` (B, C), ``pred_class_logits`` (B, C), ``features`` (B, D), and whatever
else the head adds) and ``targets`` (B,) int64. ``TripletLoss`` is logged as ``loss_triplet``.
"""

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators named in ``TEST.EVALUATORS``. Called as ``obj(cfg, test_set, output_dir)`` with a
:class:`lrreid_ext.data.TestSet`; returns a ``fastreid.evaluation.DatasetEvaluator``, whose
``process(batch, features)`` sees every batch once.

What else it may offer is in :mod:`lrreid_ext.modeling.contract`.
"""

HOOK_REGISTRY = Registry("HOOK")
HOOK_REGISTRY.__doc__ = """
Extra training hooks named in ``HOOKS``. Called as ``obj(cfg)``; returns a
``fastreid.engine.hooks.HookBase``.
"""

KERNEL_REGISTRY = Registry("KERNEL")
KERNEL_REGISTRY.__doc__ = """
Degradation kernels, named in a recipe's option ``kernel`` and in ``INPUT.LR.KERNEL``. Called as
``obj(image, size, draws)`` with a PIL image in mode RGB, the ``(height, width)`` wanted, never more
than the image has, and :class:`lrreid_ext.data.kernels.Draws` for everything random; returns an RGB
image of that size. What it draws is written into the manifest. Nothing else may be random, so that
the same draws give the same bytes.
"""


REPORT_REGISTRY = Registry("REPORT")
REPORT_REGISTRY.__doc__ = """
Sections that a plugin adds to ``lrreid report``. Called as ``obj(context)`` with a
:class:`lrreid_ext.report.Context`; returns a list of :mod:`lrreid_ext.report.blocks`, or a string
that says why the section is left out. The first line of its docstring is the section's title.
"""


def names(registry: Registry) -> list[str]:
    """The registered names, sorted."""
    return sorted(registry._obj_map)


def registered(registry: Registry, name: str) -> Any:
    """The entry called ``name``, or None."""
    return registry._obj_map.get(name)


def unregister(registry: Registry, name: str) -> None:
    """Remove the entry called ``name``, so that another can take its place."""
    del registry._obj_map[name]


def lookup(registry: Registry, name: str, key: str) -> Any:
    """The entry called ``name``.

    Args:
        registry: one of this module's registries.
        name: the entry's name.
        key: the config key that holds the name, for the message.

    Raises:
        ConfigError: names the key, the nearest entry and all there are.
    """
    if name in registry._obj_map:
        return registry._obj_map[name]
    raise ConfigError(
        f"{key}: {name!r} is not registered.{suggest(name, names(registry))} "
        f"Registered: {', '.join(names(registry))}. "
        "An entry of your own must be imported first: name its module in PLUGINS."
    )
