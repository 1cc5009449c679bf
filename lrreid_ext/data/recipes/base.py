"""What a recipe is, how one is built by name, and how it turns images into a plan."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from fastreid.utils.registry import Registry
from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

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
    "Numbers",
    "PlannedImage",
    "Recipe",
    "SourceImage",
    "WholeNumbers",
    "build_recipe",
    "file_digest",
    "one_of",
    "preset",
    "problem_in",
]

RECIPE_REGISTRY = Registry("RECIPE")
RECIPE_REGISTRY.__doc__ = """
Recipes of cross-resolution data sets. Called as ``obj(**options)``, each option being a field of
the recipe; returns a :class:`Recipe`. :func:`lrreid_ext.data.recipes.add_recipe` registers one
together with the data set of the same name.
"""

# What a source image may become in the test split.
TRAIN, QUERY, GALLERY, EITHER = "train", "query", "gallery", "either"

#: The largest identity or camera: evaluation keeps them in 64 bits.
LARGEST_NUMBER = 2**63 - 1

#: The most bytes in a built file's name without its suffix. File systems hold 255, and while the
#: file is written its name has a process number and other marks too.
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
        role: ``train``; ``query`` or ``gallery`` (only that, else left out); or ``either``.
        name: draws depend on it, and the built file is named after it; by default the path's last
            part. A source whose folders repeat names gives others.
    """

    path: str
    pid: int
    camid: int
    role: str
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", PurePosixPath(self.path).name)

    @property
    def split(self) -> str:
        """``train`` or ``test``."""
        return TRAIN if self.role == TRAIN else "test"


@dataclass(frozen=True)
class PlannedImage:
    """One source image and what is made of it.

    Attributes:
        image: the source image.
        role: ``train``, ``query`` or ``gallery``.
        stem: of the built file's name.
        factor: by which it is reduced, >= 1; None if it is low-resolution by nature, by no known
            factor.
        width: if above 0, the image is reduced to this width instead of by a given factor; an
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


def one_of(words: Sequence[str] | Callable[[], Sequence[str]]) -> AfterValidator:
    """The check of an option that takes one of these words."""

    def check(value: str) -> str:
        known = words() if callable(words) else words
        if value not in known:
            raise ValueError(
                f"{value!r} is unknown.{suggest(value, known)} Known: {', '.join(known)}"
            )
        return value

    return AfterValidator(check)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


#: Types of options that take several numbers; one alone may be written without brackets.
Numbers = Annotated[tuple[float, ...], BeforeValidator(_as_tuple)]
WholeNumbers = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]


def problem_in(error: ValidationError) -> tuple[str, str]:
    """The name of the first wrong field, and what is wrong with it."""
    problem = error.errors()[0]
    field = str(problem["loc"][0]) if problem["loc"] else ""
    cause = problem.get("ctx", {}).get("error")
    if cause is not None:
        return field, str(cause)
    return field, f"{problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"


class Recipe(BaseModel, ABC):
    """How a cross-resolution data set is made from an ordinary one.

    A recipe combines a source (:meth:`holds`, :meth:`read`), where the images come from, with a
    rule (:meth:`roles`, :meth:`treat`), which of them become queries and which are reduced. The
    rules are in :mod:`lrreid_ext.data.recipes.rules`; a recipe inherits from a source and a rule.
    Every field but those below is an option; pydantic checks its value.

    Attributes:
        name: name in the registry.
        description: one line.
        file: the YAML file that the recipe is written in, if it is.
        source: the source's folder, where the recipe names one.

    Raises:
        RecipeError: a value that an option doesn't take; names recipe and option.
    """

    # Strict: `true` is no number, and "3" neither.
    model_config = ConfigDict(frozen=True, strict=True)

    source_name: ClassVar[str]
    where_to_get: ClassVar[str]
    terms: ClassVar[str]
    #: What :meth:`holds` looks for, in words.
    expected: ClassVar[str] = ""
    #: Folder names under which the source is looked for below the data set root.
    source_folders: ClassVar[tuple[str, ...]] = ()
    #: Whether the images show no real person.
    synthetic: ClassVar[bool] = False
    #: Whether there is a source folder at all.
    needs_source: ClassVar[bool] = True
    #: Whether there must be training images; without, a set is for testing alone.
    needs_train: ClassVar[bool] = True
    #: Whether a list names the images, so that other files in their folders don't matter.
    listed: ClassVar[bool] = False
    #: Height and width of every source image in pixels, or () if they may vary.
    image_size: ClassVar[tuple[int, ...]] = ()
    #: Cameras whose images are low-resolution by nature, by no known factor.
    genuine_lr: ClassVar[frozenset[int]] = frozenset()

    name: str
    description: str = ""
    file: Path | None = None
    source: Path | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(cause, RecipeError):
                raise cause from None
            raise _option_error(values["name"], *problem_in(error)) from None

    def error(self, option: str, what: str) -> RecipeError:
        """An error about one option of this recipe."""
        return _option_error(self.name, option, what)

    def options(self) -> dict[str, Any]:
        """Every option and its value, by name and ready for JSON."""
        values = self.model_dump(mode="json", exclude=set(Recipe.model_fields))
        return dict(sorted(values.items()))

    def folder(self) -> str:
        """Folder of the built data set: the name, and with options changed a hash of all."""
        options = self.options()
        if options == build_recipe(self.name).options():
            return self.name
        text = json.dumps(options, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    # ------------------------------------------------------------------ what a source gives

    def holds(self, folder: Path) -> bool:
        """Whether the data set is directly in this folder."""
        raise NotImplementedError

    def locate(self, source: Path) -> Path:
        """The folder that paths are relative to: ``source``, or one of the usual names in it.

        Raises:
            RecipeError: ``source`` doesn't hold the data set; says what was expected.
        """
        for folder in ("", *self.source_folders):
            if self.holds(source / folder):
                return source / folder
        raise self.not_in(source)

    def not_in(self, source: Path) -> RecipeError:
        """The error about a folder that doesn't hold the data set."""
        what = f"is not {self.source_name}" if source.is_dir() else "no such folder"
        return RecipeError(
            f"{source}: {what}; expected {self.expected}. "
            f"Where to get {self.source_name}: {self.where_to_get}."
        )

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
                # Pillow reads a PNG that has all pixels but no end.
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
        unused = [image for image in images if image not in used]
        why = self.why_left_out(images) if unused else None
        counts = Counter((image.role, why(image)) for image in unused if why)
        return [
            f"{n} {'test' if role == EITHER else role} image{'s' * (n > 1)}: {reason}"
            for (role, reason), n in sorted(counts.items())
        ]

    def _check_people(self, planned: Iterable[PlannedImage]) -> None:
        """Figures of people who were trained on would be too good."""
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


def _option_error(recipe: str, option: str, what: str) -> RecipeError:
    return RecipeError(f"recipe {recipe}, option {option}: {what}.")


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
    known = list(entry().options())
    for option in options:
        if option not in known:
            raise RecipeError(
                f"recipe {name} has no option {option!r}.{suggest(str(option), known)} "
                f"Options: {', '.join(known)}."
            )
    return entry(**options)
