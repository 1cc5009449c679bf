"""Choosing sigma of SING's adaptive fusion by cross validation, and what each anchor is worth.

Jiao et al., "Deep Low-Resolution Person Re-Identification", Eq. 6 to 8 and Table 4. The paper sets
sigma "by cross validation on the validation set" and says no more. Here each fold is a model
trained without some of the training identities, scored on those; the curves of all folds are
averaged, and the sigma of the highest mean is chosen. The test set is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrreid_ext.data.samples import GALLERY, QUERY, TestSet
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.fusion import weighed
from lrreid_ext.evaluation.matching import Matching, Side
from lrreid_ext.evaluation.ranking import rank_statistics
from lrreid_ext.evaluation.single_shot import single_shot
from lrreid_ext.files import csv_text
from lrreid_ext.report.plots import line, new_figure

__all__ = [
    "SIGMAS",
    "Curves",
    "anchor_subsets",
    "best_sigma",
    "draw",
    "fold_curves",
    "fold_of",
    "subset_name",
    "table",
]

#: Values tried by default: 0, which weighs all anchors alike, and a range that is even on a
#: logarithmic scale. Resolutions lie between 0 and 1; below 0.02 the nearest anchor alone counts,
#: above 2 all count alike.
SIGMAS = (0.0, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)

Subset = tuple[int, ...]


@dataclass(frozen=True)
class Curves:
    """What a fold, or the mean of several, scored.

    Attributes:
        sigmas: the S values of sigma.
        subsets: the A subsets of anchors, by position.
        ranks: the R ranks k of single-shot Rank-k.
        cmc: (S, A, R) single-shot Rank-k, the mean over the trials, 0 to 1.
        mean_ap: (S, A) multi-shot mAP, 0 to 1.
    """

    sigmas: tuple[float, ...]
    subsets: tuple[Subset, ...]
    ranks: tuple[int, ...]
    cmc: NDArray[np.float64]
    mean_ap: NDArray[np.float64]

    @classmethod
    def mean(cls, folds: Sequence[Curves]) -> Curves:
        """The mean over folds that were scored at the same sigmas, subsets and ranks."""
        cmc = np.mean([fold.cmc for fold in folds], axis=0)
        return replace(folds[0], cmc=cmc, mean_ap=np.mean([fold.mean_ap for fold in folds], axis=0))


def fold_of(features: Features, test_set: TestSet, metric: str = "cosine") -> Matching:
    """A fold, the left-out identities as a model with K anchors sees them.

    Args:
        features: (N, K, D).
        test_set: with groups ``query`` and ``gallery``; junk has no part.
        metric: ``cosine`` or ``euclidean``.
    """
    samples = test_set.samples
    pids = np.array([sample.pid for sample in samples], dtype=np.int64)
    camids = np.array([sample.camid for sample in samples], dtype=np.int64)
    groups = np.array([sample.group for sample in samples])
    query, gallery = (
        Side(features.features[at], pids[at], camids[at], group, features.native_size[at])
        for group in (QUERY, GALLERY)
        for at in [np.flatnonzero((groups == group) & (pids >= 0))]
    )
    return Matching(query, gallery, metric)


def anchor_subsets(count: int) -> tuple[Subset, ...]:
    """All subsets of ``count`` anchors but the empty one: single ones first, all of them last."""
    return tuple(
        subset for size in range(1, count + 1) for subset in combinations(range(count), size)
    )


def subset_name(subset: Sequence[int], factors: Sequence[float]) -> str:
    """How a subset of anchors is called: ``x2+x4``."""
    return "+".join(f"x{factors[i]:g}" for i in subset)


def fold_curves(
    fold: Matching,
    factors: Sequence[float],
    sigmas: Sequence[float] = SIGMAS,
    *,
    ranks: Sequence[int] = (1,),
    trials: int = 10,
    seed: int = 0,
) -> Curves:
    """Score every sigma with every subset of anchors (SING, Eq. 6 to 8, Table 4).

    A single anchor ranks the same whatever sigma is, and is scored once.

    Args:
        fold: two sides with K anchors' features and native sizes.
        factors: the K anchors' factors, each >= 1.
        sigmas: values to try, each >= 0; 0 weighs all anchors alike.
        ranks: k of the single-shot Rank-k.
        trials, seed: of the single-shot draws.
    """
    subsets = anchor_subsets(len(factors))
    cmc = np.empty((len(sigmas), len(subsets), len(ranks)))
    mean_ap = np.empty((len(sigmas), len(subsets)))
    for a, subset in enumerate(subsets):
        chosen = list(subset)
        query, gallery = (
            side.updated(features=side.features[:, chosen]) for side in (fold.query, fold.gallery)
        )
        for s, sigma in enumerate(sigmas):
            if len(subset) == 1 and s:
                cmc[s, a], mean_ap[s, a] = cmc[0, a], mean_ap[0, a]
                continue
            fused = weighed(query, gallery, [factors[i] for i in subset], sigma)
            matching = Matching(fused, gallery, fold.metric)
            cmc[s, a] = single_shot(matching, trials=trials, seed=seed).mean(ranks)
            mean_ap[s, a] = rank_statistics(matching).mean_ap
    return Curves(tuple(sigmas), subsets, tuple(ranks), cmc, mean_ap)


def best_sigma(sigmas: ArrayLike, scores: ArrayLike) -> float:
    """The sigma of the highest score.

    Of several that score the same (to a millionth) it is the largest, which trusts the measured
    resolution least; 0, which weighs all anchors alike as an infinite sigma would, is the largest
    of all.

    Args:
        sigmas: (S,) values, each >= 0.
        scores: (S,) finite; higher is better.
    """
    values, scores = np.asarray(sigmas), np.asarray(scores)
    good = values[scores >= scores.max() - 1e-6]
    return 0.0 if 0 in good else float(good.max())


# ---------------------------------------------------------------- what is written
def table(folds: dict[str, Curves], factors: Sequence[float]) -> str:
    """CSV with a row per fold, subset of anchors and sigma, the mean over the folds coming last.

    Args:
        folds: each fold's curves by its name.
        factors: the anchors' factors.

    Returns:
        Figures in percent.
    """
    mean = Curves.mean(list(folds.values()))
    header = ["fold", "anchors", "sigma", *(f"Rank-{k}" for k in mean.ranks), "mAP"]
    rows = [
        [name, subset_name(subset, factors), f"{sigma:g}"]
        + [f"{100 * figure:.4f}" for figure in (*curves.cmc[s, a], curves.mean_ap[s, a])]
        for name, curves in {**folds, "mean": mean}.items()
        for a, subset in enumerate(curves.subsets)
        for s, sigma in enumerate(curves.sigmas)
    ]
    return csv_text(header, rows)


def draw(mean: Curves, factors: Sequence[float], chosen: float) -> Any:
    """The curves over sigma, a line per subset: single-shot Rank-k and mAP in percent.

    Equal weights (sigma 0) stand at the right end, for they are where large values lead.

    Args:
        mean: the curves.
        factors: the anchors' factors.
        chosen: the sigma to mark.
    """
    figure, axes = new_figure(2)
    order = sorted(range(len(mean.sigmas)), key=lambda s: mean.sigmas[s] or np.inf)
    names = [f"{mean.sigmas[s]:g}" if mean.sigmas[s] else "equal" for s in order]
    at = order.index(mean.sigmas.index(chosen))
    panels = ((f"Rank-{mean.ranks[0]}", mean.cmc[:, :, 0]), ("mAP", mean.mean_ap))
    for axis, (title, values) in zip(axes, panels, strict=True):
        for a, subset in enumerate(mean.subsets):
            line(axis, names, 100 * values[order, a], subset_name(subset, factors), a)
        axis.axvline(at, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_xlabel("sigma")
        axis.set_ylabel(f"{title} (%)")
        axis.tick_params(axis="x", labelrotation=60, labelsize="small")
    axes[0].legend(fontsize="x-small", ncols=2)
    return figure
