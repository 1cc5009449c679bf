"""The manifest of a built data set: what it holds, and whether the folder still holds it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from tqdm import tqdm

from lrreid_ext.data.kernels import Parameters
from lrreid_ext.data.recipes.base import Recipe, file_digest
from lrreid_ext.errors import ManifestError
from lrreid_ext.files import write_text

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA",
    "ImageRecord",
    "Manifest",
    "load_manifest",
    "save_manifest",
    "verify",
]

MANIFEST_FILE = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class ImageRecord:
    """One file of a built data set.

    Attributes:
        file: below the data set's folder, with forward slashes.
        source: the source file it comes from, below the source's root.
        pid: identity; 0 a distractor.
        camid: camera.
        split: ``train`` or ``test``.
        role: ``train``, ``query``, ``query_hr`` (the undegraded twin of a degraded query) or
            ``gallery``.
        factor: how much it was reduced; 1 not at all; None (null in the file) if it is
            low-resolution by nature and nobody knows by how much.
        kernel: by which kernel; ``none`` if not at all.
        size: its own ``[height, width]`` in pixels.
        sha256: of the file.
        source_sha256: of the source file (of a rendered image: of the renderer's code). Says
            whether a rebuild may reuse the file; no part of the manifest's hash.
        parameters: what its kernel drew, by name; left out of the file where that is nothing.
    """

    file: str
    source: str
    pid: int
    camid: int
    split: str
    role: str
    factor: float | None
    kernel: str
    size: tuple[int, int]
    sha256: str
    source_sha256: str
    parameters: Parameters = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "size": list(self.size)}
        if not self.parameters:
            del values["parameters"]
        return values


#: Reads records from JSON; raises pydantic's ValidationError.
RECORDS = TypeAdapter(tuple[ImageRecord, ...])


@dataclass(frozen=True)
class Manifest:
    """All files of a built data set, and the recipe they were built by.

    Attributes:
        recipe: its name.
        options: every option's value.
        images: sorted by ``file``.
    """

    recipe: str
    options: dict[str, Any]
    images: tuple[ImageRecord, ...]

    @property
    def hash(self) -> str:
        """SHA-256 over recipe, options and every image's facts and bytes.

        The same wherever and with however many workers the data set was built.
        """
        images = [image.to_json() for image in self.images]
        for image in images:
            del image["source_sha256"]
        content = {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "options": self.options,
            "images": images,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def of_role(self, role: str) -> list[ImageRecord]:
        """The images of one role, sorted by file."""
        return [image for image in self.images if image.role == role]

    def counts(self) -> dict[str, int]:
        """Images per role, and identities of the train and test splits without distractors."""
        counts = dict(sorted(Counter(image.role for image in self.images).items()))
        for split in ("train", "test"):
            counts[f"{split}_identities"] = len(
                {image.pid for image in self.images if image.split == split and image.pid > 0}
            )
        return counts

    def fits(self, recipe: Recipe) -> bool:
        """Whether it was built by ``recipe`` with the same options."""
        return self.recipe == recipe.name and self.options == recipe.options()

    def differences(self, recipe: Recipe, options: Collection[str]) -> list[str]:
        """How it was built otherwise than by ``recipe``, as far as these options go."""
        if self.recipe != recipe.name:
            return [f"the recipe is {self.recipe}, not {recipe.name}"]
        wanted = recipe.options()
        return [
            f"{key} is {self.options.get(key, 'not there')}, not {wanted[key]}"
            for key in sorted(options)
            if self.options.get(key) != wanted[key]
        ]


def save_manifest(manifest: Manifest, out: str | Path) -> None:
    """Write ``manifest.json`` into ``out``, one line for each image, in one step."""
    head = {
        "schema": SCHEMA,
        "recipe": manifest.recipe,
        "options": manifest.options,
        "seed": manifest.options.get("seed"),
        "counts": manifest.counts(),
        "hash": manifest.hash,
    }
    lines = ",\n".join(json.dumps(image.to_json()) for image in manifest.images)
    text = json.dumps(head, indent=1)[:-2] + f',\n "images": [\n{lines}\n ]\n}}\n'
    write_text(Path(out) / MANIFEST_FILE, text)


def load_manifest(out: str | Path) -> Manifest:
    """The manifest of the data set in folder ``out``.

    Raises:
        ManifestError: there is none, it can't be read, has another schema, or its own hash is
            wrong. The images aren't looked at: that is :func:`verify`.
    """
    path = Path(out) / MANIFEST_FILE
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; the data set isn't built, or not completely.")
    advice = "Build the data set again."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ManifestError(
                f"{path}: schema {content['schema']}; this version reads {SCHEMA}. {advice}"
            )
        images = RECORDS.validate_python(content["images"])
        manifest = Manifest(content["recipe"], content["options"], images)
        written = content["hash"]
    except ValidationError as error:
        problem = error.errors()[0]
        place = " ".join(str(part) for part in problem["loc"])
        raise ManifestError(
            f"{path}: not a whole manifest (image {place}: {problem['msg']}). {advice}"
        ) from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: can't be read as a manifest ({error!r}). {advice}") from error
    if written != manifest.hash:
        raise ManifestError(f"{path}: its content doesn't give its hash; it was changed. {advice}")
    return manifest


def verify(out: str | Path, progress: bool = False) -> list[str]:
    """What is wrong with the data set in folder ``out``; empty if nothing is.

    Finds missing, changed and additional files, and a manifest that is missing, damaged or changed.
    """
    out = Path(out)
    try:
        manifest = load_manifest(out)
    except ManifestError as error:
        return [str(error)]
    problems = []
    hidden = None if progress else True
    for image in tqdm(manifest.images, f"verify {out.name}", unit="image", disable=hidden):
        path = out / image.file
        if not path.is_file():
            problems.append(f"{image.file}: missing")
        elif file_digest(path) != image.sha256:
            problems.append(f"{image.file}: changed (its SHA-256 isn't the manifest's)")
    known = {image.file for image in manifest.images} | {MANIFEST_FILE}
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    problems += [f"{name}: not in the manifest" for name in sorted(present - known)]
    return problems
