from __future__ import annotations

from types import SimpleNamespace

import fastreid.utils.compute_dist as host
import numpy as np
import pytest
import torch
from torch import Tensor

from lrreid_ext.evaluation import rank_statistics
from lrreid_ext.evaluation.distance import distance_matrix
from lrreid_ext.evaluation.reranking import k_reciprocal


def people(queries: int, gallery: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, tuple]:
    rng = np.random.default_rng(seed)
    pids = max(2, gallery // 8)
    q_pids, g_pids = rng.integers(1, pids + 1, queries), np.arange(gallery) % pids + 1
    centres = rng.normal(size=(pids + 1, 16))
    draw = lambda of: torch.tensor(  # noqa: E731
        centres[of] + noise * rng.normal(size=(len(of), 16)), dtype=torch.float32
    )
    labels = q_pids, g_pids, np.zeros(queries), np.ones(gallery)
    return draw(q_pids), draw(g_pids), labels


def whole(chunks: object) -> Tensor:
    return torch.cat([block.clone() for _, block in chunks])  # type: ignore[attr-defined]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (9, 1), (4, 4), (1, 1)])
def test_equals_the_host(metric: str, k1: int, k2: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # GPUs are counted by a faiss that a CPU's build lacks.
    faiss = SimpleNamespace(**vars(host.faiss))
    faiss.get_num_gpus = lambda: 0
    monkeypatch.setattr(host, "faiss", faiss)
    query, gallery, labels = people(30, 170, noise=0.8)
    both = torch.cat([query, gallery])
    if metric == "cosine":
        both = torch.nn.functional.normalize(both)
    jaccard = host.compute_jaccard_distance(both, k1=k1, k2=k2, search_option=3)[:30, 30:]
    expected = 0.7 * jaccard + 0.3 * distance_matrix(query, gallery, metric).numpy()
    ours = k_reciprocal(query, gallery, k1=k1, k2=k2, metric=metric, chunk=7)
    found = whole(ours)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert torch.equal(whole(ours), found)  # as often as wanted
    ranked = rank_statistics(query, gallery, *labels, distances=ours)
    theirs = rank_statistics(
        query, gallery, *labels, distances=[(slice(0, 30), torch.from_numpy(expected))]
    )
    np.testing.assert_array_equal(ranked.first_rank, theirs.first_rank)
    np.testing.assert_allclose(ranked.ap, theirs.ap, atol=1e-6)


def test_it_helps_where_neighbours_are_alike_and_weight_one_changes_nothing() -> None:
    query, gallery, labels = people(60, 400, noise=1.1)
    plain = rank_statistics(query, gallery, *labels)
    better = rank_statistics(query, gallery, *labels, distances=k_reciprocal(query, gallery, k1=9))
    assert better.mean_ap > plain.mean_ap + 0.02
    same = rank_statistics(
        query, gallery, *labels, distances=k_reciprocal(query, gallery, weight=1)
    )
    np.testing.assert_array_equal(same.ap, plain.ap)


@pytest.mark.parametrize("queries", [1, 2])
def test_fewer_images_than_neighbours(queries: int) -> None:
    query, gallery = torch.eye(3)[:queries], torch.eye(3)[:1]
    found = whole(k_reciprocal(query, gallery))
    assert found.shape == (queries, 1) and torch.isfinite(found).all()
    assert found[0, 0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, "k1 must be at least 1"),
        ({"k1": 3, "k2": 4}, "k2 must be at most k1"),
        ({"weight": 1.5}, "weight must lie from 0 to 1"),
        ({"metric": "dot"}, "metric 'dot' is none of"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        k_reciprocal(torch.eye(4), torch.eye(4), **settings)


def test_features_that_cannot_be_reranked() -> None:
    with pytest.raises(ValueError, match="one model"):
        k_reciprocal(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="query features have 3 values, gallery features 2"):
        k_reciprocal(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match="gallery: 2 of 2 features hold NaN"):
        k_reciprocal(torch.ones(2, 2), torch.full((2, 2), float("nan")))
