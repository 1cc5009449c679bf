"""t-SNE of features: which images, the same twice, neighbours together; the tool's files."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch

from lrreid_ext.config import get_cfg
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.matching import Side
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.report.tsne import COLUMNS, chosen_images, draw, embed, table


def scored(twins: bool, people: int = 6) -> Scored:
    """Features that are a person's own direction, and a little noise."""
    groups = [("gallery", 1.0), ("gallery", 1.0), ("query", 3.0)]
    groups += [("query_hr", 1.0), ("x2", 2.0), ("x4", 4.0)] if twins else []
    samples = [
        Sample(f"{p}_{g}_{k}.png", p, k, g, factor=f)
        for p in range(1, people + 1)
        for k, (g, f) in enumerate(groups)
    ]
    # Someone that nobody asks for, and a distractor.
    samples += [Sample("stranger.png", 99, 0, "gallery"), Sample("crowd.png", 0, 0, "gallery")]
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(100, 16, generator=generator)
    features = torch.stack([own[s.pid] for s in samples])
    features += 0.05 * torch.randn(features.shape, generator=generator)
    found = Features(features, torch.full((len(samples), 2), 8))
    return Scored(get_cfg(), TestSet("set", samples), found)


def test_all_images_of_some_persons_in_query_and_gallery():
    run = scored(twins=True)
    samples = run.test_set.samples
    chosen = chosen_images(run, people=3, seed=0)
    people = {samples[i].pid for i in chosen}
    assert len(people) == 3 and people <= set(range(1, 7))
    # The queries' own LR images give way to the twins, which show each at every factor.
    assert sorted(samples[i].group for i in chosen) == sorted(
        ["gallery", "gallery", "query_hr", "x2", "x4"] * 3
    )
    assert chosen.tolist() == chosen_images(run, people=3, seed=0).tolist()
    lone = scored(twins=False)
    groups = {lone.test_set.samples[i].group for i in chosen_images(lone)}
    assert groups == {"gallery", "query"}
    with pytest.raises(ConfigError, match="--people: 1 of the 6 persons"):
        chosen_images(run, people=1)


def test_persons_stay_together_and_the_seed_chooses_them():
    run = scored(twins=True)
    images, points = embed(run, people=4, seed=3)
    np.testing.assert_array_equal(points, embed(run, people=4, seed=3)[1])
    other = run.images(chosen_images(run, people=4, seed=4))
    assert set(images.pids) != set(other.pids)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (images.pids[distance.argmin(1)] == images.pids).mean() > 0.9


def test_the_table_and_the_figure_hold_every_point():
    samples = [
        Sample("a.png", 5, 0, "gallery"),
        Sample("b.png", 5, 1, "x2", 2.0),
        Sample("c.png", 8, 1, "query", math.nan),
    ]
    images = Side(torch.ones(3, 2), [5, 5, 8], [0, 1, 1], samples=samples)
    embedding = images, np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    rows = list(csv.reader(io.StringIO(table({"one": embedding}))))
    assert tuple(rows[0]) == COLUMNS
    assert rows[2] == ["one", "5", "1", "x2", "2", "2", "3"]
    people, factors = draw(embedding, "one").axes
    names = [[t.get_text() for t in axis.get_legend().get_texts()] for axis in (people, factors)]
    assert names == [["5", "8"], ["HR", "x2", "LR"]]
    assert [len(c.get_offsets()) for c in people.collections] == [2, 1]
    assert sum(len(c.get_offsets()) for c in factors.collections) == 3
    # Told apart without colour.
    shapes = [c.get_paths()[0].vertices.tolist() for c in factors.collections]
    assert len({str(s) for s in shapes}) == 3
