"""Galleries of images that come, move, change and go; what others see meanwhile; killed writers."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

from lrreid_ext import TrainedModel
from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.pictures import pictures, read_picture
from lrreid_ext.errors import ConfigError, GalleryError, ImageError
from lrreid_ext.search import Entry, Gallery, index, sqlite
from lrreid_ext.search.index import Queries, Space
from lrreid_ext.search.sqlite import SqliteStore
from lrreid_ext.search.store import Settings

EMBEDDED = all(importlib.util.find_spec(m) for m in ("pymilvus", "milvus_lite"))
MILVUS = pytest.mark.skipif(not EMBEDDED, reason="pymilvus and milvus-lite aren't installed")


class Pixels(TrainedModel):
    """Its features are an image's colours at 4x4, so that they tell contents apart."""

    def embed(self, images: Any, native_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(images, list):
            self.training["sizes"] += native_size
            if len(self.training["sizes"]) > self.training["breaks_after"]:
                raise KeyboardInterrupt
        small = [np.asarray(p().resize((4, 4))) for p in pictures(images)]
        return torch.tensor(np.stack(small)).flatten(1).float()


def pixels(native_size: str = "file", breaks_after: int = 10**9) -> Pixels:
    cfg: CfgNode = get_cfg()
    cfg.TEST.METRIC = "cosine"
    cfg.INPUT.NATIVE_SIZE = native_size
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    return Pixels("pixels", cfg, module, {"sizes": [], "breaks_after": breaks_after})


@pytest.fixture
def model() -> Pixels:
    return pixels()


@pytest.fixture(params=["folder", pytest.param("milvus", marks=MILVUS)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"milvus:{tmp_path / 'g.db'}" if request.param == "milvus" else str(tmp_path / "g")


def drawn(folder: Path, **seeds: int) -> list[Path]:
    """Images of noise, by name and seed."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, seed in seeds.items():
        levels = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
        files.append(folder / f"{name}.png")
        Image.fromarray(levels).save(files[-1])
    return files


def stems(gallery: Gallery) -> set[str]:
    return {Path(e.file).stem for e in gallery.store.entries()}


def assert_finds_itself(gallery: Gallery) -> None:
    """Every entry is ranked, and every file's nearest is its own: features followed contents."""
    entries = gallery.store.entries()
    for answer in gallery.search([e.file for e in entries], len(entries)):
        first = answer.matches[0]
        assert first.entry.file == answer.query.file and first.distance < 1e-6
        assert len(answer.matches) == len(entries) == len(gallery)


# ---------------------------------------------------------------------- adding


def test_files_that_change_places_keep_their_features(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    drawn(crops, a=1, b=2, c=3, d=4)
    gallery, _ = Gallery.create(where, model, crops)
    # a and b are swapped, c is renamed, and its old name has a new content.
    drawn(crops, a=2, b=1, e=3, c=5)
    model.training["sizes"].clear()
    change = gallery.add(crops)
    moved = {(Path(old).stem, Path(new).stem) for old, new in change.moved}
    assert moved == {("a", "b"), ("b", "a"), ("c", "e")}
    assert (change.added, change.unchanged) == (1, 1) and len(model.training["sizes"]) == 1
    assert not change.replaced and not change.duplicates and stems(gallery) == set("abcde")
    assert_finds_itself(gallery)
    again = gallery.add(crops)
    assert (again.added, again.unchanged, again.moved) == (0, 5, [])
    gallery.close()
    assert_finds_itself(Gallery.open(where, model))


def test_only_what_has_lost_its_file_moves(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a, b = drawn(crops, a=1, b=2)
    gallery, _ = Gallery.create(where, model, crops)
    copy = drawn(tmp_path / "other", copy=1)[0]
    # While the old file holds the content, a copy is a duplicate, whether or not both are given.
    for images in (copy, [copy, a]):
        assert gallery.add(images).duplicates == [(str(copy), str(a))]
    a.unlink()
    assert gallery.add(copy).moved == [(str(a), str(copy))]
    # A file that holds something else has lost what it held.
    drawn(crops, b=7)
    other = drawn(tmp_path / "other", other=2)[0]
    assert gallery.add(other).moved == [(str(b), str(other))]
    assert stems(gallery) == {"copy", "other"}
    # A changed file replaces its old content, also by a content that two files have.
    drawn(tmp_path / "other", copy=8)
    change = gallery.add(copy)
    assert (change.added, change.replaced) == (1, [str(copy)])
    drawn(tmp_path / "other", copy=9, other=9)
    change = gallery.add(tmp_path / "other")
    assert (change.added, change.duplicates) == (1, [(str(other), str(copy))])
    assert set(change.replaced) == {str(copy), str(other)} and stems(gallery) == {"copy"}
    assert_finds_itself(gallery)


def test_damaged_files_take_nothing_out(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a = drawn(crops, a=1, b=2)[0]
    gallery, _ = Gallery.create(where, model, crops)
    before = gallery.store.entries()
    a.write_bytes(a.read_bytes()[:60])
    change = gallery.add(crops)
    (message,) = change.damaged
    assert message.startswith(f"{a}: can't be read")
    assert (change.unchanged, change.replaced) == (1, []) and gallery.store.entries() == before
    # The same damage of two files, of which one is new.
    for name in ("0.png", "a.png"):
        (crops / name).write_bytes(b"")
    change = gallery.add(crops)
    assert {Path(text.split(":")[0]).stem for text in change.damaged} == {"0", "a"}
    assert not change.replaced and not change.duplicates and gallery.store.entries() == before
    (crops / "0.png").unlink()
    drawn(crops, a=1)
    assert gallery.add(crops).unchanged == 2


def test_any_chain_of_changes_leaves_what_the_files_hold(model: Pixels, tmp_path: Path) -> None:
    """Every readable content is held once, by a file that holds it, and is embedded once."""
    random = np.random.default_rng(0)
    crops = tmp_path / "crops"
    drawn(crops, **{f"n{k}": k for k in range(6)})
    gallery, _ = Gallery.create(str(tmp_path / "g"), model, crops)
    seen = set()
    for step in range(60):
        for _ in range(random.integers(1, 5)):
            one, other = (crops / f"n{k}.png" for k in random.integers(0, 9, 2))
            what = random.choice(["swap", "move", "copy", "draw", "remove", "damage"])
            if what == "draw":
                drawn(crops, **{one.stem: int(random.integers(0, 12))})
            elif not one.exists():
                continue
            elif what == "swap" and other.exists():
                content = one.read_bytes()
                one.write_bytes(other.read_bytes())
                other.write_bytes(content)
            elif what == "move":
                one.rename(other)
            elif what == "copy":
                other.write_bytes(one.read_bytes())
            elif what == "remove":
                one.unlink()
            elif what == "damage":
                one.write_bytes(one.read_bytes()[: random.integers(0, 50)])
        files = sorted(crops.iterdir())
        if not files:
            continue
        before = {e.file: e for e in gallery.store.entries()}
        model.training["sizes"].clear()
        change = gallery.add(crops)
        contents = {str(f): sha256(f.read_bytes()).hexdigest() for f in files}
        entries = gallery.store.entries()
        assert len({e.sha256 for e in entries}) == len({e.file for e in entries}) == len(entries)
        readable = {h for f, h in contents.items() if can_be_read(f)}
        assert readable <= {e.sha256 for e in entries}, step
        for entry in entries:
            if entry.file in contents and contents[entry.file] != entry.sha256:
                # Its file can't be read any more: it stays as it was.
                assert contents[entry.file] not in readable and before[entry.file] == entry
            if entry.sha256 in readable:
                assert contents[entry.file] == entry.sha256
            seen.add(entry.sha256)
        fresh = readable - {e.sha256 for e in before.values()}
        assert len(model.training["sizes"]) == change.added == len(fresh)
    assert len(seen) > 8


def can_be_read(file: str) -> bool:
    with suppress(ImageError):
        return bool(read_picture(file))
    return False


def test_junk_is_left_out_and_taken_out(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a, b, _ = drawn(crops, **{"0001_c1_a": 1, "0002_c1_b": 2, "0003_c1_c": 3})
    gallery, _ = Gallery.create(where, model, crops, labels="market")
    junk = a.rename(a.with_name("-1_c1_a.png"))
    # A copy that is called junk takes nothing from the file that isn't.
    copy = b.with_name("-1_c1_copy.png")
    copy.write_bytes(b.read_bytes())
    change = gallery.add(crops, labels="market")
    assert change.discarded == [str(a)] and change.junk == [str(junk), str(copy)]
    assert stems(gallery) == {"0002_c1_b", "0003_c1_c"}
    junk.unlink()
    copy.unlink()
    table = tmp_path / "labels.csv"
    table.write_text("path,identity,camera\ncrops/0002_c1_b.png,-1,1\n")
    assert gallery.add(crops, labels=str(table)).discarded == [str(b)]
    assert stems(gallery) == {"0003_c1_c"}


def test_a_table_overrules_names_and_outlives_them(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    a, b, c = drawn(crops, **{"0001_c1_a": 1, "0002_c1_b": 2, "0003_c2_c": 3})
    gallery, _ = Gallery.create(where, model, crops, labels="market")

    def labels() -> dict[str, tuple[str, str]]:
        return {Path(e.file).stem[-1]: (e.identity, e.camera) for e in gallery.store.entries()}

    assert labels() == {"a": ("1", "1"), "b": ("2", "1"), "c": ("3", "2")}
    table = tmp_path / "labels.csv"
    table.write_text(
        "path,identity,camera,note\ncrops/0001_c1_a.png,ann,9,x\ncrops/0003_c2_x.png,cy,8,\n"
    )
    c.rename(c.with_name("0003_c2_x.png"))
    change = gallery.add(crops, labels=str(table))
    assert change.relabelled == [str(a)] and len(change.moved) == 1
    assert labels() == {"a": ("ann", "9"), "b": ("2", "1"), "x": ("cy", "8")}
    change = gallery.add(crops, labels=str(table))
    assert (change.unchanged, change.relabelled) == (3, [])
    # A new name is a new label where no table has said otherwise.
    a.rename(a.with_name("0001_c1_z.png"))
    b.rename(b.with_name("0007_c3_b.png"))
    assert len(gallery.add(crops, labels="market").moved) == 2
    assert labels() == {"z": ("ann", "9"), "b": ("7", "3"), "x": ("cy", "8")}
    (query,) = drawn(tmp_path / "asked", q=50)
    table.write_text(f"path,identity,camera\n{query},ann,\n")
    (answer,) = gallery.search(query, 3, labels=str(table))
    right = {m.entry.identity: m.right for m in answer.matches}
    assert right == {"ann": True, "7": False, "cy": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,identity\n", "line 1: no column 'camera'"),
        ("path,identity,camera\na.png,1\n", "line 2: has another number"),
        ("path,identity,camera\n,1,2\n", "line 2: no path"),
        ("path,identity,camera\na.png,1,2\na.png,2,2\n", r"line 3: a\.png has other labels"),
        ("", "labels.csv, line 1: no column 'path'"),
    ],
)
def test_tables_that_cannot_be_read(text: str, message: str, model: Pixels, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(text)
    files = drawn(tmp_path / "crops", a=1)
    with pytest.raises(ConfigError, match=message):
        Gallery.create(str(tmp_path / "g"), model, files, labels=str(table))
    assert not (tmp_path / "g").exists()


def test_names_that_cannot_be_kept_are_left_out(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    content = drawn(crops, a=1)[0].read_bytes()
    (crops / "dangling.png").symlink_to("nowhere.png")
    (crops / "loop.png").symlink_to("loop.png")
    (crops / "\x01ctl.png").write_bytes(content)
    try:
        Path(os.fsdecode(os.fsencode(crops) + b"/caf\xe9.png")).write_bytes(content)
    except OSError:
        pytest.skip("this file system takes no such names")
    gallery, change = Gallery.create(where, model, crops)
    assert change.added == 1 and len(change.damaged) == 3 and len(change.duplicates) == 1
    assert f"{crops}/caf\\xe9.png: its name isn't in UTF-8; rename it" in change.damaged
    assert gallery.add(crops).unchanged == 1
    damaged: list[str] = []
    answers = gallery.search(crops, 1, on_damaged=damaged.append)
    assert len(answers) == 2 and sorted(damaged) == sorted(change.damaged)
    with pytest.raises(ImageError, match="isn't in UTF-8"):
        gallery.search(crops)


def test_a_replacement_takes_place_whole_or_not_at_all(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops, junk = tmp_path / "crops", tmp_path / "junk"
    files = drawn(crops, a=1, b=2, c=3)
    drawn(junk, **{"-1_c1_a": 3})
    Gallery.create(where, model, crops)[0].close()
    with pytest.raises(GalleryError, match="is a gallery already"):
        Gallery.create(where, model, crops)
    with pytest.raises(GalleryError, match="no image can be used"):
        Gallery.create(where, model, junk, labels="market", replace=True)
    with pytest.raises(KeyboardInterrupt):
        Gallery.create(where, pixels(breaks_after=1), files, batch_size=1, replace=True)
    gallery = Gallery.open(where, model)
    assert len(gallery) == 3
    assert_finds_itself(gallery)
    gallery.close()
    assert Gallery.create(where, model, files[2:], replace=True)[1].added == 1
    assert stems(Gallery.open(where)) == {"c"}


def test_repeating_completes_what_was_interrupted(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crops = tmp_path / "crops"
    files = drawn(crops, **{f"n{k}": k for k in range(8)})
    with pytest.raises(KeyboardInterrupt):
        Gallery.create(where, pixels(breaks_after=1), files, batch_size=2)
    model = pixels(breaks_after=7)
    gallery, _ = Gallery.create(where, model, files[:3], kind="hnsw", replace=True)
    drawn(crops, n0=1, n1=0)
    with pytest.raises(KeyboardInterrupt):
        gallery.add(crops, batch_size=2)
    gallery.close()
    again = Gallery.open(where, pixels())
    # Both batches that were embedded are kept, and can be searched.
    assert len(again) == 7
    if "milvus" in where:
        assert "a write was interrupted" in caplog.text
    change = again.add(crops)
    assert change.added + change.unchanged + len(change.moved) == 8 == len(again)
    assert again.store.recall.kind == "hnsw"
    assert_finds_itself(again)
    again.close()
    caplog.clear()
    assert_finds_itself(Gallery.open(where, pixels()))
    assert not caplog.text


# ---------------------------------------------------------------------- removing


def test_nothing_is_left_of_what_is_removed(model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", tmp_path / "g"
    files = drawn(crops, **{f"to_be_forgotten_{k}": k for k in range(60)})
    gallery, _ = Gallery.create(str(where), model, crops, kind="hnsw")
    other = Gallery.open(str(where), model)
    entries = {Path(e.file): e for e in gallery.store.entries()}
    vectors = {f: gallery.store.settings.space.stored(model.embed(f)) for f in files}
    removed = [*files[:20], *files[30:36]]
    for file in files[20:30]:
        file.rename(file.with_name(file.name.replace("to_be_forgotten", "new")))
    drawn(crops, to_be_forgotten_35=1000)
    change = gallery.add(crops)
    assert len(change.moved) == 10 and change.replaced == [str(files[35])]
    assert len(gallery.remove_files(files[:20])) == 20
    assert len(gallery.remove_files([entries[f].sha256[:10] for f in files[30:35]])) == 5
    for path in where.iterdir():
        content = path.read_bytes()
        assert not any(str(f).encode() in content for f in files[:35])
        assert not any(entries[f].sha256.encode() in content for f in removed)
        for file in removed:
            assert vectors[file].tobytes() not in content
            assert vectors[file].astype(np.float16).tobytes() not in content
        assert path.name != "gallery.sqlite" or all(str(f).encode() in content for f in files[35:])
    assert len(other) == len(gallery) == 35
    assert_finds_itself(other)


def test_removal_is_refused_whole(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    files = drawn(crops, **{"0001_c1_a": 1, "0001_c1_b": 2, "0002_c1_c": 3})
    gallery, _ = Gallery.create(where, model, crops, labels="market")
    refused: list[tuple[Any, str]] = [
        ([files[0], crops / "none.png"], r"holds no .*none\.png.*Nothing was removed"),
        (str(crops)[:-1], "Nothing was removed"),
        (["", files[0]], "an empty path"),
    ]
    for paths, message in refused:
        with pytest.raises(GalleryError, match=message):
            gallery.remove_files(paths)
    assert len(gallery) == 3
    assert len(gallery.remove(lambda e: e.identity == "1")) == 2
    assert gallery.remove_files([crops]) and len(gallery) == 0
    with pytest.raises(GalleryError, match="is empty"):
        gallery.search(files)
    assert gallery.add(files[:1]).added == 1
    assert_finds_itself(gallery)


# ---------------------------------------------------------------------- queries


def test_sizes_are_estimated_where_the_config_says_so(tmp_path: Path) -> None:
    model = pixels("estimated")
    crops = tmp_path / "crops"
    crops.mkdir()
    for name in ("sharp", "enlarged"):
        levels = np.random.default_rng(3).integers(0, 256, (128, 64, 3), dtype=np.uint8)
        image = Image.fromarray(levels)
        if name == "enlarged":
            image = image.resize((16, 32), Image.Resampling.BOX)
            image = image.resize((64, 128), Image.Resampling.BICUBIC)
        image.save(crops / f"{name}.png")
    gallery, _ = Gallery.create(str(tmp_path / "g"), model, crops)
    sizes = {Path(e.file).stem: (e.height, e.width) for e in gallery.store.entries()}
    assert sizes["sharp"] == (128, 64) and sizes["enlarged"][0] < 64
    assert sorted(model.training["sizes"]) == sorted(sizes.values())
    assert [a.query.height for a in gallery.search(crops, 1)] == [sizes["enlarged"][0], 128]
    assert gallery.search(crops / "sharp.png", 1, native_size=(16, 8))[0].query.height == 16
    assert model.training["sizes"][-1] == (16, 8)
    for size in ((0, 5), (5, -1)):
        with pytest.raises(GalleryError, match="at least 1 pixel"):
            gallery.search(crops, native_size=size)
    with pytest.raises(GalleryError, match="at least 1 is needed"):
        gallery.search(crops, 0)
    # Another way to tell sizes makes other features.
    with pytest.raises(GalleryError, match="config differ"):
        Gallery.open(str(tmp_path / "g"), pixels())


def test_a_query_is_read_once(
    model: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = drawn(tmp_path / "crops", a=1, b=2)
    gallery, _ = Gallery.create(str(tmp_path / "g"), model, files)
    read = Path.read_bytes

    def read_and_lose(path: Path) -> bytes:
        content = read(path)
        path.unlink()
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_lose)
    (answer,) = gallery.search(files[0], 1)
    assert answer.matches[0].same_file and answer.matches[0].distance < 1e-6


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_readers_see_what_others_write(kind: str, model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", str(tmp_path / "g")
    files = drawn(crops, **{f"n{k}": k for k in range(12)})
    Gallery.create(where, model, crops, kind=kind)
    reader, writer = Gallery.open(where, model), Gallery.open(where, model)
    assert_finds_itself(reader)
    drawn(crops, fresh=40)
    writer.add(crops)
    writer.remove_files(files[:1])
    (answer,) = reader.search(drawn(tmp_path / "asked", q=40), 12)
    names = [Path(m.entry.file).stem for m in answer.matches]
    assert names[0] == "fresh" and len(names) == 12 and "n0" not in names
    # Two writers take turns, and what one has added the other doesn't embed again.
    change = reader.add(files[:3])
    assert (change.added, change.unchanged) == (1, 2)
    Gallery.create(where, model, crops, kind=kind, recall=0.9, replace=True)
    for act in (reader.search, reader.add):
        with pytest.raises(GalleryError, match="was replaced meanwhile; open it again"):
            act(files[:1] if act == reader.search else drawn(crops, more=50))


def test_a_writer_that_waits_too_long_is_told_why(
    model: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = drawn(tmp_path / "crops", a=1, b=2)
    monkeypatch.setattr(sqlite, "PATIENCE", 0.1)
    gallery, _ = Gallery.create(str(tmp_path / "g"), model, files[:1])
    with closing(sqlite3.connect(tmp_path / "g" / "gallery.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(GalleryError, match="another process is writing; wait"):
            gallery.add(files)
        assert_finds_itself(gallery)
    assert gallery.add(files).added == 1


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = ["tests", "tests/search"]
from test_gallery import drawn, pixels
from lrreid_ext.search import Gallery

where, crops = sys.argv[1], Path(sys.argv[2])
for turn in range(6):
    child = os.fork()  # the imports take most of the time
    if not child:
        gallery = Gallery.open(where, pixels())
        for n in range(10**6):
            (file,) = drawn(crops, **{f"t{turn}_{n}": 1000 * turn + n})
            gallery.add(file)
            print("added", file, flush=True)
            if n % 3 == 2:
                print("removing", file, flush=True)
                gallery.remove_files(file)
                print("removed", file, flush=True)
    reader, end = Gallery.open(where, pixels()), time.time() + 0.2 + 0.013 * turn
    second = crops / f"t{turn}_1.png"  # on a busy machine the first add takes its time
    while time.time() < end or not second.exists() and time.time() < end + 60:
        (answer,) = reader.search(crops / "first.png", 2)
        assert answer.matches[0].same_file and answer.matches[0].distance < 1e-6
    reader.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_kill_loses_nothing_that_was_done_and_readers_go_on(model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", str(tmp_path / "g")
    files = drawn(crops, first=10**6, second=10**6 + 1)
    Gallery.create(where, model, files, kind="hnsw")[0].close()
    command = [sys.executable, "-c", KILLED, where, str(crops)]
    # One thread: a forked process has lost all others.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    reported = {verb: {file for word, file in lines if word == verb} for verb, _ in lines}
    assert len(reported["added"]) >= 6
    gallery = Gallery.open(where, model)
    stored = {e.file for e in gallery.store.entries()}
    assert reported["added"] - reported.get("removing", set()) <= stored
    assert not reported.get("removed", set()) & stored
    assert_finds_itself(gallery)
    # A process may have been killed while it drew an image.
    damaged = {text.split(": ")[0] for text in gallery.add(crops).damaged}
    assert not damaged & reported["added"]
    assert len(gallery) + len(damaged) == len(list(crops.iterdir()))
    assert gallery.store.recall.kind == "hnsw"
    assert_finds_itself(gallery)


# ---------------------------------------------------------------------- places


def test_places_that_cannot_be_used(model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", tmp_path / "g"
    files = drawn(crops, a=1)
    old, earlier, thesis, void = (tmp_path / n for n in ("old", "earlier", "thesis", "void"))
    for folder in (old, earlier, thesis, void):
        folder.mkdir()
    (old / "meta.json").write_text('{"format": 1}')
    with closing(sqlite3.connect(earlier / "gallery.sqlite")) as database, database:
        database.execute("CREATE TABLE meta AS SELECT 'settings' key, '{\"format\": 2}' value")
    (thesis / "thesis.tex").touch()
    (tmp_path / "bad.png").write_bytes(b"no image")

    def create(place: Any, images: Any = files, **settings: Any) -> Callable[[], object]:
        return lambda: Gallery.create(str(place), model, images, **settings)

    def opened(place: Any) -> Callable[[], object]:
        return lambda: Gallery.open(str(place))

    for act, message in (
        (opened(where), "no gallery is there"),
        (opened(old), "older format; build the gallery again"),
        (create(old), r"not empty and no gallery \(it holds meta\.json\)"),
        (create(thesis), r"not empty and no gallery \(it holds thesis\.tex\)"),
        (opened(earlier), "has format 2, this version reads 3; build the gallery again"),
        (create(tmp_path / "bad.png"), "can't be a folder"),
        (create(where, void), "holds no image"),
        (create(where, tmp_path / "nothing"), "no such file or folder"),
        (
            create(where, tmp_path / "bad.png"),
            "no image can be used; .*bad.png: can't be read as an image",
        ),
        (create(where, labels="markt"), "neither none, market nor"),
        (create(where, kind="ivfpq"), "'ivfpq' is none of auto, exact, hnsw"),
        (create(where, recall=0), "must be above 0"),
        (opened("http://localhost:19530"), "write milvus:http"),
    ):
        with pytest.raises(ConfigError, match=message):
            act()
    with pytest.raises(GalleryError, match="no gallery is there"):
        Gallery.open(str(where))


def test_damaged_files_of_a_gallery(model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", tmp_path / "g"
    drawn(crops, **{f"n{k}": k for k in range(20)})
    Gallery.create(str(where), model, crops, kind="hnsw")[0].close()
    # The graph is a cache.
    graph = where / "hnsw.faiss"
    content = graph.read_bytes()
    for damage in (graph.unlink, lambda: graph.write_bytes(b"half")):
        damage()
        gallery = Gallery.open(str(where), model)
        assert_finds_itself(gallery)
        assert graph.read_bytes() == content and gallery.store.recall.kind == "hnsw"
        gallery.close()
    database = where / "gallery.sqlite"
    whole = database.read_bytes()
    for start, end in ((0, 100), (32768, len(whole))):
        database.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
        with pytest.raises(GalleryError, match=r"gallery\.sqlite: is damaged .* build the gallery"):
            Gallery.open(str(where), model).search(crops)


def test_a_read_only_folder_is_searched_and_left_alone(
    model: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, where = tmp_path / "crops", tmp_path / "g"
    drawn(crops, a=1, b=2, c=3)
    Gallery.create(str(where), model, crops, kind="hnsw")[0].close()
    files = {path: path.read_bytes() for path in where.iterdir()}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    gallery = Gallery.open(str(where), model)
    assert_finds_itself(gallery)
    with pytest.raises(GalleryError, match="readonly database"):
        gallery.remove_files(crops)
    assert {path: path.read_bytes() for path in where.iterdir()} == files
    # Without its graph too, which can't be stored then.
    (where / "hnsw.faiss").unlink()
    assert_finds_itself(Gallery.open(str(where), model))
    assert not (where / "hnsw.faiss").exists()


# ---------------------------------------------------------------------- kinds of index


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """Clustered vectors."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((100, 16))
    noise = random.standard_normal((4000, 16))
    vectors = centres[np.arange(4000) % 100] + 0.5 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def stored_vectors(where: Path, vectors: np.ndarray, **changes: Any) -> SqliteStore:
    """A store of vectors without image files."""
    plain = Settings("w", "c", "cosine", False, (), vectors.shape[1], "hnsw", 0.9)
    store = SqliteStore.create(str(where), replace(plain, **changes))
    store.put([entry(i) for i in range(len(vectors))], vectors)
    store.refresh()
    return store


def entry(number: int) -> Entry:
    return Entry(f"{number:064x}", f"/{number}", 2, 1)


def test_recall_is_measured_reached_and_kept(many: np.ndarray, tmp_path: Path) -> None:
    store = stored_vectors(tmp_path / "g", many[:3000])
    queries = Queries(many[3000:3200], np.ones((200, 1), np.float32))
    distances = 1 - queries.vectors @ many.T

    def assert_finds(store: SqliteStore) -> None:
        alive = np.array([int(e.file[1:]) for e in store.entries()])
        nearest = alive[np.argsort(distances[:, alive], axis=1)[:, :10]]
        hits = 0
        for n, row in enumerate(store.search(queries, 10)):
            numbers = [int(e.file[1:]) for e, _ in row]
            assert len(numbers) == 10 and set(numbers) <= set(alive)
            # Distances are exact, in the order of rank.
            far = [d for _, d in row]
            assert far == sorted(far)
            np.testing.assert_allclose(far, distances[n, numbers], atol=1e-6)
            hits += len(set(numbers) & set(nearest[n]))
        assert hits / 2000 > 0.85

    assert store.recall.kind == "hnsw" and store.recall.queries == 256
    assert 0.9 <= store.recall.measured <= 1
    assert_finds(store)
    other = SqliteStore.open(str(tmp_path / "g"))
    assert other.recall == store.recall
    # Before and after the index has followed; another connection too.
    store.put([entry(i) for i in range(3200, 4000)], many[3200:])
    assert_finds(other)
    store.refresh()
    assert_finds(store)
    store.remove([entry(i) for i in range(0, 1500, 3)])
    assert_finds(other)
    (every,) = other.search(Queries(many[1:2], np.ones((1, 1), np.float32)), 3300)
    assert len(every) == 3300
    store.refresh()
    for each in (store, other):
        assert_finds(each)
        assert len(each) == 3300 and each.recall.measured >= 0.9


def test_large_galleries_have_graphs_that_hold_vectors_once_in_16_bits(
    many: np.ndarray, tmp_path: Path
) -> None:
    space = Space("cosine", 1, 512)
    kinds = [index.choose_kind("auto", n, space) for n in (1000, 65_536, 65_537, 3_000_000)]
    assert kinds == ["exact", "exact", "hnsw", "hnsw"]
    wide = np.tile(many, 32)[:1000]
    stored_vectors(tmp_path / "g", wide, width=512)
    links = 1000 * 8 * 2 * index.LINKS
    assert (tmp_path / "g" / "hnsw.faiss").stat().st_size < 1000 * 2 * 512 + links


def test_a_graph_that_misses_the_recall_gives_way(
    many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(index, "EF_SEARCH", (1,))
    store = stored_vectors(tmp_path / "g", many, recall=1.0)
    assert store.recall.kind == "exact" and not (tmp_path / "g" / "hnsw.faiss").exists()
    assert "less than 1; the search is exact" in caplog.text
    (row,) = store.search(Queries(many[:1], np.ones((1, 1), np.float32)), 3)
    assert row[0][0] == entry(0)


# ---------------------------------------------------------------------- Milvus


@MILVUS
def test_milvus_addresses(model: Pixels, tmp_path: Path) -> None:
    files = drawn(tmp_path / "crops", a=1)
    (tmp_path / "file.db").touch()
    for address, message in (
        (f"milvus:{tmp_path / 'people'}", "ends in"),
        (f"milvus:{tmp_path / 'file.db'}", "is a file; the embedded form keeps a folder"),
        ("milvus:", "write milvus:FILE"),
        (f"milvus:{tmp_path / 'g.db'}#a-b", "letters, digits, underscores"),
    ):
        with pytest.raises(GalleryError, match=message):
            Gallery.create(address, model, files)
    one, other = (f"milvus:{tmp_path / 'g.db'}#{name}" for name in ("one", "other"))
    with pytest.raises(GalleryError, match="no gallery is there"):
        Gallery.open(one)
    gallery, _ = Gallery.create(one, model, files)
    with pytest.raises(GalleryError, match="no gallery is there"):
        Gallery.open(other)
    code = f"from lrreid_ext.search.milvus import MilvusStore; MilvusStore.open({one!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "GalleryError" in done.stderr and "one process at a time" in done.stderr
    assert done.stderr.count("Traceback") <= 2 and len(gallery) == 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "people.db").touch()
    with pytest.raises(GalleryError, match=r"pip install -e \.\[milvus\]"):
        Gallery.open(f"milvus:{tmp_path / 'people.db'}")
