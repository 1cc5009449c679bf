"""Files that are written whole or not at all, and worker processes."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from lrreid_ext.errors import ConfigError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to the path given to the block; it takes ``path``'s place when the block ends well.

    Readers see the old file or the new one. If the block raises, the old one stays and nothing else
    is left behind. The folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text by :func:`atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write strict JSON by :func:`atomic`.

    Raises:
        ValueError: NaN or an infinite number.
        TypeError: a value of a type that JSON lacks.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_again(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write what ``source`` holds to ``path`` by :func:`atomic`; where the file system can, as
    another name of the same file, which costs neither time nor space.

    It is for files that are replaced and never written into.
    """
    with atomic(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder, made if it isn't there, with those above it.

    Raises:
        ConfigError: a file is in its place, or it can't be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(p for p in (path, *path.parents) if os.path.lexists(p))
        what = "a file" if file.exists() else "a broken link"
        raise ConfigError(f"{path}: can't be a folder, {file} is {what}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be made ({error.strerror})") from error
    return path


def check_place(path: str | os.PathLike[str]) -> None:
    """Make the folder that a file will be written into, before the work of making the file.

    Raises:
        ConfigError: the file can't be written there.
    """
    path = Path(path)
    try:
        folder = path.is_dir()
        if not folder:
            _temporary(path).exists()
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"{path}: can't be written there ({error.strerror})") from error
    if folder:
        raise ConfigError(f"{path}: is a folder; name a file to write")
    try:
        make_folder(path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: can't be written there ({error})") from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: no permission to write into {path.parent}")


def worker_context(module: str) -> BaseContext:
    """How to start worker processes: fresh ones, with ``module`` imported beforehand if possible.

    A fork of the calling process would hang as soon as it waits for one of the threads (OpenCV's,
    PyTorch's) that aren't copied with it.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([module])
    return context
