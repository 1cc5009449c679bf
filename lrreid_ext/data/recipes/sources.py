"""Listing the folders of ordinary data sets."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from lrreid_ext.errors import RecipeError

__all__ = ["IMAGE_SUFFIXES", "image_names", "read_text", "warn_of_others"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
#: Of images that folders aren't searched for.
OTHER_SUFFIXES = frozenset(
    {".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".ppm", ".tif",
     ".tiff", ".webp"}
)  # fmt: skip


def image_names(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Names of the image files directly in ``folder``, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in suffixes and not entry.name.startswith(".")
    )


def warn_of_others(folders: Iterable[Path]) -> None:
    """Warn of image files directly in ``folders`` whose format :func:`image_names` passes over."""
    others = sorted(folder / n for folder in folders for n in image_names(folder, OTHER_SUFFIXES))
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
