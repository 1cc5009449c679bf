"""What a recipe is, how one is asked for by name, and how it turns images into a plan."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from fastreid.utils.registry import Registry
from PIL import Image, ImageOps

from lrreid_ext.data.degrade import KERNELS, ROUNDINGS, draw_factor, hash_unit
from lrreid_ext.registry import names, suggest

__all__ = [
    "RANDOM_CAMERA",
    "RECIPE_REGISTRY",
    "PlannedImage",
    "Recipe",
    "RecipeError",
    "SourceImage",
    "build_recipe",
    "file_digest",
    "preset",
]

RECIPE_REGISTRY = Registry("RECIPE")
RECIPE_REGISTRY.__doc__ = """
Recipes of cross-resolution data sets. Called as ``obj(**options)``, each option being a field of
the recipe; returns a :class:`Recipe`. :func:`lrreid_ext.data.recipes.add_recipe` registers one
together with the data set of the same name.
"""

RANDOM_CAMERA = "random"
FACTOR_MODES = ("per_image", "per_identity", "per_camera")
ENCODINGS = ("png", "jpeg")

# What a source image may become in the test split.
TRAIN, QUERY, GALLERY, EITHER = "train", "query", "gallery", "either"


class RecipeError(ValueError):
    """A recipe, option or source that can't be used; the message names it."""


@dataclass(frozen=True)
class SourceImage:
    """One image of an ordinary data set.

    Attributes:
        path: file below the source's root, with forward slashes; of a rendered image its name.
        pid: identity; 0 a distractor.
        camid: camera, numbered as the data set does.
        split: ``train`` or ``test``.
        role: ``train``; ``query`` (a query if the LR camera took it, else left out), ``gallery``
            (left out if the LR camera took it), or ``either`` (a query or in the gallery).
    """

    path: str
    pid: int
    camid: int
    split: str
    role: str


