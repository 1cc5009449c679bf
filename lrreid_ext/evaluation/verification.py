"""Verification: the share of right pairs accepted where few wrong pairs are (TAR at a given FAR).

A pair is a query and a gallery image. It is genuine if both show one identity, and an impostor pair
if not. Left out are, as in :mod:`lrreid_ext.evaluation.ranking`, junk (pid below 0) on either side
and pairs of one identity and one camera; and pairs of two distractors (pid 0), of whom nobody knows
whether they are one person.

A pair is accepted if its distance lies **below** the threshold. Of the thresholds that accept at
most ``FAR * impostors`` impostor pairs, the largest is taken, which is the distance of the nearest
impostor pair that must not be accepted (infinite if all may be). So impostor pairs at one distance
are accepted together or not at all, and the share really accepted, :attr:`Verification.far`, may be
below the one that was asked for. With fewer than ``1 / FAR`` impostor pairs none may be accepted.

No pairs are kept but the genuine ones. The distances are made twice: the first time they are
counted by the upper half of their bits, and the second time by the lower half where the upper one
is that of a threshold. So thresholds are exact, and memory doesn't depend on the number of queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.evaluation.distance import check_shape, distance_chunks, tiles
from lrreid_ext.evaluation.ranking import Pairs, checked_chunks, labels

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_HALF = 2**16


@dataclass(frozen=True)
class Verification:
    """True accept rates at given false accept rates.

    Attributes:
        fars: (F,) false accept rates asked for, 0 to 1.
        tar: (F,) share of genuine pairs accepted, 0 to 1.
        threshold: (F,) float32 distances below which a pair is accepted; may be infinite.
        far: (F,) share of impostor pairs accepted, at most ``fars``.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs.
        left_out: number of pairs that are neither.
        genuine_by_query: (Q,) each query's genuine pairs.
        accepted_by_query: (Q, F) those of them that are accepted.
    """

    fars: NDArray[np.float64]
    tar: NDArray[np.float64]
    threshold: NDArray[np.float32]
    far: NDArray[np.float64]
    genuine: int
    impostors: int
    left_out: int
    genuine_by_query: NDArray[np.int64]
    accepted_by_query: NDArray[np.int64]


def tar_at_far(
    query: Tensor,
    gallery: Tensor,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    metric: str = "cosine",
    weights: Tensor | None = None,
    chunk: int | None = None,
    distances: Iterable[tuple[slice, Tensor]] | None = None,
) -> Verification:
    """True accept rates of all pairs, under the rules at the top of this module.

    Args:
        query, gallery: features (Q, D) and (G, D), or (Q, K, D) and (G, K, D) of K models; the
            pairs are counted on their device.
        q_pids, g_pids: (Q,) and (G,) identities.
        q_camids, g_camids: (Q,) and (G,) cameras.
        fars: false accept rates, 0 to 1.
        metric: ``cosine`` or ``euclidean``.
        weights: (Q, K), of the K models' distances; None weighs them alike.
        chunk: queries at a time.
        distances: distances made elsewhere, in place of the features': consecutive rows and their
            distances (rows, G). They are gone through twice.

    Raises:
        ValueError: an empty query or gallery, features or distances that are not finite, lengths
            that differ, rates outside 0 to 1, distances that can be gone through once only, or no
            genuine or no impostor pair.
    """
    query, gallery = check_shape(query, "query"), check_shape(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")
    rates = np.asarray(fars, dtype=np.float64)
    if rates.ndim != 1 or not len(rates) or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"false accept rates must lie from 0 to 1, not {fars}")
    if distances is not None and iter(distances) is distances:
        raise ValueError("distances are gone through twice: give a list, not an iterator")
    pairs = Pairs(q_pids, g_pids, q_camids, g_camids)
    strangers = torch.from_numpy(np.flatnonzero(g_pids == 0)).to(gallery.device)

    def impostors(
        genuine: list[Tensor] | None = None, counts: list[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Impostor pairs' distances as ordered whole numbers; genuine ones' join the first list,
        query by query, and how many each query has the second."""
        if distances is None:
            chunks = distance_chunks(query, gallery, metric, chunk, weights, check=True)
        else:
            kept = ((rows, block.clone()) for rows, block in distances)
            chunks = checked_chunks(kept, len(query), len(gallery))
        for rows, block in chunks:
            right = pairs.split(rows, block)
            own = torch.from_numpy(q_pids[rows]).to(block.device)
            block[own < 0] = torch.inf
            unknown = torch.nonzero(own == 0)
            if len(unknown) and len(strangers):
                block[unknown, strangers] = torch.inf
            if genuine is not None and counts is not None:
                there = torch.isfinite(right)
                genuine.append(right[there])
                counts.append(there.sum(dim=1))
            for _, part in tiles(rows, block):
                yield _ordered(part)

    upper = torch.zeros(_HALF, dtype=torch.int64, device=gallery.device)
    found: list[Tensor] = []
    counts: list[Tensor] = []
    for keys in impostors(found, counts):
        upper += torch.bincount((keys >> 16).add_(_HALF // 2).flatten(), minlength=_HALF)
    same = torch.cat(found).cpu().numpy()
    own = torch.cat(counts).cpu().numpy()
    left_out_bin = int(_ordered(torch.tensor([torch.inf])) >> 16) + _HALF // 2
    upper[left_out_bin] = 0  # no finite number has the upper bits of infinity
    total = int(upper.sum())
    if not len(same) or not total:
        missing = "genuine" if not len(same) else "impostor"
        raise ValueError(f"there is no {missing} pair to verify; see the rules on cameras and junk")

    # How many impostor pairs may be accepted: of the rate as it is written, without rounding.
    allowed = np.array([int(Fraction(repr(float(rate))) * total) for rate in rates])
    ends = upper.cumsum(0).cpu().numpy()
    bins = np.searchsorted(ends, allowed, side="right")  # where all are allowed: past the end
    wanted = np.unique(bins[bins < _HALF])
    lower = torch.zeros(len(wanted), _HALF, dtype=torch.int64, device=gallery.device)
    for keys in impostors() if len(wanted) else ():
        above = keys >> 16
        for k, bin_ in enumerate(wanted):
            inside = keys[above == int(bin_) - _HALF // 2]
            lower[k] += torch.bincount(inside & (_HALF - 1), minlength=_HALF)
    threshold = np.full(len(rates), np.inf, dtype=np.float32)
    accepted = np.full(len(rates), total)
    fine = lower.cumsum(1).cpu().numpy()
    for i, bin_ in enumerate(bins):
        if bin_ == _HALF:
            continue
        before = ends[bin_ - 1] if bin_ else 0
        row = fine[np.searchsorted(wanted, bin_)]
        low = int(np.searchsorted(row, allowed[i] - before, side="right"))
        threshold[i] = _unordered((int(bin_) - _HALF // 2) * _HALF + low)
        accepted[i] = before + (row[low - 1] if low else 0)
    # Sums over each query's genuine pairs, which stand together, as differences of running ones.
    ends_of = np.concatenate([[0], own.cumsum()])
    running = np.zeros(len(same) + 1, dtype=np.int64)
    by_query = np.empty((len(own), len(rates)), dtype=np.int64)
    for i, limit in enumerate(threshold):
        np.cumsum(same < limit, out=running[1:])
        by_query[:, i] = np.diff(running[ends_of])
    return Verification(
        rates,
        by_query.sum(axis=0) / len(same),
        threshold,
        accepted / total,
        len(same),
        total,
        len(query) * len(gallery) - total - len(same),
        own,
        by_query,
    )


def _ordered(values: Tensor) -> Tensor:
    """Float32 numbers as int32 ones that are ordered alike; the two zeros become one."""
    bits = (values + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _unordered(key: int) -> float:
    """The float32 number that :func:`_ordered` makes ``key`` of."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(np.array(bits, dtype=np.int32).view(np.float32))
