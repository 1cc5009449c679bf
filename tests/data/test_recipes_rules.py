"""Which images of each source become what: roles, cameras, factors, widths and splits."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import mini_sets
import numpy as np
import pytest
from mini_sets import plan, quiet
from PIL import Image

from lrreid_ext.data.recipes import (
    RECIPE_REGISTRY,
    Recipe,
    build_recipe,
)
from lrreid_ext.data.recipes.base import LONGEST_STEM
from lrreid_ext.errors import ConfigError, RecipeError
from lrreid_ext.evaluation import twin_files
from lrreid_ext.registry import DATASET_REGISTRY, names

VIPER = {"identities": 8, "train_identities": 4}
CAVIAR = {"identities": 6, "train_identities": 3}
SYSU = {"identities": 6, "train_identities": 3}
MSMT = {"train_identities": 3, "test_identities": 4}


def unit(name: str, seed: int = 0) -> float:
    """A hash of the name in [0, 1), by hand."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
    return (int(digest[:16], 16) >> 11) / 2**53


def refuses(message: str, recipe: Recipe, source: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(recipe, source)


def test_options_that_do_not_apply_are_not_offered() -> None:
    for name in names(RECIPE_REGISTRY):
        options = set(build_recipe(name).options())
        if "caviar" in name:
            assert options == {"identities", "one_camera", "split", "train_identities"}
        elif name.startswith("vr_"):
            assert "widths" in options
            assert not options & {"factors", "span", "lr_camera", "rounding", "queries", "split"}
        elif name.startswith("salr_"):
            assert "ratios" in options and not options & {"factors", "span", "factor_mode"}
    with pytest.raises(RecipeError, match=r"caviar has no option 'seed'.*split"):
        build_recipe("caviar", {"seed": 1})


# ---------------------------------------------------------------------- VIPeR and PRID450S


@pytest.fixture(scope="module")
def viper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.viper(tmp_path_factory.mktemp("viper"))


def test_mlr_viper_roles_and_factors(viper: Path) -> None:
    for lr_camera, letter in ((2, "b"), (1, "a")):
        options = {**VIPER, "split": 4, "lr_camera": lr_camera}
        planned = plan(build_recipe("mlr_viper", options), viper)
        assert Counter(p.role for p in planned) == {"train": 8, "query": 4, "gallery": 4}
        queries = [p for p in planned if p.role == "query"]
        assert {p.image.pid for p in queries} == {
            p.image.pid for p in planned if p.role == "gallery"
        }
        for p in planned:
            folder, number = p.image.path.split("_")[1].split("/")
            assert p.image.pid == int(number) + 1  # identity 000 is no distractor
            assert p.image.camid == "ab".index(folder) + 1
            if p.role != "train":
                assert (p.role == "query") == (folder == letter)
            if p.role == "query":
                name = p.image.path.replace("/", "_")
                assert p.factor == (2, 3, 4)[int(3 * unit(name))]
                assert p.twin
            else:
                assert p.factor == 1 and not p.twin
    assert build_recipe("mlr_viper").options()["lr_camera"] == 2


def test_viper_files_that_do_not_fit_are_named(viper: Path, tmp_path: Path) -> None:
    copy = tmp_path / "VIPeR"
    shutil.copytree(viper, copy)
    recipe = build_recipe("mlr_viper", VIPER)
    (copy / "cam_b" / "005_90.bmp").rename(tmp_path / "kept.bmp")
    refuses("cam_b: holds no image of identity 005", recipe, tmp_path)
    shutil.copy(tmp_path / "kept.bmp", copy / "cam_b" / "005_45.bmp")
    plan(recipe, copy)
    shutil.copy(tmp_path / "kept.bmp", copy / "cam_b" / "005_90.bmp")
    refuses("005_45.bmp and 005_90.bmp are both of identity 005", recipe, copy)
    (copy / "cam_b" / "005_90.bmp").rename(copy / "cam_b" / "holiday.bmp")
    refuses(r"holiday\.bmp: not named as VIPeR does", recipe, copy)
    (copy / "cam_b" / "holiday.bmp").unlink()
    Image.new("RGB", (64, 128)).save(copy / "cam_a" / "000_45.bmp")
    with pytest.raises(RecipeError, match=r"000_45\.bmp: 128 x 64 pixels.*128 x 48"):
        quiet(recipe, copy, tmp_path / "out")


@pytest.mark.parametrize("name", ["salr_viper", "salr_prid"])
def test_salr_degrades_the_gallery_by_ratio(name: str, tmp_path: Path) -> None:
    if name == "salr_viper":
        source, people, train = mini_sets.viper(tmp_path / "source"), 8, 5
    else:
        source, people, train = mini_sets.prid(tmp_path / "source"), 6, 4
    options = {"identities": people, "train_identities": train, "split": 2, "seed": 7}
    manifest = quiet(build_recipe(name, options), source, tmp_path / "out")
    for query in manifest.of_role("query"):
        assert (query.camid, query.factor, query.kernel) == (1, 1.0, "none")
        assert query.source.startswith("cam_a/")
    for image in manifest.of_role("gallery"):
        assert (image.camid, image.kernel) == (2, "bicubic")
        ratio = 0.1 + 0.15 * unit(image.source.replace("/", "_"), 7)
        assert math.isclose(1 / image.factor, ratio)
        native = Image.open(source / image.source)
        assert image.size == (round(native.height * ratio), round(native.width * ratio))
    assert {t.factor for t in manifest.of_role("train")} == {1.0}


def test_salr_ratios_lie_in_their_range_and_cameras_are_checked(viper: Path) -> None:
    factors = []
    for seed in range(60):
        options = {**VIPER, "seed": seed}
        planned = plan(build_recipe("salr_viper", options), viper)
        factors += [p.factor for p in planned if p.role == "gallery"]
    ratios = 1 / np.array(factors)
    assert 0.1 <= ratios.min() < 0.12 and 0.23 < ratios.max() <= 0.25
    assert abs(ratios.mean() - 0.175) < 0.01
    one = plan(build_recipe("salr_viper", {**VIPER, "ratios": [0.5, 0.5]}), viper)
    assert {p.factor for p in one if p.role == "gallery"} == {2.0}
    other = plan(build_recipe("salr_viper", {**VIPER, "lr_camera": 1}), viper)
    assert {p.image.camid for p in other if p.role == "gallery"} == {1}
    message = r"camera 3 has no gallery image.*1 \(4\), 2 \(4\)"
    refuses(message, build_recipe("salr_viper", {**VIPER, "lr_camera": 3}), viper)


def test_published_numbers_of_identities_are_the_defaults() -> None:
    for name, train, test in (
        ("mlr_viper", 316, 316),
        ("mlr_cuhk03", 1367, 100),
        ("mlr_sysu", 251, 251),
        ("caviar", 25, 25),
        ("salr_viper", 532, 100),
        ("salr_prid", 400, 50),
    ):
        options = build_recipe(name).options()
        assert (options["train_identities"], options["identities"]) == (train, train + test)
    options = build_recipe("salr_caviar").options()
    assert options["train_identities"] + options["one_camera"] == 44
    assert options["identities"] - options["train_identities"] == 10
    options = build_recipe("vr_msmt17").options()
    assert (options["train_identities"], options["test_identities"]) == (1041, 3060)


# ---------------------------------------------------------------------- CAVIAR4REID


@pytest.fixture(scope="module")
def caviar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.caviar(tmp_path_factory.mktemp("caviar"))


def test_caviar_keeps_genuine_images_as_they_are(caviar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = quiet(build_recipe("caviar", {**CAVIAR, "split": 1}), caviar, out)
    assert {image.pid for image in manifest.images} == set(mini_sets.CAVIAR_BOTH)
    assert {q.camid for q in manifest.of_role("query")} == {2}
    assert {g.camid for g in manifest.of_role("gallery")} == {1}
    for image in manifest.images:
        far = int(image.source[4:7]) > 10
        assert image.camid == (2 if far else 1)
        # Training images of the far camera are marked as genuinely small, too.
        assert (image.factor, image.kernel) == (None if far else 1.0, "none")
        source = np.asarray(Image.open(caviar / image.source))
        assert np.array_equal(np.asarray(Image.open(out / image.file)), source)
    content = json.loads((out / "manifest.json").read_text())
    assert content["seed"] is None
    assert [i["factor"] for i in content["images"] if i["role"] == "query"] == [None] * 30
    assert (out / "manifest.json").read_text().count("NaN") == 0


def test_salr_caviar_swaps_the_sides_and_trains_on_some_of_one_camera(caviar: Path) -> None:
    options = {"identities": 6, "train_identities": 4, "one_camera": 2, "split": 3}
    planned = plan(build_recipe("salr_caviar", options), caviar)
    assert {p.image.camid for p in planned if p.role == "query"} == {1}
    assert {p.image.camid for p in planned if p.role == "gallery"} == {2}
    train = {p.image.pid for p in planned if p.role == "train"}
    assert len(train & set(mini_sets.CAVIAR_BOTH)) == 4
    extra = np.array(mini_sets.CAVIAR_ONE)[np.random.default_rng(3).permutation(3)[:2]]
    assert train - set(mini_sets.CAVIAR_BOTH) == set(extra.tolist())
    assert {p.image.pid for p in planned} - train == set(mini_sets.CAVIAR_BOTH) - train
    many = build_recipe("salr_caviar", {**options, "one_camera": 4})
    refuses("one_camera: 4; only 3 are seen by one camera", many, caviar)


@pytest.mark.parametrize("name", ["0001021.jpg", "0000001.jpg", "0001000.jpg", "portrait.jpg"])
def test_caviar_names_are_checked(name: str, caviar: Path, tmp_path: Path) -> None:
    shutil.copytree(caviar, tmp_path / "CAVIAR4REID")
    (tmp_path / "CAVIAR4REID" / name).write_bytes(b"")
    refuses(f"{name}: not a CAVIAR4REID name", build_recipe("caviar", CAVIAR), tmp_path)


# ---------------------------------------------------------------------- SYSU


@pytest.mark.parametrize("flat", [False, True])
def test_sysu_draws_three_of_each_camera(flat: bool, tmp_path: Path) -> None:
    source = mini_sets.sysu(tmp_path / "SYSU-mReID", flat)
    drawn = {}
    for seed in range(30):
        planned = plan(build_recipe("mlr_sysu", {**SYSU, "seed": seed}), source)
        counts = Counter((p.image.pid, p.image.camid) for p in planned)
        assert counts == {(pid, camid): 3 for pid in range(1, 7) for camid in (1, 2)}
        assert Counter(p.role for p in planned) == {"train": 18, "query": 9, "gallery": 9}
        assert {p.image.camid for p in planned if p.role == "query"} == {2}
        assert len({(p.role, p.stem) for p in planned}) == 36
        assert not any(p.stem.endswith("_dup") for p in planned)
        drawn[seed] = planned
    picked = Counter(p.image.path for planned in drawn.values() for p in planned)
    assert len(picked) == 60  # each of 5 images is drawn by some seed
    assert all(5 <= count <= 29 for count in picked.values())
    # The draw of an image says nothing about the factor that it gets.
    factors = [p.factor for planned in drawn.values() for p in planned if p.role == "query"]
    assert all(60 < count < 120 for count in Counter(factors).values())
    assert len(set(factors)) == 3
    every = plan(build_recipe("mlr_sysu", {**SYSU, "shots": 9}), source)
    assert len(every) == 60


def test_sysu_wrong_names_and_cameras(tmp_path: Path) -> None:
    recipe = build_recipe("mlr_sysu", SYSU)
    nested, flat = mini_sets.sysu(tmp_path / "nested"), mini_sets.sysu(tmp_path / "flat", True)
    (nested / "cam1" / "0007").mkdir()
    refuses("0007: holds no image", recipe, nested)
    (nested / "cam1" / "0007").rename(nested / "cam1" / "anna")
    refuses("anna: not the number of an identity", recipe, nested)
    shutil.rmtree(nested / "cam1" / "anna")
    shutil.rmtree(nested / "cam1" / "0003")
    refuses("identity 3 has images of one camera only", recipe, nested)
    mini_sets.write(flat / "0001_c3_01.jpg")
    refuses(r"0001_c3_01\.jpg: not named", recipe, flat)


# ---------------------------------------------------------------------- VR-Market and VR-MSMT17


def test_vr_market_widths(tmp_path: Path) -> None:
    source = mini_sets.market(tmp_path / "source")
    manifest = quiet(build_recipe("vr_market1501", {"seed": 2}), source, tmp_path / "out")
    for image in manifest.images:
        width = 8 + int(24 * unit(Path(image.source).name, 2))
        if image.role in ("train", "query_hr"):
            assert (image.size, image.factor) == ((128, 64), 1.0)
        else:
            assert image.size == (2 * width, width)
            assert image.factor == 64 / width
    # Every camera is on both sides: who is compared with whom is the evaluation's rule.
    assert {q.camid for q in manifest.of_role("query")} == {1, 2, 3}
    assert {g.camid for g in manifest.of_role("gallery")} == {1, 2, 3}
    assert {q.source.split("/")[0] for q in manifest.of_role("query")} == {"query"}
    assert 0 in {g.pid for g in manifest.of_role("gallery")}


def test_every_width_is_drawn_and_none_else(tmp_path: Path) -> None:
    source = mini_sets.market(tmp_path)
    widths: Counter[int] = Counter()
    for seed in range(200):
        recipe = build_recipe("vr_market1501", {"seed": seed, "widths": [8, 13]})
        widths.update(p.width for p in plan(recipe, source) if p.role != "train")
    assert set(widths) == {8, 9, 10, 11, 12}
    assert all(520 < count < 680 for count in widths.values())  # of 3000


def test_msmt17_lists_are_followed(tmp_path: Path) -> None:
    source = mini_sets.msmt17(tmp_path / "MSMT17_V1")
    out = tmp_path / "out"
    manifest = quiet(build_recipe("vr_msmt17", MSMT), tmp_path, out)
    assert {t.pid for t in manifest.of_role("train")} == {1, 2, 3}
    for image in manifest.images:
        folder, _, name = image.source.split("/")
        number, _, camera = (int(part) for part in name.split("_")[:3])
        assert image.camid == camera
        assert image.pid == number + (1 if folder == "train" else 4)
        native = Image.open(source / image.source)
        width = min(32 + int(96 * unit(name)), native.width)
        if image.role in ("query", "gallery"):
            assert image.size == (round(native.height * width / native.width), width)
            assert image.factor == native.width / width
        else:
            assert image.size == (native.height, native.width)
    # Narrower than any width that is drawn: not enlarged.
    narrow = next(i for i in manifest.of_role("query") if i.source.startswith("test/0000/"))
    assert (narrow.factor, narrow.kernel, narrow.size) == (1.0, "none", (150, 20))
    without = plan(build_recipe("vr_msmt17", {**MSMT, "val": False}), source)
    assert sum(p.role == "train" for p in without) == 6


def test_msmt17_second_version_and_bad_lists(tmp_path: Path) -> None:
    source = mini_sets.msmt17(tmp_path / "MSMT17_V2", ("mask_train_v2", "mask_test_v2"))
    recipe = build_recipe("vr_msmt17", MSMT)
    assert {p.image.path.split("/")[0] for p in plan(recipe, tmp_path) if p.role == "train"} == {
        "mask_train_v2"
    }
    refuses(
        "name 4 test identities where 3060",
        build_recipe("vr_msmt17", {**MSMT, "test_identities": 3060}),
        source,
    )
    refuses(
        "name 3 train identities where 1041",
        build_recipe("vr_msmt17", {"test_identities": 4}),
        source,
    )
    listed = source / "list_query.txt"
    whole = listed.read_text()
    for line in ("0000/0000_000_01_x.jpg", "0000/portrait.jpg 0", "0000/0000_000_01_x.jpg -1"):
        listed.write_text(f"{whole}\n{line}\n")
        refuses(f"list_query.txt, line 6: '{line}' is not", recipe, source)
    listed.write_text(f"{whole}0009/0009_000_01_x.jpg 0\n")
    refuses(r"list_query.txt, line 5: no such file .*0009_000_01_x\.jpg", recipe, source)
    listed.write_bytes(whole.encode() + b"0000/0000_000_01_\xe9.jpg 0\n")
    refuses(r"list_query.txt: can't be read as text in UTF-8 .*Get this file", recipe, source)


# ---------------------------------------------------------------------- a table of one's own


def test_table_of_ones_own(tmp_path: Path) -> None:
    source = mini_sets.table(tmp_path / "mine")
    manifest = quiet(build_recipe("mlr_csv", {"lr_camera": 2}), source, tmp_path / "out")
    people = {"ann": 1, "bo": 2, "cy": 3, "di": 4}
    for image in manifest.images:
        if image.source == "crowd.png":
            continue
        person, rest = image.source.split("/")
        assert image.pid == people[person]
        assert image.camid == {"north": 1, "south": 2}[rest.split("-")[0]]
        assert (image.role == "train") == (person in ("ann", "bo"))
        if image.split == "test":
            assert image.role.startswith("query") == (image.camid == 2)
    assert manifest.counts()["query"] == 4
    # The distractor was seen by the LR camera, and so isn't in the gallery.
    assert "crowd.png" not in {image.source for image in manifest.images}
    north = plan(build_recipe("mlr_csv"), source)
    assert [p.image.pid for p in north if p.image.path == "crowd.png"] == [0]
    assert {p.image.camid for p in north if p.role == "query"} == {1}


def test_table_keeps_whole_numbers_and_query_gallery_splits(tmp_path: Path) -> None:
    lines = ["identity,split,path,camera"]
    for person, split in ((40, "train"), (7, "test"), (12, "query"), (12, "gallery")):
        for camera in (0, 3):
            mini_sets.write(tmp_path / f"{split}{person}_{camera}.jpg")
            lines.append(f"{person}, {split}, {split}{person}_{camera}.jpg, {camera}")
    (tmp_path / "list.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    recipe = build_recipe("mlr_csv", {"csv": "list.csv", "lr_camera": 3})
    roles = defaultdict(set)
    for p in plan(recipe, tmp_path):
        roles[p.role].add((p.image.path, p.image.pid, p.image.camid))
    assert roles == {
        "train": {("train40_0.jpg", 40, 0), ("train40_3.jpg", 40, 3)},
        "query": {("test7_3.jpg", 7, 3), ("query12_3.jpg", 12, 3)},
        "gallery": {("test7_0.jpg", 7, 0), ("gallery12_0.jpg", 12, 0)},
    }
    # One name among the numbers: all are numbered in the order of their names.
    (tmp_path / "list.csv").write_text("\n".join(lines).replace("40", "x9").replace("x9_", "40_"))
    numbered = {p.image.path: p.image.pid for p in plan(recipe, tmp_path)}
    assert numbered["query12_3.jpg"] == 1 and numbered["test7_3.jpg"] == 2
    assert numbered["train40_0.jpg"] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,1,1", "line 3: has another number of fields"),
        ("a.png,1,1,test,x", "line 3: has another number of fields"),
        ("b.png,1,1,test", r"line 3: no such file .*b\.png"),
        ("a.png,1,1,probe", "line 3: split 'probe' is none of train, query, gallery, test"),
        ("a.png,1,,test", "line 3: no camera"),
        ("a.png,,1,train", "line 3: no identity, which a train image needs"),
        ("a.png,,1,query", "line 3: no identity, which a query image needs"),
        ("/etc/a.png,1,1,test", "line 3: path '/etc/a.png' is not a file below"),
        ("../a.png,1,1,test", "line 3: path '../a.png' is not a file below"),
        (",1,1,test", "line 3: path '' is not a file below"),
        ("./first.png,1,1,test", r"line 3: first\.png stands in line 2 already"),
        (f"{'d' * 200}/{'f' * 50}.png,1,1,test", "line 3: path 'd+/f+.png' has 251 bytes"),
        (f"{'f' * 300}.png,1,1,test", "line 3: path 'f+.png' has 300 bytes"),
        ("a.png,-1,1,test", "line 3: identity '-1': numbers are from 1; leave the field empty for"),
        ("a.png,0,1,test", "line 3: identity '0': numbers are from 1; leave the field empty for"),
        ("a.png,0.0,1,test", "line 3: identity '0.0': numbers are from 1"),
        ("a.png,01,1,test", "line 3: identity '01' is written '1' in line 2"),
        ("a.png,1.0,1,test", "line 3: identity '1.0' is written '1' in line 2"),
        (f"a.png,{10**23},1,test", f"line 3: identity '{10**23}': numbers are to {2**63 - 1}"),
        ("a.png," + "9" * 5000 + ",1,test", f"numbers are to {2**63 - 1}"),
        ("a.png,2,-1,test", "line 3: camera '-1': numbers are from 0"),
        ("a.png,2,001,test", "line 3: camera '001' is written '1' in line 2"),
        ('"a.png,1,1,test', "can't be read as CSV"),
        ("\udcff.png,1,1,test", "can't be read as CSV in UTF-8"),
    ],
)
def test_bad_lines_of_a_table_are_named(line: str, message: str, tmp_path: Path) -> None:
    for name in ("first.png", "a.png"):
        mini_sets.write(tmp_path / name)
    text = f"path,identity,camera,split\nfirst.png,1,1,test\n{line}\n"
    (tmp_path / "images.csv").write_bytes(text.encode(errors="surrogateescape"))
    refuses(f"images.csv.*{message}", build_recipe("mlr_csv"), tmp_path)


def test_a_junk_row_among_names_is_refused_and_numbers_keep_their_zeros(tmp_path: Path) -> None:
    lines = ["path,identity,camera,split"]
    for person in ("ann", "007"):
        for camera in ("01", "02"):
            mini_sets.write(tmp_path / f"{person}-{camera}.png")
            lines.append(f"{person}-{camera}.png,{person},{camera},test")
    (tmp_path / "images.csv").write_text("\n".join(lines).replace(",ann,", ",-1,"))
    refuses("line 2: identity '-1'", build_recipe("mlr_csv"), tmp_path)
    (tmp_path / "images.csv").write_text("\n".join(lines).replace(",ann,", ",040,"))
    images = build_recipe("mlr_csv").read(tmp_path)
    assert {(image.pid, image.camid) for image in images} == {(40, 1), (40, 2), (7, 1), (7, 2)}


def test_numbers_that_evaluation_cannot_hold_are_refused(tmp_path: Path) -> None:
    own_folder(tmp_path, *TEST_FILES, f"query/{10**23}_c1_0.png")
    refuses(f"{10**23}_c1_0.png is of identity", build_recipe("mlr_folder"), tmp_path)


def test_names_are_as_long_as_files_can_be_called(tmp_path: Path) -> None:
    longest = "é" * (LONGEST_STEM // 2)
    lines = ["path,identity,camera,split"]
    for camera in (1, 2):
        mini_sets.write(tmp_path / f"{camera}" / f"{longest[1:]}.png")
        lines.append(f"{camera}/{longest[1:]}.png,1,{camera},test")
    (tmp_path / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    manifest = quiet(build_recipe("mlr_csv"), tmp_path, tmp_path / "out")
    assert len(manifest.images) == 3
    own_folder(tmp_path, *TEST_FILES, f"query/0005_c1_{'x' * 232}.png")
    refuses("x.png makes a name of 240 bytes", build_recipe("mlr_folder"), tmp_path)


def test_a_table_needs_its_columns(tmp_path: Path) -> None:
    for header in ("path,identity,camera", ""):
        (tmp_path / "images.csv").write_text(header + "\n")
        refuses("images.csv, line 1: no column", build_recipe("mlr_csv"), tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlr_folder", ["3 gallery images: of lr_camera 1", "4 query images: not of lr_camera 1"]),
        (
            "mlr_market1501_per_identity",
            ["2 gallery images: of the low-resolution camera",
             "4 query images: not of the low-resolution camera"],
        ),
        ("vr_market1501", []),
    ],
)  # fmt: skip
def test_images_that_a_rule_leaves_out_are_told_and_logged(
    name: str, expected: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, recipe = mini_sets.market(tmp_path / "source"), build_recipe(name)
    with caplog.at_level("INFO", "lrreid_ext.data.recipes.builder"):
        quiet(recipe, source, tmp_path / "out")
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("builder")]
    assert lines == [f"left out: {line}" for line in expected]


def test_images_of_other_formats_are_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_folder(tmp_path, *TEST_FILES)
    quiet(build_recipe("mlr_folder"), tmp_path, tmp_path / "out")
    assert not caplog.records
    for name in ("query/0007_c1_0.webp", "query/0005_c1_1.TIF", "query/._a.webp"):
        (tmp_path / name).write_bytes(b"")
    quiet(build_recipe("mlr_folder"), tmp_path, tmp_path / "again")
    (record,) = caplog.records
    assert "0005_c1_1.TIF, and 1 more of other formats: not read" in record.getMessage()
    # A table's author says which files count.
    lines = [re.sub(r"(.*000(\d)_c(\d).*)", r"\1,\2,\3,test", file) for file in TEST_FILES]
    webp = "query/0009_c1_0.webp"
    mini_sets.write(tmp_path / webp)
    table = ["path,identity,camera,split", *lines, f"{webp},9,1,test"]
    (tmp_path / "images.csv").write_text("\n".join(table))
    manifest = quiet(build_recipe("mlr_csv"), tmp_path, tmp_path / "table")
    assert webp in {image.source for image in manifest.images} and len(caplog.records) == 1


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_twins_stand_in_the_order_of_their_queries(encoding: str, tmp_path: Path) -> None:
    lines = ["path,identity,camera,split"]
    for name in ("a", "a.k", "a-k", "b.x", "b"):
        mini_sets.write(tmp_path / f"{name}.png", 40, 20)
        lines.append(f"{name}.png,1,1,test")
    mini_sets.write(tmp_path / "g.png", 40, 20)
    (tmp_path / "images.csv").write_text("\n".join([*lines, "g.png,1,2,test"]))
    data = DATASET_REGISTRY.get("mlr_csv")(
        source=str(tmp_path), options={"encoding": encoding}, folder=tmp_path / "out"
    )
    test_set = data.test_set([2], hr=True)
    order = {
        group: [Path(s.path).stem for s in test_set.samples if s.group == group]
        for group in ("query", "query_hr", "x2")
    }
    assert order["query"] == order["query_hr"] == order["x2"]
    assert sorted(order["query"]) == ["a", "a-k", "a.k", "b", "b.x"]
    twins = twin_files(test_set)
    for i, sample in enumerate(test_set.samples):
        if sample.group == "query":
            assert Path(twins[i]).stem == Path(sample.path).stem
    files = [record.file for record in data.manifest.images]
    assert files == sorted(files)


@pytest.mark.parametrize("lost", [1, 4, 12])
def test_a_png_without_its_end_is_named(lost: int, tmp_path: Path) -> None:
    own_folder(tmp_path, *TEST_FILES)
    victim = tmp_path / TEST_FILES[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-lost])
    with pytest.raises(RecipeError, match=rf"{victim.name}: can't be read .*its end is missing"):
        quiet(build_recipe("mlr_folder"), tmp_path, tmp_path / "out")
    victim.write_bytes(whole + b"what a camera adds")
    quiet(build_recipe("mlr_folder"), tmp_path, tmp_path / "out")


def own_folder(root: Path, *files: str) -> Path:
    for file in files:
        mini_sets.write(root / file)
    return root


TEST_FILES = [
    f"{folder}/000{person}_c{camera}_0.png"
    for folder, camera in (("query", 1), ("bounding_box_test", 2))
    for person in (5, 6)
]


def test_sets_of_ones_own_may_be_for_testing_alone(tmp_path: Path) -> None:
    own_folder(tmp_path, *TEST_FILES)
    lines = [re.sub(r"(.*000(\d)_c(\d).*)", r"\1,\2,\3,test", file) for file in TEST_FILES]
    (tmp_path / "images.csv").write_text("\n".join(["path,identity,camera,split", *lines]))
    for name in ("mlr_folder", "mlr_csv"):
        manifest = quiet(build_recipe(name), tmp_path, tmp_path / "built" / name)
        assert manifest.counts() == {
            "gallery": 2, "query": 2, "query_hr": 2, "train_identities": 0, "test_identities": 2
        }  # fmt: skip
    refuses(r"expected the folders bounding_box_train", build_recipe("mlr_market1501"), tmp_path)


def test_nobody_is_both_trained_on_and_tested(tmp_path: Path) -> None:
    train = [f"bounding_box_train/000{person}_c1_0.png" for person in (4, 5, 6)]
    own_folder(tmp_path, *TEST_FILES, *train)
    refuses(
        r"identity 5, and 1 more, in both training and test \(bounding_box_train/0005_c1_0\.png "
        r"and bounding_box_test/0005_c2_0\.png\)",
        build_recipe("mlr_folder"),
        tmp_path,
    )
