from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrreid_ext.data.degrade import draw_factor, hash_unit
from lrreid_ext.data.mixed_gallery import mixed_gallery
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError

SET = TestSet(
    "demo",
    [
        *(Sample(f"/a/q{k}.png", k, 1, "query", 2.0) for k in range(5)),
        *(Sample(f"/a/q{k}.png", k, 1, "query_hr") for k in range(5)),
        *(Sample(f"/a/g{k}.png", k % 50, 2, "gallery") for k in range(400)),
        Sample("/a/small.png", 3, 2, "gallery", float("nan")),
        Sample("/a/reduced.png", 3, 2, "gallery", 3.0),
    ],
)


def test_each_image_is_drawn_by_its_name() -> None:
    mixed = mixed_gallery(SET, 0.4, [2, 4], 7, "area")
    for before, after in zip(SET.samples, mixed.samples, strict=True):
        name = before.path.rsplit("/", 1)[1]
        chosen = before.group == "gallery" and before.factor == 1
        if chosen and hash_unit(f"gallery {name}", 7) < 0.4:
            factor = draw_factor(f"gallery factor {name}", 7, [2, 4])
            how = {"factor": factor, "degrade": factor, "kernel": "area", "seed": 7}
            assert after == replace(before, **how)
        else:
            assert after == before or np.isnan(before.factor)
    factors = [s.degrade for s in mixed.samples if s.degrade > 1]
    # 160 of 400, half of them each; four standard deviations are 39 and 25.
    assert 121 <= len(factors) <= 199
    assert set(factors) == {2.0, 4.0}
    assert abs(factors.count(2.0) - len(factors) / 2) < 30
    assert mixed.info["mixed_gallery"] == {
        "share": 0.4, "factors": [2.0, 4.0], "kernel": "area", "seed": 7
    }  # fmt: skip


def test_neither_order_nor_folder_matters() -> None:
    mixed = {s.path: s.degrade for s in mixed_gallery(SET, 0.4, [2, 4], 7).samples}
    moved = [replace(s, path=s.path.replace("/a/", "/b/")) for s in reversed(SET.samples)]
    for sample in mixed_gallery(TestSet("x", moved), 0.4, [2, 4], 7).samples:
        assert sample.degrade == mixed[sample.path.replace("/b/", "/a/")]
    other = mixed_gallery(SET, 0.4, [2, 4], 8).samples
    assert [s.degrade for s in other] != list(mixed.values())
    # A greater share reduces the same images and more.
    most = mixed_gallery(SET, 0.9, [2, 4], 7).samples
    assert all(mixed[s.path] == 1 or s.degrade == mixed[s.path] for s in most)


def test_nothing_and_everything() -> None:
    assert mixed_gallery(SET, 0.0, [2], 0) is SET
    everything = mixed_gallery(SET, 1.0, [3], 0).samples
    assert all(s.factor != 1 for s in everything if s.group == "gallery")
    with pytest.raises(ConfigError, match=r"LR_SHARE: demo's gallery has no HR image"):
        mixed_gallery(TestSet("demo", everything), 0.5, [2], 0)
