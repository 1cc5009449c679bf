"""Ranked galleries: which queries, and what is written of them."""

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
from lrreid_ext.evaluation.matching import Side
from lrreid_ext.evaluation.ranking import Matches
from lrreid_ext.report.ranked import (
    COLUMNS,
    draw,
    draw_queries,
    hardest,
    table,
)


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
def sides(tmp_path: Path) -> tuple[Side, Side]:
    for name in range(3):
        Image.new("RGB", (8, 16), (80 * name, 40, 40)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{k}.png") for k in range(3)]
    query = [Sample(files[0], 7, 1, "query", factor=2.0, degrade=2.0)]
    gallery = [Sample(files[1], 7, 0, "gallery"), Sample(files[2], 9, 0, "gallery")]
    return (
        Side(torch.ones(1, 2), [7], [1], samples=query),
        Side(torch.ones(2, 2), [7, 9], [0, 0], samples=gallery),
    )


MATCHES = Matches(
    np.array([[1, 0, -1]]),
    np.array([[0.25, 0.5, np.inf]], dtype=np.float32),
    np.array([[False, True, False]]),
    np.array([0]),
    np.array([2]),
    np.array([0.5], dtype=np.float32),
)


def test_the_table_names_files_people_and_distances(sides: tuple[Side, Side]):
    text = table(*sides, {"one": MATCHES, "two": MATCHES})
    rows = list(csv.reader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1] == ["0.png", "7", "1", "2", "one", "1", "2.png", "9", "0", "0.25", "0"]
    assert rows[2] == ["0.png", "7", "1", "2", "one", "2", "1.png", "7", "0", "0.5", "1"]
    assert [row[4] for row in rows[1:]] == ["one", "one", "two", "two"]


def test_the_picture_marks_right_and_wrong_not_by_colour_alone(sides: tuple[Side, Side]):
    figure = draw(*sides, {"one": MATCHES})
    axes = figure.axes
    assert [a.get_title() for a in axes[:3]] == ["person 7\nx2", "✗ 9", "✓ 7"]
    wrong, right = (a.spines["left"] for a in axes[1:3])
    assert wrong.get_linestyle() != right.get_linestyle() == "-"
    assert wrong.get_edgecolor() != right.get_edgecolor()
    assert wrong.get_capstyle() == "butt"
    # The query is shown as the camera delivered it, reduced by 2.
    assert axes[0].images[0].get_array().shape == (8, 4, 3)
    assert sample_image(sides[1].samples[0]).size == (8, 16)
