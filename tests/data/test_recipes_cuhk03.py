"""MLR-CUHK03, from the mat and from extracted images."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import mini_sets
import numpy as np
import pytest
from mini_sets import quiet
from PIL import Image

from lrreid_ext.data.recipes import build_recipe, cuhk03, verify
from lrreid_ext.errors import RecipeError

OPTIONS = {"identities": 10, "train_identities": 7}
needs_h5py = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="h5py is not installed"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.cuhk03_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.cuhk03_mat(tmp_path_factory.mktemp("mat"))


def of(**options: object):
    return build_recipe("mlr_cuhk03", {**OPTIONS, **options})


def images(recipe, source: Path):
    return recipe.read(recipe.locate(source))


def test_identities_cameras_and_splits(folders: Path) -> None:
    for split in (0, 1, 19):
        sources = images(of(split=split), folders)
        assert len(sources) == 2 * (10 * 5 - 2)
        tests = {1000 * pair + person for pair, person in mini_sets.cuhk03_tests(split)}
        assert {i.pid for i in sources if i.split == "test"} == tests
        assert len({i.pid for i in sources}) == 10
        for image in sources:
            pair, person, view, _ = (int(part) for part in Path(image.path).stem.split("_"))
            assert (image.pid, image.camid) == (1000 * pair + person, 2 * pair - 2 + view)


@pytest.mark.parametrize("boxes", ["labeled", "detected"])
def test_one_kind_of_boxes(boxes: str, folders: Path, tmp_path: Path) -> None:
    sources = images(of(boxes=boxes), folders)
    assert len(sources) == 48
    assert {i.path.split("/")[0] for i in sources} == {f"images_{boxes}"}
    # Then the other folder isn't needed; its splits serve for both.
    shutil.copytree(folders / f"images_{boxes}", tmp_path / f"images_{boxes}")
    shutil.copy(folders / "splits_classic_labeled.json", tmp_path)
    assert images(of(boxes=boxes), tmp_path) == sources
    with pytest.raises(RecipeError, match=r"expected cuhk-03\.mat, or the folders images_labeled"):
        of().locate(tmp_path)


def test_one_camera_of_each_pair_is_low_resolution(folders: Path) -> None:
    for view, cameras in (("first", {1, 3, 5}), ("second", {2, 4, 6})):
        recipe = of(lr_view=view)
        planned = recipe.plan(images(recipe, folders))
        assert {p.image.camid for p in planned if p.role == "query"} == cameras
        gallery = {p.image.camid for p in planned if p.role == "gallery"}
        assert gallery == set(range(1, 7)) - cameras
    drawn = defaultdict(set)
    sides = set()
    for seed in range(12):
        recipe = of(seed=seed)
        lr = defaultdict(set)
        for p in recipe.plan(images(recipe, folders)):
            if p.role == "query":
                lr[(p.image.camid + 1) // 2].add(p.image.camid)
                assert p.factor in (2.0, 3.0, 4.0) and p.twin
        assert all(len(cameras) == 1 for cameras in lr.values())  # one camera, whoever is seen
        for pair, cameras in lr.items():
            drawn[pair] |= cameras
        sides.add(frozenset(camera % 2 for cameras in lr.values() for camera in cameras))
    assert drawn == {1: {1, 2}, 2: {3, 4}, 3: {5, 6}}
    assert {0, 1} in sides  # each pair has a draw of its own


def test_without_splits_the_test_people_are_drawn_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = mini_sets.cuhk03_folders(tmp_path, splits=False)
    with caplog.at_level(logging.WARNING):
        sources = images(of(split=5), source)
    assert "drawn at random" in caplog.text
    names = sorted({Path(i.path).stem[:5] for i in sources})
    order = np.array(names)[np.random.default_rng(5).permutation(10)]
    train = {int(name[0]) * 1000 + int(name[2:]) for name in order[:7]}
    assert {i.pid for i in sources if i.split == "train"} == train


def test_bad_folders_are_named(folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cuhk03"
    shutil.copytree(folders, copy)
    splits = copy / "splits_classic_labeled.json"
    whole = splits.read_text()
    for text in ("[", "[]", '[{"train": []}]', "{}"):
        splits.write_text(text)
        with pytest.raises(RecipeError, match=r"splits_classic_labeled\.json: can't be read"):
            images(of(), tmp_path)
    splits.write_text('[{"train": [], "query": [["portrait.png", 0, 0]]}]')
    with pytest.raises(RecipeError, match=r"'portrait\.png' is not named"):
        images(of(), copy)
    splits.write_text(whole)
    with pytest.raises(RecipeError, match="test set 0 has 3 people where 2 are expected"):
        images(of(train_identities=8), copy)
    (copy / "images_labeled" / "2_002_1_01.png").rename(tmp_path / "kept.png")
    with pytest.raises(RecipeError, match=r"2_002_1_01\.png: no such file, and 0 others of the 48"):
        images(of(), copy)
    (tmp_path / "kept.png").rename(copy / "images_labeled" / "2_002_1_01.png")
    for file in copy.glob("images_*/3_001_*"):
        file.unlink()
    with pytest.raises(RecipeError, match="9 identities where 10 are expected"):
        images(of(), copy)
    with pytest.raises(RecipeError, match="person 1 of pair 3 is in test set 0, but has no image"):
        images(of(identities=9, train_identities=6), copy)
    (copy / "images_labeled" / "6_001_1_01.png").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"6_001_1_01\.png: not named"):
        images(of(), copy)


def test_of_the_whole_set_images_are_counted_where_no_file_names_them(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "cuhk03"
    shutil.copytree(folders, copy)
    monkeypatch.setattr(cuhk03, "WHOLE_IDENTITIES", 10)
    monkeypatch.setattr(cuhk03, "WHOLE", {"labeled": 1, "detected": 48})
    assert len(images(of(), copy)) == 96
    (copy / "images_detected" / "2_002_1_01.png").unlink()
    with pytest.raises(RecipeError, match="images_detected: holds 47 images where CUHK03 has 48"):
        images(of(), copy)
    monkeypatch.setattr(cuhk03, "WHOLE_IDENTITIES", 1467)
    assert len(images(of(), copy)) == 95


# ---------------------------------------------------------------------- the mat


@needs_h5py
def test_mat_and_folders_give_the_same_data_set(
    folders: Path, mat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrreid_ext.data.recipes.builder.CHUNK", 8)
    recipe = of(split=4, factors=[2, 3])
    extracted = quiet(recipe, folders, tmp_path / "folders")
    stored = quiet(recipe, mat, tmp_path / "mat", workers=3)
    assert stored.hash == extracted.hash
    files = sorted(p.relative_to(tmp_path / "mat") for p in (tmp_path / "mat").rglob("*.png"))
    assert len(files) == len(stored.images)
    for file in files:
        assert (tmp_path / "mat" / file).read_bytes() == (tmp_path / "folders" / file).read_bytes()
    assert verify(tmp_path / "mat") == []
    cells = mini_sets.cuhk03_cells()
    for image in stored.of_role("gallery"):
        kind, name = image.source.removeprefix("images_").split("/")
        pair, person, _, column = (int(part) for part in Path(name).stem.split("_"))
        pixels = np.asarray(Image.open(tmp_path / "mat" / image.file))
        assert np.array_equal(pixels, cells[kind, pair, person, column])
    # A second build finds every file finished.
    monkeypatch.setattr(cuhk03.CUHK03Recipe, "load", None)
    assert quiet(recipe, mat, tmp_path / "mat") == stored


@needs_h5py
def test_where_the_mat_is_looked_for(folders: Path, mat: Path, tmp_path: Path) -> None:
    recipe = of()
    assert recipe.locate(mat) == mat / "cuhk-03.mat"
    assert recipe.locate(mat / "cuhk-03.mat") == mat / "cuhk-03.mat"
    release = tmp_path / "cuhk03" / "cuhk03_release"
    shutil.copytree(mat, release)
    assert recipe.locate(tmp_path) == release / "cuhk-03.mat"
    assert recipe.locate(tmp_path / "cuhk03") == release / "cuhk-03.mat"
    # Extracted images without splits give way to the mat, which has them; with splits they don't.
    shutil.copytree(folders, tmp_path / "cuhk03", dirs_exist_ok=True)
    assert recipe.locate(tmp_path) == tmp_path / "cuhk03"
    (tmp_path / "cuhk03" / "splits_classic_labeled.json").unlink()
    assert recipe.locate(tmp_path) == release / "cuhk-03.mat"
    shutil.rmtree(release)
    assert recipe.locate(tmp_path) == tmp_path / "cuhk03"


@needs_h5py
def test_a_mat_that_is_none_is_named(mat: Path, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "cuhk-03.mat"
    whole = (mat / "cuhk-03.mat").read_bytes()
    for damaged in (b"MATLAB 5.0 MAT-file", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(RecipeError, match=r"cuhk-03\.mat: can't be read as a MATLAB 7\.3 file"):
            images(of(), tmp_path)
    with h5py.File(path, "w") as file:
        file.create_dataset("labeled", data=np.zeros((1, 5)))
    with pytest.raises(RecipeError, match="holds no detected of 5 cells"):
        images(of(), tmp_path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        # Grey: two axes too few for a query of pair 2.
        cells = file[file["labeled"][0, 1]]
        cells[0, 0] = file.create_dataset("grey", data=np.zeros((1, 12, 30), np.uint8)).ref
    with pytest.raises(RecipeError, match=r"2_001_1_01\.png is uint8 of shape \(30, 12, 1\)"):
        quiet(of(), tmp_path, tmp_path / "out")


@needs_h5py
@pytest.mark.parametrize("part", ["labeled", "testsets"])
def test_a_mat_whose_references_point_nowhere_is_named(
    part: str, mat: Path, tmp_path: Path
) -> None:
    import h5py

    path = tmp_path / "cuhk-03.mat"
    shutil.copy(mat / "cuhk-03.mat", path)
    with h5py.File(path, "r") as file:
        at, length = file[part].id.get_offset(), 8 * file[part].shape[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes(length) + b"\x07" * 8 + whole[at + length + 8 :])
    with pytest.raises(RecipeError, match=r"cuhk-03\.mat: (labeled|test set 0) can't be read \("):
        images(of(), tmp_path)


def test_the_mat_without_h5py_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "cuhk-03.mat").write_bytes(b"\x89HDF")
    recipe = of()
    assert recipe.locate(tmp_path) == tmp_path / "cuhk-03.mat"
    with pytest.raises(RecipeError, match="pip install h5py"):
        images(recipe, tmp_path)


def test_json_is_read_with_either_kind_of_slash(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    splits = tmp_path / "splits_classic_labeled.json"
    content = json.loads(splits.read_text())
    for split in content:
        split["query"] = [[f"C:\\sets\\{Path(item[0]).name}", 0, 0] for item in split["query"]]
    splits.write_text(json.dumps(content))
    assert images(of(split=2), tmp_path) == images(of(split=2), folders)
