"""Images known only small, fixed factors, third twins, masks, folds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_OSNET
from PIL import Image

from lrreid_ext.data.folds import fold_of
from lrreid_ext.data.loaders import build_test_set, build_train_dataset
from lrreid_ext.data.paired import PairedDataset, collate, select
from lrreid_ext.data.validation import check_fold
from lrreid_ext.errors import ConfigError

YAML = "configs/osnet_copies.yml"


def resized(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.resize((32, 64), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@pytest.fixture
def items(tmp_path: Path) -> list[tuple[str, str, str]]:
    draw = np.random.default_rng(0)
    out = []
    for i in range(6):
        path = tmp_path / f"image{i}.png"
        Image.fromarray(draw.integers(0, 255, (64, 32, 3), dtype=np.uint8)).save(path)
        out.append((str(path), f"p{i // 2}", f"c{i % 2}"))
    return out


def test_a_genuinely_small_image_is_both_twins(items: list[Any]) -> None:
    dataset = PairedDataset(items, resized, genuine=["c1"])
    sample = dataset[1, 0]
    assert not sample["has_hr"] and np.isnan(sample["factor_lr"])
    assert torch.equal(sample["images_hr"], sample["images_lr"])
    assert torch.equal(sample["images_hr"], resized(Image.open(items[1][0])))
    assert dataset[0, 0]["has_hr"]


def test_of_a_reduced_camera_only_the_small_image_is_known(items: list[Any]) -> None:
    dataset = PairedDataset(items, resized, factors=[4], reduced=["c1"])
    sample = dataset[1, 0]
    assert not sample["has_hr"] and sample["factor_lr"] == 4
    assert sample["native_size_hr"].tolist() == sample["native_size_lr"].tolist() == [16, 8]
    assert torch.equal(sample["images_hr"], sample["images_lr"])


def test_fixed_factors_are_the_same_in_every_epoch(items: list[Any]) -> None:
    free = PairedDataset(items, resized, span=(1.5, 4))
    fixed = PairedDataset(items, resized, span=(1.5, 4), fixed=0)
    assert len({free[0, s]["factor_lr"] for s in range(9)}) == 9
    assert len({fixed[0, s]["factor_lr"] for s in range(9)}) == 1
    assert len({fixed[i, 0]["factor_lr"] for i in range(6)}) == 6
    assert (
        PairedDataset(items, resized, span=(1.5, 4), fixed=1)[0, 0]["factor_lr"]
        != (fixed[0, 0]["factor_lr"])
    )


@pytest.mark.parametrize("drawn", [{"span": (1.5, 4)}, {"widths": (4, 30)}], ids=["span", "widths"])
def test_fixed_factors_stay_when_the_folder_moves(
    drawn: dict[str, Any], items: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "moved").mkdir()
    moved = [(shutil.copy(path, tmp_path / "moved"), *labels) for path, *labels in items]
    here, there = (PairedDataset(each, resized, fixed=0, **drawn) for each in (items, moved))
    factors = [float(here[i, 0]["factor_lr"]) for i in range(6)]
    assert len(set(factors)) > 3
    assert [float(there[i, 0]["factor_lr"]) for i in range(6)] == factors


@pytest.mark.parametrize("fixed", [None, 3])
def test_widths_are_drawn_in_pixels(items: list[Any], fixed: int | None) -> None:
    dataset = PairedDataset(items, resized, widths=(8, 40), fixed=fixed)
    samples = [dataset[i, s] for i in range(6) for s in range(30)]
    widths = {int(s["native_size_lr"][1]) for s in samples}
    assert min(widths) >= 8 and max(widths) <= 32
    assert len(widths) == 6 if fixed else len(widths) > 12
    for sample in samples:
        assert sample["factor_lr"] == pytest.approx(32 / int(sample["native_size_lr"][1]), rel=1e-6)


def test_a_third_twin_has_one_factor(items: list[Any]) -> None:
    sample = PairedDataset(items, resized, factors=[4], synthetic=2)[0, 0]
    assert sample["native_size_synthetic"].tolist() == [32, 16]
    assert sample["factor_synthetic"] == 2
    nearer = (sample["images_synthetic"] - sample["images_hr"]).abs().mean()
    assert 0 < nearer < (sample["images_lr"] - sample["images_hr"]).abs().mean()
    assert "images_synthetic" not in PairedDataset(items, resized)[0, 0]


def test_masks_are_moved_as_the_images_are(make_cfg: Any, items: list[Any], tmp_path: Path) -> None:
    from fastreid.data.transforms import build_transforms

    folder = tmp_path / "masks"
    folder.mkdir()
    for path, *_ in items:
        Image.open(path).convert("RGB").save(folder / Path(path).name)
    cfg = make_cfg(YAML, TINY_OSNET, "INPUT.PADDING.SIZE", "6")
    dataset = PairedDataset(items, build_transforms(cfg, is_train=True), masks=str(folder))
    for seed in range(8):
        sample = dataset[0, seed]
        # The mask is the image itself here, so it must agree with it whatever was drawn.
        assert sample["masks"].shape == (1, 64, 32)
        torch.testing.assert_close(sample["masks"] * 255, sample["images_hr"][:1])
    (folder / "image3.png").unlink()
    with pytest.raises(ConfigError, match=r"INPUT\.MASKS: 1 of 6 .*image3\.png"):
        PairedDataset(items, resized, masks=str(folder))


@pytest.mark.parametrize("train_on", ["hr", "lr", "mixed", "both"])
def test_what_is_known_only_small_stays_small(items: list[Any], train_on: str) -> None:
    dataset = PairedDataset(items, resized, factors=[2], genuine=["c1"], synthetic=4)
    batch = collate([dataset[i, i] for i in range(6)])
    chosen = select(batch, train_on)
    count = 12 if train_on == "both" else 6
    assert {len(v) for v in chosen.values()} == {count}
    small = torch.tensor([False, True] * (count // 2))
    assert chosen["has_hr"].tolist() == (~small).tolist()
    assert chosen["factor"][small].isnan().all() and not chosen["factor"][~small].isnan().any()
    for key in ("images", "native_size", "factor"):
        assert f"{key}_hr" in chosen and f"{key}_lr" in chosen and f"{key}_synthetic" in chosen


def test_training_on_hr_makes_no_lr_twins_and_draws_the_rest_alike(items: list[Any]) -> None:
    how: dict[str, Any] = {"reduced": ["c1"], "synthetic": 2, "factors": [3, 4]}
    both, hr = (PairedDataset(items, resized, lr_twins=twins, **how) for twins in (True, False))
    for index in range(len(items)):
        whole, alone = both[index, index], hr[index, index]
        assert whole.keys() - alone.keys() == {"images_lr", "native_size_lr", "factor_lr"}
        for key, value in alone.items():
            same = torch.equal(value, whole[key]) if torch.is_tensor(value) else value == whole[key]
            assert same, key
    chosen = select(collate([hr[i, i] for i in range(6)]), "hr")
    assert torch.equal(chosen["images"], chosen["images_hr"])
    assert chosen["factor"].tolist()[::2] == [1, 1, 1] and chosen["factor"][1] > 1


def test_folds_share_out_the_identities() -> None:
    items = [(f"{p}_{i}.png", f"p{p}", "c") for p in range(11) for i in range(3)]
    left_out = [fold_of(items, [i, 4], 0, left_out=True) for i in range(4)]
    identities = [{pid for _, pid, _ in part} for part in left_out]
    assert sorted(len(part) for part in identities) == [2, 3, 3, 3]
    assert len(set.union(*identities)) == 11
    for i in range(4):
        rest = fold_of(items, [i, 4], 0, left_out=False)
        assert sorted(rest + left_out[i]) == sorted(items)
    assert fold_of(items, [0, 4], 0, True) == left_out[0] != fold_of(items, [0, 4], 1, True)


@pytest.mark.parametrize("fold", [[0], [2, 2], [0, 1], [-1, 3], [0, 99]])
def test_impossible_folds_are_refused(fold: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.FOLD"):
        fold_of([("a.png", "p", "c"), ("b.png", "q", "c")], fold, 0, True)


def test_a_fold_is_evaluated_like_the_test_set(make_cfg: Any) -> None:
    fold = ["DATASETS.FOLD", "[0, 2]"]
    train = build_train_dataset(make_cfg(YAML, TINY_OSNET, *fold))
    assert train.num_classes == 3
    held_out = build_test_set(make_cfg(YAML, TINY_OSNET, *fold, "TEST.ON_FOLD", "True"), NAME)
    groups = {
        g: [s for s in held_out.samples if s.group == g]
        for g in {s.group for s in held_out.samples}
    }
    assert {k: len(v) for k, v in groups.items()} == {
        "query": 6,
        "gallery": 12,
        "query_hr": 6,
        "x2": 6,
    }
    assert {s.camid for s in groups["query"]} == {1}
    assert {s.camid for s in groups["gallery"]} == {2, 3}
    assert all(s.degrade == s.factor > 1 for s in groups["query"])
    assert not {s.path for s in held_out.samples} & {path for path, *_ in train.img_items}
    with pytest.raises(ConfigError, match=r"DATASETS\.FOLD: is empty"):
        build_test_set(make_cfg(YAML, TINY_OSNET, "TEST.ON_FOLD", "True"), NAME)


NAME = "mlr_market1501"


def test_cameras_known_only_small_are_named_by_number(make_cfg: Any) -> None:
    dataset = build_train_dataset(make_cfg(YAML, TINY_OSNET, "INPUT.LR.CAMERAS", "[2]"))
    small = [dataset[i, 0] for i in range(len(dataset)) if not dataset[i, 0]["has_hr"]]
    assert len(small) == 12
    assert all("_c2" in s["img_paths"] for s in small)
    with pytest.raises(ConfigError, match=r"INPUT\.LR\.CAMERAS: .* no camera mlr_market1501_9"):
        build_train_dataset(make_cfg(YAML, TINY_OSNET, "INPUT.LR.CAMERAS", "[9]"))


def test_a_checkpoint_that_knows_the_fold_is_not_evaluated_on_it(make_cfg: Any) -> None:
    cfg = make_cfg(YAML, TINY_OSNET, "DATASETS.FOLD", "[0, 2]")
    check_fold(cfg, {"fold": [0, 2], "seed": 0}, "a.pth")
    for training in ({"fold": [], "seed": 0}, {"fold": [0, 2], "seed": 1}, {}):
        with pytest.raises(ConfigError, match=r"TEST\.ON_FOLD: .*a\.pth was trained with FOLD"):
            check_fold(cfg, training, "a.pth")


def test_masks_and_colours_exclude_each_other(make_cfg: Any, tmp_path: Path) -> None:
    more = ["INPUT.MASKS", str(tmp_path), "INPUT.REA.ENABLED", "True"]
    with pytest.raises(ConfigError, match=r"INPUT\.MASKS: .*INPUT\.REA"):
        build_train_dataset(make_cfg(YAML, TINY_OSNET, *more))


def test_hidden_images_stay_hidden_when_test_identities_are_added(make_cfg: Any) -> None:
    more = ["INPUT.LR.CAMERAS", "[2]", "DATASETS.COMBINEALL", "True"]
    dataset = build_train_dataset(make_cfg(YAML, TINY_OSNET, *more))
    assert dataset.num_classes == 18
    small = {camera for _, _, camera in dataset.img_items if camera in dataset.reduced}
    assert small == {f"{NAME}_2", f"{NAME}_test_2"}
    for i in range(len(dataset)):
        sample = dataset[i, 0]
        assert sample["has_hr"] == (not dataset.img_items[i][2].endswith("_2"))
