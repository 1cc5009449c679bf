"""Which training images stand for the low-resolution side, by each recipe's own rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mini_sets
import pytest
from conftest import ROOT, TINY

from lrreid_ext.config import load_cfg
from lrreid_ext.data.loaders import build_dataset_of
from lrreid_ext.data.lr_images import TrainingImage, with_factors

CFG = str(ROOT / "configs/osnet_copies.yml")
# Of the miniature trees.
SIZES = {
    "caviar": {"identities": 6, "train_identities": 3},
    "mlr_cuhk03": {"identities": 10, "train_identities": 7, "split": 1},
}


def sides(root: Path, name: str, *more: str) -> list[TrainingImage]:
    options = [*TINY, "MODEL.INIT.WEIGHTS", "", "DATASETS.ROOT", str(root), *more]
    for key, value in SIZES.get(name, {}).items():
        options += [f"DATASETS.OPTIONS.{name}.{key}", str(value)]
    cfg = load_cfg(CFG, options)
    data: Any = build_dataset_of(cfg, name, "DATASETS.NAMES")
    return with_factors(cfg, data, name, sorted(data.train))


def test_market(market_root: Path) -> None:
    found = sides(market_root, "mlr_market1501", "INPUT.LR.FACTORS", "[2, 4]")
    assert {i.low for i in found if i.camera == "mlr_market1501_1"} == {True}
    assert {i.low for i in found if i.camera != "mlr_market1501_1"} == {False}
    assert {i.factor for i in found if i.low} == {2, 4}
    assert {i.factor for i in found if not i.low} == {1}
    again = sides(market_root, "mlr_market1501", "INPUT.LR.FACTORS", "[2, 4]")
    assert again == found
    other = sides(market_root, "mlr_market1501", "INPUT.LR.FACTORS", "[2, 4]", "SEED", "3")
    assert other != found


def test_factors_stay_when_the_folder_moves(market_root: Path) -> None:
    cfg = load_cfg(CFG, [*TINY, "MODEL.INIT.WEIGHTS", "", "DATASETS.ROOT", str(market_root)])
    data: Any = build_dataset_of(cfg, "mlr_market1501", "DATASETS.NAMES")
    moved = [(f"/elsewhere/{Path(path).name}", *labels) for path, *labels in data.train]
    here, there = (
        [image.factor for image in with_factors(cfg, data, "mlr_market1501", items)]
        for items in (data.train, moved)
    )
    assert there == here and len(set(here)) > 2


def test_widths_and_ranges(market_root: Path) -> None:
    found = sides(market_root, "mlr_market1501", "INPUT.LR.WIDTHS", "[8, 16]")
    widths = {round(32 / i.factor) for i in found if i.low}
    assert widths <= set(range(8, 16)) and len(widths) > 3
    found = sides(market_root, "mlr_market1501", "INPUT.LR.RANGE", "[5.0, 6.0]")
    assert all(5 <= i.factor < 6 for i in found if i.low)


def test_one_camera_for_each_identity_where_the_recipe_draws_it(market_root: Path) -> None:
    found = sides(market_root, "mlr_market1501_per_identity")
    cameras = {i.pid: {j.camera for j in found if j.pid == i.pid and j.low} for i in found}
    assert all(len(c) == 1 for c in cameras.values())
    assert len(set().union(*cameras.values())) > 1


def test_caviars_far_camera_is_small_by_nature(tmp_path: Path) -> None:
    mini_sets.caviar(tmp_path / "CAVIAR4REID")
    found = sides(tmp_path, "caviar")
    low = [i for i in found if i.low]
    assert low and {i.camera for i in low} == {"caviar_2"}
    assert all(math.isnan(i.factor) and i.degrade == 1 for i in low)


@pytest.mark.parametrize("view", ["first", "second"])
def test_cuhk03_has_a_side_for_each_pair(tmp_path: Path, view: str) -> None:
    mini_sets.cuhk03_folders(tmp_path / "cuhk03")
    found = sides(tmp_path, "mlr_cuhk03", "DATASETS.OPTIONS.mlr_cuhk03.lr_view", view)
    parity = {int(i.camera.rsplit("_", 1)[1]) % 2 for i in found if i.low}
    assert parity == {1 if view == "first" else 0}
