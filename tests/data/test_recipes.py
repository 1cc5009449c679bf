"""Recipes, the builder, manifests and data sets, on miniature trees (and on real ones if there)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mini_sets
import numpy as np
import pytest
from fastreid.data.datasets.bases import ImageDataset
from mini_sets import plan, quiet, tree_bytes, write
from PIL import Image

from lrreid_ext.data import recipes
from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.recipes import (
    MarketRecipe,
    add_recipe,
    build,
    build_recipe,
    builder,
    preset,
    verify,
)
from lrreid_ext.data.recipes import synth as synth_recipe
from lrreid_ext.data.recipes.builder import JOURNAL_FILE, encode_png
from lrreid_ext.data.recipes.dataset import build_command, find_source, test_set_of
from lrreid_ext.data.recipes.manifest import MANIFEST_FILE
from lrreid_ext.errors import ManifestError, RecipeError
from lrreid_ext.registry import DATASET_REGISTRY, names

MINI_CUHK = {"identities": 6, "train_identities": 3}


def market_tree(root: Path) -> Path:
    """Three train and three test identities of three cameras, a distractor and junk in each."""
    for pid in (2, 7, 1600):  # beyond Market's 1501
        for cam in (1, 2, 3):
            write(root / "bounding_box_train" / f"{pid:04d}_c{cam}s1_000451_03.jpg")
    write(root / "bounding_box_train" / "-1_c1s1_000001_00.jpg")
    for pid in (1, 3, 4):
        for cam in (1, 2, 3):
            if (pid, cam) != (4, 1):
                write(root / "query" / f"{pid:04d}_c{cam}s1_000100_00.jpg")
            for shot in (1, 2):
                suffix = "png" if shot == 2 else "jpg"
                name = f"{pid:04d}_c{cam}s1_000200_0{shot}.{suffix}"
                write(root / "bounding_box_test" / name)
    for cam in (1, 2, 12):  # a camera beyond Market's six
        write(root / "bounding_box_test" / f"0000_c{cam}s1_000300_01.jpg")
        write(root / "bounding_box_test" / f"-1_c{cam}s1_000300_02.jpg")
    (root / "query" / "Thumbs.db").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return market_tree(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def cuhk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.cuhk01(tmp_path_factory.mktemp("cuhk"))


# ---------------------------------------------------------------------- recipes by name


def test_every_recipe_is_described_and_has_a_data_set() -> None:
    known = names(recipes.RECIPE_REGISTRY)
    assert {"synth_pedestrians", "mlr_market1501", "mlr_cuhk01"} <= set(known)
    for name in known:
        recipe = build_recipe(name)
        assert recipe.name == name == recipe.folder()
        assert recipe.description and recipe.source_name and recipe.where_to_get and recipe.terms
        assert json.loads(json.dumps(recipe.options())) == recipe.options()
        assert issubclass(DATASET_REGISTRY.get(name), ImageDataset)


def test_unknown_names_and_options_are_answered_with_the_known() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'mlr_cuhk01'.*synth_pedestrians"):
        build_recipe("mlr_cuhk1")
    with pytest.raises(RecipeError, match=r"no option 'factor'.*Did you mean 'factors'.*kernel"):
        build_recipe("mlr_cuhk01", {"factor": 2})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("kernel", "cubic", "Did you mean 'bicubic'"),
        ("factor_mode", "per_person", "per_identity"),
        ("encoding", "webp", "png, jpeg"),
        ("rounding", "up", "nearest"),
        ("factors", [2, 0.5], "0.5"),
        ("factors", "many", "valid number"),
        ("factors", [], "empty"),
        ("span", [3], "low <= high"),
        ("span", [4, 2], "low <= high"),
        ("lr_camera", "first", "'random'"),
        ("lr_camera", 1.5, "valid integer"),
        ("seed", "x", "valid integer"),
        ("seed", True, "valid integer, not True"),
        ("lr_camera", True, "valid integer"),
        ("factors", [True, 2], "valid number"),
        ("split", -1, "greater than or equal to 0"),
        ("kernel", 3, "valid string"),
        ("train_identities", 971, "empty"),
    ],
)
def test_bad_option_values_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"mlr_cuhk01, option .*{option}.*{message}"):
        build_recipe("mlr_cuhk01", {option: value})


def test_spellings_of_one_option_are_one() -> None:
    as_yaml = build_recipe("mlr_cuhk01", {"factors": [2, 4], "lr_camera": 1})
    assert as_yaml == build_recipe("mlr_cuhk01", {"factors": (2.0, 4.0), "lr_camera": 1})
    assert as_yaml.folder().startswith("mlr_cuhk01-")
    assert as_yaml.folder() != build_recipe("mlr_cuhk01", {"factors": [2, 3]}).folder()
    assert build_recipe("mlr_cuhk01", {"factors": [2, 3, 4]}).folder() == "mlr_cuhk01"


# ---------------------------------------------------------------------- Market-1501


def test_market_default_roles(market: Path, tmp_path: Path) -> None:
    manifest = quiet(build_recipe("mlr_market1501"), market, tmp_path / "out")
    queries = manifest.of_role("query")
    # Camera 1's images in query/: identity 4 has none there.
    assert [(q.pid, q.camid) for q in queries] == [(1, 1), (3, 1)]
    assert {q.source.split("/")[0] for q in queries} == {"query"}
    gallery = Counter((g.pid, g.camid) for g in manifest.of_role("gallery"))
    expected = {(pid, cam): 2 for pid in (1, 3, 4) for cam in (2, 3)}
    assert gallery == {**expected, (0, 2): 1, (0, 12): 1}  # no junk, nothing of camera 1
    assert all(g.source.startswith("bounding_box_test/") for g in manifest.of_role("gallery"))
    train = manifest.of_role("train")
    assert sorted({t.pid for t in train}) == [2, 7, 1600]
    assert len(train) == 9
    assert {t.factor for t in train} == {1.0}
    assert manifest.counts() == {
        "gallery": 14,
        "query": 2,
        "query_hr": 2,
        "train": 9,
        "train_identities": 3,
        "test_identities": 3,
    }


def test_query_is_the_degraded_twin(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = quiet(build_recipe("mlr_market1501", {"kernel": "area"}), market, out)
    for small, twin in zip(manifest.of_role("query"), manifest.of_role("query_hr"), strict=True):
        assert small.source == twin.source
        assert small.factor in (2.0, 3.0, 4.0)
        assert (twin.factor, twin.kernel, twin.size) == (1.0, "none", (16, 8))
        assert small.kernel == "area"
        source = Image.open(market / small.source).convert("RGB")
        assert np.array_equal(np.asarray(Image.open(out / twin.file)), np.asarray(source))
        stored = np.asarray(Image.open(out / small.file))
        assert np.array_equal(stored, np.asarray(degrade(source, small.factor, "area")))
        assert small.size == stored.shape[:2]


def test_prpr_preset_takes_all_of_camera_one_and_stores_jpeg(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = quiet(build_recipe("mlr_market1501_prpr"), market, out)
    queries = manifest.of_role("query")
    # 2 of query/ and 2 each of 3 identities of bounding_box_test; no distractor.
    assert len(queries) == 8
    assert {q.camid for q in queries} == {1}
    assert {q.pid for q in queries} == {1, 3, 4}
    assert {g.camid for g in manifest.of_role("gallery")} == {2, 3, 12}
    query = queries[0]
    assert query.kernel == "cv2-linear"
    assert query.file.endswith(".jpg")
    source = Image.open(market / query.source).convert("RGB")
    buffer = io.BytesIO()
    degrade(source, query.factor, "cv2-linear").save(buffer, "JPEG", quality=95)
    assert (out / query.file).read_bytes() == buffer.getvalue()
    assert manifest.of_role("query_hr")[0].file.endswith(".png")


def test_per_identity_preset_draws_one_camera_for_each(market: Path) -> None:
    cameras = defaultdict(set)
    for seed in range(40):
        recipe = build_recipe("mlr_market1501_per_identity", {"seed": seed})
        assert recipe.kernel == "lanczos"
        planned = plan(recipe, market)
        lr = {}
        for item in planned:
            if item.role == "query":
                assert lr.setdefault(item.image.pid, item.image.camid) == item.image.camid
        assert set(lr) == {1, 3, 4}
        for item in planned:
            if item.role == "gallery":
                assert item.image.camid != lr.get(item.image.pid)
        assert {i.image.camid for i in planned if i.image.pid == 0} == {1, 2, 12}
        for pid, camera in lr.items():
            cameras[pid].add(camera)
    assert cameras[1] == cameras[3] == {1, 2, 3}
    assert cameras[4] == {2, 3}  # has no query of camera 1


def test_factor_modes(market: Path) -> None:
    def factors(mode: str, key: Callable) -> dict:
        found = defaultdict(set)
        options = {"factor_mode": mode, "span": [1, 8], "queries": "all", "lr_camera": 2}
        recipe = build_recipe("mlr_market1501", options)
        for item in plan(recipe, market):
            if item.role == "query":
                assert 1 <= item.factor < 8
                found[key(item.image)].add(item.factor)
        return found

    assert all(len(f) == 1 for f in factors("per_identity", lambda i: i.pid).values())
    assert len(set.union(*factors("per_identity", lambda i: i.pid).values())) == 3
    assert all(len(f) == 1 for f in factors("per_camera", lambda i: i.camid).values())
    assert len(set.union(*factors("per_image", lambda i: i.pid).values())) == 9


def test_c3_preset_and_a_camera_without_queries(market: Path) -> None:
    recipe = build_recipe("mlr_market1501_c3")
    planned = plan(recipe, market)
    assert {p.image.camid for p in planned if p.role == "query"} == {3}
    recipe = build_recipe("mlr_market1501", {"lr_camera": 5})
    with pytest.raises(RecipeError, match=r"camera 5 has no query.*1 \(2\), 2 \(3\), 3 \(3\)"):
        plan(recipe, market)


def test_market_errors_name_the_file_or_folder(market: Path, tmp_path: Path) -> None:
    recipe = build_recipe("mlr_market1501")
    with pytest.raises(RecipeError, match=r"nowhere: no such folder.*bounding_box_train.*https://"):
        quiet(recipe, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(RecipeError, match="built from Market-1501"):
        quiet(recipe, None, tmp_path / "out")
    copy = tmp_path / "Market-1501-v15.09.15"
    shutil.copytree(market, copy)
    assert recipe.locate(tmp_path) == copy
    (copy / "query" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"holiday\.jpg: not named as Market"):
        quiet(recipe, copy, tmp_path / "out")
    shutil.rmtree(copy / "query")
    (copy / "query").mkdir()
    with pytest.raises(RecipeError, match="query: holds no image"):
        quiet(recipe, copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_same_name_twice_keeps_both_images(market: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(market, copy)
    write(copy / "bounding_box_test" / "0001_c2s1_000200_01.png")  # a .jpg is there too
    manifest = quiet(build_recipe("mlr_market1501"), copy, tmp_path / "out")
    files = [image.file for image in manifest.images]
    assert len(set(files)) == len(files)
    assert "gallery/0001_c2s1_000200_01_dup.png" in files
    assert verify(tmp_path / "out") == []


# ---------------------------------------------------------------------- CUHK01


def test_cuhk01_roles_and_splits(cuhk: Path) -> None:
    for split in (0, 1, 5):
        recipe = build_recipe("mlr_cuhk01", {**MINI_CUHK, "split": split})
        planned = plan(recipe, cuhk)
        people = np.array(["0001", "0002", "0003", "0004", "0005", "0006"])
        order = people[np.random.default_rng(split).permutation(6)]
        train = {int(name) for name in order[:3]}
        assert {p.image.pid for p in planned if p.role == "train"} == train
        for item in planned:
            assert (item.image.pid in train) == (item.role == "train")
            shot = item.image.path[4:7]
            if item.role != "train":
                assert (item.role == "query") == (shot in ("003", "004"))
            assert item.image.camid == (2 if shot in ("003", "004") else 1)
        assert Counter(p.role for p in planned) == {"train": 12, "query": 6, "gallery": 6}


@pytest.mark.parametrize("below", ["", "campus", "CUHK01/campus", "CUHK01"])
def test_cuhk01_is_found_in_its_usual_folders(tmp_path: Path, below: str) -> None:
    mini_sets.cuhk01(tmp_path / "x" / below, people=1)
    assert build_recipe("mlr_cuhk01").locate(tmp_path / "x") == tmp_path / "x" / below


def test_cuhk01_wrong_sources_are_named(cuhk: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="6 identities where 971"):
        quiet(build_recipe("mlr_cuhk01"), cuhk, tmp_path / "out")
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    copy = tmp_path / "copy"
    shutil.copytree(cuhk, copy)
    (copy / "0004003.png").unlink()
    with pytest.raises(RecipeError, match="identity 0004 has 3 files"):
        quiet(recipe, copy, tmp_path / "out")
    write(copy / "0004003.png", 128, 64)
    with pytest.raises(RecipeError, match=r"0004003\.png: 128 x 64 pixels"):
        quiet(recipe, copy, tmp_path / "out")
    write(copy / "portrait.png")
    with pytest.raises(RecipeError, match=r"portrait\.png: not a CUHK01 name"):
        quiet(recipe, copy, tmp_path / "out")


# ---------------------------------------------------------------------- builder and manifest


def test_png_is_lossless_and_standard() -> None:
    for height, width in ((1, 1), (7, 5), (160, 60), (200, 120)):  # the last needs several blocks
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        data = encode_png(Image.fromarray(pixels))
        opened = Image.open(io.BytesIO(data))
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(opened), pixels)
        assert len(data) < pixels.nbytes + height + 100


def test_manifest_file_is_plain_json(cuhk: Path, tmp_path: Path) -> None:
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    manifest = quiet(recipe, cuhk, tmp_path / "out")
    content = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert content["recipe"] == "mlr_cuhk01"
    assert content["seed"] == 0
    assert content["options"] == recipe.options()
    assert content["counts"]["query"] == 6
    assert content["hash"] == manifest.hash
    for image in content["images"]:
        data = (tmp_path / "out" / image["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        source = (cuhk / image["source"]).read_bytes()
        assert hashlib.sha256(source).hexdigest() == image["source_sha256"]
    # The hash, once more by hand.
    facts = {key: content[key] for key in ("schema", "recipe", "options")}
    facts["images"] = [
        {key: value for key, value in image.items() if key != "source_sha256"}
        for image in content["images"]
    ]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == content["hash"]


class Interrupt(Exception):
    pass


def failing_after(count: int, recipe_class: type, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loading an image fails from the ``count``-th on; the list of those that were loaded."""
    loaded: list[str] = []
    original = recipe_class.load

    def load(self, root, image):
        if len(loaded) >= count:
            raise Interrupt
        loaded.append(image.path)
        return original(self, root, image)

    monkeypatch.setattr(recipe_class, "load", load)
    return loaded


