"""Ranked galleries against an explicit loop and against the evaluation's ranks."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrreid_ext.data.paired import sample_image
from lrreid_ext.data.samples import Sample
from lrreid_ext.evaluation.distance import distance_matrix
from lrreid_ext.evaluation.ranking import rank_statistics
from lrreid_ext.report.ranked import (
    COLUMNS,
    Matches,
    draw,
    draw_queries,
    hardest,
    nearest,
    table,
)


def naive(distance, q_pid, g_pids, q_cam, g_cams):
    """Positions of the gallery in the order of the rules, one query."""
    kept = [
        j
        for j in range(len(g_pids))
        if g_pids[j] >= 0 and not (g_pids[j] == q_pid and g_cams[j] == q_cam)
    ]
    return sorted(kept, key=lambda j: (distance[j], g_pids[j] == q_pid, j))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_order_and_ranks_are_those_of_a_loop_and_of_the_evaluation(metric):
    generator = np.random.default_rng(3)
    g_pids = generator.integers(-1, 7, 60)
    q_pids, q_cams = generator.integers(1, 9, 25), generator.integers(0, 3, 25)
    g_cams = generator.integers(0, 3, 60)
    # Whole numbers: many distances are equal.
    query = torch.from_numpy(generator.integers(0, 2, (25, 4)).astype(np.float32)) + 0.5
    gallery = torch.from_numpy(generator.integers(0, 2, (60, 4)).astype(np.float32)) + 0.5
    labels = (q_pids, g_pids, q_cams, g_cams)
    found = nearest(query, gallery, *labels, count=7, metric=metric)
    distance = distance_matrix(query, gallery, metric).numpy()
    for i in range(25):
        order = naive(distance[i], q_pids[i], g_pids, q_cams[i], g_cams)
        assert found.order[i].tolist() == order[:7]
        np.testing.assert_array_equal(found.distance[i], distance[i, order[:7]])
        assert found.right[i].tolist() == [g_pids[j] == q_pids[i] for j in order[:7]]
        right = [k for k, j in enumerate(order, 1) if g_pids[j] == q_pids[i]]
        assert found.first_rank[i] == (right[0] if right else 0)
        assert found.first_right[i] == (order[right[0] - 1] if right else -1)
        far = distance[i, order[right[0] - 1]] if right else np.inf
        assert found.first_distance[i] == far
    expected = rank_statistics(query, gallery, *labels, metric=metric).first_rank
    np.testing.assert_array_equal(found.first_rank, expected)
    assert (found.first_rank == 0).any() and (found.first_rank > 7).any()


def test_weights_of_several_models_count():
    query = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    gallery = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    labels = ([1], [1, 2], [0], [1, 1])
    first = nearest(query, gallery, *labels, weights=torch.tensor([[1.0, 0.1]]))
    second = nearest(query, gallery, *labels, weights=torch.tensor([[0.1, 1.0]]))
    assert first.order.tolist() == [[0, 1]] and first.first_rank.tolist() == [1]
    assert second.order.tolist() == [[1, 0]] and second.first_rank.tolist() == [2]


def test_a_short_gallery_leaves_places_empty():
    one = torch.ones(2, 3)
    found = nearest(one[:1], one, [1], [1, -1], [0], [1, 1], count=5)
    assert found.order.tolist() == [[0, -1]]
    assert found.distance[0, 1] == np.inf and not found.right[0, 1]
    with pytest.raises(ValueError, match="at least one match"):
        nearest(one[:1], one, [1], [1, 2], [0], [1, 1], count=0)


def test_queries_are_drawn_from_each_factor_in_its_turn():
    factors = np.array([2.0] * 20 + [4.0] * 3 + [np.nan] * 5)
    valid = np.ones(28, dtype=bool)
    valid[:4] = False
    drawn = draw_queries(factors, valid, 8, seed=1)
    counts = [int((factors[drawn] == f).sum()) for f in (2.0, 4.0)]
    assert (*counts, int(np.isnan(factors[drawn]).sum())) == (3, 3, 2)
    assert valid[drawn].all() and len(set(drawn.tolist())) == 8
    assert drawn.tolist() == draw_queries(factors, valid, 8, seed=1).tolist()
    assert drawn.tolist() != draw_queries(factors, valid, 8, seed=2).tolist()
    assert len(draw_queries(factors, valid, 100)) == 24


def test_the_hardest_queries_by_hand():
    # Geometric means: 3, 1, none, 10, 2; the second is never wrong, the third has no match.
    ranks = [[9, 1, 0, 10, 1], [1, 1, 5, 10, 4]]
    assert hardest(ranks, 10).tolist() == [3, 0, 4]
    assert hardest(ranks, 2).tolist() == [3, 0]
    assert hardest([[1, 1], [1, 0]], 3).tolist() == []


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    for name in range(3):
        Image.new("RGB", (8, 16), (80 * name, 40, 40)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{k}.png") for k in range(3)]
    return [
        Sample(files[0], 7, 1, "query", factor=2.0, degrade=2.0),
        Sample(files[1], 7, 0, "gallery"),
        Sample(files[2], 9, 0, "gallery"),
    ]


MATCHES = Matches(
    np.array([[1, 0, -1]]),
    np.array([[0.25, 0.5, np.inf]], dtype=np.float32),
    np.array([[False, True, False]]),
    np.array([0]),
    np.array([2]),
    np.array([0.5], dtype=np.float32),
)


def test_the_table_names_files_people_and_distances(samples: list[Sample]):
    text = table(samples, np.array([1, 2]), np.array([0]), {"one": MATCHES, "two": MATCHES})
    rows = list(csv.reader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1] == ["0.png", "7", "1", "2", "one", "1", "2.png", "9", "0", "0.25", "0"]
    assert rows[2] == ["0.png", "7", "1", "2", "one", "2", "1.png", "7", "0", "0.5", "1"]
    assert [row[4] for row in rows[1:]] == ["one", "one", "two", "two"]


def test_the_picture_marks_right_and_wrong_not_by_colour_alone(samples: list[Sample]):
    figure = draw(samples, np.array([1, 2]), np.array([0]), {"one": MATCHES})
    axes = figure.axes
    assert [a.get_title() for a in axes[:3]] == ["person 7\nx2", "✗ 9", "✓ 7"]
    wrong, right = (a.spines["left"] for a in axes[1:3])
    assert wrong.get_linestyle() != right.get_linestyle() == "-"
    assert wrong.get_edgecolor() != right.get_edgecolor()
    assert wrong.get_capstyle() == "butt"
    # The query is shown as the camera delivered it, reduced by 2.
    assert axes[0].images[0].get_array().shape == (8, 4, 3)
    assert sample_image(samples[1]).size == (8, 16)
