from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from lrreid_ext.evaluation import distance_chunks, distance_matrix
from lrreid_ext.evaluation.distance import check_features


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_chunks_equal_scipy(metric: str, chunk: int) -> None:
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(9, 5)), rng.normal(size=(13, 5))
    blocks = [
        (rows, block.clone())
        for rows, block in distance_chunks(
            torch.tensor(query, dtype=torch.float32),
            torch.tensor(gallery, dtype=torch.float32),
            metric,
            chunk,
        )
    ]
    assert [i for rows, _ in blocks for i in range(rows.start, rows.stop)] == list(range(9))
    assert all(len(block) <= chunk for _, block in blocks)
    distances = torch.cat([block for _, block in blocks]).numpy()
    np.testing.assert_allclose(distances, cdist(query, gallery, metric), atol=2e-6)


def test_hand_worked() -> None:
    query = torch.tensor([[3.0, 4.0]])
    gallery = torch.tensor([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0]])
    expected = torch.tensor([[5.0, 10.0, 50**0.5, 5.0]])
    torch.testing.assert_close(distance_matrix(query, gallery, "euclidean"), expected)
    # A feature of zeros has no direction: it counts as perpendicular to everything.
    expected = torch.tensor([[0.0, 2.0, 1.0, 1.0]])
    torch.testing.assert_close(distance_matrix(query, gallery), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("width", [3, 37, 130])
def test_equal_gallery_features_have_equal_distances(metric: str, width: int) -> None:
    torch.manual_seed(0)
    query, feature = torch.randn(257, width), torch.randn(1, width)
    some = torch.randn(50, width)[torch.cat([torch.arange(50), torch.tensor([3, 49, 3])])]
    for rows, block in distance_chunks(query, feature.repeat(203, 1), metric, 256):
        assert (block == block[:, :1]).all(), rows
    for _, block in distance_chunks(query, some, metric, 256):
        assert torch.equal(block[:, [50, 51, 52]], block[:, [3, 49, 3]])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.tensor([[0.0, float("nan")], [1.0, 2.0], [float("inf"), 0.0]]), "2 of 3"),
        (torch.tensor([[float("inf"), float("-inf")]]), "1 of 1"),
        (torch.zeros(0, 4), "no features"),
        (torch.zeros(4, 0), "no features"),
        (torch.zeros(4), r"\(N, D\)"),
    ],
)
def test_features_that_cannot_be_ranked(features: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"probe: .*{message}"):
        check_features(features, "probe")


ONE, LONG = torch.ones(2, 3), torch.full((2, 3), 3e38)
SEVERAL = torch.ones(2, 3, 2)


@pytest.mark.parametrize(
    ("query", "gallery", "metric", "weights", "message"),
    [
        (ONE, ONE, "manhattan", None, "metric 'manhattan' is none of cosine, euclidean"),
        (ONE, torch.ones(2, 4), "cosine", None, r"\(3,\), gallery features \(4,\)"),
        (SEVERAL, torch.ones(2, 2, 2), "cosine", None, r"\(3, 2\), gallery features \(2, 2\)"),
        (SEVERAL, SEVERAL, "cosine", torch.ones(2, 4), "one for each query and model"),
        (ONE, ONE, "cosine", torch.ones(2, 3), "one for each query and model"),
        (LONG, ONE, "cosine", None, "query: 2 of 2 features are too long"),
        (LONG, ONE, "euclidean", None, "query: 2 of 2 features are too long"),
    ],
)
def test_what_cannot_be_compared(
    query: torch.Tensor, gallery: torch.Tensor, metric: str, weights: Any, message: str
) -> None:
    assert torch.equal(check_features(query, "query"), query)  # though a row's sum may overflow
    with pytest.raises(ValueError, match=message):
        distance_matrix(query, gallery, metric, weights)


def test_equal_distances_of_whole_numbers_are_equal() -> None:
    """So that a wrong match as near as a right one is seen to be so."""
    generator = torch.Generator().manual_seed(0)
    for size in (3, 32, 2048):
        query = torch.randint(0, 2, (40, size), generator=generator).float()
        gallery = torch.cat([query, torch.randint(0, 2, (60, size), generator=generator).float()])
        hamming = (query[:, None] != gallery[None]).sum(dim=2)
        assert torch.equal(distance_matrix(query, gallery, "euclidean"), hamming.float().sqrt())
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert distance_matrix(one, one, "euclidean").item() == 0
