"""Single-shot evaluation: one gallery image per identity, drawn again in every trial.

The rules are those of :mod:`lrreid_ext.evaluation.matching`; distractors and junk are never drawn.
There are two ways to draw.

``shared``: the draw is made once per trial and shared by all queries. The gallery is shuffled, and
each identity is represented by its first image that is not of the query's camera. Where query and
gallery cameras are disjoint this is the same image for every query.

``per_query``: each query has another draw in each trial. Much published code (open-reid's and
fast-reid's CUHK03 protocol among it) does so, 100 times. The means are those of the shared draw;
the spread over trials is smaller, since queries no longer share the luck of a draw. So figures of
the two must never be listed together unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import tiles
from lrreid_ext.evaluation.matching import Matching, Side, drawable
from lrreid_ext.evaluation.ranking import cmc

__all__ = ["DRAWS", "SingleShot", "draw_for_query", "draw_gallery", "single_shot"]

#: How gallery images are drawn.
DRAWS = ("shared", "per_query")


@dataclass(frozen=True)
class SingleShot:
    """Per trial and query, where the right match ranked.

    Attributes:
        first_rank: (T, Q) int64, rank of the query's identity, from 1; 0 where the gallery has no
            eligible image of it.
        valid: (Q,) bool, queries with a right match; the same in every trial.
        junk: (Q,) bool, queries that are junk themselves (pid below 0).
        identities: number of identities that images are drawn for.
    """

    first_rank: NDArray[np.int64]
    valid: NDArray[np.bool_]
    junk: NDArray[np.bool_]
    identities: int

    @property
    def unmatched(self) -> int:
        """Queries, junk aside, without a right match in the gallery."""
        return int((~self.valid & ~self.junk).sum())

    def cmc(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> NDArray[np.float64]:
        """(T, len(ranks)), each trial's CMC from 0 to 1 over the valid queries."""
        return np.stack([cmc(trial[self.valid], ranks) for trial in self.first_rank])

    def mean(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> NDArray[np.float64]:
        """(len(ranks),) mean of :meth:`cmc` over the trials."""
        return self.cmc(ranks).mean(axis=0)

    def std(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> NDArray[np.float64]:
        """(len(ranks),) sample standard deviation (over T - 1) of :meth:`cmc`; NaN for one trial.

        It is what the draw of the gallery varies by, not what training again would.
        """
        if len(self.first_rank) == 1:
            return np.full(len(ranks), np.nan)
        return self.cmc(ranks).std(axis=0, ddof=1)

    def subset(self, queries: ArrayLike) -> SingleShot:
        """The same trials for some of the queries: a mask or positions."""
        index = np.asarray(queries)
        return SingleShot(
            self.first_rank[:, index], self.valid[index], self.junk[index], self.identities
        )


def draw_gallery(
    gallery: Side, camera: int, trials: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shared draw: which image represents each identity for queries of a camera.

    Trial ``t`` shuffles by ``numpy.random.default_rng((seed, t))``, so it is the same however many
    trials there are, and for every camera.

    Returns:
        The identities (I,) that have an image of another camera, ascending, and positions in the
        gallery (trials, I).
    """
    people = np.flatnonzero(gallery.pids > 0)
    may_be_drawn = np.isin(people, drawable(gallery, camera))
    picks = []
    for trial in range(trials):
        shuffled = np.random.default_rng((seed, trial)).permutation(len(people))
        eligible = people[shuffled[may_be_drawn[shuffled]]]
        identities, first = np.unique(gallery.pids[eligible], return_index=True)
        picks.append(eligible[first])
    return identities, np.stack(picks)


def draw_for_query(
    starts: NDArray[np.int64], counts: NDArray[np.int64], trials: int, seed: int, query: int
) -> NDArray[np.int64]:
    """The draw of one query under ``per_query``: an image of each identity in each trial.

    Depends on the seed and the query's position alone, so that the HR twin of a query and its
    degraded copies, which have the same position in their groups, get the same images.

    Args:
        starts, counts: (I,) where each identity's images begin in a list, and how many there are.
        trials, seed: as :func:`single_shot` takes them.
        query: the query's position.

    Returns:
        (trials, I) positions in that list.
    """
    units = np.random.default_rng((seed, query)).random((trials, len(counts)))
    return starts + (units * counts).astype(np.int64)


def single_shot(
    matching: Matching, *, trials: int = 10, seed: int = 0, draw: str = "shared"
) -> SingleShot:
    """Rank one drawn image per identity for every query, ``trials`` times.

    Args:
        matching: the two sides.
        trials: how many times to draw, at least 1.
        seed: of the draws, a number >= 0.
        draw: one of :data:`DRAWS`; see the top of this module.

    Raises:
        ConfigError: a gallery without identities.
        ValueError: sides that can't be compared.
    """
    query, gallery = matching.query, matching.gallery
    identities = np.unique(gallery.pids[gallery.pids > 0])
    if not len(identities):
        raise ConfigError(
            "gallery: no identity to draw for; all images are distractors (identity 0) or junk "
            "(below 0). Check the identities of the gallery in the data set of DATASETS.TESTS"
        )
    first_rank = np.zeros((trials, len(query)), dtype=np.int64)
    rank = _rank_shared if draw == "shared" else _rank_per_query
    for camera in np.unique(query.camids):
        eligible = drawable(gallery, camera)
        chosen = np.flatnonzero(
            (query.camids == camera) & np.isin(query.pids, gallery.pids[eligible])
        )
        if len(chosen):
            rank(matching, int(camera), chosen, seed, first_rank)
    return SingleShot(first_rank, first_rank[0] > 0, query.is_junk, len(identities))


def _rank_shared(
    matching: Matching,
    camera: int,
    chosen: NDArray[np.int64],
    seed: int,
    first_rank: NDArray[np.int64],
) -> None:
    """Fill in ``first_rank`` (T, Q) at the positions ``chosen``.

    Distances are computed once for all trials, to the images that any of them drew.
    """
    trials = len(first_rank)
    identities, picks = draw_gallery(matching.gallery, camera, trials, seed)
    target = np.searchsorted(identities, matching.query.pids[chosen])
    drawn, places = np.unique(picks, return_inverse=True)
    places, device = places.reshape(trials, -1), matching.query.features.device
    columns = torch.from_numpy(places.reshape(-1)).to(device)
    right = torch.from_numpy(places[:, target].T).to(device)
    chunks = matching.part(chosen, drawn).distances()
    for rows, block in (t for c in chunks for t in tiles(*c, len(columns))):
        right_distance = block.gather(1, right[rows])
        gallery = block.index_select(1, columns).view(len(block), trials, -1)
        # At the right match's distance or nearer, itself included: ties rank before it.
        ranks = (gallery <= right_distance[:, :, None]).sum(dim=2)
        first_rank[:, chosen[rows]] = ranks.T.cpu().numpy()


def _rank_per_query(
    matching: Matching,
    camera: int,
    chosen: NDArray[np.int64],
    seed: int,
    first_rank: NDArray[np.int64],
) -> None:
    """Fill in ``first_rank`` (T, Q) at the positions ``chosen``."""
    pids, eligible = matching.gallery.pids, drawable(matching.gallery, camera)
    # Images of one identity side by side.
    eligible = eligible[np.argsort(pids[eligible], kind="stable")]
    identities, starts, counts = np.unique(pids[eligible], return_index=True, return_counts=True)
    target = np.searchsorted(identities, matching.query.pids[chosen])
    for rows, block in matching.part(chosen, eligible).distances():
        for k, distances in enumerate(block.cpu().numpy(), start=rows.start):
            picks = draw_for_query(starts, counts, len(first_rank), seed, int(chosen[k]))
            drawn = distances[picks]
            right = drawn[:, target[k]]
            first_rank[:, chosen[k]] = (drawn <= right[:, None]).sum(axis=1)
