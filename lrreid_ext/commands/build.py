"""Build a cross-resolution data set from an ordinary one, or check a built one.

python tools/build_dataset.py list
python tools/build_dataset.py synth_pedestrians
python tools/build_dataset.py mlr_market1501 --source Market-1501-v15.09.15
python tools/build_dataset.py mlr_csv --source my_images --option lr_camera=2
python tools/build_dataset.py mlr_market1501 --verify
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lrreid_ext.config import get_cfg
from lrreid_ext.data.recipes import (
    RECIPE_REGISTRY,
    Recipe,
    RecipeError,
    build,
    build_recipe,
    find_source,
    load_manifest,
    verify,
)
from lrreid_ext.registry import names

DEFAULT_ROOT = os.environ.get("FASTREID_DATASETS", "datasets")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    out = argparse.ArgumentParser(
        prog="lrreid build",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or `list` to see all")
    out.add_argument(
        "--source", metavar="DIR", help="the ordinary data set (default: looked for beside --out)"
    )
    out.add_argument(
        "--out",
        metavar="DIR",
        help=f"folder to build into, or to verify (default: {DEFAULT_ROOT}/<recipe>, with options "
        "changed <recipe>-<hash>)",
    )
    out.add_argument("--workers", type=int, metavar="N", help="processes (default: by image count)")
    out.add_argument(
        "--verify",
        action="store_true",
        help="check the built folder against its manifest, build nothing; status 1 if it differs",
    )
    out.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the recipe, e.g. factors=[2,3,4] or lr_camera=3; repeatable",
    )
    out.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module (or .py file) first, for a recipe of your own; repeatable",
    )
    return out


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["factors=[2,3]", "kernel=area"]`` as a dictionary; values are read as YAML.

    Raises:
        RecipeError: names a pair that isn't ``KEY=VALUE``.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--option {pair}: the value can't be read.") from error
        if not equals or not key.strip():
            raise RecipeError(f"--option {pair}: write KEY=VALUE.")
    return options


def describe() -> str:
    """Every recipe with its source, where to get it, its terms and its options."""
    blocks = []
    for name in names(RECIPE_REGISTRY):
        recipe = build_recipe(name)
        options = ", ".join(f"{key}={value}" for key, value in recipe.options().items())
        lines = [
            f"source   {recipe.source_name}",
            f"get it   {recipe.where_to_get}",
            f"terms    {recipe.terms}",
            f"options  {options}",
        ]
        blocks.append("\n    ".join([f"{name}: {recipe.description}", *lines]))
    return "\n\n".join(blocks)


def _source(recipe: Recipe, given: str | None, out: Path) -> Path | None:
    if given or not recipe.needs_source:
        return Path(given) if given else None
    found = find_source(recipe, out.parent)
    if found is None:
        raise RecipeError(
            f"{recipe.name}: no {recipe.source_name} below {out.parent}; give --source DIR. "
            f"Where to get it: {recipe.where_to_get}."
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status (2 for an error, by way of argparse)."""
    cli = parser()
    args = cli.parse_args(argv)
    try:
        if args.plugin:
            get_cfg(args.plugin)
        if args.recipe == "list":
            print(describe())
            return 0
        recipe = build_recipe(args.recipe, parse_options(args.option))
        out = Path(args.out) if args.out else Path(DEFAULT_ROOT) / recipe.folder()
        if args.verify:
            problems = verify(out, progress=True)
            for problem in problems:
                print(problem, file=sys.stderr)
            if not problems:
                print(f"{out}: as its manifest says, hash {load_manifest(out).hash}")
            return 1 if problems else 0
        manifest = build(recipe, _source(recipe, args.source, out), out, workers=args.workers)
    except (RecipeError, ImportError, OSError) as error:
        cli.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    counts = ", ".join(f"{value} {key}" for key, value in manifest.counts().items())
    print(f"{out}: {counts}\nmanifest hash {manifest.hash}")
    return 0
