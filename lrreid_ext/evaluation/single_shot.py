"""Single-shot evaluation: one gallery image per identity, drawn again in every trial.

The rules are those of :mod:`lrreid_ext.evaluation.ranking` with two additions. Distractors (pid 0)
and junk (pid below 0) are never drawn. The draw is made once per trial and shared by all queries:
the gallery is shuffled, and each identity stands in it with its first image that is not of the
query's camera. Where query and gallery cameras are disjoint this is one and the same image for
every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import check_features, distance_chunks, tiles
from lrreid_ext.evaluation.ranking import cmc, labels

NOBODY = (
    "gallery: no identity to draw for; all images are distractors (identity 0) or junk (below 0). "
    "Check the identities of the gallery in the data set of DATASETS.TESTS"
)


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
    def trials(self) -> int:
        """Number of trials."""
        return len(self.first_rank)

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
        if self.trials == 1:
            return np.full(len(ranks), np.nan)
        return self.cmc(ranks).std(axis=0, ddof=1)

    def subset(self, queries: ArrayLike) -> SingleShot:
        """The same trials for some of the queries: a mask or positions."""
        index = np.asarray(queries)
        return SingleShot(
            self.first_rank[:, index], self.valid[index], self.junk[index], self.identities
        )


def draw_gallery(
    g_pids: ArrayLike,
    g_camids: ArrayLike,
    cameras: ArrayLike,
    trials: int = 10,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which gallery image stands for each identity, in each trial and for each query camera.

    Trial ``t`` draws from ``numpy.random.default_rng((seed, t))``, so it is the same however many
    trials there are.

    Args:
        g_pids, g_camids: (G,) identities and cameras.
        cameras: (C,) the query cameras.
        trials: how many times to draw.
        seed: a number >= 0.

    Returns:
        The identities (I,), ascending, and positions in the gallery (trials, C, I), -1 where
        all images of an identity are of the query camera.

    Raises:
        ConfigError: no identity to draw for.
        ValueError: fewer than one trial, or a negative seed.
    """
    if trials < 1:
        raise ValueError(f"single-shot evaluation needs at least one trial, not {trials}")
    if seed < 0:
        raise ValueError(f"the seed of the single-shot draws must be >= 0, not {seed}")
    pids, camids, cameras = np.asarray(g_pids), np.asarray(g_camids), np.asarray(cameras)
    positions = np.flatnonzero(pids > 0)
    if not len(positions):
        raise ConfigError(NOBODY)
    identities, column = np.unique(pids[positions], return_inverse=True)
    picks = np.full((trials, len(cameras), len(identities)), -1, dtype=np.int64)
    for trial in range(trials):
        shuffled = np.random.default_rng((seed, trial)).permutation(len(positions))
        for k, camera in enumerate(cameras):
            eligible = shuffled[camids[positions[shuffled]] != camera]
            drawn, first = np.unique(column[eligible], return_index=True)
            picks[trial, k, drawn] = positions[eligible[first]]
    return identities, picks


def single_shot(
    query: Tensor,
    gallery: Tensor,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    trials: int = 10,
    seed: int = 0,
    metric: str = "cosine",
    weights: Tensor | None = None,
    chunk: int = 256,
) -> SingleShot:
    """Rank one drawn image per identity for every query, ``trials`` times.

    Distances are computed once for all trials, to the images that any of them drew.

    Args:
        query, gallery: features (Q, D) and (G, D), or (Q, K, D) and (G, K, D) of K models; the
            products are made on their device.
        q_pids, g_pids: (Q,) and (G,) identities.
        q_camids, g_camids: (Q,) and (G,) cameras.
        trials, seed: of the draws; see :func:`draw_gallery`.
        metric: ``cosine`` or ``euclidean``.
        weights: (Q, K), of the K models' distances; None weighs them alike.
        chunk: queries at a time.

    Raises:
        ConfigError: a gallery without identities.
        ValueError: an empty query or gallery, features that are not finite, or lengths that differ.
    """
    query, gallery = check_features(query, "query"), check_features(gallery, "gallery")
    q_pids, q_camids = labels(q_pids, q_camids, len(query), "query")
    g_pids, g_camids = labels(g_pids, g_camids, len(gallery), "gallery")
    cameras = np.unique(q_camids)
    identities, picks = draw_gallery(g_pids, g_camids, cameras, trials, seed)
    target = np.searchsorted(identities, q_pids)
    known = np.isin(q_pids, identities)

    first_rank = np.zeros((trials, len(query)), dtype=np.int64)
    for k in range(len(cameras)):
        present = np.flatnonzero(picks[0, k] >= 0)
        # Position of an identity among those present, and -1 for the others.
        slot = np.full(len(identities) + 1, -1)
        slot[present] = np.arange(len(present))
        asked = np.flatnonzero((q_camids == cameras[k]) & known)
        asked = asked[slot[target[asked]] >= 0]
        if not len(asked):
            continue
        drawn, places = np.unique(picks[:, k, present], return_inverse=True)
        where = torch.from_numpy(places.reshape(-1)).to(query.device)
        right = torch.from_numpy(places.reshape(trials, -1)[:, slot[target[asked]]].T)
        right = right.to(query.device)
        own_weights = None if weights is None else weights[asked]
        chunks = distance_chunks(query[asked], gallery[drawn], metric, chunk, own_weights)
        for rows, block in (t for c in chunks for t in tiles(*c, len(where))):
            own = block.gather(1, right[rows])
            shown = block.index_select(1, where).view(len(block), trials, -1)
            # At the right match's distance or nearer, itself included: ties rank before it.
            ranks = (shown <= own[:, :, None]).sum(dim=2)
            first_rank[:, asked[rows]] = ranks.T.cpu().numpy()
    return SingleShot(first_rank, first_rank[0] > 0, q_pids < 0, len(identities))
