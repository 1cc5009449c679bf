"""What a recipe is, how one is asked for by name, and how it turns images into a plan."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from fastreid.utils.registry import Registry
from PIL import Image

from lrreid_ext.data.pictures import read_picture
from lrreid_ext.errors import ImageError, RecipeError
from lrreid_ext.registry import names, registered, suggest

__all__ = [
    "EITHER",
    "GALLERY",
    "LARGEST_NUMBER",
    "LONGEST_STEM",
    "QUERY",
    "RECIPE_REGISTRY",
    "TRAIN",
    "PlannedImage",
    "Recipe",
    "SourceImage",
    "build_recipe",
    "file_digest",
    "own_source",
    "preset",
]

RECIPE_REGISTRY = Registry("RECIPE")
RECIPE_REGISTRY.__doc__ = """
Recipes of cross-resolution data sets. Called as ``obj(**options)``, each option being a field of
the recipe; returns a :class:`Recipe`. :func:`lrreid_ext.data.recipes.add_recipe` registers one
together with the data set of the same name.
"""

# What a source image may become in the test split.
TRAIN, QUERY, GALLERY, EITHER = "train", "query", "gallery", "either"

#: Of an identity or a camera: evaluation keeps them in 64 bits.
LARGEST_NUMBER = 2**63 - 1

#: Bytes of a built file's name without its suffix: file systems hold 255, and while it is written
#: there are a process's number and other marks in it.
LONGEST_STEM = 238


_PNG = b"\x89PNG\r\n\x1a\n"
# The last chunk of a PNG, with its checksum.
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class SourceImage:
    """One image of an ordinary data set.

    Attributes:
        path: file below the source's root, with forward slashes; of a rendered image its name.
        pid: identity; 0 a distractor.
        camid: camera, numbered as the data set does.
        split: ``train`` or ``test``.
        role: ``train``; ``query`` or ``gallery`` (only that, else left out); or ``either``.
        name: what draws are made by and the built file is called; by default the path's last part.
            A source whose folders repeat names gives others.
    """

    path: str
    pid: int
    camid: int
    split: str
    role: str
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", PurePosixPath(self.path).name)


@dataclass(frozen=True)
class PlannedImage:
    """One source image and what is made of it.

    Attributes:
        image: the source image.
        role: ``train``, ``query`` or ``gallery``.
        stem: of the built file's name.
        factor: by which it is reduced, >= 1; None if it is low-resolution as it is, and nobody
            knows by how much.
        width: if above 0, the image is reduced to this width in the place of a given factor; an
            image that is narrower already stays as it is.
        kernel, rounding, encoding: how, where it is reduced.
        seed: of what the kernel draws, by a hash of it and ``stem``.
        twin: store the undegraded image too, in the role ``query_hr``.
    """

    image: SourceImage
    role: str
    stem: str
    factor: float | None = 1.0
    width: int = 0
    kernel: str = "bicubic"
    rounding: str = "nearest"
    encoding: str = "png"
    seed: int = 0
    twin: bool = False

    def factor_of(self, native: Image.Image) -> float | None:
        """The factor that ``native``, the image itself, is reduced by."""
        return max(native.width / self.width, 1.0) if self.width else self.factor


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a cross-resolution data set is made from an ordinary one.

    Two things make a recipe: a source (:meth:`locate`, :meth:`read`), where the images come from,
    and a rule (:meth:`roles`, :meth:`treat`), which of them become queries and which are reduced.
    The rules are in :mod:`lrreid_ext.data.recipes.rules`; a recipe inherits from a source and one
    of them. Every field except ``name`` and ``description`` is an option.

    Attributes:
        name: name in the registry.
        description: one line.
    """

    source_name: ClassVar[str]
    where_to_get: ClassVar[str]
    terms: ClassVar[str]
    #: Folder names under which the source is looked for below the data set root.
    source_folders: ClassVar[tuple[str, ...]] = ()
    #: Whether the images show no real person.
    synthetic: ClassVar[bool] = False
    #: Whether there is a source folder at all.
    needs_source: ClassVar[bool] = True
    #: Whether there must be training images; without, a set is for testing alone.
    needs_train: ClassVar[bool] = True
    #: Whether a list names the images, and not the folders that hold them.
    listed: ClassVar[bool] = False
    #: Height and width of every source image in pixels, or () if they may vary.
    image_size: ClassVar[tuple[int, ...]] = ()
    #: Cameras whose images are low-resolution as they are, by no known factor.
    genuine_lr: ClassVar[frozenset[int]] = frozenset()

    name: str
    description: str = ""

    def __post_init__(self) -> None:
        for spec in fields(self):
            if spec.name not in ("name", "description"):
                value = _coerce(self.name, spec, getattr(self, spec.name))
                object.__setattr__(self, spec.name, value)

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
            RecipeError: names a file that can't be decoded, or hasn't the data set's size.
        """
        path = root / image.path
        try:
            loaded = read_picture(path)
            with open(path, "rb") as stream:
                cut = stream.read(len(_PNG)) == _PNG and _PNG_END not in stream.read()
            if cut:
                # Pillow doesn't miss it where the pixels are there.
                raise ImageError(f"{path}: can't be read as an image: its end is missing")
        except ImageError as error:
            raise RecipeError(
                f"{error}. Get this file again, then run the same command; finished files are kept."
            ) from error
        if self.image_size and (loaded.height, loaded.width) != self.image_size:
            raise RecipeError(
                f"{path}: {loaded.height} x {loaded.width} pixels (height x width); "
                f"{self.source_name}'s images have {self.image_size[0]} x {self.image_size[1]}. "
                "This is another data set, or was resized."
            )
        return loaded

    def source_digest(self, root: Path, image: SourceImage) -> str:
        """Changes whenever what :meth:`load` returns may change: SHA-256 of the source file."""
        return file_digest(root / image.path)

    # ------------------------------------------------------------------ which become what

    @abstractmethod
    def roles(self, images: Sequence[SourceImage]) -> Iterable[tuple[SourceImage, str]]:
        """The images that are used, in the order given, each with ``train``, ``query`` or
        ``gallery``.

        Raises:
            RecipeError: options that these images don't allow.
        """

    def treat(self, planned: PlannedImage) -> PlannedImage:
        """``planned`` with what is done to the image; here, genuinely LR ones are marked so."""
        genuine = planned.image.camid in self.genuine_lr
        return replace(planned, factor=None) if genuine else planned

    def plan(self, images: Sequence[SourceImage]) -> list[PlannedImage]:
        """Assign roles and factors; the order of ``images`` doesn't matter.

        Raises:
            RecipeError: options that the images don't allow; an identity or camera whose number
                is too large, or a name that is too long; no image is left for the queries, the
                gallery or training; or people who are in both training and test.
        """
        for image in images:
            if max(image.pid, image.camid) > LARGEST_NUMBER:
                raise RecipeError(
                    f"recipe {self.name}: {image.path} is of identity {image.pid} and camera "
                    f"{image.camid}; numbers are to {LARGEST_NUMBER}."
                )
        planned = []
        taken: set[tuple[str, str]] = set()
        for image, role in self.roles(sorted(images, key=lambda image: image.path)):
            stem = PurePosixPath(image.name).stem
            while (role, stem) in taken:  # of another folder, or with another suffix
                stem += "_dup"
            taken.add((role, stem))
            if (length := len(stem.encode(errors="surrogateescape"))) > LONGEST_STEM:
                raise RecipeError(
                    f"recipe {self.name}: {image.path} makes a name of {length} bytes; a built "
                    f"file's has at most {LONGEST_STEM}, suffix apart. Shorten it."
                )
            planned.append(self.treat(PlannedImage(image, role, stem)))
        for role in (TRAIN, QUERY, GALLERY)[0 if self.needs_train else 1 :]:
            if not any(p.role == role for p in planned):
                raise RecipeError(f"recipe {self.name}: no image is left for {role}.")
        self._check_people(planned)
        return planned

    def why_left_out(self, images: Sequence[SourceImage]) -> Callable[[SourceImage], str]:
        """A function that says in a few words why :meth:`roles` doesn't use one of ``images``."""
        return lambda image: "distractors are no queries" if image.pid < 1 else "the recipe's rule"

    def left_out(self, images: Sequence[SourceImage], planned: Iterable[PlannedImage]) -> list[str]:
        """What of ``images`` isn't in the plan, and why: ``8 query images: not of lr_camera 2``."""
        used = {one.image for one in planned}
        lost = [image for image in images if image not in used]
        if not lost:
            return []
        why = self.why_left_out(images)
        counts = Counter((image.role, why(image)) for image in lost)
        return [
            f"{n} {'test' if role == EITHER else role} image{'s' * (n > 1)}: {reason}"
            for (role, reason), n in sorted(counts.items())
        ]

    def _check_people(self, planned: Iterable[PlannedImage]) -> None:
        """Whoever is trained on is found too easily."""
        example: dict[bool, dict[int, str]] = {True: {}, False: {}}
        for one in planned:
            if one.image.pid > 0:
                example[one.role == TRAIN].setdefault(one.image.pid, one.image.path)
        shared = sorted(example[True].keys() & example[False].keys())
        if shared:
            pid = shared[0]
            more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise RecipeError(
                f"recipe {self.name}: identity {pid}{more}, in both training and test "
                f"({example[True][pid]} and {example[False][pid]}). Figures must be of people "
                "unknown in training; leave them out of one side, or number other people otherwise."
            )


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
    entry = registered(RECIPE_REGISTRY, name)
    if entry is None:
        known = names(RECIPE_REGISTRY)
        raise RecipeError(
            f"recipe {name!r} is not registered.{suggest(name, known)} "
            f"Registered: {', '.join(known)}."
        )
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


