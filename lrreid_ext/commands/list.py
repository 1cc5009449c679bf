"""Show what there is: front-ends, backbones, heads, methods, recipes ... with a line on each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lrreid_ext.config import get_cfg
from lrreid_ext.data.recipes import RECIPE_REGISTRY
from lrreid_ext.errors import UserError
from lrreid_ext.plugins import bundled_projects, projects_root
from lrreid_ext.registry import (
    BACKBONE_REGISTRY,
    EVALUATOR_REGISTRY,
    FRONTEND_REGISTRY,
    HOOK_REGISTRY,
    KERNEL_REGISTRY,
    LOSS_REGISTRY,
    META_ARCH_REGISTRY,
    REID_HEADS_REGISTRY,
    names,
    suggest,
)

Rows = list[tuple[str, str]]

# fast-reid's own entries, most of which say nothing of themselves.
OF_THE_HOST = {
    "build_effnet_backbone": "EfficientNet",
    "build_mobilenetv2_backbone": "MobileNetV2",
    "build_mobilenetv3_backbone": "MobileNetV3",
    "build_osnet_backbone": "OSNet, DEPTH x0_25 to x1_0",
    "build_regnet_backbone": "RegNet",
    "build_repvgg_backbone": "RepVGG",
    "build_resnest_backbone": "ResNeSt",
    "build_resnet_backbone": "ResNet, DEPTH 18x to 152x, with IBN, SE or non-local blocks",
    "build_resnext_backbone": "ResNeXt",
    "build_shufflenetv2_backbone": "ShuffleNetV2",
    "build_vit_backbone": "Vision Transformer",
    "ClasHead": "head for classification",
    "EmbeddingHead": "head: pooling, perhaps a smaller embedding and a neck, classifier",
    "Baseline": "network: backbone, head, losses",
    "Distiller": "network that learns from frozen teachers",
    "MGN": "Multiple Granularity Network: the whole image and two and three stripes",
    "MoCo": "network with MoCo's queue of earlier features",
}


def registered(registry: Any) -> Callable[[], Rows]:
    """Entries of a registry, each with the first sentence of its docstring."""

    def line(name: str) -> str:
        entry = registry.get(name)
        if entry.__module__.startswith("fastreid.") and name in OF_THE_HOST:
            return f"fast-reid's {OF_THE_HOST[name]}"
        return first_line(entry.__doc__)

    return lambda: [(name, line(name)) for name in names(registry)]


def first_line(doc: str | None) -> str:
    """The first paragraph's first sentence, in one line; "" for no docstring."""
    paragraph = " ".join((doc or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<!al)(?<!Eq)(?<!Fig)(?<!: \d)\. ", paragraph, maxsplit=1)[0].rstrip(".:")


def methods() -> Rows:
    """The bundled projects, each with the first paragraph of its README."""
    root = projects_root() or Path()
    rows = []
    for name in bundled_projects():
        readme = root / name / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        paragraphs = [p for p in text.split("\n\n") if p.strip() and not p.startswith(("#", "<"))]
        rows.append((name, first_line(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraphs[0]))))
    return rows


KINDS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "methods": ("projects/", methods),
    "frontends": ("MODEL.SR.NAME", registered(FRONTEND_REGISTRY)),
    "backbones": ("MODEL.BACKBONE.NAME", registered(BACKBONE_REGISTRY)),
    "heads": ("MODEL.HEADS.NAME", registered(REID_HEADS_REGISTRY)),
    "architectures": ("MODEL.META_ARCHITECTURE", registered(META_ARCH_REGISTRY)),
    "losses": ("MODEL.LOSSES.NAME", registered(LOSS_REGISTRY)),
    "recipes": ("DATASETS.NAMES", registered(RECIPE_REGISTRY)),
    "kernels": ("INPUT.LR.KERNEL, and a recipe's option kernel", registered(KERNEL_REGISTRY)),
    "evaluators": ("TEST.EVALUATORS", registered(EVALUATOR_REGISTRY)),
    "hooks": ("HOOKS", registered(HOOK_REGISTRY)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; or all")
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="MODULE", help="load these first, as PLUGINS do"
    )


def run(args: argparse.Namespace) -> None:
    """Print a table for each kind."""
    for kind in args.kinds:
        if kind not in KINDS:
            raise UserError(f"{kind!r} is no kind.{suggest(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    get_cfg(args.plugins)
    blocks = []
    for kind in args.kinds or KINDS:
        key, rows = KINDS[kind]
        found = rows()
        if found:
            table = tabulate(
                found, tablefmt="plain", disable_numparse=True, maxcolwidths=[None, 96]
            )
            blocks.append(f"{kind} ({key})\n\n{table}")
    print("\n\n".join(blocks))