def test_interrupted_build_goes_on_where_it_was(
    cuhk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    whole = quiet(recipe, cuhk, tmp_path / "whole")
    monkeypatch.setattr("lrreid_ext.data.recipes.builder.CHUNK", 4)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_after(10, recipes.CUHK01Recipe, patch)
        with pytest.raises(Interrupt):
            quiet(recipe, cuhk, out)
    assert not (out / MANIFEST_FILE).exists()
    # Cut off in the middle of a line, with a temporary file left, and one finished file damaged.
    with open(out / JOURNAL_FILE, "a") as journal:
        journal.write('[{"file": "gal')
    finished = [p for p in out.rglob("*.png")]
    (finished[0].parent / ".x.png.1.tmp").write_bytes(b"half")
    damaged = json.loads((out / JOURNAL_FILE).read_text().splitlines()[1])[0]["file"]
    (out / damaged).write_bytes(b"broken")
    with monkeypatch.context() as patch:
        loaded = failing_after(10**6, recipes.CUHK01Recipe, patch)
        again = quiet(recipe, cuhk, out)
    assert len(loaded) == 24 - 8 + 1  # two chunks of four were finished, one file was damaged
    assert again == whole
    assert tree_bytes(out) == tree_bytes(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"\xff\xfe", b'[{"file": 1}]', b"[1]", b"7", b'{"a": 1}'])
