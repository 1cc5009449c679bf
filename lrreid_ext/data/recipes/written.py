"""Recipes of your own, written in YAML.

A file like this one is a plugin: named in a config's ``PLUGINS``, or given instead of a recipe's
name to ``lrreid build`` or :func:`lrreid_ext.build_dataset`, it registers a recipe, and a data set
of its name::

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

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from lrreid_ext.data.recipes.base import RECIPE_REGISTRY, Recipe, build_recipe, problem_in
from lrreid_ext.data.recipes.dataset import add_recipe
from lrreid_ext.errors import RecipeError
from lrreid_ext.plugins import FILE_HANDLERS
from lrreid_ext.registry import DATASET_REGISTRY, registered, suggest, unregister

__all__ = ["SUFFIXES", "WrittenRecipe", "recipe_named", "register_recipe_file"]

#: Suffixes of such a file.
SUFFIXES = (".yml", ".yaml")


class WrittenRecipe(BaseModel):
    """The keys of such a file."""

    model_config = ConfigDict(extra="forbid")

    # It names a folder, too.
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]\w*$")]
    base: str
    description: str | None = None
    source: str | None = None
    options: dict[str, Any] | None = None


def register_recipe_file(file: str | Path) -> str:
    """Register the recipe written in ``file``; the same file may be registered again, changed.

    Returns:
        The recipe's name.

    Raises:
        RecipeError: a file that can't be read as such, an unknown key, base or option (with the
            nearest known), a value that an option doesn't take, or a name that is taken.
    """
    path = Path(file).resolve()
    written = _read(path)
    name, base = written.name, written.base
    if base == name:
        raise RecipeError(f"{path}: base is the recipe itself; name another that is registered.")
    previous = registered(RECIPE_REGISTRY, name)
    if previous or registered(DATASET_REGISTRY, name):
        if not previous or previous().file != path:
            raise RecipeError(f"{path}: name {name!r} is taken already; choose another.")
        unregister(RECIPE_REGISTRY, name)
        unregister(DATASET_REGISTRY, name)
    options = written.options or {}
    try:
        like = build_recipe(base, options)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    description = written.description or like.description
    changes = {
        "name": name,
        "description": description,
        "file": path,
        "source": path.parent / written.source if written.source else None,
    }

    def entry(**changed: Any) -> Recipe:
        return build_recipe(base, {**options, **changed}).model_copy(update=changes)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = description
    add_recipe(entry)
    return name


def recipe_named(text: str) -> str:
    """The name of a recipe that is given by its name, or by a YAML file, which is registered.

    Raises:
        RecipeError: as :func:`register_recipe_file`.
    """
    return register_recipe_file(text) if text.endswith(SUFFIXES) else text


def _read(path: Path) -> WrittenRecipe:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: can't be read as YAML ({error}).") from error
    try:
        return WrittenRecipe.model_validate(content)
    except ValidationError as error:
        key, what = problem_in(error)
        keys = list(WrittenRecipe.model_fields)
        if not key:
            what = "no recipe; it needs the keys name and base"
        elif key not in keys:
            what = f"unknown key {key!r}.{suggest(key, keys)} Keys: {', '.join(keys)}"
        elif key not in content:
            what = f"no {key}; a recipe needs name and base"
        else:
            what = f"{key}: {what}"
        raise RecipeError(f"{path}: {what}.") from None


for _suffix in SUFFIXES:
    FILE_HANDLERS[_suffix] = register_recipe_file
