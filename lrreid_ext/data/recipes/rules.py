"""Which images become queries or gallery, and which are reduced by how much.

* :class:`MLRRecipe` ("multiple low resolutions"): LR queries of one camera, HR gallery of the
  others.
* :class:`SALRRecipe` ("scale-adaptive low resolution"): HR queries, LR gallery of one camera.
* :class:`VariedWidthRecipe`: all test images reduced, queries and gallery alike.
* :class:`ByCamera` as it is: nothing is reduced, for one camera is low-resolution already.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from lrreid_ext.data.degrade import (
    ROUNDINGS,
    draw_factor,
    draw_width,
    hash_unit,
    known_kernels,
)
from lrreid_ext.data.recipes.base import (
    EITHER,
    GALLERY,
    QUERY,
    TRAIN,
    Numbers,
    PlannedImage,
    Recipe,
    SourceImage,
    WholeNumbers,
    one_of,
)

__all__ = [
    "RANDOM_CAMERA",
    "ByCamera",
    "Camera",
    "DegradedCamera",
    "DegradingRecipe",
    "MLRRecipe",
    "MLRRule",
    "SALRRecipe",
    "VariedWidthRecipe",
]

RANDOM_CAMERA = "random"
FACTOR_MODES = ("per_image", "per_identity", "per_camera")
ENCODINGS = ("png", "jpeg")


def _camera(value: int | str) -> int | str:
    if isinstance(value, str) and value != RANDOM_CAMERA:
        raise ValueError(f"is {value!r}; a number or {RANDOM_CAMERA!r}")
    return value


#: The type of an option that names a camera for all identities, or draws one for each.
Camera = Annotated[int | str, AfterValidator(_camera)]


class ByCamera(Recipe):
    """What the LR camera took is one side of the test, what the others took is the other side.

    Training images of all cameras are used. Distractors are never queries.
    """

    #: Which side the LR camera's test images are: ``query`` or ``gallery``.
    lr_role: ClassVar[str] = QUERY

    @abstractmethod
    def lr_cameras(self, images: Sequence[SourceImage]) -> Mapping[int, int]:
        """The LR camera of each identity; one without has images of the other side only.

        Raises:
            RecipeError: no image can take the LR side.
        """

    def fixed_camera(self, images: Sequence[SourceImage], camera: int) -> dict[int, int]:
        """The same LR camera for all.

        Raises:
            RecipeError: ``camera`` has no image for the LR side; says which cameras have.
        """
        counts = Counter(image.camid for image in images if self._can_be_lr(image))
        if not counts[camera]:
            have = ", ".join(f"{camid} ({n})" for camid, n in sorted(counts.items()))
            raise self.error(
                "lr_camera",
                f"camera {camera} has no {self.lr_role} image. Cameras that have (images): "
                f"{have or 'none'}",
            )
        return dict.fromkeys((image.pid for image in images), camera)

    def _can_be_lr(self, image: SourceImage) -> bool:
        return image.pid > 0 and image.role in (self.lr_role, EITHER)

    def roles(self, images: Sequence[SourceImage]) -> Iterator[tuple[SourceImage, str]]:
        cameras = self.lr_cameras(images)
        hr_role = GALLERY if self.lr_role == QUERY else QUERY
        for image in images:
            if image.role == TRAIN:
                yield image, TRAIN
                continue
            role = self.lr_role if image.camid == cameras.get(image.pid) else hr_role
            if image.role in (role, EITHER) and (image.pid > 0 or role == GALLERY):
                yield image, role

    def why_left_out(self, images: Sequence[SourceImage]) -> Callable[[SourceImage], str]:
        cameras = self.lr_cameras(images)
        camera = getattr(self, "lr_camera", None)
        named = f"lr_camera {camera}" if isinstance(camera, int) else "the low-resolution camera"

        def why(image: SourceImage) -> str:
            by_lr = image.camid == cameras.get(image.pid)
            if image.role == EITHER or (image.pid < 1 and image.role == QUERY):
                return "distractors are no queries"
            return f"{'of' if by_lr else 'not of'} {named}"

        return why


class DegradingRecipe(Recipe):
    """A recipe that reduces some of its test images.

    Attributes:
        kernel: one of :func:`lrreid_ext.data.degrade.known_kernels`. What it draws, it draws by a
            hash of the image's name and the seed.
        encoding: how reduced images are stored, ``png`` or ``jpeg`` (quality 95); everything else
            is a PNG always.
        seed: of everything that is drawn.
    """

    kernel: Annotated[str, one_of(known_kernels)] = "bicubic"
    encoding: Annotated[str, one_of(ENCODINGS)] = "png"
    seed: int = 0

    def degraded(self, planned: PlannedImage, **how: Any) -> PlannedImage:
        """``planned``, reduced ``how`` (fields of :class:`PlannedImage`)."""
        return replace(planned, kernel=self.kernel, encoding=self.encoding, seed=self.seed, **how)


class DegradedCamera(ByCamera, DegradingRecipe):
    """The LR camera's test images are reduced by drawn factors; queries keep their HR twins.

    Attributes:
        rounding: one of :data:`lrreid_ext.data.degrade.ROUNDINGS`.
    """

    rounding: Annotated[str, one_of(ROUNDINGS)] = "nearest"

    @abstractmethod
    def factor_of(self, image: SourceImage) -> float:
        """The factor of an image of the LR side."""

    def treat(self, planned: PlannedImage) -> PlannedImage:
        if planned.role != self.lr_role:
            return planned
        return self.degraded(
            planned,
            factor=self.factor_of(planned.image),
            rounding=self.rounding,
            twin=planned.role == QUERY,
        )


class MLRRule(DegradedCamera):
    """MLR without saying which camera is low-resolution; see :class:`MLRRecipe`.

    Attributes:
        factor_mode: what shares one factor: ``per_image``, ``per_identity`` or ``per_camera``.
        factors: the set that factors are drawn from, each >= 1.
        span: if not empty, ``(low, high)``: factors are drawn from this range instead.
    """

    factor_mode: Annotated[str, one_of(FACTOR_MODES)] = "per_image"
    factors: Numbers = (2.0, 3.0, 4.0)
    span: Numbers = ()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not self.factors and not self.span:
            raise self.error("factors", "is empty, and no span is given")
        for factor in (*self.factors, *self.span):
            if not 1 <= factor < math.inf:
                raise self.error("factors/span", f"holds {factor:g}; a factor is >= 1")
        if self.span and not (len(self.span) == 2 and self.span[0] <= self.span[1]):
            raise self.error("span", f"is {list(self.span)}; it takes two numbers, low <= high")

    def factor_of(self, image: SourceImage) -> float:
        name = {
            "per_image": image.name,
            "per_identity": f"identity {image.pid}",
            "per_camera": f"camera {image.camid}",
        }[self.factor_mode]
        if self.span:
            return draw_factor(name, self.seed, span=(self.span[0], self.span[1]))
        return draw_factor(name, self.seed, self.factors)


class MLRRecipe(MLRRule):
    """LR queries from one camera, an HR gallery from the others (SING, "Datasets").

    Attributes:
        lr_camera: the camera whose test images are low-resolution queries, or ``random``: one
            for each identity.
    """

    lr_camera: Camera = 1

    def lr_cameras(self, images: Sequence[SourceImage]) -> dict[int, int]:
        if isinstance(self.lr_camera, int):
            return self.fixed_camera(images, self.lr_camera)
        queries: dict[int, set[int]] = {}
        others: dict[int, set[int]] = {}
        for image in images:
            if self._can_be_lr(image):
                queries.setdefault(image.pid, set()).add(image.camid)
            if image.role in (GALLERY, EITHER):
                others.setdefault(image.pid, set()).add(image.camid)
        chosen = {}
        for pid, cameras in queries.items():
            # A query is worth asking only if another camera saw the same person.
            usable = sorted(c for c in cameras if others.get(pid, set()) - {c})
            if usable:
                unit = hash_unit(f"lr camera of {pid}", self.seed)
                chosen[pid] = usable[int(unit * len(usable))]
        return chosen


class SALRRecipe(DegradedCamera):
    """HR queries, and an LR gallery from one camera (CSR-GAN, section 5.1).

    The gallery keeps no HR twins, and the queries are undegraded as they are: a test set has
    neither ``query_hr`` nor groups by factor.

    Attributes:
        ratios: ``(low, high)``, the range that the scale ratio, the inverse of the factor, is drawn
            from uniformly.
        lr_camera: the camera whose test images are the low-resolution gallery.
    """

    lr_role = GALLERY

    ratios: Numbers = (0.1, 0.25)
    lr_camera: int = 2

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not (len(self.ratios) == 2 and 0 < self.ratios[0] <= self.ratios[1] <= 1):
            raise self.error(
                "ratios", f"is {list(self.ratios)}; it takes two numbers, 0 < low <= high <= 1"
            )

    def lr_cameras(self, images: Sequence[SourceImage]) -> dict[int, int]:
        return self.fixed_camera(images, self.lr_camera)

    def factor_of(self, image: SourceImage) -> float:
        low, high = self.ratios
        return 1 / (low + hash_unit(image.name, self.seed) * (high - low))


class VariedWidthRecipe(DegradingRecipe):
    """Every query and gallery image is reduced to a drawn width, height in proportion (FFSR + RIFE,
    section 5.1). For a source that has its own queries and gallery.

    The factor is native width / drawn width. An image that is no wider than its drawn width stays
    as it is: enlarging adds no resolution. Queries keep their HR twins. Training images keep their
    resolution; their LR twins are made while training, by INPUT.LR.

    Attributes:
        widths: ``(low, high)`` in pixels: a whole number from ``low`` to below ``high``, each as
            likely.
    """

    widths: WholeNumbers = (8, 32)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not (len(self.widths) == 2 and 1 <= self.widths[0] < self.widths[1]):
            raise self.error(
                "widths", f"is {list(self.widths)}; it takes two whole numbers, 1 <= low < high"
            )

    def roles(self, images: Sequence[SourceImage]) -> Iterator[tuple[SourceImage, str]]:
        return ((image, image.role) for image in images if image.pid > 0 or image.role != QUERY)

    def treat(self, planned: PlannedImage) -> PlannedImage:
        if planned.role == TRAIN:
            return planned
        width = draw_width(planned.image.name, self.seed, self.widths)
        return self.degraded(planned, width=width, twin=planned.role == QUERY)
