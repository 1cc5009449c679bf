"""Build a recipe into a folder: decode, degrade, encode, write the manifest.

Each finished source image is noted in a journal. A build that was interrupted reads it and makes
only what is missing, changed, or made from another source file. The manifest is written last, so
a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from lrreid_ext.data.degrade import Draws, degrade
from lrreid_ext.data.kernels import Parameters
from lrreid_ext.data.recipes.base import PlannedImage, Recipe, file_digest
from lrreid_ext.data.recipes.manifest import (
    MANIFEST_FILE,
    RECORDS,
    SCHEMA,
    ImageRecord,
    Manifest,
    load_manifest,
    save_manifest,
)
from lrreid_ext.data.recipes.sources import warn_of_others
from lrreid_ext.data.samples import QUERY, QUERY_HR
from lrreid_ext.errors import ManifestError, RecipeError
from lrreid_ext.files import atomic, make_folder, worker_context
from lrreid_ext.plugins import import_plugin, imported_plugins

try:
    import fcntl
except ImportError:  # Windows: two builds into one folder aren't kept apart there
    fcntl = None  # type: ignore[assignment]

__all__ = ["JOURNAL_FILE", "build", "encode_png"]

logger = logging.getLogger(__name__)

JOURNAL_FILE = ".build.jsonl"
JPEG_QUALITY = 95
# Images that a worker makes at a time.
CHUNK = 32
# Fewer images are made before worker processes, which take some seconds to start, have begun.
MANY = 1000
_LONGEST_BLOCK = 0xFFFF

#: What is known of the files of one source image: its own, and its HR twin's.
Records = tuple[ImageRecord, ...]
Task = tuple[PlannedImage, Records]


def encode_png(image: Image.Image) -> bytes:
    """An RGB image as a PNG without compression: the same bytes for the same pixels, anywhere.

    Pillow's bytes depend on the zlib that it was built with (zlib-ng cuts even stored blocks
    elsewhere), and manifests hash these bytes.
    """
    stride = 3 * image.width
    pixels = image.tobytes()
    # Each row begins with its filter type, 0.
    rows = b"".join(b"\0" + pixels[i : i + stride] for i in range(0, len(pixels), stride))
    blocks = [b"\x78\x01"]  # zlib header: deflate, 32 KB window, fastest
    for start in range(0, len(rows), _LONGEST_BLOCK):
        part = rows[start : start + _LONGEST_BLOCK]
        last = start + _LONGEST_BLOCK >= len(rows)
        blocks.append(struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part)
    blocks.append(struct.pack(">I", zlib.adler32(rows)))
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"".join(blocks)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _encode_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _make(recipe: Recipe, root: Path, out: Path, planned: PlannedImage) -> Records:
    """Write the files of one source image."""
    source = planned.image
    native = recipe.load(root, source)
    digest = recipe.source_digest(root, source)

    def record(
        role: str,
        image: Image.Image,
        factor: float | None,
        encoding: str,
        parameters: Parameters,
    ) -> ImageRecord:
        data = encode_png(image) if encoding == "png" else _encode_jpeg(image)
        file = f"{role}/{planned.stem}.{'png' if encoding == 'png' else 'jpg'}"
        with atomic(out / file) as temporary:
            temporary.write_bytes(data)
        return ImageRecord(
            file=file,
            source=source.path,
            pid=source.pid,
            camid=source.camid,
            split=source.split,
            role=role,
            factor=factor,
            kernel=planned.kernel if factor is not None and factor > 1 else "none",
            size=(image.height, image.width),
            sha256=hashlib.sha256(data).hexdigest(),
            source_sha256=digest,
            parameters=parameters,
        )

    factor = planned.factor_of(native)
    draws = Draws.hashed(planned.stem, planned.seed)
    small = native
    if factor is not None:
        small = degrade(native, factor, planned.kernel, planned.rounding, draws)
    records = (record(planned.role, small, factor, planned.encoding, draws.parameters),)
    return (*records, record(QUERY_HR, native, 1.0, "png", {})) if planned.twin else records


def _reusable(recipe: Recipe, root: Path, out: Path, planned: PlannedImage, old: Records) -> bool:
    """Whether ``old`` are the records of ``planned``, and files and source are as they were."""
    image = planned.image
    facts = (image.path, image.pid, image.camid, image.split)
    return (
        bool(old)
        # A width gives a factor that depends on the source's width; the source is checked below.
        and (planned.width > 0 or old[0].factor == planned.factor)
        and all((r.source, r.pid, r.camid, r.split) == facts for r in old)
        and old[0].source_sha256 == recipe.source_digest(root, image)
        and all((out / r.file).is_file() and file_digest(out / r.file) == r.sha256 for r in old)
    )


def _work(recipe: Recipe, root: Path, out: Path, tasks: Sequence[Task]) -> list[Records]:
    return [
        old if _reusable(recipe, root, out, planned, old) else _make(recipe, root, out, planned)
        for planned, old in tasks
    ]


def _begin(plugins: Sequence[str]) -> None:
    """Prepare a worker: end it when the build is killed, and import the plugins, which may bring
    recipes and kernels."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for name in plugins:
        import_plugin(name, "the building process")


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(
    work: Callable[[Sequence[Task]], list[Records]], tasks: Sequence[Task], workers: int
) -> Iterator[list[Records]]:
    """The results of ``work`` on chunks of ``tasks``, in their order."""
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    if workers == 1:
        yield from map(work, chunks)
        return
    context, plugins = worker_context(__name__), imported_plugins()
    try:
        with ProcessPoolExecutor(workers, context, _begin, (plugins,)) as pool:
            yield from pool.map(work, chunks)
    except BrokenProcessPool as error:
        raise RecipeError(
            "a worker process died: for want of memory, because the calling script lacks "
            '`if __name__ == "__main__"`, or because the recipe or kernel is in a module that '
            "is no plugin and can't be imported by name. Run it again with 1 worker; finished "
            "files are kept."
        ) from error


