"""Recipes, the builder, manifests and data sets, on miniature trees (and on real ones if there)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
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

from lrreid_ext.data import recipes, synth
from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.recipes import (
    SourceImage,
    build,
    build_recipe,
    builder,
    verify,
)
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


def test_spellings_of_one_option_are_one() -> None:
    as_yaml = build_recipe("mlr_cuhk01", {"factors": [2, 4], "lr_camera": 1})
    assert as_yaml == build_recipe("mlr_cuhk01", {"factors": (2.0, 4.0), "lr_camera": 1})
    assert as_yaml.folder().startswith("mlr_cuhk01-")
    assert as_yaml.folder() != build_recipe("mlr_cuhk01", {"factors": [2, 3]}).folder()
    assert build_recipe("mlr_cuhk01", {"factors": [2, 3, 4]}).folder() == "mlr_cuhk01"


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("mlr_cuhk01", "kernel", "cubic", "Did you mean 'bicubic'"),
        ("mlr_cuhk01", "kernel", 3, "valid string"),
        ("mlr_cuhk01", "factor_mode", "per_person", "per_identity"),
        ("mlr_cuhk01", "encoding", "webp", "png, jpeg"),
        ("mlr_cuhk01", "rounding", "up", "nearest"),
        ("mlr_cuhk01", "factors", [2, 0.5], "0.5"),
        ("mlr_cuhk01", "factors", [True, 2], "valid number"),
        ("mlr_cuhk01", "factors", "many", "valid number"),
        ("mlr_cuhk01", "factors", [], "empty"),
        ("mlr_cuhk01", "span", [3], "low <= high"),
        ("mlr_cuhk01", "span", [4, 2], "low <= high"),
        ("mlr_cuhk01", "lr_camera", "first", "'random'"),
        ("mlr_cuhk01", "lr_camera", 1.5, "valid integer"),
        ("mlr_cuhk01", "lr_camera", True, "valid integer"),
        ("mlr_cuhk01", "seed", "x", "valid integer"),
        ("mlr_cuhk01", "seed", True, "valid integer, not True"),
        ("mlr_cuhk01", "split", -1, "greater than or equal to 0"),
        ("mlr_cuhk01", "train_identities", 971, "empty"),
        ("mlr_cuhk03", "split", 20, "less than 20"),
        ("mlr_cuhk03", "boxes", "both", "merged, labeled, detected"),
        ("salr_viper", "lr_camera", "random", "valid integer"),
        ("salr_viper", "ratios", [0, 0.5], "0 < low <= high <= 1"),
        ("salr_viper", "ratios", [0.5, 0.1], "0 < low <= high <= 1"),
        ("salr_viper", "ratios", [0.5, 1.5], "0 < low <= high <= 1"),
        ("salr_viper", "ratios", [], "0 < low <= high <= 1"),
        ("vr_market1501", "widths", [8], "1 <= low < high"),
        ("vr_market1501", "widths", [8, 8], "1 <= low < high"),
        ("vr_market1501", "widths", [0, 4], "1 <= low < high"),
        ("vr_market1501", "widths", [8, 12.5], "valid integer"),
        ("synth_pedestrians", "identities", 4, "greater than 4"),
        ("synth_pedestrians", "cameras", 1, "greater than or equal to 2"),
        ("synth_pedestrians", "shots", 0, "greater than 0"),
        ("synth_pedestrians", "height", 2, "greater than or equal to 32"),
        ("synth_pedestrians", "train_fraction", 1.0, "less than 1"),
        ("synth_pedestrians", "seed", -1, "greater than or equal to 0"),
    ],
)
def test_bad_option_values_are_named(name: str, option: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"{name}, option .*{option}.*{message}"):
        build_recipe(name, {option: value})


# ---------------------------------------------------------------------- Market-1501


def test_market_roles(market: Path) -> None:
    planned = plan(build_recipe("mlr_market1501"), market)
    roles = defaultdict(Counter)
    for item in planned:
        roles[item.role][item.image.path.split("/")[0], item.image.pid, item.image.camid] += 1
    # Camera 1's images in query/: identity 4 has none there.
    assert roles["query"] == {("query", 1, 1): 1, ("query", 3, 1): 1}
    test = "bounding_box_test"
    gallery = {(test, pid, camera): 2 for pid in (1, 3, 4) for camera in (2, 3)}
    # No junk, nothing of camera 1.
    assert roles["gallery"] == {**gallery, (test, 0, 2): 1, (test, 0, 12): 1}
    assert sum(roles["train"].values()) == 9 and {key[1] for key in roles["train"]} == {2, 7, 1600}
    assert {item.factor for item in planned if item.role == "query"} <= {2.0, 3.0, 4.0}
    assert {item.factor for item in planned if item.role != "query"} == {1.0}
    third = plan(build_recipe("mlr_market1501_c3"), market)
    assert {item.image.camid for item in third if item.role == "query"} == {3}


def test_prpr_preset_takes_all_of_camera_one_and_stores_jpeg(market: Path, tmp_path: Path) -> None:
    manifest = quiet(build_recipe("mlr_market1501_prpr"), market, tmp_path)
    queries = manifest.of_role("query")
    # 2 of query/ and 2 each of 3 identities of bounding_box_test; no distractor.
    assert Counter((q.pid, q.camid) for q in queries) == {(1, 1): 3, (3, 1): 3, (4, 1): 2}
    assert {g.camid for g in manifest.of_role("gallery")} == {2, 3, 12}
    source = Image.open(market / queries[0].source).convert("RGB")
    buffer = io.BytesIO()
    degrade(source, queries[0].factor, "cv2-linear").save(buffer, "JPEG", quality=95)
    assert queries[0].file.endswith(".jpg")
    assert (tmp_path / queries[0].file).read_bytes() == buffer.getvalue()
    assert manifest.of_role("query_hr")[0].file.endswith(".png")


@pytest.mark.parametrize(
    ("mode", "key", "distinct"),
    [
        ("per_identity", lambda image: image.pid, 3),
        ("per_camera", lambda image: image.camid, 1),
        ("per_image", lambda image: image.path, 9),
    ],
)
def test_factor_modes(
    mode: str, key: Callable[[SourceImage], object], distinct: int, market: Path
) -> None:
    options = {"factor_mode": mode, "span": [1, 8], "queries": "all", "lr_camera": 2}
    factors = defaultdict(set)
    for item in plan(build_recipe("mlr_market1501", options), market):
        if item.role == "query":
            assert 1 <= item.factor < 8
            factors[key(item.image)].add(item.factor)
    assert len(factors) == len(set.union(*factors.values())) == distinct


@pytest.mark.parametrize(
    ("name", "options", "change", "message"),
    [
        ("mlr_market1501", {"lr_camera": 5}, lambda root: None,
         r"camera 5 has no query.*1 \(2\), 2 \(3\), 3 \(3\)"),
        ("mlr_market1501", {}, lambda root: write(root / "query" / "holiday.jpg"),
         r"holiday\.jpg: not named as Market"),
        ("mlr_market1501", {}, lambda root: [f.unlink() for f in (root / "query").iterdir()],
         "query: holds no image"),
        ("mlr_cuhk01", MINI_CUHK, lambda root: (root / "0004003.png").unlink(),
         "identity 0004 has 3 files"),
        ("mlr_cuhk01", MINI_CUHK, lambda root: write(root / "0004003.png", 128, 64),
         r"0004003\.png: 128 x 64 pixels"),
        ("mlr_cuhk01", MINI_CUHK, lambda root: write(root / "portrait.png"),
         r"portrait\.png: not a CUHK01 name"),
    ],
)  # fmt: skip
def test_sources_that_do_not_fit_are_named(
    name: str, options: dict, change: Callable[[Path], object], message: str,
    market: Path, cuhk: Path, tmp_path: Path,
) -> None:  # fmt: skip
    copy = tmp_path / "copy"
    shutil.copytree(cuhk if name == "mlr_cuhk01" else market, copy)
    change(copy)
    with pytest.raises(RecipeError, match=message):
        quiet(build_recipe(name, options), copy, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


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


def test_same_name_twice_keeps_both_images(market: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(market, copy)
    write(copy / "bounding_box_test" / "0001_c2s1_000200_01.png")  # a .jpg is there too
    manifest = quiet(build_recipe("mlr_market1501"), copy, tmp_path / "out")
    files = [image.file for image in manifest.images]
    assert len(set(files)) == len(files)
    assert "gallery/0001_c2s1_000200_01_dup.png" in files
    assert verify(tmp_path / "out") == []


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


def test_synth_roles_and_look_alikes() -> None:
    def images(**options: object) -> list[SourceImage]:
        options = {"identities": 80, "cameras": 3, "shots": 2, **options}
        return build_recipe("synth_pedestrians", options).read(Path())

    def train(**options: object) -> set[int]:
        return {image.pid for image in images(**options) if image.split == "train"}

    assert {(pid - 1) // 4 for pid in train()} & {
        (i.pid - 1) // 4 for i in images() if i.split == "test"
    } == set()
    assert len(train(train_fraction=0.25)) == 20
    assert train() == train(shots=1) and train() != train(split=1) and train() != train(seed=1)
    planned = build_recipe("synth_pedestrians", {"cameras": 3}).plan(images())
    assert {p.image.camid for p in planned if p.role == "query"} == {1}
    assert {p.image.camid for p in planned if p.role == "gallery"} == {0, 2}


def test_synth_stores_what_the_renderer_draws(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"the renderer has {synth.NUM_CAMERAS}"):
        quiet(build_recipe("synth_pedestrians", {"cameras": 9}), None, tmp_path / "out")
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


def test_each_set_of_options_has_its_folder(cuhk: Path, tmp_path: Path) -> None:
    entry = DATASET_REGISTRY.get("mlr_cuhk01")
    load = partial(entry, root=str(tmp_path), source=str(cuhk))
    data, other = load(options=MINI_CUHK), load(options={**MINI_CUHK, "seed": 3})
    assert data.folder.parent == tmp_path and data.folder != other.folder
    assert len(load(options=MINI_CUHK, combineall=True).train) == 24
    with pytest.raises(RecipeError, match="with other options"):
        entry(folder=data.folder)


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
    assert (test_set.name, test_set.manifest_hash) == (data.dataset_name, data.manifest.hash)
    assert (test_set.info["recipe"], test_set.info["seed"]) == (data.dataset_name, 0)
    groups = defaultdict(list)
    for sample in test_set.samples:
        groups[sample.group].append(sample)
    counts = {group: len(samples) for group, samples in groups.items()}
    assert counts == {"query": 8, "gallery": 14, "query_hr": 8, "x2": 8, "x2.5": 8}
    factors = [image.factor for image in data.manifest.of_role("query")]
    assert [(s.factor, s.degrade) for s in groups["query"]] == [(f, 1.0) for f in factors]
    for query, twin, x2 in zip(groups["query"], groups["query_hr"], groups["x2"], strict=True):
        assert Path(query.path).stem == Path(twin.path).stem and twin.path == x2.path
        assert (x2.degrade, x2.factor, x2.kernel) == (2.0, 2.0, "cv2-linear")
        assert (twin.degrade, twin.factor) == (1.0, 1.0)
    assert {s.group for s in test_set_of(data, "any").samples} == {"query", "gallery"}
    with pytest.raises(ValueError, match=r"factor 0\.5"):
        test_set_of(data, "any", [0.5])


def test_test_set_of_any_fastreid_data_set() -> None:
    data = ImageDataset([], [("q.jpg", 1, 0)], [("g.jpg", 1, 1), ("d.jpg", 0, 1)])
    test_set = test_set_of(data, "Mine", [3], hr=True)
    assert (test_set.name, test_set.manifest_hash) == ("Mine", "")
    assert [(s.path, s.pid, s.camid, s.group, s.degrade) for s in test_set.samples] == [
        ("q.jpg", 1, 0, "query", 1.0),
        ("d.jpg", 0, 1, "gallery", 1.0),
        ("g.jpg", 1, 1, "gallery", 1.0),
        ("q.jpg", 1, 0, "query_hr", 1.0),
        ("q.jpg", 1, 0, "x3", 3.0),
    ]


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
