"""Drawn sides of a match, and what they score by loops that follow the rules word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from lrreid_ext.evaluation import Matching, Side

METRICS = ["cosine", "euclidean"]


def side(features: Any, pids: Any, camids: Any, name: str = "images", **fields: Any) -> Side:
    return Side(torch.as_tensor(features, dtype=torch.float32), pids, camids, name, **fields)


def drawn(
    seed: int, grid: bool, queries: int = 23, gallery: int = 60, people: int = 8, cameras: int = 3
) -> tuple[Side, Side]:
    """Queries and gallery with junk and distractors; on a grid many distances are equal."""
    rng = np.random.default_rng(seed)

    def one(count: int, name: str) -> Side:
        features = rng.integers(-1, 2, (count, 3)) if grid else rng.normal(size=(count, 6))
        pids = rng.integers(-1, people, count)
        return side(features, pids, rng.integers(0, cameras, count), name)

    return one(queries, "query"), one(gallery, "gallery")


def matrix(matching: Matching) -> np.ndarray:
    """All distances (Q, G)."""
    return torch.cat([block.clone() for _, block in matching.distances()]).numpy()


@dataclass(frozen=True, eq=False)
class Given(Matching):
    """Two sides whose distances are given."""

    given: Tensor | None = None

    def distances(self) -> Iterator[tuple[slice, Tensor]]:
        assert self.given is not None
        for k in range(len(self.given)):
            yield slice(k, k + 1), self.given[k : k + 1].clone()


def naive_ranking(matching: Matching) -> list[list[tuple[float, bool, int]]]:
    """For each query what it ranks, in order: distance, whether it is right, and its position."""
    query, gallery, distances = matching.query, matching.gallery, matrix(matching)
    out = []
    for i in range(len(query)):
        ranked = []
        for j in range(len(gallery)):
            same = gallery.pids[j] == query.pids[i]
            if gallery.pids[j] < 0 or (same and gallery.camids[j] == query.camids[i]):
                continue
            ranked.append((distances[i, j], bool(same and gallery.pids[j] > 0), j))
        out.append(sorted(ranked))  # False before True: wrong matches first at equal distances
    return out


def naive_statistics(matching: Matching) -> list[tuple[int, float, float] | None]:
    """First rank, AP and INP of each query by walking down its ranking."""
    out: list[tuple[int, float, float] | None] = []
    for ranked in naive_ranking(matching):
        ranks = [rank for rank, (_, right, _) in enumerate(ranked, start=1) if right]
        precisions = [hits / rank for hits, rank in enumerate(ranks, start=1)]
        hits = len(ranks)
        out.append((ranks[0], sum(precisions) / hits, hits / ranks[-1]) if hits else None)
    return out


def naive_shot(distances: Sequence[float], images: Sequence[int], right: int) -> int:
    """Rank of the image ``right`` among the drawn ``images``; ties go first."""
    return 1 + sum(j != right and distances[j] <= distances[right] for j in images)


def naive_pairs(matching: Matching) -> list[tuple[int, float, bool]]:
    """Query, distance, and whether it is genuine, of all pairs that count."""
    query, gallery, distances = matching.query, matching.gallery, matrix(matching)
    pairs = []
    for i in range(len(query)):
        for j in range(len(gallery)):
            q, g = query.pids[i], gallery.pids[j]
            if q < 0 or g < 0 or q == g == 0:
                continue
            if q == g and query.camids[i] == gallery.camids[j]:
                continue
            pairs.append((i, distances[i, j], bool(q == g)))
    return pairs


@st.composite
def tiny_sides(
    draw: st.DrawFn, values: st.SearchStrategy[float], least_pid: int = 1
) -> tuple[Side, Side]:
    """A few queries with pids from ``least_pid`` and a gallery with junk and distractors."""

    def one(count: int, least: int, name: str) -> Side:
        numbers = lambda low, high: np.array(  # noqa: E731
            draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
        )
        features = draw(npst.arrays(np.float32, (count, 2), elements=values))
        pids = numbers(least, 3)
        if name == "gallery":
            pids[0] = abs(pids[0])  # not junk alone
        return side(features, pids, numbers(0, 1), name)

    queries, images = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    return one(queries, least_pid, "query"), one(images, -1, "gallery")