@dataclass(frozen=True)
class PlannedImage:
    """One source image and what is made of it: the role, the file's stem, and the LR factor.

    A ``query`` gives two files, the small image and its undegraded twin.
    """

    image: SourceImage
    role: str
    stem: str
    factor: float = 1.0


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a cross-resolution data set is made from an ordinary one.

    Every field except ``name`` and ``description`` is an option. Subclasses say where the images
    come from; which of them become queries and by which factors is decided here, alike for all.

    Attributes:
        name: name in the registry.
        description: one line.
        factor_mode: what shares one factor: ``per_image``, ``per_identity`` or ``per_camera``.
        factors: the set that factors are drawn from, each >= 1.
        span: if not empty, ``(low, high)``: factors are drawn from this range instead.
        kernel: one of :data:`lrreid_ext.data.degrade.KERNELS`.
        rounding: one of :data:`lrreid_ext.data.degrade.ROUNDINGS`.
        encoding: how the degraded queries are stored, ``png`` or ``jpeg`` (quality 95);
            everything else is a PNG always.
        lr_camera: the camera whose test images are low-resolution queries, or ``random``: one
            for each identity.
        seed: of the factors, and of the LR cameras if they are random.
    """

    source_name: ClassVar[str]
    where_to_get: ClassVar[str]
    terms: ClassVar[str]
    #: Folder names under which the source is looked for below the data set root.
    source_folders: ClassVar[tuple[str, ...]] = ()
    #: Whether there is a source folder at all.
    needs_source: ClassVar[bool] = True

    name: str
    description: str = ""
    factor_mode: str = "per_image"
    factors: tuple[float, ...] = (2.0, 3.0, 4.0)
    span: tuple[float, ...] = ()
    kernel: str = "bicubic"
    rounding: str = "nearest"
    encoding: str = "png"
    lr_camera: int | str = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for spec in fields(self):
            if spec.name not in ("name", "description"):
                value = _coerce(self.name, spec.name, getattr(self, spec.name), spec.default)
                object.__setattr__(self, spec.name, value)
        self._choice("factor_mode", FACTOR_MODES)
        self._choice("kernel", KERNELS)
        self._choice("rounding", ROUNDINGS)
        self._choice("encoding", ENCODINGS)
        if not self.factors and not self.span:
            raise self.error("factors", "is empty, and no span is given")
        for factor in (*self.factors, *self.span):
            if not 1 <= factor < float("inf"):
                raise self.error("factors/span", f"holds {factor:g}; a factor is >= 1")
        if self.span and not (len(self.span) == 2 and self.span[0] <= self.span[1]):
            raise self.error("span", f"is {list(self.span)}; it takes two numbers, low <= high")
        if isinstance(self.lr_camera, str) and self.lr_camera != RANDOM_CAMERA:
            raise self.error("lr_camera", f"is {self.lr_camera!r}; a number or {RANDOM_CAMERA!r}")

    def _at_least(self, option: str, least: int) -> None:
        if getattr(self, option) < least:
            raise self.error(option, f"{getattr(self, option)}; needs at least {least}")

    def error(self, option: str, what: str) -> RecipeError:
        """An error about one option of this recipe."""
        return RecipeError(f"recipe {self.name}, option {option}: {what}.")

    def _choice(self, option: str, known: Sequence[str]) -> None:
        value = getattr(self, option)
        if value not in known:
            raise self.error(
                option, f"{value!r} is unknown.{suggest(value, known)} Known: {', '.join(known)}"
            )

    def options(self) -> dict[str, Any]:
        """Every option and its value, by name and ready for JSON."""
        values = asdict(self)
        del values["name"], values["description"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(values.items())}

    def folder(self) -> str:
        """Folder of the built data set: the name, and with options changed a hash of all."""
        options = self.options()
        if options == build_recipe(self.name).options():
            return self.name
        return f"{self.name}-{_canonical_hash(options)[:8]}"

    # ------------------------------------------------------------------ what a source gives

    @abstractmethod
    def locate(self, source: Path) -> Path:
        """The folder below ``source`` that paths are relative to.

        Raises:
            RecipeError: ``source`` doesn't hold the data set; says what was expected.
        """

    @abstractmethod
    def read(self, root: Path) -> list[SourceImage]:
        """All images below ``root`` (what :meth:`locate` returned), in a fixed order.

        Raises:
            RecipeError: a file or a count that doesn't fit the data set.
        """

    def load(self, root: Path, image: SourceImage) -> Image.Image:
        """The image in mode RGB, turned upright.

        Raises:
            RecipeError: names a file that can't be decoded.
        """
        path = root / image.path
        try:
            with Image.open(path) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RecipeError(
                f"{path}: can't be read as an image ({error}). "
                "Get this file again, then run the same command; finished files are kept."
            ) from error

    def source_digest(self, root: Path, image: SourceImage) -> str:
        """Changes whenever what :meth:`load` returns may change: SHA-256 of the source file."""
        return file_digest(root / image.path)

    # ------------------------------------------------------------------ which become what

    def plan(self, images: Sequence[SourceImage]) -> list[PlannedImage]:
        """Assign roles and factors; the order of ``images`` doesn't matter.

        Raises:
            RecipeError: no image is left for the queries, the gallery or training; if the LR
                camera is the reason, says which cameras have query images.
        """
        images = sorted(images, key=lambda image: image.path)
        cameras = self._lr_cameras(images)
        planned = []
        taken: set[tuple[str, str]] = set()
        for image in images:
            role = self._role(image, cameras)
            if role is None:
                continue
            stem = PurePosixPath(image.path).stem
            while (role, stem) in taken:  # of another folder, or with another suffix
                stem += "_dup"
            taken.add((role, stem))
            factor = self._factor(image) if role == QUERY else 1.0
            planned.append(PlannedImage(image, role, stem, factor))
        for role in (TRAIN, QUERY, GALLERY):
            if not any(p.role == role for p in planned):
                raise RecipeError(f"recipe {self.name}: no image is left for {role}.")
        return planned

    def _lr_cameras(self, images: Sequence[SourceImage]) -> dict[int, int]:
        """The LR camera of each identity that has a query image."""
        queries: dict[int, set[int]] = {}
        others: dict[int, set[int]] = {}
        counts: Counter[int] = Counter()
        for image in images:
            if image.pid <= 0 or image.split != "test":
                continue
            if image.role in (QUERY, EITHER):
                queries.setdefault(image.pid, set()).add(image.camid)
                counts[image.camid] += 1
            if image.role in (GALLERY, EITHER):
                others.setdefault(image.pid, set()).add(image.camid)
        if isinstance(self.lr_camera, int):
            if not counts[self.lr_camera]:
                have = ", ".join(f"{camera} ({n})" for camera, n in sorted(counts.items()))
                raise self.error(
                    "lr_camera",
                    f"camera {self.lr_camera} has no query image. Cameras that have (images): "
                    f"{have or 'none'}",
                )
            return dict.fromkeys(queries, self.lr_camera)
        chosen = {}
        for pid, cameras in queries.items():
            # A query is worth asking only if another camera saw the same person.
            usable = sorted(c for c in cameras if others.get(pid, set()) - {c})
            if usable:
                unit = hash_unit(f"lr camera of {pid}", self.seed)
                chosen[pid] = usable[int(unit * len(usable))]
        return chosen

    def _role(self, image: SourceImage, cameras: Mapping[int, int]) -> str | None:
        if image.role == TRAIN:
            return TRAIN
        fixed = None if self.lr_camera == RANDOM_CAMERA else self.lr_camera
        if image.camid == cameras.get(image.pid, fixed):
            return QUERY if image.role in (QUERY, EITHER) and image.pid > 0 else None
        return GALLERY if image.role in (GALLERY, EITHER) else None

    def _factor(self, image: SourceImage) -> float:
        name = {
            "per_image": PurePosixPath(image.path).name,
            "per_identity": f"identity {image.pid}",
            "per_camera": f"camera {image.camid}",
        }[self.factor_mode]
        if self.span:
            return draw_factor(name, self.seed, span=(self.span[0], self.span[1]))
        return draw_factor(name, self.seed, self.factors)


def preset(
    recipe: type[Recipe], name: str, description: str, **preset_options: Any
) -> Callable[..., Recipe]:
    """A registry entry called ``name``: ``recipe`` with other defaults."""

    def entry(**options: Any) -> Recipe:
        return recipe(name=name, description=description, **{**preset_options, **options})

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = description
    return entry


def build_recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe called ``name`` with some of its options changed.

    Raises:
        RecipeError: an unknown name or option (the message lists the known ones and the nearest),
            or a value that an option doesn't take.
    """
    if name not in RECIPE_REGISTRY._obj_map:
        known = names(RECIPE_REGISTRY)
        raise RecipeError(
            f"recipe {name!r} is not registered.{suggest(name, known)} "
            f"Registered: {', '.join(known)}."
        )
    entry = RECIPE_REGISTRY._obj_map[name]
    if not options:
        return entry()
    known = sorted(entry().options())
    for option in options:
        if option not in known:
            raise RecipeError(
                f"recipe {name} has no option {option!r}.{suggest(str(option), known)} "
                f"Options: {', '.join(known)}."
            )
    return entry(**options)


def _canonical_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _coerce(recipe: str, option: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``, so that YAML, JSON and Python spell options alike."""
    if option == "lr_camera" and isinstance(value, str):
        return value
    if isinstance(default, tuple):
        items = value if isinstance(value, (list, tuple)) else (value,)
        if all(_is_number(item) for item in items):
            return tuple(float(item) for item in items)
        wanted = "numbers"
    elif isinstance(default, bool):
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif isinstance(default, int):
        if _is_number(value) and int(value) == value:
            return int(value)
        wanted = "a whole number"
    elif isinstance(default, float):
        if _is_number(value):
            return float(value)
        wanted = "a number"
    else:
        if isinstance(value, str):
            return value
        wanted = "a word"
    raise RecipeError(f"recipe {recipe}, option {option}: takes {wanted}, not {value!r}.")
