"""Re-ranking and query expansion against the host's, and against a loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fastreid.utils.compute_dist as host
import numpy as np
import pytest
import torch
from eval_cases import METRICS, Given, matrix, side
from fastreid.evaluation.query_expansion import aqe
from hypothesis import given, settings
from hypothesis import strategies as st

from lrreid_ext.evaluation import Matching, Side, expand, k_reciprocal, rank_statistics


def people(queries: int, gallery: int, noise: float, seed: int = 0) -> tuple[Side, Side]:
    rng = np.random.default_rng(seed)
    pids = max(2, gallery // 8)
    q_pids, g_pids = rng.integers(1, pids + 1, queries), np.arange(gallery) % pids + 1
    centres = rng.normal(size=(pids + 1, 16))
    return tuple(  # type: ignore[return-value]
        side(centres[of] + noise * rng.normal(size=(len(of), 16)), of, np.full(len(of), camera))
        for camera, of in enumerate((q_pids, g_pids))
    )


def reranked(query: Side, gallery: Side, metric: str = "cosine", **options: Any) -> Matching:
    jaccard = k_reciprocal(query, gallery, metric=metric, **options)
    return Matching(query, gallery, metric, chunk=7, jaccard=jaccard)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (9, 1), (4, 4), (1, 1)])
def test_equals_the_host(metric: str, k1: int, k2: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # GPUs are counted by a faiss that a CPU's build lacks.
    faiss = SimpleNamespace(**vars(host.faiss))
    faiss.get_num_gpus = lambda: 0
    monkeypatch.setattr(host, "faiss", faiss)
    query, gallery = people(30, 170, noise=0.8)
    both = torch.cat([query.features, gallery.features])
    if metric == "cosine":
        both = torch.nn.functional.normalize(both)
    jaccard = host.compute_jaccard_distance(both, k1=k1, k2=k2, search_option=3)[:30, 30:]
    expected = 0.7 * jaccard + 0.3 * matrix(Matching(query, gallery, metric))
    ours = reranked(query, gallery, metric, k1=k1, k2=k2)
    np.testing.assert_allclose(matrix(ours), expected, atol=1e-5)
    np.testing.assert_array_equal(matrix(ours), matrix(ours))  # as often as wanted
    # Some queries and a part of the gallery, in any order, have the same distances.
    rows, columns = [28, 3, 4], np.arange(170) % 3 == 1
    np.testing.assert_allclose(matrix(ours.part(rows, columns)), expected[rows][:, columns], 1e-5)
    ranked = rank_statistics(ours)
    theirs = rank_statistics(Given(query, gallery, given=torch.from_numpy(expected)))
    np.testing.assert_array_equal(ranked.first_rank, theirs.first_rank)
    np.testing.assert_allclose(ranked.ap, theirs.ap, atol=1e-6)


def test_it_helps_where_neighbours_are_alike_and_weight_one_changes_nothing() -> None:
    query, gallery = people(60, 400, noise=1.1)
    plain = rank_statistics(Matching(query, gallery))
    better = rank_statistics(reranked(query, gallery, k1=9))
    assert better.mean_ap > plain.mean_ap + 0.02
    np.testing.assert_array_equal(rank_statistics(reranked(query, gallery, weight=1)).ap, plain.ap)


@pytest.mark.parametrize("queries", [1, 2])
def test_fewer_images_than_neighbours(queries: int) -> None:
    query = side(torch.eye(3)[:queries], range(queries), [0] * queries)
    distances = matrix(reranked(query, side(torch.eye(3)[:1], [1], [1])))
    assert distances.shape == (queries, 1) and np.isfinite(distances).all()
    assert distances[0, 0] == pytest.approx(0, abs=1e-6)


def test_junk_has_no_part_in_either() -> None:
    query, gallery = people(12, 80, noise=1.0)
    query.pids[::5], gallery.pids[::4] = -1, -1
    asked, kept = np.flatnonzero(query.pids > 0), np.flatnonzero(gallery.pids > 0)
    whole, part = reranked(query, gallery), reranked(query.rows(asked), gallery.rows(kept))
    np.testing.assert_allclose(matrix(whole)[asked][:, kept], matrix(part), atol=1e-6)
    assert np.isfinite(matrix(whole)).all()
    for one, alone, index in zip(
        expand(query, gallery), expand(query.rows(asked), gallery.rows(kept)), (asked, kept),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one.features[index], alone.features)
    assert torch.equal(expand(query, gallery)[0].features[0], query.features[0])


def positive(seed: int, count: int, dim: int = 8) -> Side:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator) + 3  # so similarities are positive
    return side(features, np.ones(count), np.zeros(count))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 9), st.integers(12, 40), st.integers(1, 3),
    st.integers(1, 6), st.sampled_from([0.0, 1.0, 3.0]), st.integers(1, 50),
)  # fmt: skip
def test_expansion_is_fastreids(
    seed: int, queries: int, images: int, times: int, near: int, alpha: float, chunk: int
) -> None:
    query, gallery = positive(seed, queries), positive(seed + 1, images)
    expected = aqe(query.features.clone(), gallery.features.clone(), times, near, alpha)
    found = expand(query, gallery, times, near, alpha, chunk)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.features, theirs, rtol=1e-4, atol=1e-5)


def test_expansion_equals_a_naive_loop() -> None:
    query, gallery = positive(3, 4), positive(4, 9)
    rows = torch.cat([query.features, gallery.features]).double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out = []
    for i in range(13):
        order = sorted(range(13), key=lambda j: -unit[i] @ unit[j])[:3]
        assert order[0] == i
        out.append(sum(max(unit[i] @ unit[j], 0) ** 2.5 * rows[j] for j in order) / 3)
    found = torch.cat([s.features for s in expand(query, gallery, 1, 3, 2.5)])
    np.testing.assert_allclose(found.numpy(), out, rtol=1e-4)


def test_opposite_images_are_no_neighbours() -> None:
    """A fractional power of a negative similarity isn't a number, in the host's."""
    query = side([[1.0, 0.0]], [1], [0])
    found, _ = expand(query, side([[-1.0, 0.1], [-1.0, -0.1]], [1, 1], [1, 1]), 1, 3, 2.5)
    torch.testing.assert_close(found.features, query.features / 3)
