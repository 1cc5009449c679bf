"""Recipes of one's own, written down in YAML.

A file like this one is a plugin: named in a config's ``PLUGINS``, or given in a recipe's place to
``lrreid build`` or :func:`lrreid_ext.build_dataset`, it registers a recipe, and a data set of its
name::

    name: hall              # of recipe, data set and built folder
    base: mlr_folder        # the recipe that it is like: any that is registered
    description: Twelve people in our hall, camera 2 is far away
    source: hall_images     # the images' folder, relative to this file (optional)
    options:                # options of the base to change
      lr_camera: 2
      factors: [2, 3, 4]
      kernel: second-order
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lrreid_ext.data.recipes.base import RECIPE_REGISTRY, Recipe, build_recipe
from lrreid_ext.data.recipes.dataset import add_recipe
from lrreid_ext.errors import RecipeError
from lrreid_ext.plugins import FILE_HANDLERS
from lrreid_ext.registry import DATASET_REGISTRY, registered, suggest, unregister

__all__ = ["KEYS", "recipe_named", "register_recipe_file"]

#: Suffixes of such a file.
SUFFIXES = (".yml", ".yaml")

#: Keys of such a file, and the type of their values.
KEYS: dict[str, type] = {
    "name": str,
    "base": str,
    "description": str,
    "source": str,
    "options": dict,
}
_NEEDED = ("name", "base")
_NAME = re.compile(r"[A-Za-z]\w*")


def register_recipe_file(file: str | Path) -> str:
    """Register the recipe written in ``file``; the same file may be registered again, changed.

    Returns:
        The recipe's name.

    Raises:
        RecipeError: a file that can't be read as such, an unknown key, base or option (with the
            nearest known), a value that an option doesn't take, or a name that something else
            bears already.
    """
    path = Path(file).resolve()
    content = _content(path)
    name, base = content["name"], content["base"]
    options: Mapping[str, Any] = content.get("options") or {}
    if base == name:
        raise RecipeError(f"{path}: base is the recipe itself; name another that is registered.")
    previous = registered(RECIPE_REGISTRY, name)
    if previous or registered(DATASET_REGISTRY, name):
        if getattr(previous, "file", None) != path:
            raise RecipeError(f"{path}: name {name!r} is taken already; choose another.")
        unregister(RECIPE_REGISTRY, name)
        unregister(DATASET_REGISTRY, name)
    try:
        like = build_recipe(base, options)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    description = content.get("description") or like.description

    def entry(**changed: Any) -> Recipe:
        made = build_recipe(base, {**options, **changed})
        return replace(made, name=name, description=description)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = description
    entry.file = path  # type: ignore[attr-defined]
    source = content.get("source")
    entry.source = path.parent / source if source else None  # type: ignore[attr-defined]
    add_recipe(entry)
    return name


def recipe_named(text: str) -> str:
    """The name of a recipe that is given by its name, or by a YAML file, which is registered.

    Raises:
        RecipeError: as :func:`register_recipe_file`.
    """
    return register_recipe_file(text) if text.endswith(SUFFIXES) else text


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: can't be read as YAML ({error}).") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: no recipe; it needs the keys {' and '.join(_NEEDED)}.")
    for key, value in content.items():
        if key not in KEYS:
            raise RecipeError(
                f"{path}: unknown key {key!r}.{suggest(str(key), KEYS)} Keys: {', '.join(KEYS)}."
            )
        if value is not None and not isinstance(value, KEYS[key]):
            wanted = "a mapping" if KEYS[key] is dict else "text"
            raise RecipeError(f"{path}: {key} takes {wanted}, not {value!r}.")
    if missing := [key for key in _NEEDED if not content.get(key)]:
        raise RecipeError(f"{path}: no {missing[0]}; a recipe needs {' and '.join(_NEEDED)}.")
    if not _NAME.fullmatch(content["name"]):
        raise RecipeError(
            f"{path}: name {content['name']!r} can't name a folder; use letters, digits and _."
        )
    return content


for _suffix in SUFFIXES:
    FILE_HANDLERS[_suffix] = register_recipe_file
