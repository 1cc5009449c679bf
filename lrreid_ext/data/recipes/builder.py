"""Build a recipe's data set: small files and a manifest, the same on every machine.

PNGs are written uncompressed, for compressed bytes depend on the zlib that made them; images of
people are small, and reading becomes faster. (The ``jpeg`` encoding's bytes, and those of kernels
that compress, do depend on libjpeg, as what a JPEG source decodes to does.)

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
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from lrreid_ext.data.degrade import Draws, degrade
from lrreid_ext.data.kernels import Parameters
from lrreid_ext.data.recipes.base import (
    PlannedImage,
    Recipe,
    file_digest,
    own_source,
)
from lrreid_ext.data.recipes.manifest import (
    MANIFEST_FILE,
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

__all__ = ["build", "cores", "encode_png"]

logger = logging.getLogger(__name__)

JOURNAL_FILE = ".build.jsonl"
JPEG_QUALITY = 95
_CHUNK = 32
# Workers take some seconds to start: they do so where this process has worked for _TRIED seconds,
# and would work for _WORTH more.
_TRIED, _WORTH = 2.0, 10.0
_STORED = 0xFFFF

Records = list[ImageRecord]
Task = tuple[PlannedImage, Records]


def encode_png(image: Image.Image) -> bytes:
    """An RGB image as a PNG without compression: the same bytes for the same pixels, anywhere."""
    stride = 3 * image.width
    pixels = image.tobytes()
    # Each row is led by its filter type, 0.
    rows = b"".join(b"\0" + pixels[i : i + stride] for i in range(0, len(pixels), stride))
    blocks = [b"\x78\x01"]  # zlib header: deflate, 32 KB window, fastest
    for start in range(0, len(rows), _STORED):
        part = rows[start : start + _STORED]
        last = start + _STORED >= len(rows)
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


def _write(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def _make(recipe: Recipe, root: Path, out: Path, planned: PlannedImage) -> list[ImageRecord]:
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
        _write(out / file, data)
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
    records = [record(planned.role, small, factor, planned.encoding, draws.parameters)]
    if planned.twin:
        records.append(record(QUERY_HR, native, 1.0, "png", {}))
    return records


def _reusable(recipe: Recipe, root: Path, out: Path, planned: PlannedImage, old: Records) -> bool:
    """Whether ``old`` are the records of ``planned``, and files and source are as they were."""
    image = planned.image
    facts = (image.path, image.pid, image.camid, image.split)
    return (
        bool(old)
        # What factor brings an image to a width is the source's affair, which is checked too.
        and (planned.width > 0 or old[0].factor == planned.factor)
        and all((r.source, r.pid, r.camid, r.split) == facts for r in old)
        and old[0].source_sha256 == recipe.source_digest(root, image)
        and all((out / r.file).is_file() and file_digest(out / r.file) == r.sha256 for r in old)
    )


def _work(
    recipe: Recipe, root: Path, out: Path, tasks: Sequence[tuple[PlannedImage, Records]]
) -> list[Records]:
    return [
        old if _reusable(recipe, root, out, planned, old) else _make(recipe, root, out, planned)
        for planned, old in tasks
    ]


def _begin(plugins: Sequence[str]) -> None:
    """In a worker: end when the build is killed, instead of waiting for work for ever; and know
    the recipes and kernels that plugins bring."""
    parent = multiprocessing.parent_process()
    if parent is not None:

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
    work: Callable[[list[Task]], list[Records]], tasks: Sequence[Task], workers: int | None
) -> Iterator[list[Records]]:
    """The results of ``work`` on chunks of ``tasks``, as they finish.

    With None, this process begins, and all cores take over if that is worth starting them.
    """
    chunks = [list(tasks[i : i + _CHUNK]) for i in range(0, len(tasks), _CHUNK)]
    if workers is None:
        workers = cores()
        began = time.monotonic()
        for done, chunk in enumerate(chunks, start=1):
            yield work(chunk)
            spent = time.monotonic() - began
            if workers > 1 and spent > _TRIED and spent / done * (len(chunks) - done) > _WORTH:
                chunks = chunks[done:]
                break
        else:
            return
    if workers == 1:
        yield from map(work, chunks)
        return
    context = worker_context(__name__)
    plugins = (imported_plugins(),)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=plugins) as pool:
        waiting = iter(chunks)
        running = {pool.submit(work, chunk) for chunk in islice(waiting, 2 * workers)}
        try:
            while running:
                done_now, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, chunk) for chunk in islice(waiting, len(done_now))}
                for future in done_now:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RecipeError(
                "a worker process died: for want of memory, because the calling script lacks "
                '`if __name__ == "__main__"`, or because the recipe or kernel is in a module that '
                "is no plugin and can't be imported by name. Run it again with 1 worker; finished "
                "files are kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


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
            found = json.loads(first)
            if found != header:
                raise RecipeError(_foreign(out, dict(found).get("recipe", "?")))
            for line in rest:
                records.append([ImageRecord.from_json(values) for values in json.loads(line)])
        except RecipeError:
            raise
        except (ValueError, TypeError, LookupError):
            pass  # the line at which a build was cut off, the empty last one, or a damaged one
        # Written anew, so that a cut-off line doesn't hide those after it.
        stream.truncate(0)
        stream.write(json.dumps(header) + "\n")
        for record in records:
            _note(stream, record)
        yield stream, records


def _foreign(out: Path, recipe: str) -> str:
    return (
        f"{out}: holds {recipe} built with other options or by another recipe. "
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
        raise RecipeError(_foreign(out, manifest.recipe))
    grouped: dict[tuple[str, str], Records] = {}
    # A query's record precedes its twin's: "query/" sorts before "query_hr/".
    for record in manifest.images:
        grouped.setdefault(_key(record), []).append(record)
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
        workers: processes; 1 works in this one; None uses all cores where there is more than
            some seconds' work. More than one asks of the calling script what ``multiprocessing``
            does, an ``if __name__ == "__main__"``.
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
        source = own_source(recipe)
    if recipe.needs_source and source is None:
        raise RecipeError(
            f"recipe {recipe.name} is built from {recipe.source_name}: name its folder. "
            f"Where to get it: {recipe.where_to_get}."
        )
    root = recipe.locate(Path(source or "."))
    images = recipe.read(root)
    if recipe.needs_source and not recipe.listed:
        warn_of_others({(root / image.path).parent for image in images})
    planned = recipe.plan(images)
    for line in recipe.left_out(images, planned):
        (tell or logger.info)(f"left out: {line}")
    out = make_folder(out)
    previous = _previous(out, recipe)
    with _journal(out, recipe) as (journal, noted):
        for records in previous:
            _note(journal, records)
        (out / MANIFEST_FILE).unlink(missing_ok=True)
        known = {_key(records[0]): records for records in [*noted, *previous] if records}
        tasks = [(p, known.get((p.role, p.stem), [])) for p in planned]
        made: list[ImageRecord] = []
        results = _run(partial(_work, recipe, root, out), tasks, workers)
        # None: tqdm shows its bar on a terminal only, and so keeps log files clean.
        hidden = None if progress else True
        with tqdm(total=len(tasks), desc=recipe.name, unit="image", disable=hidden) as bar:
            for chunk in results:
                for records in chunk:
                    if records != known.get(_key(records[0])):
                        _note(journal, records)
                    made += records
                bar.update(len(chunk))
        manifest = Manifest(
            recipe.name, recipe.options(), tuple(sorted(made, key=lambda record: record.file))
        )
        current = {record.file for record in manifest.images}
        stale = {r.file for records in known.values() for r in records} - current
        for path in [*(out / file for file in stale), *out.rglob(".*.tmp*")]:
            path.unlink(missing_ok=True)
        save_manifest(manifest, out)
        (out / JOURNAL_FILE).unlink()
    return manifest


def _note(journal: TextIO, records: Records) -> None:
    journal.write(json.dumps([record.to_json() for record in records]) + "\n")
    journal.flush()
