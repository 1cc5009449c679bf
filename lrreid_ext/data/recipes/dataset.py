"""Built recipes as fastreid data sets, and test sets for evaluation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastreid.data.datasets.bases import ImageDataset
from fastreid.utils import comm

from lrreid_ext.data.recipes.base import (
    RECIPE_REGISTRY,
    Recipe,
    build_recipe,
    file_digest,
)
from lrreid_ext.data.recipes.builder import build
from lrreid_ext.data.recipes.manifest import (
    MANIFEST_FILE,
    ImageRecord,
    load_manifest,
)
from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, Sample, TestSet, factor_group
from lrreid_ext.errors import ManifestError, RecipeError
from lrreid_ext.registry import DATASET_REGISTRY

__all__ = ["RecipeDataset", "add_recipe", "build_command", "find_source", "test_set_of"]

logger = logging.getLogger(__name__)


def find_source(recipe: Recipe, root: str | Path) -> Path | None:
    """The folder that holds the recipe's source, or None: the one that the recipe itself names, or
    one of its usual names below ``root``."""
    if recipe.source:
        return recipe.source
    for folder in (*recipe.source_folders, ""):
        try:
            recipe.locate(Path(root) / folder)
        except RecipeError:
            continue
        return Path(root) / folder
    return None


def build_command(recipe: Recipe, source: str | Path, out: str | Path) -> str:
    """The command line that builds ``recipe``."""
    defaults = build_recipe(recipe.name).options()
    changed = [
        f" --option {name}={str(value).replace(' ', '')}"
        for name, value in recipe.options().items()
        if value != defaults[name]
    ]
    where = f" --source {source}" if recipe.needs_source else ""
    name = recipe.file or recipe.name
    return f"python tools/build_dataset.py {name}{where} --out {out}{''.join(changed)}"


class RecipeDataset(ImageDataset):
    """The data set of one recipe, built when it is first asked for.

    Attributes:
        recipe: the recipe.
        folder: where it is built.
        manifest: what it holds.
        train: ``(path, "<name>_<pid>", "<name>_<camid>")`` of every training image, undegraded.
        query, gallery: ``(path, pid, camid)`` with whole numbers; queries are the small images.
        genuine_lr: cameras, numbered as in the manifest, whose training images are low-resolution
            by nature: they have no HR twin, and their factor is unknown. Empty for most.
    """

    _junk_pids = [0, -1]  # noqa: RUF012 - fastreid's own name and type
    #: Name in the recipe and data set registries; set by :func:`add_recipe`.
    dataset_name = ""

    def __init__(
        self,
        root: str = "datasets",
        source: str = "",
        options: Mapping[str, Any] | None = None,
        folder: str | Path = "",
        **kwargs: Any,
    ) -> None:
        """Load the built data set, or build it first (the main process does; others wait).

        Args:
            root: folder of data sets; the recipe is at ``root/<name>``, with options changed at
                ``root/<name>-<hash of the options>``.
            source: folder of the ordinary data set; "" looks for its usual names below ``root``.
            options: recipe fields to change.
            folder: where the built data set is, if it is elsewhere than below ``root``.
            kwargs: fastreid's (``mode``, ``combineall``, ``transform``, ``verbose``).

        Raises:
            RecipeError: an unknown option, a source that can't be used, or a folder that holds
                something else.
            FileNotFoundError: neither the built data set nor its source is there; says where to
                get it, where to put it, and the command.
        """
        self.recipe = build_recipe(self.dataset_name, options)
        self.genuine_lr = self.recipe.genuine_lr
        self.folder = Path(folder) if folder else Path(root) / self.recipe.folder()
        try:
            if comm.is_main_process() and not (self.folder / MANIFEST_FILE).is_file():
                self._build(Path(root), source)
        finally:
            comm.synchronize()
        self.manifest = load_manifest(self.folder)
        if not self.manifest.fits(self.recipe):
            raise RecipeError(
                f"{self.folder}: was built by {self.manifest.recipe} with other options than are "
                "asked for. Remove the folder, or build into another root."
            )
        super().__init__(
            [
                (path, f"{self.dataset_name}_{pid}", f"{self.dataset_name}_{camid}")
                for path, pid, camid in self._items("train")
            ],
            self._items(QUERY),
            self._items(GALLERY),
            **kwargs,
        )

    def _build(self, root: Path, source: str) -> None:
        folder: Path | None = Path(source) if source else None
        if self.recipe.needs_source and folder is None:
            folder = find_source(self.recipe, root)
            if folder is None:
                raise FileNotFoundError(self._what_to_do(root))
        logger.info("Building %s into %s", self.dataset_name, self.folder)
        manifest = build(self.recipe, folder, self.folder)
        logger.info("Built %s: %s, hash %s", self.folder, manifest.counts(), manifest.hash)

    def _what_to_do(self, root: Path) -> str:
        recipe = self.recipe
        place = root / recipe.source_folders[0] if recipe.source_folders else root
        return (
            f"{self.folder}: {recipe.name} is not built, and its source {recipe.source_name} is "
            f"not below {root}. Where to get it: {recipe.where_to_get}. Terms: {recipe.terms}. Put "
            f"it at {place}, and run:\n\n    {build_command(recipe, place, self.folder)}\n"
        )

    def _path(self, record: ImageRecord) -> str:
        return str(self.folder / record.file)

    def _check_images(self, roles: Sequence[str]) -> None:
        for record in (r for role in roles for r in self.manifest.of_role(role)):
            path = self._path(record)
            try:
                state = os.stat(path)
            except FileNotFoundError:
                raise ManifestError(f"{path}: is gone; build {self.folder} again") from None
            if _digest_at(path, state.st_mtime_ns, state.st_size) != record.sha256:
                raise ManifestError(
                    f"{path}: was changed since it was built; build {self.folder} again, which "
                    "makes it anew"
                )

    def _items(self, role: str) -> list[tuple[str, int, int]]:
        return [(self._path(r), r.pid, r.camid) for r in self.manifest.of_role(role)]

    def test_set(self, factors: Sequence[float], hr: bool) -> TestSet:
        """Everything that is evaluated.

        Where queries have no undegraded twins, for they are undegraded themselves or low-resolution
        by nature, there are the groups ``query`` and ``gallery`` only. An unknown factor is NaN.

        Args:
            factors: every query's undegraded twin is added once per factor, reduced by it, in
                group ``x<factor>``.
            hr: add the undegraded twins themselves, in group ``query_hr``.

        Raises:
            ManifestError: an image that isn't the one that was built, for figures name the hash of
                those.
        """
        self._check_images([QUERY, GALLERY, *([QUERY_HR] if hr or factors else [])])
        # Twins in their queries' order: as JPEGs, a.k.jpg follows a.jpg; as PNGs, it leads.
        by_stem = {Path(r.file).stem: r for r in self.manifest.of_role(QUERY_HR)}
        stems = [Path(r.file).stem for r in self.manifest.of_role(QUERY)]
        twins = [by_stem[stem] for stem in stems if stem in by_stem]
        samples = [
            Sample(
                self._path(r),
                r.pid,
                r.camid,
                role,
                factor=math.nan if r.factor is None else r.factor,
            )
            for role in (QUERY, GALLERY)
            for r in self.manifest.of_role(role)
        ]
        options = self.recipe.options()
        # A recipe without kernel degrades nothing, and so has no twins.
        kernel = options.get("kernel", "none")
        samples += twin_samples(
            [(self._path(r), r.pid, r.camid) for r in twins],
            factors,
            hr,
            kernel,
            options.get("seed", 0),
        )
        info: dict[str, object] = {"recipe": self.recipe.name}
        info |= {key: options[key] for key in ("seed", "split") if key in options}
        info |= {"options": options, "counts": self.manifest.counts()}
        return TestSet(self.dataset_name, samples, self.manifest.hash, info, self.recipe.synthetic)


@cache
def _digest_at(path: str, changed: int, size: int) -> str:
    """A file's digest; read again only where time of change or size say so."""
    return file_digest(path)