@contextmanager
def _journal(out: Path, recipe: Recipe) -> Iterator[tuple[TextIO, list[Records]]]:
    """The journal of the build in ``out``, locked, and the records found in it.

    Raises:
        RecipeError: another process has locked it, or it is another recipe's.
    """
    header = {"schema": SCHEMA, "recipe": recipe.name, "options": recipe.options()}
    with open(out / JOURNAL_FILE, "a+", encoding="utf-8", errors="replace") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RecipeError(
                    f"{out}: another process is building here. Wait until it is done."
                ) from error
        stream.seek(0)
        first, *rest = stream.read().split("\n")
        records: list[Records] = []
        try:
            begun = json.loads(first)
        except ValueError:  # a new journal, or its build was killed while it wrote this line
            rest = []
        else:
            if begun != header:
                raise _foreign(out, "a build that was begun")
        with suppress(ValidationError):  # the line at which a build was killed, or the empty last
            for line in rest:
                records.append(RECORDS.validate_json(line))
        # Written anew, so that a cut-off line doesn't hide those after it.
        stream.truncate(0)
        stream.write(json.dumps(header) + "\n")
        for record in records:
            _note(stream, record)
        yield stream, records


def _foreign(out: Path, what: str) -> RecipeError:
    return RecipeError(
        f"{out}: holds {what} with other options or by another recipe. "
        "Choose another folder, or remove this one."
    )