def test_a_damaged_line_of_the_journal_ends_it(
    damage: bytes, cuhk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    monkeypatch.setattr("lrreid_ext.data.recipes.builder.CHUNK", 4)
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        failing_after(10, recipes.CUHK01Recipe, patch)
        quiet(recipe, cuhk, out)
    lines = (out / JOURNAL_FILE).read_bytes().split(b"\n")
    (out / JOURNAL_FILE).write_bytes(b"\n".join([*lines[:3], damage, *lines[4:]]))
    with monkeypatch.context() as patch:
        loaded = failing_after(10**6, recipes.CUHK01Recipe, patch)
        quiet(recipe, cuhk, out)
    assert len(loaded) == 24 - 2 and verify(out) == []


@pytest.mark.parametrize("line", ["", '{"schema": 1, "recipe": "mlr_', "\0\0\n"])
def test_a_build_killed_in_its_first_write_begins_anew(
    line: str, cuhk: Path, tmp_path: Path
) -> None:
    recipe, out = build_recipe("mlr_cuhk01", MINI_CUHK), tmp_path / "out"
    out.mkdir()
    (out / JOURNAL_FILE).write_text('{"schema": 1, "recipe": "mlr_viper", "options": {}}\n')
    with pytest.raises(RecipeError, match="holds a build that was begun with other options"):
        quiet(recipe, cuhk, out)
    (out / JOURNAL_FILE).write_text(line)
    assert quiet(recipe, cuhk, out).counts()["query"] == 6 and verify(out) == []


def test_rebuild_makes_only_what_changed(
    cuhk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(cuhk, copy)
    first = quiet(recipe, copy, out)
    Image.new("RGB", (60, 160)).save(copy / "0003001.png")
    (out / first.images[0].file).unlink()
    loaded = failing_after(10**6, recipes.CUHK01Recipe, monkeypatch)
    second = quiet(recipe, copy, out)
    assert sorted(loaded) == sorted({"0003001.png", first.images[0].source})
    assert second.hash != first.hash
    assert verify(out) == []


def test_folders_of_others_are_left_alone(cuhk: Path, tmp_path: Path) -> None:
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match="is not empty"):
        quiet(recipe, cuhk, tmp_path / "home")
    quiet(recipe, cuhk, tmp_path / "out")
    other = build_recipe("mlr_cuhk01", {**MINI_CUHK, "seed": 1})
    with pytest.raises(RecipeError, match="holds mlr_cuhk01 built with other options"):
        quiet(other, cuhk, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    with pytest.raises(RecipeError, match="workers: 0"):
        quiet(recipe, cuhk, tmp_path / "new", workers=0)


def test_two_builds_into_one_folder_are_kept_apart(cuhk: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    with open(out / JOURNAL_FILE, "a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another process is building"):
            quiet(build_recipe("mlr_cuhk01", MINI_CUHK), cuhk, out)


def test_errors_of_workers_come_back(cuhk: Path, tmp_path: Path) -> None:
    shutil.copytree(cuhk, tmp_path / "copy")
    (tmp_path / "copy" / "0002002.png").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"0002002\.png: can't be read"):
        quiet(build_recipe("mlr_cuhk01", MINI_CUHK), tmp_path / "copy", tmp_path / "out", workers=2)


def test_many_images_are_made_on_all_cores(
    cuhk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(workers: int, *how: object) -> None:
        raise BrokenProcessPool(workers)

    monkeypatch.setattr(builder, "ProcessPoolExecutor", dies)
    monkeypatch.setattr(builder, "cores", lambda: 7)
    recipe = build_recipe("mlr_cuhk01", MINI_CUHK)
    quiet(recipe, cuhk, tmp_path / "few", workers=None)
    monkeypatch.setattr(builder, "MANY", 24)
    with pytest.raises(RecipeError, match="a worker process died") as caught:
        quiet(recipe, cuhk, tmp_path / "many", workers=None)
    assert caught.value.__cause__.args == (7,)


def test_verify_finds_each_kind_of_change(cuhk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file" in verify(out)[0]
    manifest = quiet(build_recipe("mlr_cuhk01", MINI_CUHK), cuhk, out)
    assert verify(out) == []
    changed, missing = manifest.images[0].file, manifest.images[1].file
    data = bytearray((out / changed).read_bytes())
    data[60] ^= 1
    (out / changed).write_bytes(data)
    (out / missing).unlink()
    (out / "gallery" / "extra.png").write_bytes(b"")
    problems = verify(out)
    assert len(problems) == 3
    assert problems[0].startswith(f"{changed}: changed")
    assert problems[1] == f"{missing}: missing"
    assert problems[2] == "gallery/extra.png: not in the manifest"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"pid": 1,', '"pid": 2,', "doesn't give its hash"),
        ('"schema": 1,', '"schema": 99,', "schema 99"),
        ('"camid": ', '"camera": ', "not a whole manifest"),
        ("{", "", "can't be read"),
    ],
)
def test_verify_distrusts_a_changed_manifest(
    cuhk: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    out = tmp_path / "out"
    quiet(build_recipe("mlr_cuhk01", {**MINI_CUHK, "split": 1}), cuhk, out)
    path = out / MANIFEST_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    (problem,) = verify(out)
    assert message in problem and MANIFEST_FILE in problem


# ---------------------------------------------------------------------- synthetic people


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer of flat colours in the place of the real one, which is slower."""

    def render(identity, camera, shot, *, seed=0, height=128, width=64):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:] = (identity, camera, 16 * shot + seed)
        return pixels

    module = SimpleNamespace(render=render, NUM_CAMERAS=4, __file__=synth_recipe.__file__)
    monkeypatch.setitem(sys.modules, "lrreid_ext.data.synth", module)
    synth_recipe._renderer_digest.cache_clear()
    yield
    synth_recipe._renderer_digest.cache_clear()


SMALL = {"identities": 18, "cameras": 3, "shots": 2, "height": 32, "width": 16}


def test_synth_roles_and_look_alikes(renderer: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = quiet(build_recipe("synth_pedestrians", {**SMALL, "seed": 5}), None, out)
    splits = defaultdict(set)
    for image in manifest.images:
        assert 1 <= image.pid <= 18
        splits[(image.pid - 1) // 4].add(image.split)
    assert len(splits) == 5
    assert all(len(split) == 1 for split in splits.values())
    assert {i.camid for i in manifest.of_role("query")} == {1}
    assert {i.camid for i in manifest.of_role("gallery")} == {0, 2}
    tests = {i.pid for i in manifest.images if i.split == "test"}
    assert len(manifest.of_role("query")) == 2 * len(tests)
    assert len(manifest.of_role("gallery")) == 4 * len(tests)
    image = manifest.of_role("gallery")[-1]
    shot = int(Path(image.file).stem[-3:])
    pixels = np.asarray(Image.open(out / image.file))
    assert pixels.shape == (32, 16, 3)
    assert pixels[0, 0].tolist() == [image.pid - 1, image.camid, 16 * shot + 5]


def test_synth_splits_differ_and_fraction_counts(renderer: None) -> None:
    def train(**options) -> set[int]:
        recipe = build_recipe("synth_pedestrians", {**SMALL, "identities": 80, **options})
        return {i.pid for i in recipe.read(Path()) if i.split == "train"}

    assert len(train(train_fraction=0.25)) == 20
    assert train() != train(split=1)
    assert train() != train(seed=1)
    assert train() == train(shots=1)


@pytest.mark.parametrize(
    ("option", "value"),
    [("identities", 4), ("cameras", 1), ("shots", 0), ("height", 2), ("train_fraction", 1.0),
     ("seed", -1)],
)  # fmt: skip
def test_synth_options_have_a_range(option: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"option {option}: input should be .*, not {value}"):
        build_recipe("synth_pedestrians", {option: value})


def test_synth_has_no_more_cameras_than_the_renderer(renderer: None, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the renderer has 4"):
        quiet(build_recipe("synth_pedestrians", {"cameras": 9}), None, tmp_path / "out")


def test_synth_stores_what_the_renderer_draws(tmp_path: Path) -> None:
    synth = pytest.importorskip("lrreid_ext.data.synth")
    options = {"identities": 8, "cameras": 2, "shots": 1, "height": 32, "width": 16, "seed": 3}
    # Made in another process, compared with what this one draws.
    manifest = quiet(build_recipe("synth_pedestrians", options), None, tmp_path / "out", workers=2)
    assert len(manifest.images) == 8 + 4 + 4 + 4
    for image in (*manifest.of_role("query_hr"), *manifest.of_role("train")):
        drawn = synth.render(image.pid - 1, image.camid, 0, seed=3, height=32, width=16)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / image.file)), drawn)


# ---------------------------------------------------------------------- data sets


def test_data_set_builds_itself_from_below_the_root(market: Path, tmp_path: Path) -> None:
    shutil.copytree(market, tmp_path / "Market-1501-v15.09.15")
    entry = DATASET_REGISTRY.get("mlr_market1501")
    data = entry(root=str(tmp_path))
    assert data.folder == tmp_path / "mlr_market1501"
    path, pid, camid = data.train[0]
    assert os.path.isfile(path)
    assert (pid, camid) == ("mlr_market1501_2", "mlr_market1501_1")
    assert len(data.train) == 9
    assert [item[1:] for item in data.query] == [(1, 1), (3, 1)]
    assert (0, 12) in [item[1:] for item in data.gallery]
    assert all(os.path.isfile(item[0]) for item in data.query + data.gallery)
    before = os.stat(data.folder / MANIFEST_FILE).st_mtime_ns
    again = entry(root=str(tmp_path), options={})
    assert again.manifest == data.manifest
    assert os.stat(data.folder / MANIFEST_FILE).st_mtime_ns == before


def test_data_set_with_options_has_its_own_folder(cuhk: Path, tmp_path: Path) -> None:
    entry = DATASET_REGISTRY.get("mlr_cuhk01")
    data = entry(root=str(tmp_path), source=str(cuhk), options=MINI_CUHK)
    assert data.folder.parent == tmp_path
    assert data.folder.name.startswith("mlr_cuhk01-")
    other = entry(root=str(tmp_path), source=str(cuhk), options={**MINI_CUHK, "seed": 3})
    assert other.folder != data.folder
    combined = entry(root=str(tmp_path), options=MINI_CUHK, combineall=True)
    assert len(combined.train) == 24


def test_folder_that_holds_something_else_is_refused(cuhk: Path, tmp_path: Path) -> None:
    quiet(build_recipe("mlr_cuhk01", MINI_CUHK), cuhk, tmp_path / "mlr_cuhk01")
    with pytest.raises(RecipeError, match="with other options"):
        DATASET_REGISTRY.get("mlr_cuhk01")(root=str(tmp_path))


def test_missing_source_says_where_to_get_it_and_the_command(tmp_path: Path) -> None:
    entry = DATASET_REGISTRY.get("mlr_cuhk01")
    with pytest.raises(FileNotFoundError) as caught:
        entry(root=str(tmp_path), options={"split": 2, "factors": [2, 4]})
    text = str(caught.value)
    recipe = build_recipe("mlr_cuhk01", {"split": 2, "factors": [2, 4]})
    assert recipe.where_to_get in text and recipe.terms in text
    command = (
        f"python tools/build_dataset.py mlr_cuhk01 --source {tmp_path / 'CUHK01'} "
        f"--out {tmp_path / recipe.folder()} --option factors=[2.0,4.0] --option split=2"
    )
    assert command in text
    assert command == build_command(recipe, tmp_path / "CUHK01", tmp_path / recipe.folder())
    assert find_source(recipe, tmp_path) is None


def test_changed_images_bear_no_figures(market: Path, tmp_path: Path) -> None:
    load = partial(DATASET_REGISTRY.get("mlr_market1501"), root=str(tmp_path), source=str(market))
    data = load()
    for role, factors in (("gallery", []), ("query", []), ("query_hr", [2])):
        victim = data.folder / data.manifest.of_role(role)[0].file
        kept = victim.read_bytes()
        assert test_set_of(data, "any", factors).samples
        victim.write_bytes(kept[:-1] + b"x")
        with pytest.raises(ManifestError, match=rf"{victim.name}: was changed .* makes it anew"):
            test_set_of(data, "any", factors)
        victim.unlink()
        with pytest.raises(ManifestError, match=rf"{victim.name}: is gone; build"):
            test_set_of(data, "any", factors)
        build(data.recipe, market, data.folder)
        assert victim.read_bytes() == kept and test_set_of(load(), "any", factors).samples


def test_a_test_set_does_not_depend_on_the_order_of_files() -> None:
    items = [(f"/{k}.jpg", k % 3 + 1, k % 2) for k in range(9)]
    one = SimpleNamespace(query=items[:4], gallery=items[4:])
    other = SimpleNamespace(query=items[:4][::-1], gallery=items[4:][::-1])
    sets = [test_set_of(data, "any", [2], hr=True) for data in (one, other)]
    assert sets[0].samples == sets[1].samples and len(sets[0].samples) == 17


def test_test_set_of_a_recipe(market: Path, tmp_path: Path) -> None:
    data = DATASET_REGISTRY.get("mlr_market1501_prpr")(root=str(tmp_path), source=str(market))
    test_set = test_set_of(data, "any", [2, 2.5, 2.0], hr=True)
    assert test_set.name == "mlr_market1501_prpr"
    assert test_set.manifest_hash == data.manifest.hash
    assert test_set.info["recipe"] == "mlr_market1501_prpr"
    assert test_set.info["seed"] == 0
    groups = Counter(sample.group for sample in test_set.samples)
    assert groups == {"query": 8, "gallery": 14, "query_hr": 8, "x2": 8, "x2.5": 8}
    by_group = defaultdict(list)
    for sample in test_set.samples:
        by_group[sample.group].append(sample)
    factors = [image.factor for image in data.manifest.of_role("query")]
    assert [sample.factor for sample in by_group["query"]] == factors
    assert {sample.degrade for sample in by_group["query"]} == {1.0}
    for query, twin, x2 in zip(
        by_group["query"], by_group["query_hr"], by_group["x2"], strict=True
    ):
        assert Path(query.path).stem == Path(twin.path).stem
        assert twin.path == x2.path
        assert (x2.degrade, x2.factor, x2.kernel) == (2.0, 2.0, "cv2-linear")
        assert (twin.degrade, twin.factor) == (1.0, 1.0)
    assert {s.group for s in test_set_of(data, "any", [], hr=False).samples} == {"query", "gallery"}
    with pytest.raises(ValueError, match=r"factor 0\.5"):
        test_set_of(data, "any", [0.5], hr=False)


def test_test_set_of_any_host_data_set() -> None:
    query, gallery = [("q.jpg", 1, 0)], [("g.jpg", 1, 1), ("d.jpg", 0, 1)]
    data = ImageDataset([], query, gallery)
    plain = test_set_of(data, "Mine")
    assert (plain.name, plain.manifest_hash) == ("Mine", "")
    assert [(s.path, s.pid, s.camid, s.group) for s in plain.samples] == [
        ("q.jpg", 1, 0, "query"),
        ("d.jpg", 0, 1, "gallery"),
        ("g.jpg", 1, 1, "gallery"),
    ]
    full = test_set_of(data, "Mine", [3], hr=True)
    assert [(s.path, s.group, s.degrade) for s in full.samples[3:]] == [
        ("q.jpg", "query_hr", 1.0),
        ("q.jpg", "x3", 3.0),
    ]


def test_a_recipe_from_elsewhere_gets_its_data_set(market: Path, tmp_path: Path) -> None:
    name = "my_market_bilinear"
    entry = add_recipe(preset(MarketRecipe, name, "mine", kernel="bilinear", lr_camera=2))
    try:
        assert DATASET_REGISTRY.get(name) is entry
        data = entry(root=str(tmp_path), source=str(market))
        assert {item[2] for item in data.query} == {2}
        assert data.train[-1][1] == "my_market_bilinear_1600"
    finally:
        del recipes.RECIPE_REGISTRY._obj_map[name], DATASET_REGISTRY._obj_map[name]


# ---------------------------------------------------------------------- the real sets, if there


@pytest.mark.skipif("LRREID_CUHK01" not in os.environ, reason="LRREID_CUHK01 names no folder")
def test_real_cuhk01_manifest_is_the_one_of_the_published_figures(tmp_path: Path) -> None:
    manifest = build(
        build_recipe("mlr_cuhk01"), os.environ["LRREID_CUHK01"], tmp_path, progress=False
    )
    known = "f277a4c5a1a090917a83c945aa53c20fc4c6d283c0b73cfc3eee2d8b2ec85517"
    assert manifest.hash == known


@pytest.mark.skipif("LRREID_MARKET1501" not in os.environ, reason="LRREID_MARKET1501 not set")
def test_real_market1501_counts() -> None:
    folder = Path(os.environ["LRREID_MARKET1501"])

    def queries(name: str, **options: object) -> int:
        recipe = build_recipe(name, options)
        return sum(p.role == "query" for p in recipe.plan(recipe.read(recipe.locate(folder))))

    expected = (668, 530, 717, 248, 622, 583)
    assert tuple(queries("mlr_market1501", lr_camera=c) for c in range(1, 7)) == expected
    in_test = (2114, 1740, 2822, 890, 2380, 3169)
    everything = tuple(queries("mlr_market1501_prpr", lr_camera=c) for c in range(1, 7))
    assert everything == tuple(a + b for a, b in zip(expected, in_test, strict=True))
    assert everything[0] == 2782