def twin_samples(
    items: Sequence[tuple[str, int, int]],
    factors: Sequence[float],
    hr: bool,
    kernel: str,
    seed: int = 0,
) -> list[Sample]:
    if bad := [f for f in factors if f < 1]:
        raise ValueError(f"factor {bad[0]!r}: a degradation factor is >= 1")
    samples = [Sample(*item, QUERY_HR) for item in items] if hr else []
    for factor in dict.fromkeys(float(f) for f in factors):
        samples += [
            Sample(*item, factor_group(factor), factor, degrade=factor, kernel=kernel, seed=seed)
            for item in items
        ]
    return samples


def test_set_of(
    dataset: ImageDataset, name: str, factors: Sequence[float] = (), hr: bool = False
) -> TestSet:
    """The test set of any fastreid data set.

    A recipe's data set gives its own. For any other, the queries as they are serve as the
    undegraded twins too.

    Args:
        dataset: with ``query`` and ``gallery`` lists of ``(path, pid, camid)``.
        name: what the data set is called in reports.
        factors: each adds a group ``x<factor>`` of queries reduced by it.
        hr: add a group ``query_hr``.
    """
    if isinstance(dataset, RecipeDataset):
        return dataset.test_set(factors, hr)
    # Sorted: fastreid lists files as the file system has them, and galleries are drawn by position.
    queries = sorted((str(path), int(pid), int(camid)) for path, pid, camid in dataset.query)
    gallery = sorted((str(path), int(pid), int(camid)) for path, pid, camid in dataset.gallery)
    samples = [Sample(*item, QUERY) for item in queries]
    samples += [Sample(*item, GALLERY) for item in gallery]
    samples += twin_samples(queries, factors, hr, "bicubic")
    return TestSet(name, samples)


test_set_of.__test__ = False  # type: ignore[attr-defined]  # nor this for a test


def add_recipe(entry: Callable[..., Recipe]) -> type[RecipeDataset]:
    """Register a recipe, and the data set of the same name.

    Args:
        entry: called as ``entry(**options)``; ``entry.__name__`` is the name of both, and the
            recipe that it returns must bear it.

    Returns:
        The data set's class.
    """
    name = entry.__name__
    RECIPE_REGISTRY.register(entry)
    dataset = type(name, (RecipeDataset,), {"dataset_name": name, "__doc__": entry.__doc__})
    DATASET_REGISTRY.register(dataset)
    return dataset