def _previous(out: Path, recipe: Recipe) -> list[Records]:
    """Records of a complete build by the same recipe in ``out``."""
    if not out.is_dir() or not any(out.iterdir()):
        return []
    if not (out / MANIFEST_FILE).is_file():
        if not (out / JOURNAL_FILE).is_file():
            raise RecipeError(
                f"{out}: is not empty and not an unfinished build. Choose another folder."
            )
        return []
    try:
        manifest = load_manifest(out)
    except ManifestError as error:
        logger.warning("%s Everything is made again.", error)
        return []
    if not manifest.fits(recipe):
        raise _foreign(out, f"{manifest.recipe} built")
    grouped: dict[tuple[str, str], Records] = {}
    # A query's record precedes its twin's: "query/" sorts before "query_hr/".
    for record in manifest.images:
        key = _key(record)
        grouped[key] = (*grouped.get(key, ()), record)
    return list(grouped.values())


def _key(record: ImageRecord) -> tuple[str, str]:
    role = QUERY if record.role == QUERY_HR else record.role
    return role, Path(record.file).stem


def build(
    recipe: Recipe,
    source: str | Path | None,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    tell: Callable[[str], object] | None = None,
) -> Manifest:
    """Build ``recipe`` from the data set in folder ``source`` into folder ``out``.

    May be interrupted and called again: finished files are checked and kept. The result doesn't
    depend on ``workers``.

    Args:
        recipe: from :func:`~lrreid_ext.data.recipes.build_recipe`.
        source: folder of the ordinary data set; None for a recipe that needs none, or names it.
        out: an empty or new folder, or one that the same recipe was built into.
        workers: processes; 1 works in this one; None uses all cores if there are a thousand images
            or more. More than one needs an ``if __name__ == "__main__"`` in the calling script, as
            ``multiprocessing`` does.
        progress: show a bar.
        tell: called with a line for each kind of images that the recipe leaves out and the reason,
            before any is made; by default they are logged.

    Raises:
        RecipeError: a source, source file or folder that can't be used, named in the message;
            ``out`` then has no manifest, or the one it had.
    """
    if workers is not None and workers < 1:
        raise RecipeError(f"workers: {workers}; needs at least 1.")
    if source is None:
        source = recipe.source
    if recipe.needs_source and source is None:
        raise RecipeError(
            f"recipe {recipe.name} is built from {recipe.source_name}: name its folder. "
            f"Where to get it: {recipe.where_to_get}."
        )
    root = recipe.locate(Path(source or "."))
    sources = recipe.read(root)
    if recipe.needs_source and not recipe.listed:
        warn_of_others({(root / image.path).parent for image in sources})
    planned = recipe.plan(sources)
    for line in recipe.left_out(sources, planned):
        (tell or logger.info)(f"left out: {line}")
    out = make_folder(out)
    previous = _previous(out, recipe)
    with _journal(out, recipe) as (journal, noted):
        for records in previous:
            _note(journal, records)
        (out / MANIFEST_FILE).unlink(missing_ok=True)
        finished = {_key(records[0]): records for records in [*noted, *previous] if records}
        tasks = [(p, finished.get((p.role, p.stem), ())) for p in planned]
        if workers is None:
            workers = cores() if len(tasks) >= MANY else 1
        images: list[ImageRecord] = []
        results = _run(partial(_work, recipe, root, out), tasks, workers)
        # None: tqdm shows its bar on a terminal only, and so keeps log files clean.
        hidden = None if progress else True
        with tqdm(total=len(tasks), desc=recipe.name, unit="image", disable=hidden) as bar:
            for chunk in results:
                for records in chunk:
                    if records != finished.get(_key(records[0])):
                        _note(journal, records)
                    images += records
                bar.update(len(chunk))
        manifest = Manifest(
            recipe.name, recipe.options(), tuple(sorted(images, key=lambda record: record.file))
        )
        current = {record.file for record in manifest.images}
        stale = {r.file for records in finished.values() for r in records} - current
        for path in [*(out / file for file in stale), *out.rglob(".*.tmp*")]:
            path.unlink(missing_ok=True)
        save_manifest(manifest, out)
        (out / JOURNAL_FILE).unlink()
    return manifest


def _note(journal: TextIO, records: Records) -> None:
    journal.write(json.dumps([record.to_json() for record in records]) + "\n")
    journal.flush()
