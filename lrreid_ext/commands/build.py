"""Build a cross-resolution data set from an ordinary one, or check a built one.

lrreid build list
lrreid build list mlr_cuhk01
lrreid build synth_pedestrians
lrreid build mlr_market1501 --source Market-1501-v15.09.15
lrreid build mlr_csv --source my_images --option lr_camera=2
lrreid build my_recipe.yml
lrreid build mlr_market1501 --verify
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from lrreid_ext.config import get_cfg
from lrreid_ext.data.recipes import (
    RECIPE_REGISTRY,
    Recipe,
    build,
    build_recipe,
    find_source,
    load_manifest,
    recipe_named,
    verify,
)
from lrreid_ext.errors import ManifestError, RecipeError
from lrreid_ext.registry import names

INTERRUPTED = "run the same command again to go on"

# A docstring's reference, and in it the name.
_ROLE = re.compile(r":\w+:`(?:[\w.]*\.)?(\w+)`")
DEFAULT_ROOT = os.environ.get("FASTREID_DATASETS", "datasets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe's name or YAML file; or `list`: all of them, or the one called NAME",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="with `list`: the recipe to show")
    parser.add_argument(
        "--source", metavar="DIR", help="the ordinary data set (default: looked for beside --out)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"folder to build into, or to verify (default: {DEFAULT_ROOT}/<recipe>, with options "
        "changed <recipe>-<hash>)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: all cores for a thousand images or more, else 1)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the built folder against its manifest, build nothing; status 1 if it differs, "
        "2 if it was built by another recipe or with other options than are given",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the recipe, e.g. factors=[2,3,4] or lr_camera=3; repeatable",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module (or .py or .yml file) first, for a recipe or kernel of your own; "
        "repeatable",
    )


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


def overview() -> str:
    """A line for each recipe: what it is built from, where to get that, and on what terms."""
    recipes = [build_recipe(name) for name in names(RECIPE_REGISTRY)]
    rows = [(r.name, r.source_name, f"{r.where_to_get} | {r.terms}") for r in recipes]
    headers = ("recipe", "built from", "where to get it | terms of use")
    table = tabulate(rows, headers, tablefmt="plain", disable_numparse=True)
    return f"{table}\n\n`list NAME` shows the rule and the options of one."


def describe(name: str) -> str:
    """One recipe: its rule, its source, where to get that, its terms, and its options."""
    recipe = build_recipe(name)
    below = ", ".join(recipe.source_folders) if recipe.needs_source else ""
    facts = [
        ("source", recipe.source_name),
        ("get it", recipe.where_to_get),
        ("terms", recipe.terms),
        ("found as", below),
        *(("--option", f"{key}={value}") for key, value in recipe.options().items()),
    ]
    width = max(len(key) for key, _ in facts)
    lines = [f"    {key:<{width}}  {value}" for key, value in facts if value]
    rules = [kind.__doc__ for kind in type(recipe).__mro__ if issubclass(kind, Recipe)]
    texts = [_ROLE.sub(r"\1", inspect.cleandoc(rule)) for rule in rules[:-1] if rule]
    return "\n\n".join([f"{name}: {recipe.description}", "\n".join(lines), *texts])


def _source(recipe: Recipe, folder: str | None, out: Path) -> Path | None:
    if folder or not recipe.needs_source:
        return Path(folder) if folder else None
    source = find_source(recipe, out.parent)
    if source is None:
        raise RecipeError(
            f"{recipe.name}: no {recipe.source_name} below {out.parent}; give --source DIR. "
            f"Where to get it: {recipe.where_to_get}."
        )
    return source


def _check_recipe(recipe: Recipe, out: Path, options: Iterable[str]) -> None:
    """Raises RecipeError if ``out`` was built by another recipe, or with other values of
    these options."""
    try:
        manifest = load_manifest(out)
    except ManifestError:
        return  # which verify tells
    if differences := manifest.differences(recipe, set(options)):
        raise RecipeError(f"{out}: was built otherwise: {'; '.join(differences)}")


def run(args: argparse.Namespace) -> int:
    """Build, verify or list; returns 1 if a folder differs from its manifest."""
    if args.plugin:
        get_cfg(args.plugin)
    if args.recipe in ("list", "show"):
        print(describe(recipe_named(args.name)) if args.name else overview())
        return 0
    if args.name:
        raise RecipeError(f"{args.name}: one recipe at a time; to see one: list {args.recipe}")
    options = parse_options(args.option)
    recipe = build_recipe(recipe_named(args.recipe), options)
    out = Path(args.out) if args.out else Path(DEFAULT_ROOT) / recipe.folder()
    if args.verify:
        _check_recipe(recipe, out, options)
        problems = verify(out, progress=True)
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            print(f"{out}: as its manifest says, hash {load_manifest(out).hash}")
        return 1 if problems else 0
    left_out: list[str] = []
    source = _source(recipe, args.source, out)
    manifest = build(recipe, source, out, workers=args.workers, tell=left_out.append)
    counts = ", ".join(f"{value} {key}" for key, value in manifest.counts().items())
    print("\n".join([f"{out}: {counts}", *left_out, f"manifest hash {manifest.hash}"]))
    return 0
