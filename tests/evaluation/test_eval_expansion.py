from __future__ import annotations

import numpy as np
import pytest
import torch
from fastreid.evaluation.query_expansion import aqe
from hypothesis import given, settings
from hypothesis import strategies as st

from lrreid_ext.evaluation.expansion import expand


def features(seed: int, count: int, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + 3  # so similarities are positive


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 9), st.integers(12, 40), st.integers(1, 3),
    st.integers(1, 6), st.sampled_from([0.0, 1.0, 3.0]), st.integers(1, 50),
)  # fmt: skip
def test_the_same_as_fastreids(
    seed: int, queries: int, images: int, times: int, near: int, alpha: float, chunk: int
) -> None:
    query, gallery = features(seed, queries), features(seed + 1, images)
    expected = aqe(query.clone(), gallery.clone(), times, near, alpha)
    found = expand(query, gallery, times, near, alpha, chunk)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_naive_loop() -> None:
    query, gallery = features(3, 4), features(4, 9)
    rows = torch.cat([query, gallery]).double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out = []
    for i in range(13):
        order = sorted(range(13), key=lambda j: -unit[i] @ unit[j])[:3]
        assert order[0] == i
        out.append(sum(max(unit[i] @ unit[j], 0) ** 2.5 * rows[j] for j in order) / 3)
    found = torch.cat(expand(query, gallery, 1, 3, 2.5))
    np.testing.assert_allclose(found.numpy(), out, rtol=1e-4)


def test_opposite_images_are_no_neighbours() -> None:
    """A fractional power of a negative similarity isn't a number, in the host's."""
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.1], [-1.0, -0.1]])
    own, _ = expand(query, gallery, 1, 3, 2.5)
    torch.testing.assert_close(own, query / 3)


def test_errors() -> None:
    for times, near in ((0, 2), (1, 0), (1, 4)):
        with pytest.raises(ValueError, match="neighbours"):
            expand(torch.ones(1, 2), torch.ones(2, 2), times, near)
