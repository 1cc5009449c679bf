"""What every recipe with a source keeps to, on a miniature tree in the source's real layout."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import mini_sets
import numpy as np
import pytest
import torch
from mini_sets import plan, quiet, tree_bytes
from PIL import Image

from lrreid_ext.config import get_cfg
from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.recipes import (
    RECIPE_REGISTRY,
    build_recipe,
    load_manifest,
    test_set_of,
    verify,
)
from lrreid_ext.data.recipes.dataset import find_source
from lrreid_ext.errors import RecipeError
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.image_quality import ImageQualityEvaluator
from lrreid_ext.registry import DATASET_REGISTRY, names

Case = tuple[Callable[[Path], Path], dict[str, object], str]

CAVIAR = {"identities": 6}
CUHK03 = {"identities": 10, "train_identities": 7, "split": 1}
# Tree, options for its size, and an image of it that is used, to be damaged.
CASES: dict[str, Case] = {
    "mlr_market1501": (mini_sets.market, {}, "query/0003_c1s1_000100_00.jpg"),
    "mlr_cuhk01": (mini_sets.cuhk01, {"identities": 6, "train_identities": 3}, "0002003.png"),
    "mlr_viper": (mini_sets.viper, {"identities": 8, "train_identities": 4}, "cam_b/031_90.bmp"),
    "salr_viper": (mini_sets.viper, {"identities": 8, "train_identities": 6}, "cam_a/000_45.bmp"),
    "salr_prid": (mini_sets.prid, {"identities": 6, "train_identities": 4}, "cam_b/img_0005.png"),
    "caviar": (mini_sets.caviar, {**CAVIAR, "train_identities": 3}, "0007011.jpg"),
    "salr_caviar": (
        mini_sets.caviar,
        {**CAVIAR, "train_identities": 4, "one_camera": 2},
        "0002001.jpg",
    ),
    "mlr_sysu": (
        mini_sets.sysu,
        {"identities": 6, "train_identities": 3, "shots": 5},
        "cam2/0004/0003.jpg",
    ),
    "mlr_cuhk03": (mini_sets.cuhk03_folders, CUHK03, "images_detected/2_001_2_06.png"),
    "mlr_dukemtmc": (
        lambda root: mini_sets.market(root, 8, "_f0046182.jpg"),
        {},
        "query/0003_c1_f0046182.jpg",
    ),
    "mlr_folder": (
        lambda root: mini_sets.market(root, 4, "-hall.png"),
        {"lr_camera": 2},
        "bounding_box_test/0001_c3x-hall.png",
    ),
    "vr_market1501": (mini_sets.market, {}, "query/0003_c1s1_000100_00.jpg"),
    "vr_msmt17": (
        mini_sets.msmt17,
        {"train_identities": 3, "test_identities": 4},
        "test/0003/0003_002_06_0303morning_0008_0.jpg",
    ),
    "mlr_csv": (mini_sets.table, {}, "di/south-2.png"),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: make(tmp_path_factory.mktemp(name) / "source") for name, (make, _, _) in CASES.items()
    }


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def of(name: str):
    return build_recipe(name, CASES[name][1])


def test_every_recipe_with_a_source_is_tried_here_or_beside() -> None:
    sourced = {name for name in names(RECIPE_REGISTRY) if build_recipe(name).needs_source}
    presets = {name for name in sourced if name.startswith("mlr_market1501_")}
    assert sourced - presets == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_is_built_is_what_the_manifest_says(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", of(name)
    manifest = quiet(recipe, trees[name], out)
    assert manifest.fits(recipe) and load_manifest(out) == manifest and verify(out) == []
    assert len({image.file for image in manifest.images}) == len(manifest.images)
    content = json.loads((out / "manifest.json").read_text())
    assert content["hash"] == manifest.hash
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    splits = defaultdict(set)
    for image in manifest.images:
        splits[image.pid].add(image.split)
        source = Image.open(trees[name] / image.source).convert("RGB")
        stored = Image.open(out / image.file)
        assert image.size == (stored.height, stored.width)
        if image.factor is None or image.factor == 1:
            assert image.kernel == "none"
            assert np.array_equal(np.asarray(stored), np.asarray(source))
        else:
            assert image.role in ("query", "gallery") and image.kernel == "bicubic"
            small = degrade(source, image.factor, "bicubic")
            assert np.array_equal(np.asarray(stored), np.asarray(small))
    assert all(len(split) == 1 for pid, split in splits.items())


# Drawn widths, drawn factors, no factors, names that folders repeat.
# Drawn widths, drawn factors, no factors, names that folders repeat.
@pytest.mark.parametrize("name", ["vr_msmt17", "mlr_cuhk01", "caviar", "mlr_sysu"])
def test_one_and_two_workers_give_the_same_bytes(
    name: str, trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrreid_ext.data.recipes.builder.CHUNK", 3)
    one = quiet(of(name), trees[name], tmp_path / "one")
    elsewhere = tmp_path / "other" / "place"
    shutil.copytree(trees[name], elsewhere)
    two = quiet(of(name), elsewhere, tmp_path / "two", workers=2)
    assert one == two and one.hash == two.hash
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


# Images of train, query, gallery; identities of train and test.
COUNTS = {
    "mlr_market1501": (6, 2, 6, 2, 2),
    "mlr_cuhk01": (12, 6, 6, 3, 3),
    "mlr_viper": (8, 4, 4, 4, 4),
    "salr_viper": (12, 2, 2, 6, 2),
    "salr_prid": (8, 2, 2, 4, 2),
    "caviar": (60, 30, 30, 3, 3),
    "salr_caviar": (100, 20, 20, 6, 2),
    "mlr_sysu": (30, 15, 15, 3, 3),
    "mlr_cuhk03": (66, 16, 14, 7, 3),
    "mlr_dukemtmc": (16, 2, 21, 2, 2),
    "mlr_folder": (8, 2, 9, 2, 2),
    "vr_market1501": (6, 6, 9, 2, 2),
    "vr_msmt17": (9, 4, 12, 3, 4),
    "mlr_csv": (8, 4, 5, 2, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_counts(name: str, trees: dict[str, Path]) -> None:
    planned = plan(of(name), trees[name])
    roles = Counter(p.role for p in planned)
    people = {(p.image.split, p.image.pid) for p in planned if p.image.pid > 0}
    splits = Counter(split for split, _ in people)
    counts = (roles["train"], roles["query"], roles["gallery"], splits["train"], splits["test"])
    assert counts == COUNTS[name]


@pytest.mark.parametrize("name", CASES)
def test_rebuild_reuses_what_is_finished(
    name: str, trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = of(name), tmp_path / "out"
    first = quiet(recipe, trees[name], out)
    lost = first.images[0]
    (out / lost.file).unlink()
    loaded: list[str] = []
    original = type(recipe).load

    def load(self, root, image):
        loaded.append(image.path)
        return original(self, root, image)

    monkeypatch.setattr(type(recipe), "load", load)
    assert quiet(recipe, trees[name], out) == first
    assert loaded == [lost.source]


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_named(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    copy, out, victim = tmp_path / "copy", tmp_path / "out", CASES[name][2]
    shutil.copytree(trees[name], copy)
    whole = (copy / victim).read_bytes()
    (copy / victim).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecipeError, match=f"{Path(victim).name}: can't be read as an image"):
        quiet(of(name), copy, out)
    assert not (out / "manifest.json").exists()
    (copy / victim).write_bytes(whole)
    quiet(of(name), copy, out)
    assert verify(out) == []


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_folder_says_what_was_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    recipe = of(name)
    for folder, what in (("empty", "is not"), ("nowhere", "no such folder")):
        with pytest.raises(RecipeError, match=f"{folder}: {what}.*expected .*Where to get"):
            quiet(recipe, tmp_path / folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert find_source(recipe, tmp_path) is None


@pytest.mark.parametrize("name", CASES)
def test_the_source_is_found_below_the_root(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    recipe = of(name)
    if not recipe.source_folders:
        pytest.skip("one's own images have no usual folder")
    for folder in recipe.source_folders:
        place = tmp_path / folder / "datasets" / folder
        place.parent.mkdir(parents=True)
        place.symlink_to(trees[name])
        assert find_source(recipe, place.parent) == place


@pytest.mark.parametrize(
    "name", [name for name, (_, options, _) in CASES.items() if "identities" in options]
)
def test_whole_counts_are_asked_for_unless_options_say_otherwise(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    count = CASES[name][1]["identities"]
    expected = build_recipe(name).options()["identities"]
    with pytest.raises(RecipeError, match=f"{count} identities where {expected} are expected"):
        quiet(build_recipe(name), trees[name], tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["mlr_cuhk01", "mlr_viper", "salr_viper", "salr_prid", "caviar", "salr_caviar", "mlr_sysu"],
)
def test_splits_are_permutations_of_the_sorted_identities(
    name: str, trees: dict[str, Path]
) -> None:
    seen = set()
    for split in range(10):
        options = {**CASES[name][1], "split": split}
        if "one_camera" in options:
            options["one_camera"] = 0
        recipe = build_recipe(name, options)
        images = recipe.read(recipe.locate(trees[name]))
        people = np.array(sorted({image.pid for image in images}))
        order = people[np.random.default_rng(split).permutation(len(people))]
        train = {image.pid for image in images if image.role == "train"}
        assert train == set(order[: recipe.train_identities].tolist())
        assert {image.pid for image in images if image.split == "train"} == train
        seen.add(frozenset(train))
    assert len(seen) > 3
    with pytest.raises(RecipeError, match=r"option split: .*not -1"):
        build_recipe(name, {"split": -1})


#: Where other programs of the field put the sets, below their root.
LAYOUTS = {
    "mlr_viper": ("viper/VIPeR",),
    "salr_prid": ("prid450s",),
    "caviar": ("CAVIAR4REID/CAVIARa",),
    "mlr_cuhk03": ("cuhk03", "cuhk03/cuhk03_release"),
    "mlr_dukemtmc": ("dukemtmc-reid/DukeMTMC-reID", "DukeMTMC-reID"),
    "vr_market1501": ("market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15"),
    "vr_msmt17": ("msmt17/MSMT17_V1", "MSMT17_V2"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_programs_are_found(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    recipe = of(name)
    for number, layout in enumerate(LAYOUTS[name]):
        place = tmp_path / str(number) / layout
        place.parent.mkdir(parents=True)
        place.symlink_to(trees[name])
        source = find_source(recipe, tmp_path / str(number))
        assert source is not None and recipe.locate(source) == place


@pytest.mark.parametrize("name", ["mlr_dukemtmc", "vr_market1501"])
def test_a_part_of_a_whole_set_is_refused_and_a_set_named_alike_is_not(
    name: str,
    trees: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe, tree = of(name), trees[name]
    counts = [
        sum(1 for _ in (tree / folder).glob("*.jpg"))
        for folder in ("bounding_box_train", "query", "bounding_box_test")
    ]
    with caplog.at_level(logging.WARNING):
        recipe.read(tree)
    assert "Is this another data set in its naming" in caplog.text
    caplog.clear()
    monkeypatch.setattr(type(recipe), "whole", tuple(counts))
    recipe.read(tree)
    assert not caplog.text
    for wrong, folder in enumerate(("bounding_box_train", "query", "bounding_box_test")):
        whole = [count + (k == wrong) for k, count in enumerate(counts)]
        monkeypatch.setattr(type(recipe), "whole", tuple(whole))
        message = f"{folder}: holds {counts[wrong]} images.* has {whole[wrong]} there"
        with pytest.raises(RecipeError, match=message):
            recipe.read(tree)


def test_an_identity_of_caviar_with_too_few_images_is_named(
    trees: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trees["caviar"], tmp_path / "caviar")
    (tmp_path / "caviar" / "0003017.jpg").unlink()
    with pytest.raises(RecipeError, match="identity 0003 has 9 images by camera 2, not 10"):
        of("caviar").read(tmp_path / "caviar")


# ---------------------------------------------------------------------- as data sets


@pytest.mark.parametrize("name", CASES)
def test_data_set_builds_itself_and_is_evaluated(
    name: str,
    trees: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, options = str(trees[name]), CASES[name][1]
    data = DATASET_REGISTRY.get(name)(root=str(tmp_path), source=source, options=options)
    assert all(item[1].startswith(f"{name}_") for item in data.train)
    assert all(Path(item[0]).is_file() for item in (*data.train, *data.query, *data.gallery))
    assert data.genuine_lr == ({2} if "caviar" in name else set())
    test_set = test_set_of(data, name, [2, 3], hr=True)
    assert test_set.info["options"] == data.recipe.options()
    groups = {sample.group for sample in test_set.samples}
    with_twins = not name.startswith(("salr_", "caviar"))
    assert groups == {"query", "gallery"} | ({"query_hr", "x2", "x3"} if with_twins else set())
    if name == "caviar":
        assert all(math.isnan(s.factor) for s in test_set.samples if s.group == "query")

    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "TEST.TRIALS", "2"])
    evaluator = CrossResolutionEvaluator(cfg, test_set, str(tmp_path / "results"))
    people = np.unique([sample.pid for sample in test_set.samples], return_inverse=True)[1]
    features = torch.eye(people.max() + 1)[people]
    sizes = torch.ones(len(people), 2, dtype=torch.int64)
    evaluator.process({"index": torch.arange(len(people)), "native_size": sizes}, features)
    figures = evaluator.evaluate()
    assert figures["single_shot/query/Rank-1"] == 100
    results = json.loads((tmp_path / "results" / f"results_{name}.json").read_text())
    assert ("query_hr" in results["groups"]) == with_twins
    assert not any("nan" in group for group in results["groups"])

    with caplog.at_level(logging.WARNING):
        quality = ImageQualityEvaluator(cfg, test_set)
    assert bool(quality.twins) == with_twins
    if not with_twins:
        assert "no image quality" in caplog.text
        assert quality.evaluate() == {}


# ---------------------------------------------------------------------- the real sets, if there


@pytest.mark.parametrize(
    ("variable", "name", "counts"),
    [
        ("LRREID_CUHK01", "mlr_cuhk01", (1940, 972, 972)),
        ("LRREID_VIPER", "mlr_viper", (632, 316, 316)),
        ("LRREID_VIPER", "salr_viper", (1064, 100, 100)),
        ("LRREID_PRID450S", "salr_prid", (800, 50, 50)),
        ("LRREID_CAVIAR", "caviar", (500, 250, 250)),
        ("LRREID_CAVIAR", "salr_caviar", (840, 100, 100)),
        ("LRREID_SYSU", "mlr_sysu", (1506, 753, 753)),
        ("LRREID_MARKET1501", "vr_market1501", (12936, 3368, 15913)),
        ("LRREID_MSMT17", "vr_msmt17", (32621, 11659, 82161)),
    ],
)
def test_real_counts(variable: str, name: str, counts: tuple[int, int, int]) -> None:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder")
    recipe = build_recipe(name)
    roles = Counter(p.role for p in plan(recipe, Path(os.environ[variable])))
    assert (roles["train"], roles["query"], roles["gallery"]) == counts


@pytest.mark.skipif("LRREID_CUHK03" not in os.environ, reason="LRREID_CUHK03 names no folder")
def test_real_cuhk03_counts() -> None:
    for split in (0, 19):
        recipe = build_recipe("mlr_cuhk03", {"split": split})
        images = recipe.read(recipe.locate(Path(os.environ["LRREID_CUHK03"])))
        assert len({i.pid for i in images if i.split == "train"}) == 1367
        assert len({i.pid for i in images if i.split == "test"}) == 100
        assert {i.camid for i in images} == set(range(1, 11))
        people = Counter((i.pid // 1000, i.pid) for i in images).keys()
        assert Counter(pair for pair, _ in people) == {1: 843, 2: 440, 3: 77, 4: 58, 5: 49}
        kinds = Counter(image.path.split("/")[0] for image in images)
        assert kinds == {"images_labeled": 14096, "images_detected": 14097}
