from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from lrreid_ext.evaluation import distance_chunks, distance_matrix
from lrreid_ext.evaluation.distance import _repeated, check_features, squared_lengths, tiles


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
    found = torch.cat([block for _, block in blocks]).numpy()
    np.testing.assert_allclose(found, cdist(query, gallery, metric), atol=2e-6)


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
    for rows, block in distance_chunks(query, feature.repeat(203, 1), metric, 256):
        assert (block == block[:, :1]).all(), rows


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


def test_large_finite_features_pass() -> None:
    # Their row's sum overflows, though every value is finite.
    features = torch.full((2, 3), 3e38)
    assert torch.equal(check_features(features, "query"), features)


def test_features_too_long_for_float32_are_refused() -> None:
    features = torch.full((2, 3), 3e38)
    for metric in ("cosine", "euclidean"):
        with pytest.raises(ValueError, match="query: 2 of 2 features are too long"):
            distance_matrix(features, torch.ones(1, 3), metric)


def test_equal_distances_of_whole_numbers_are_equal() -> None:
    """So that a wrong match as near as a right one is seen to be so."""
    generator = torch.Generator().manual_seed(0)
    for size in (3, 32, 2048):
        query = torch.randint(0, 2, (40, size), generator=generator).float()
        gallery = torch.cat([query, torch.randint(0, 2, (60, size), generator=generator).float()])
        found = distance_matrix(query, gallery, "euclidean")
        hamming = (query[:, None] != gallery[None]).sum(dim=2)
        assert torch.equal(found, hamming.float().sqrt())
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert distance_matrix(one, one, "euclidean").item() == 0


def test_bad_arguments() -> None:
    query = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="metric 'manhattan' is none of cosine, euclidean"):
        next(distance_chunks(query, query, "manhattan"))
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        next(distance_chunks(query, query, "cosine", 0))
    with pytest.raises(ValueError, match="3 values, gallery features 4"):
        next(distance_chunks(query, torch.zeros(2, 4)))


def test_copies_of_a_feature_are_found_wherever_they_stand() -> None:
    base = torch.nn.functional.normalize(torch.randn(50, 40, generator=torch.manual_seed(0)))
    order = torch.cat([torch.arange(50), torch.tensor([3, 49, 3])])
    first, again = _repeated(base[order], squared_lengths(base[order]))
    assert first.tolist() == [3, 49, 3] and again.tolist() == [50, 51, 52]
    assert len(_repeated(base, squared_lengths(base))[1]) == 0
    # Of one length and alike in the values that are looked at first: still not copies.
    near = torch.zeros(2, 64)
    near[0, 1], near[1, 2] = 1, 1
    assert len(_repeated(near, squared_lengths(near))[1]) == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])  # elsewhere than on a processor: whole
def test_tiles_of_nothing_are_none(device: str) -> None:
    assert not list(tiles(slice(3, 3), torch.empty(0, 5, device=device)))
    (rows, part), *others = tiles(slice(3, 5), torch.empty(2, 5, device=device))
    assert rows == slice(3, 5) and part.shape == (2, 5) and not others
