"""Verification: the share of right pairs accepted where few wrong pairs are (TAR at a given FAR).

A pair is a query and a gallery image. It is genuine if both show one identity, and an impostor pair
if not. By the rules of :mod:`lrreid_ext.evaluation.matching`, junk (pid below 0) on either side and
pairs of one identity and one camera are left out. So are pairs of two distractors (pid 0): nobody
knows whether they are one person.

A pair is accepted if its distance lies **below** the threshold. Of the thresholds that accept at
most ``FAR * impostors`` impostor pairs, the largest is taken, which is the distance of the nearest
impostor pair that must not be accepted (infinite if all may be). So impostor pairs at one distance
are accepted together or not at all, and the share really accepted, :attr:`Verification.far`, may be
below the given one. With fewer than ``1 / FAR`` impostor pairs none may be accepted.

Only genuine pairs are kept. The distances are computed twice: the first time they are
counted by the upper half of their bits, and the second time by the lower half where the upper one
is that of a threshold. So thresholds are exact, and memory doesn't depend on the number of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import tiles
from lrreid_ext.evaluation.matching import Matching, Pairs

__all__ = ["FARS", "NoPairsError", "Verification", "tar_at_far"]

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_HALF = 2**16


@dataclass(frozen=True)
class Verification:
    """True accept rates at given false accept rates.

    Attributes:
        fars: (F,) the given false accept rates, 0 to 1.
        tar: (F,) share of genuine pairs accepted, 0 to 1.
        threshold: (F,) float32 distances below which a pair is accepted; may be infinite.
        far: (F,) share of impostor pairs accepted, at most ``fars``.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs.
        genuine_by_query: (Q,) each query's genuine pairs.
        accepted_by_query: (Q, F) those of them that are accepted.
    """

    fars: NDArray[np.float64]
    tar: NDArray[np.float64]
    threshold: NDArray[np.float32]
    far: NDArray[np.float64]
    genuine: int
    impostors: int
    genuine_by_query: NDArray[np.int64]
    accepted_by_query: NDArray[np.int64]


class NoPairsError(ValueError):
    """There is no genuine pair, or no impostor pair."""


def tar_at_far(matching: Matching, fars: Sequence[float] = FARS) -> Verification:
    """True accept rates of all pairs, under the rules at the top of this module.

    The pairs are counted on the features' device.

    Args:
        matching: the two sides.
        fars: false accept rates, 0 to 1.

    Raises:
        NoPairsError: no genuine or no impostor pair.
        ValueError: what :func:`~lrreid_ext.evaluation.ranking.rank_statistics` refuses.
    """
    rates = np.asarray(fars, dtype=np.float64)
    pairs = Pairs(matching.query, matching.gallery)
    device = matching.gallery.features.device

    def impostors(
        genuine: list[Tensor] | None = None, counts: list[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Impostor pairs' distances as ordered whole numbers. Genuine pairs' distances are added to
        the first list, query by query, and each query's number of them to the second."""
        for rows, block in matching.distances():
            right = pairs.split(rows, block)
            if genuine is not None and counts is not None:
                is_pair = torch.isfinite(right)
                genuine.append(right[is_pair])
                counts.append(is_pair.sum(dim=1))
            for _, part in tiles(rows, block):
                yield _ordered(part)

    upper = torch.zeros(_HALF, dtype=torch.int64, device=device)
    # Empty, so that no queries at all have no pairs.
    genuine: list[Tensor] = [torch.zeros(0, device=device)]
    counts: list[Tensor] = [torch.zeros(0, dtype=torch.int64, device=device)]
    for keys in impostors(genuine, counts):
        upper += torch.bincount((keys >> 16).add_(_HALF // 2).flatten(), minlength=_HALF)
    same = torch.cat(genuine).cpu().numpy()
    by_query = torch.cat(counts).cpu().numpy()
    left_out_bin = int(_ordered(torch.tensor([torch.inf])) >> 16) + _HALF // 2
    upper[left_out_bin] = 0  # no finite number has the upper bits of infinity
    total = int(upper.sum())
    if not len(same) or not total:
        missing = "genuine" if not len(same) else "impostor"
        raise NoPairsError(
            f"there is no {missing} pair to verify; see the rules on cameras and junk"
        )

    # How many impostor pairs may be accepted: of the rate as it is written, without rounding.
    allowed = np.array([int(Fraction(repr(float(rate))) * total) for rate in rates])
    ends = upper.cumsum(0).cpu().numpy()
    bins = np.searchsorted(ends, allowed, side="right")  # where all are allowed: past the end
    searched_bins = np.unique(bins[bins < _HALF])
    lower = torch.zeros(len(searched_bins), _HALF, dtype=torch.int64, device=device)
    for keys in impostors() if len(searched_bins) else ():
        above = keys >> 16
        for k, bin_ in enumerate(searched_bins):
            inside = keys[above == int(bin_) - _HALF // 2]
            lower[k] += torch.bincount(inside & (_HALF - 1), minlength=_HALF)
    threshold = np.full(len(rates), np.inf, dtype=np.float32)
    accepted = np.full(len(rates), total)
    fine = lower.cumsum(1).cpu().numpy()
    for i, bin_ in enumerate(bins):
        if bin_ == _HALF:
            continue
        before = ends[bin_ - 1] if bin_ else 0
        row = fine[np.searchsorted(searched_bins, bin_)]
        low = int(np.searchsorted(row, allowed[i] - before, side="right"))
        threshold[i] = _unordered((int(bin_) - _HALF // 2) * _HALF + low)
        accepted[i] = before + (row[low - 1] if low else 0)
    # Sums over each query's genuine pairs, which are side by side, as differences of running ones.
    ends_of = np.concatenate([[0], by_query.cumsum()])
    running = np.zeros(len(same) + 1, dtype=np.int64)
    accepted_by_query = np.empty((len(by_query), len(rates)), dtype=np.int64)
    for i, limit in enumerate(threshold):
        np.cumsum(same < limit, out=running[1:])
        accepted_by_query[:, i] = np.diff(running[ends_of])
    return Verification(
        rates,
        accepted_by_query.sum(axis=0) / len(same),
        threshold,
        accepted / total,
        len(same),
        total,
        by_query,
        accepted_by_query,
    )


def _ordered(values: Tensor) -> Tensor:
    """Float32 numbers as int32 ones in the same order; the two zeros become one."""
    bits = (values + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _unordered(key: int) -> float:
    """The float32 number that :func:`_ordered` makes ``key`` of."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(np.array(bits, dtype=np.int32).view(np.float32))