def own_source(recipe: Recipe) -> Path | None:
    """The source folder that the recipe's registry entry names, if it does (``entry.source``)."""
    source = getattr(registered(RECIPE_REGISTRY, recipe.name), "source", None)
    return None if source is None else Path(source)


def _canonical_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _coerce(recipe: str, spec: Field[Any], value: Any) -> Any:
    """``value`` in the type of the option, so that YAML, JSON and Python spell options alike."""
    default = spec.default
    if isinstance(value, str) and "str" in str(spec.type):
        return value
    if isinstance(default, tuple):
        items = value if isinstance(value, (list, tuple)) else (value,)
        whole = bool(default) and all(isinstance(item, int) for item in default)
        if all(_is_number(item) and (not whole or float(item).is_integer()) for item in items):
            return tuple(int(item) if whole else float(item) for item in items)
        wanted = "whole numbers" if whole else "numbers"
    elif isinstance(default, bool):
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif isinstance(default, int):
        if _is_number(value) and float(value).is_integer():
            return int(value)
        wanted = "a whole number"
    elif isinstance(default, float):
        if _is_number(value):
            return float(value)
        wanted = "a number"
    else:
        wanted = "a word"
    raise RecipeError(f"recipe {recipe}, option {spec.name}: takes {wanted}, not {value!r}.")
