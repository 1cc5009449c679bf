"""MLR-CUHK03, from ``cuhk-03.mat`` or from the images extracted of it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from lrreid_ext.data.degrade import hash_unit
from lrreid_ext.data.recipes.base import EITHER, TRAIN, SourceImage, one_of
from lrreid_ext.data.recipes.rules import MLRRule
from lrreid_ext.data.recipes.sources import image_names
from lrreid_ext.data.recipes.splits import IdentitySplit
from lrreid_ext.errors import RecipeError

__all__ = ["CUHK03Recipe"]

logger = logging.getLogger(__name__)

#: Groups: camera pair, person within it, view, image.
_NAME = re.compile(r"(\d)_(\d{3})_([12])_(\d{2})\.png")
MAT = "cuhk-03.mat"
PAIRS, SPLITS = 5, 20
# In the columns of a person's row, the first five images are of one view, the others of the other.
PER_VIEW = 5
BOXES = ("merged", "labeled", "detected")
LR_VIEWS = ("random", "first", "second")
#: People of the whole data set, and their images in each kind of boxes.
WHOLE_IDENTITIES = 1467
WHOLE = {"labeled": 14096, "detected": 14097}

Person = tuple[int, int]


class CUHK03Recipe(IdentitySplit, MLRRule):
    """MLR-CUHK03: 1467 people, five camera pairs; of each pair one camera is low-resolution.

    Pair P (1 to 5) has the cameras 2P - 1 and 2P; person I of pair P is identity 1000 P + I. Up to
    five images by each camera, in boxes that people drew (``labeled``) and that a detector drew.

    Read in two forms, which give the same data set:

    * ``cuhk-03.mat`` (MATLAB 7.3, so an HDF5 file; needs h5py), also in ``cuhk03_release``;
    * folders ``images_labeled`` and ``images_detected`` with files ``P_III_V_KK.png`` (pair,
      person, view 1 or 2, image 1 to 10), as torchreid and fastreid extract them, and beside them
      ``splits_classic_labeled.json`` or ``splits_classic_detected.json``. Without these, and
      without the mat, the test people are drawn, which isn't CUHK03's own split; a warning says so.

    Folders with splits are preferred to the mat, and the mat to folders without.

    Attributes:
        split: which of the 20 sets of test people that come with the data set, 0 to 19.
        boxes: ``labeled``, ``detected``, or ``merged`` for both.
        lr_view: the low-resolution camera of every pair: the ``first``, the ``second``, or for each
            pair a ``random`` one, drawn by a hash of the pair and the seed.
    """

    source_name = "CUHK03"
    where_to_get = (
        "https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html (cuhk03_release.zip)"
    )
    terms = "for academic research; ask the authors for any other use"
    expected = f"{MAT}, or the folders images_labeled and images_detected"
    source_folders = ("CUHK03", "cuhk03", "cuhk03_release")

    identities: int = WHOLE_IDENTITIES
    train_identities: int = 1367
    split: Annotated[int, Field(ge=0, lt=SPLITS)] = 0
    boxes: Annotated[str, one_of(BOXES)] = "merged"
    lr_view: Annotated[str, one_of(LR_VIEWS)] = "random"

    # ------------------------------------------------------------------ the source

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("labeled", "detected") if self.boxes == "merged" else (self.boxes,)

    def _extracted(self, folder: Path) -> bool:
        return all((folder / f"images_{kind}").is_dir() for kind in self._kinds)

    def locate(self, source: Path) -> Path:
        folders = [
            "/".join(filter(None, parts))
            for parts in product(("", *self.source_folders), ("", "cuhk03_release"))
        ]
        fitting = [
            *(f for f in folders if self._extracted(source / f) and _splits_file(source / f)),
            *(f for f in ("", *(f"{f}/{MAT}".lstrip("/") for f in folders)) if _mat(source / f)),
            *(f for f in folders if self._extracted(source / f)),
        ]
        if not fitting:
            raise self.not_in(source)
        return source / fitting[0]

    def read(self, root: Path) -> list[SourceImage]:
        files = [
            (kind, match[0], int(match[1]), int(match[2]), int(match[3]))
            for kind in self._kinds
            for match in self._names(root, kind)
        ]
        people = {(pair, person) for _, _, pair, person, _ in files}
        self.check_count(root, [_key(person) for person in people])
        tests = self._test_people(root, people)
        if not _mat(root):
            self._check_files(root, {(kind, name) for kind, name, *_ in files})
        return [
            SourceImage(
                path=f"images_{kind}/{name}",
                pid=1000 * pair + person,
                camid=2 * (pair - 1) + view,
                role=EITHER if (pair, person) in tests else TRAIN,
                name=f"{kind}_{name}",
            )
            for kind, name, pair, person, view in files
        ]

    def _names(self, root: Path, kind: str) -> Iterator[re.Match[str]]:
        names = _mat_names(root, kind) if _mat(root) else image_names(root / f"images_{kind}")
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or not 1 <= int(match[1]) <= PAIRS or int(match[2]) == 0:
                raise RecipeError(
                    f"{root / f'images_{kind}' / name}: not named P_III_V_KK.png "
                    "(pair 1 to 5, person, view 1 or 2, image)."
                )
            yield match

    def _check_files(self, root: Path, files: set[tuple[str, str]]) -> None:
        """Raises RecipeError unless every image that the splits name is there; where no file names
        them, and it is the whole data set, unless there are as many as it has."""
        for kind in self._kinds:
            file = root / f"splits_classic_{kind}.json"
            named = _json_names(file, self.split) if file.is_file() else []
            held = sum(name == kind for name, _ in files)
            if not named and self.identities == WHOLE_IDENTITIES and held != WHOLE[kind]:
                raise RecipeError(
                    f"{root / f'images_{kind}'}: holds {held} images where CUHK03 has "
                    f"{WHOLE[kind]}. Extract the images again."
                )
            if missing := sorted(name for name in named if (kind, name) not in files):
                raise RecipeError(
                    f"{root / f'images_{kind}' / missing[0]}: no such file, and {len(missing) - 1} "
                    f"others of the {len(named)} that {file.name} names are missing. Extract the "
                    "images again."
                )

    def _test_people(self, root: Path, people: set[Person]) -> set[Person]:
        if _mat(root):
            tests = _mat_tests(root, self.split)
        elif file := _splits_file(root):
            tests = _json_tests(file, self.split)
        else:
            logger.warning(
                "%s: no splits_classic_labeled.json and no %s, so the test people are drawn at "
                "random; figures can't be compared with those on CUHK03's own splits.",
                *(root, MAT),
            )
            train = self.training(root, {_key(person) for person in people})
            return {person for person in people if _key(person) not in train}
        expected = self.identities - self.train_identities
        if not tests <= people:
            pair, person = min(tests - people)
            raise RecipeError(
                f"{root}: person {person} of pair {pair} is in test set {self.split}, but has no "
                "image."
            )
        if len(tests) != expected:
            raise RecipeError(
                f"{root}: test set {self.split} has {len(tests)} people where {expected} are "
                "expected. Get the files again, or set the options identities and "
                "train_identities."
            )
        return tests

    def load(self, root: Path, image: SourceImage) -> Image.Image:
        if not _mat(root):
            return super().load(root, image)
        return Image.fromarray(_mat_pixels(root, image.path))

    def source_digest(self, root: Path, image: SourceImage) -> str:
        if not _mat(root):
            return super().source_digest(root, image)
        pixels = _mat_pixels(root, image.path)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    # ------------------------------------------------------------------ the rule

    def lr_cameras(self, images: Sequence[SourceImage]) -> dict[int, int]:
        return {image.pid: self._lr_camera(image.pid // 1000) for image in images}

    def _lr_camera(self, pair: int) -> int:
        if self.lr_view == "random":
            view = 1 + int(2 * hash_unit(f"lr camera of pair {pair}", self.seed))
        else:
            view = LR_VIEWS.index(self.lr_view)
        return 2 * (pair - 1) + view


def _key(person: Person) -> str:
    return f"{person[0]}_{person[1]:03d}"


# ---------------------------------------------------------------------- extracted images


def _splits_file(folder: Path) -> Path | None:
    """The file of splits; both that there may be have the same test people."""
    files = (folder / f"splits_classic_{kind}.json" for kind in ("labeled", "detected"))
    return next((file for file in files if file.is_file()), None)


def _json_names(file: Path, split: int, parts: Sequence[str] = ("train", "query")) -> list[str]:
    """Names of the images of one of 20 ``{"query": [[path of image, ...], ...], "train": ...}``;
    the gallery is the queries once more."""
    try:
        content = json.loads(file.read_text("utf-8"))[split]
        paths = [str(item[0]) for part in parts for item in content[part]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RecipeError(
            f"{file}: can't be read as CUHK03's {SPLITS} splits ({error!r}). Extract the images "
            "again, or remove the file."
        ) from error
    names = [re.split(r"[/\\]", path)[-1] for path in paths]
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise RecipeError(
            f"{file}: {wrong[0]!r} is not named P_III_V_KK.png. Extract the images again, or "
            "remove the file."
        )
    return names


def _json_tests(file: Path, split: int) -> set[Person]:
    """The test people of one split."""
    names = _json_names(file, split, ("query",))
    return {(int(name[0]), int(name[2:5])) for name in names}


# ---------------------------------------------------------------------- the mat


def _mat(path: Path) -> bool:
    return path.suffix == ".mat" and path.is_file()


def _open(path: Path) -> Any:
    state = path.stat()
    return _opened(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _opened(path: Path, *_state: int) -> Any:
    """The file, open; in each process once, for it holds 28,000 images."""
    try:
        import h5py
    except ImportError as error:
        raise RecipeError(f"{path}: reading it needs h5py. Install it: pip install h5py") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RecipeError(
            f"{path}: can't be read as a MATLAB 7.3 file ({error}). Get this file again."
        ) from error
    for name, cells in (("labeled", PAIRS), ("detected", PAIRS), ("testsets", SPLITS)):
        with _damage(path, name):
            fits = name in file and file[name].shape == (1, cells)
        if not fits:
            file.close()
            raise RecipeError(f"{path}: holds no {name} of {cells} cells; it isn't {MAT}.")
    return file


@contextmanager
def _damage(path: Path, part: str) -> Iterator[None]:
    """Errors of reading ``part`` of the mat, as a RecipeError that names both."""
    try:
        yield
    except Exception as error:  # HDF5 raises whatever it stumbles over
        raise RecipeError(
            f"{path}: {part} can't be read ({' '.join(str(error).split())}). Get this file again, "
            "then run the same command; finished files are kept."
        ) from error


def _mat_names(path: Path, kind: str) -> list[str]:
    """What the extracted files of one kind of boxes would be called.

    Raises:
        RecipeError: a file that is damaged.
    """
    file, names = _open(path), []
    with _damage(path, kind):
        for pair, cells in enumerate(file[kind][0], start=1):
            # MATLAB's people x 10 cells; HDF5 has the axes the other way round.
            rows = file[cells][()].T
            for person, row in enumerate(rows, start=1):
                for image, cell in enumerate(row, start=1):
                    # An empty cell holds its size, a vector.
                    if file[cell].ndim == 3:
                        view = 1 if image <= PER_VIEW else 2
                        names.append(f"{pair}_{person:03d}_{view}_{image:02d}.png")
    return names


def _mat_tests(path: Path, split: int) -> set[Person]:
    """The test people of one split.

    Raises:
        RecipeError: a file that is damaged.
    """
    file = _open(path)
    with _damage(path, f"test set {split}"):
        pairs, people = file[file["testsets"][0, split]][()].astype(int)
        return set(zip(pairs.tolist(), people.tolist(), strict=True))


def _mat_pixels(path: Path, image: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of ``images_<kind>/P_III_V_KK.png``.

    Raises:
        RecipeError: names an image that can't be read.
    """
    file = _open(path)
    folder, name = image.split("/")
    pair, person, _, index = (int(part) for part in PurePosixPath(name).stem.split("_"))
    with _damage(path, image):
        cells = file[file[folder.removeprefix("images_")][0, pair - 1]]
        pixels = file[cells[index - 1, person - 1]][()].T
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise RecipeError(
            f"{path}: {image} is {pixels.dtype} of shape {pixels.shape}, not an RGB image of bytes."
        )
    return np.ascontiguousarray(pixels)
