"""Finding and listing the folders of ordinary data sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from lrreid_ext.data.recipes.base import Recipe
from lrreid_ext.errors import RecipeError

__all__ = ["IMAGE_SUFFIXES", "first_folder", "image_names", "read_text", "warn_of_others"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
#: Of images that folders aren't searched for.
OTHER_SUFFIXES = frozenset(
    {".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".ppm", ".tif",
     ".tiff", ".webp"}
)  # fmt: skip


def image_names(folder: Path) -> list[str]:
    """Names of the image files directly in ``folder``, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    )


def warn_of_others(folders: Iterable[Path]) -> None:
    """Warn of image files directly in ``folders`` whose format :func:`image_names` passes over."""
    others = sorted(
        entry
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.suffix.lower() in OTHER_SUFFIXES and not entry.name.startswith(".")
    )
    if others:
        more = f", and {len(others) - 1} more of other formats" if len(others) > 1 else ""
        logger.warning(
            "%s%s: not read. In folders, images are %s; save it as PNG.",
            *(others[0], more, ", ".join(sorted(IMAGE_SUFFIXES))),
        )


def read_text(file: Path) -> str:
    """What a text file in UTF-8 holds.

    Raises:
        RecipeError: names a file that can't be read so.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{file}: can't be read as text in UTF-8 ({error}). Get this file again."
        ) from error


def first_folder(
    recipe: Recipe,
    source: Path,
    candidates: Iterable[str],
    fits: Callable[[Path], bool],
    expected: str,
) -> Path:
    """The first of ``source/<candidate>`` that ``fits``.

    Raises:
        RecipeError: none does; names what was ``expected`` and where to get it.
    """
    for candidate in candidates:
        if fits(source / candidate):
            return source / candidate
    what = f"is not {recipe.source_name}" if source.is_dir() else "no such folder"
    raise RecipeError(
        f"{source}: {what}; expected {expected}. "
        f"Where to get {recipe.source_name}: {recipe.where_to_get}."
    )
