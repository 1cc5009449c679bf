"""What resolution does to distances: O(r1, r2) of FFSR + RIFE.

Mao et al., "Resolution-invariant Person Re-Identification", Eq. 2, Fig. 2 and 4: the distance
between images of one person over that between images of different persons, when one image is
reduced to the resolution r1 and the other to r2. Lower is better; a curve that stays flat as r
falls is a network that resolution doesn't disturb.

Where the paper is silent, or its formula could mean two things:

* Both distances are **means** over pairs. The paper's sums differ by a factor, the ratio of the
  numbers of pairs, which is the same at every resolution but not for two data sets.
* A resolution r means that an image's height and width are multiplied by r, whatever they are; the
  images are the data set's HR ones.
* **Pairs of one person and one camera** are left out, as they are when a gallery is ranked: they
  are often neighbouring frames, whose distance says little. They can be counted too. Pairs of
  different persons count whatever their cameras.
* An image is never compared with itself, nor with its own reduced copy.
* Distances are squared L2 between the features that ranking would compare: scaled to length 1 if
  TEST.METRIC is ``cosine``. Of a model with K anchors, the sum over the chosen ones, all weighing
  the same: the weights of SING's Eq. 8 are made for queries against a gallery, and Eq. 2 has
  neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.files import csv_text
from lrreid_ext.report.plots import line, new_figure

__all__ = [
    "COLUMNS",
    "PANELS",
    "RESOLUTIONS",
    "Objective",
    "curves",
    "draw",
    "hr_images",
    "objective",
    "pair_counts",
    "reduced",
    "table",
]

#: The paper's range, in equal steps.
RESOLUTIONS: tuple[float, ...] = tuple(float(r) for r in np.linspace(0.125, 1, 8))

#: Panels of Fig. 2 and 4, and how their horizontal axes are called.
PANELS = {"r1=r2": "resolution r1 = r2", "r2=1": "resolution r1, with r2 = 1"}

#: Columns of the CSV.
COLUMNS = ("run", "panel", "r", "objective", "same", "different", "same_pairs", "different_pairs")

# Rows that are made float64 at a time.
_CHUNK = 4096


@dataclass(frozen=True)
class Objective:
    """O at one pair of resolutions.

    Attributes:
        same: mean squared distance of two images of one person.
        different: of images of different persons.
        same_pairs, different_pairs: how many pairs those are means of; a pair of images counts
            twice, for either may be the one at r1.
    """

    same: float
    different: float
    same_pairs: int
    different_pairs: int

    @property
    def value(self) -> float:
        """O (Eq. 2); NaN if all images have one feature."""
        return self.same / self.different if self.different else float("nan")


def objective(
    first: Tensor,
    second: Tensor,
    pids: ArrayLike,
    camids: ArrayLike,
    *,
    same_camera: bool = False,
) -> Objective:
    """O(r1, r2) by sums over persons, without the distances of all pairs.

    For a set of images with features x at r1 and y at r2, the squared distances of all its pairs
    add up to ``n (sum |x|^2 + sum |y|^2) - 2 (sum x).(sum y)``. So the pairs of one person are a
    sum over persons, less those of one person and camera (or of an image with itself).

    Args:
        first: (N, D) features of the images at r1, as :func:`comparable` gives them.
        second: (N, D) features of the same images at r2, in the same order.
        pids, camids: (N,) identities and cameras.
        same_camera: whether pairs of one person and one camera count. At least one pair of one
            person and one of different persons must count (:func:`pair_counts`).
    """
    people, cameras = np.asarray(pids), np.asarray(camids)
    person, left_out = _groups(people, cameras, same_camera)
    same_pairs, different_pairs = pair_counts(people, cameras, same_camera=same_camera)
    # The origin changes no distance, and near the data the sums lose no digits.
    origin = (first.double().mean(0) + second.double().mean(0)) / 2
    everything = _pair_sum(first, second, np.zeros_like(person), origin)
    within = _pair_sum(first, second, person, origin)
    uncounted = _pair_sum(first, second, left_out, origin)
    return Objective(
        max(within - uncounted, 0.0) / same_pairs,
        max(everything - within, 0.0) / different_pairs,
        same_pairs,
        different_pairs,
    )


def pair_counts(
    pids: ArrayLike, camids: ArrayLike, *, same_camera: bool = False
) -> tuple[int, int]:
    """How many pairs of one person and of different persons count; see :class:`Objective`.

    Args:
        pids, camids: (N,) identities and cameras.
        same_camera: whether pairs of one person and one camera count.
    """
    person, left_out = _groups(np.asarray(pids), np.asarray(camids), same_camera)
    within, uncounted = (int(np.square(np.bincount(group)).sum()) for group in (person, left_out))
    return within - uncounted, len(person) ** 2 - within


def _groups(
    people: NDArray[Any], cameras: NDArray[Any], same_camera: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose pairs are of one person, and whose pairs of those don't count, as group numbers."""
    person = _numbered(people)
    if same_camera:
        return person, np.arange(len(person))
    return person, _numbered(np.stack([person, _numbered(cameras)], axis=1))


def _numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Labels, one per row, as numbers from 0."""
    numbers: NDArray[np.int64] = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def _pair_sum(first: Tensor, second: Tensor, group: NDArray[np.int64], origin: Tensor) -> float:
    """Sum of squared distances of all pairs within groups, an image with itself included."""
    where = torch.from_numpy(group).to(first.device)
    groups = int(group.max()) + 1
    sums = torch.zeros(2, groups, first.shape[1], dtype=torch.float64, device=first.device)
    squares = torch.zeros(groups, dtype=torch.float64, device=first.device)
    for start in range(0, len(first), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for side, features in enumerate((first, second)):
            block = features[rows].double() - origin
            sums[side].index_add_(0, where[rows], block)
            squares.index_add_(0, where[rows], block.square().sum(1))
    sizes = torch.bincount(where, minlength=groups)
    total = (sizes * squares).sum() - 2 * (sums[0] * sums[1]).sum()
    return float(total)


# ---------------------------------------------------------------- images
def hr_images(test_set: TestSet, limit: int = 0, seed: int = 0) -> list[Sample]:
    """The undegraded images of a test set: the queries' HR twins and the HR gallery.

    Args:
        test_set: with its ``query_hr`` group, if it has HR twins. Distractors and junk are left
            out, and no file comes twice.
        limit: at most this many images; 0 means all. Persons are taken whole, in an order drawn
            from ``seed``, those with too many images for what is left being passed over.
        seed: of that order.

    Returns:
        Samples of factor 1, sorted by file.

    Raises:
        ConfigError: a set without HR images.
    """
    by_path: dict[str, Sample] = {}
    for sample in test_set.samples:
        undegraded = sample.group in (QUERY, GALLERY, QUERY_HR) and sample.degrade == 1
        # A factor that isn't known (NaN) is that of a genuinely small image.
        if undegraded and sample.factor == 1 and sample.pid > 0:
            by_path.setdefault(sample.path, sample)
    if not by_path:
        raise ConfigError(
            f"DATASETS.TESTS: {test_set.name} has no HR images that could be reduced (TEST.HR must "
            "be True)"
        )
    images = [by_path[path] for path in sorted(by_path)]
    return _limited(images, limit, seed) if 0 < limit < len(images) else images


def _limited(images: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    pids = np.array([sample.pid for sample in images])
    people, counts = np.unique(pids, return_counts=True)
    kept, left = set(), limit
    for k in np.random.default_rng(seed).permutation(len(people)):
        if counts[k] <= left:
            kept.add(int(people[k]))
            left -= int(counts[k])
    return [sample for sample in images if sample.pid in kept]


def reduced(images: Sequence[Sample], resolution: float, kernel: str, name: str) -> TestSet:
    """The images at one resolution, as a test set.

    Args:
        images: HR images.
        resolution: r, above 0 and at most 1.
        kernel: degradation kernel.
        name: the set's name.
    """
    factor = 1 / resolution
    return TestSet(
        name, [Sample(s.path, s.pid, s.camid, QUERY, factor, factor, kernel) for s in images]
    )


def curves(
    images: Sequence[Sample],
    features_at: Callable[[float], Tensor],
    resolutions: Sequence[float] = RESOLUTIONS,
    *,
    same_camera: bool = False,
) -> dict[str, list[Objective]]:
    """Both panels of Fig. 2 and 4 for one model.

    Args:
        images: HR images.
        features_at: called with a resolution, gives the images' features (N, D) in their order. It
            is called once for each resolution, and the features of but two are held at a time.
        resolutions: the values of r.
        same_camera: whether pairs of one person and one camera count.

    Returns:
        For each of :data:`PANELS`, an :class:`Objective` per resolution.
    """
    pids = [sample.pid for sample in images]
    camids = [sample.camid for sample in images]
    full = features_at(1.0)
    panels: dict[str, list[Objective]] = {panel: [] for panel in PANELS}
    for r in resolutions:
        at = full if r == 1 else features_at(r)
        for panel, second in (("r1=r2", at), ("r2=1", full)):
            panels[panel].append(objective(at, second, pids, camids, same_camera=same_camera))
    return panels


# ---------------------------------------------------------------- what is written
def table(runs: Mapping[str, Mapping[str, Sequence[Objective]]], resolutions: ArrayLike) -> str:
    """CSV with a row per run, panel and resolution.

    Args:
        runs: :func:`curves` of each run, by name.
        resolutions: the values of r.
    """
    rows = [
        [
            run, panel, *(f"{v:.6g}" for v in (r, o.value, o.same, o.different)),
            o.same_pairs, o.different_pairs,
        ]
        for run, panels in runs.items()
        for panel, values in panels.items()
        for r, o in zip(np.asarray(resolutions).tolist(), values, strict=True)
    ]  # fmt: skip
    return csv_text(COLUMNS, rows)


def draw(runs: Mapping[str, Mapping[str, Sequence[Objective]]], resolutions: ArrayLike) -> Any:
    """The figure of all runs: a panel each for r1 = r2 and for r2 = 1.

    Args:
        runs: :func:`curves` of each run, by name.
        resolutions: the values of r.
    """
    figure, axes = new_figure(len(PANELS))
    for axis, (panel, title) in zip(axes, PANELS.items(), strict=True):
        for index, (run, panels) in enumerate(runs.items()):
            line(axis, resolutions, [o.value for o in panels[panel]], run, index)
        axis.set_xlabel(title)
        axis.set_ylabel("O, same / different person")
    axes[0].legend(fontsize="small")
    return figure
