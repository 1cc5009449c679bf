"""Images that come again: moved, changed, relabelled; and writes that others see or cut off."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
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
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.retrieval import Change, Gallery, open_store
from lrreid_ext.retrieval.adding import content_hash

EMBEDDED = all(importlib.util.find_spec(m) for m in ("pymilvus", "milvus_lite"))
MILVUS = pytest.mark.skipif(not EMBEDDED, reason="pymilvus and milvus-lite aren't installed")


class Pixels(TrainedModel):
    """Its features are an image's colours at 4x4, so that they tell contents apart."""

    def embed(self, images: Any, native_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.training.setdefault("told", []).append(native_size)
        small = [np.asarray(p().resize((4, 4))) for p in pictures(images)]
        return torch.tensor(np.stack(small)).flatten(1).float()


def pixels(**settings: Any) -> Pixels:
    cfg: CfgNode = get_cfg()
    cfg.TEST.METRIC = "cosine"
    cfg.INPUT.NATIVE_SIZE = settings.get("native_size", "file")
    return Pixels("pixels", cfg, nn.Linear(1, 1, bias=False).requires_grad_(False), {})


@pytest.fixture(scope="module")
def model() -> Pixels:
    torch.manual_seed(0)
    return pixels()


@pytest.fixture(params=["folder", pytest.param("milvus", marks=MILVUS)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"milvus:{tmp_path / 'g.db'}" if request.param == "milvus" else str(tmp_path / "g")


def drawn(folder: Path, **seeds: int) -> list[Path]:
    """Images of noise, by name and seed."""
    folder.mkdir(exist_ok=True)
    made = []
    for name, seed in seeds.items():
        levels = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
        made.append(folder / f"{name}.png")
        Image.fromarray(levels).save(made[-1])
    return made


def held(gallery: Gallery) -> dict[str, int]:
    """Ids by the name of the file."""
    return {Path(e.file).stem: e.id for e in gallery.store.entries()}


def assert_finds_itself(gallery: Gallery) -> None:
    """Every file's nearest entry is named like it: features have followed contents."""
    files = [e.file for e in gallery.store.entries()]
    for answer in gallery.search(files, 1):
        (match,) = answer.matches
        assert match.entry.file == answer.query.file and match.distance < 1e-6


def test_files_that_change_places_keep_their_features(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    drawn(crops, a=1, b=2, c=3, d=4)
    gallery, _ = Gallery.build(where, model, crops)
    before = held(gallery)
    # a and b are swapped, c is renamed, and its old name has a new content.
    drawn(crops, a=2, b=1, e=3, c=5)
    change = gallery.add(crops)
    named = {(Path(old).stem, Path(new).stem) for old, new in change.moved}
    assert named == {("a", "b"), ("b", "a"), ("c", "e")}
    assert (change.added, change.unchanged) == (1, 1)
    assert not change.replaced and not change.duplicates
    after = held(gallery)
    assert {k: after[k] for k in "abed"} == {
        "a": before["b"], "b": before["a"], "e": before["c"], "d": before["d"]
    }  # fmt: skip
    assert after["c"] not in before.values()
    assert_finds_itself(gallery)
    again = gallery.add(crops)
    assert (again.added, again.unchanged, again.moved) == (0, 5, [])
    gallery.store.close()
    assert_finds_itself(Gallery.open(where, model))


def test_only_what_has_lost_its_file_moves(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a, b = drawn(crops, a=1, b=2)
    gallery, _ = Gallery.build(where, model, crops)
    copy = drawn(tmp_path / "other", copy=1)[0]
    # While the old name holds it, another is a duplicate, also where the old one isn't given.
    assert gallery.add(copy).duplicates == [(str(copy), str(a))]
    assert gallery.add([copy, a]).duplicates == [(str(copy), str(a))]
    a.unlink()
    assert gallery.add(copy).moved == [(str(a), str(copy))]
    # A file that holds something else has lost what it held.
    drawn(crops, b=7)
    other = drawn(tmp_path / "other", other=2)[0]
    assert gallery.add(other).moved == [(str(b), str(other))]
    assert set(held(gallery)) == {"copy", "other"}
    # A changed file takes its old content's place, which is nowhere any more.
    drawn(tmp_path / "other", copy=8)
    change = gallery.add(copy)
    assert (change.added, change.replaced) == (1, [str(copy)])
    assert_finds_itself(gallery)


def test_nothing_is_left_of_a_name_that_has_moved(model: Pixels, tmp_path: Path) -> None:
    (old,) = drawn(tmp_path / "crops", a_name_to_be_forgotten=1)
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, old)
    old.rename(old.with_name("new.png"))
    assert gallery.add(tmp_path / "crops").moved
    for path in (tmp_path / "g").iterdir():
        assert b"a_name_to_be_forgotten" not in path.read_bytes()


def test_an_unreadable_replacement_takes_nothing_out(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    a = drawn(crops, a=1, b=2)[0]
    gallery, _ = Gallery.build(where, model, crops)
    before = held(gallery)
    a.write_bytes(a.read_bytes()[:60])
    change = gallery.add(crops)
    assert [file for file, _ in change.damaged] == [str(a)] and "can't be read" in change.damaged[
        0
    ][1]
    assert (change.unchanged, change.replaced) == (1, []) and held(gallery) == before
    drawn(crops, a=1)
    assert gallery.add(crops).unchanged == 2


def test_one_damage_of_two_files_takes_nothing_out(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    a = drawn(crops, a=1, b=2)[0]
    gallery, _ = Gallery.build(where, model, crops)
    before = held(gallery)
    a.write_bytes(b"")
    (crops / "0.png").write_bytes(b"")
    change = gallery.add(crops)
    assert {Path(file).stem for file, _ in change.damaged} == {"0", "a"}
    assert not change.replaced and not change.duplicates and held(gallery) == before


def test_any_chain_of_changes_leaves_what_the_files_hold(model: Pixels, tmp_path: Path) -> None:
    """Against the rule itself: every readable content is held once, by a file that holds it."""
    random = np.random.default_rng(0)
    crops = tmp_path / "crops"
    drawn(crops, **{f"n{k}": k for k in range(6)})
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, crops)
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
        ids = {e.sha256: e.id for e in before.values()}
        gallery.add(crops)
        holds = {str(f): content_hash(f) for f in files}
        entries = list(gallery.store.entries())
        assert len({e.sha256 for e in entries}) == len({e.file for e in entries}) == len(entries)
        readable = {h for f, h in holds.items() if can_be_read(f)}
        assert readable <= {e.sha256 for e in entries}, step
        for entry in entries:
            if entry.file in holds and holds[entry.file] != entry.sha256:
                # Its file can't be read any more: it stays as it was.
                assert holds[entry.file] not in readable and before[entry.file] == entry
            if entry.sha256 in readable:
                assert holds[entry.file] == entry.sha256
            # Nothing that was there is embedded anew.
            assert ids.get(entry.sha256, entry.id) == entry.id
            seen.add(entry.sha256)
    assert len(seen) > 8


def can_be_read(file: str) -> bool:
    try:
        read_picture(file)
    except ImageError:
        return False
    return True


def test_junk_is_taken_out(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a, b, _ = drawn(crops, **{"0001_c1_a": 1, "0002_c1_b": 2, "0003_c1_c": 3})
    gallery, _ = Gallery.build(where, model, crops, labels="market")
    junk = a.rename(a.with_name("-1_c1_a.png"))
    table = tmp_path / "labels.csv"
    # A copy that is called junk takes nothing from the file that isn't.
    copy = b.with_name("-1_c1_copy.png")
    copy.write_bytes(b.read_bytes())
    change = gallery.add(crops, labels="market")
    assert change.discarded == [str(a)] and change.junk == [str(junk), str(copy)]
    assert set(held(gallery)) == {"0002_c1_b", "0003_c1_c"}
    junk.unlink()
    copy.unlink()
    table.write_text("path,identity,camera\ncrops/0002_c1_b.png,-1,1\n")
    change = gallery.add(crops, labels=str(table))
    assert change.discarded == [str(b)] and set(held(gallery)) == {"0003_c1_c"}


def test_a_tables_label_outlives_a_name(model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    a, b = drawn(crops, **{"0001_c1_a": 1, "0002_c1_b": 2})
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, crops, labels="market")
    table = tmp_path / "labels.csv"
    table.write_text("path,identity,camera\ncrops/0001_c1_a.png,ann,9\n")
    gallery.add(crops, labels=str(table))
    # Names are labels where no table has said otherwise.
    a.rename(a.with_name("0001_c1_z.png"))
    b.rename(b.with_name("0007_c3_b.png"))
    assert len(gallery.add(crops, labels="market").moved) == 2
    assert {(e.identity, e.camera) for e in gallery.store.entries()} == {("ann", "9"), ("7", "3")}
    table.write_text(f"path,identity,camera\ncrops/0001_c1_z.png,{'i' * 257},9\n")
    with pytest.raises(GalleryError, match=r"line 2: a label has more than 256 bytes"):
        gallery.add(crops, labels=str(table))


def test_links_that_lead_nowhere_are_left_out(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    drawn(crops, a=1)
    (crops / "dangling.png").symlink_to("nowhere.png")
    (crops / "loop.png").symlink_to("loop.png")
    (crops / "\x01ctl.png").write_bytes((crops / "a.png").read_bytes())
    gallery, change = Gallery.build(where, model, crops)
    names = {Path(file.strip("'")).name.replace("\\x01", "") for file, _ in change.damaged}
    assert change.added == 1 and len(change.damaged) == 3, names
    assert gallery.add(crops).unchanged == 1


def test_a_replacement_that_fails_leaves_the_old_gallery(
    where: str, model: Pixels, tmp_path: Path
) -> None:
    crops, junk = tmp_path / "crops", tmp_path / "junk"
    drawn(crops, a=1, b=2)
    drawn(junk, **{"-1_c1_a": 3})
    gallery, _ = Gallery.build(where, model, crops)
    gallery.store.close()
    with pytest.raises(GalleryError, match="no image can be used"):
        Gallery.build(where, model, junk, labels="market", replace=True)
    assert len(open_store(where)) == 2

    class Interrupted(Pixels):
        def embed(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(images, list):
                raise KeyboardInterrupt
            return super().embed(images, *args, **kwargs)

    other = Interrupted(model.name, model.cfg, model.module, {})
    with pytest.raises(KeyboardInterrupt):
        Gallery.build(where, other, crops / "a.png", replace=True)
    assert_finds_itself(Gallery.open(where, model))
    assert Gallery.build(where, model, crops / "a.png", replace=True)[1].added == 1
    assert len(open_store(where)) == 1


def test_a_table_overrules_labels(where: str, model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    drawn(crops, **{"0001_c1_a": 1, "0002_c1_b": 2, "0003_c2_c": 3})
    gallery, _ = Gallery.build(where, model, crops, labels="market")

    def labels() -> dict[str, tuple[str, str]]:
        return {Path(e.file).stem[-1]: (e.identity, e.camera) for e in gallery.store.entries()}

    market = {"a": ("1", "1"), "b": ("2", "1"), "c": ("3", "2")}
    assert labels() == market
    assert gallery.add(crops).unchanged == 3 and labels() == market
    table = tmp_path / "labels.csv"
    table.write_text("path,identity,camera\ncrops/0001_c1_a.png,ann,9\ncrops/0003_c2_x.png,cy,8\n")
    (crops / "0003_c2_c.png").rename(crops / "0003_c2_x.png")
    change = gallery.add(crops, labels=str(table))
    assert change.relabelled == [str(crops / "0001_c1_a.png")] and len(change.moved) == 1
    assert labels() == {"a": ("ann", "9"), "b": ("2", "1"), "x": ("cy", "8")}
    change = gallery.add(crops, labels=str(table))
    assert (change.unchanged, change.relabelled) == (3, [])


def test_names_that_are_no_text_are_left_out(model: Pixels, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    drawn(crops, a=1)
    strange = os.fsencode(crops) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(strange)).write_bytes((crops / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such names")
    gallery, change = Gallery.build(str(tmp_path / "g"), model, crops)
    assert change.added == 1
    assert change.damaged == [(f"{crops}/caf\\xe9.png", "its name isn't in UTF-8; rename it")]
    told: list[tuple[str, str]] = []
    answers = gallery.search(crops, 1, on_damaged=lambda *what: told.append(what))
    assert len(answers) == 1 and told == change.damaged
    with pytest.raises(ImageError, match="isn't in UTF-8"):
        gallery.search(crops)


def test_sizes_are_estimated_where_the_config_says_so(tmp_path: Path) -> None:
    model = pixels(native_size="estimated")
    crops = tmp_path / "crops"
    drawn(crops, sharp=1, enlarged=2)
    for name in ("sharp", "enlarged"):
        levels = np.random.default_rng(3).integers(0, 256, (128, 64, 3), dtype=np.uint8)
        image = Image.fromarray(levels)
        if name == "enlarged":
            image = image.resize((16, 32), Image.Resampling.BOX)
            image = image.resize((64, 128), Image.Resampling.BICUBIC)
        image.save(crops / f"{name}.png")
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, crops)
    sizes = {Path(e.file).stem: (e.height, e.width) for e in gallery.store.entries()}
    assert sizes["sharp"] == (128, 64) and sizes["enlarged"][0] < 64
    assert sorted(model.training["told"][-1]) == sorted(sizes.values())
    assert [a.query.height for a in gallery.search(crops, 1)] == [sizes["enlarged"][0], 128]
    assert gallery.search(crops / "sharp.png", 1, native_size=(16, 8))[0].query.height == 16
    assert model.training["told"][-1] == [(16, 8)]
    for size in ((0, 5), (5, -1)):
        with pytest.raises(GalleryError, match="at least 1 pixel"):
            gallery.search(crops, native_size=size)
    # Another way to tell sizes makes other features.
    with pytest.raises(GalleryError, match="config differ"):
        Gallery.open(str(tmp_path / "g"), pixels())


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_readers_go_on_while_others_write(kind: str, model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", str(tmp_path / "g")
    drawn(crops, **{f"n{k}": k for k in range(12)})
    Gallery.build(where, model, crops, kind=kind)
    # Opened, and nothing searched yet.
    reader, asked = Gallery.open(where, model), drawn(tmp_path / "asked", q=40)
    drawn(crops, fresh=40)
    Gallery.open(where, model).add(crops)
    (answer,) = reader.search(asked, 1)
    if kind == "hnsw":  # the index that it would have read is gone
        assert Path(answer.matches[0].entry.file).stem == "fresh" and len(reader.store) == 13
    reader = Gallery.open(where, model)
    Gallery.build(where, model, crops, kind=kind, recall=0.9, replace=True)
    if kind == "hnsw":
        with pytest.raises(GalleryError, match="was replaced meanwhile; open it again"):
            reader.search(asked, 1)


def test_a_damaged_list_of_entries_is_named(model: Pixels, tmp_path: Path) -> None:
    crops, where = tmp_path / "crops", tmp_path / "g"
    drawn(crops, **{f"n{k}": k for k in range(5)})
    Gallery.build(str(where), model, crops)
    path = next(where.glob("*.entries"))
    path.write_bytes(b"SQLite" + bytes(5000))
    for act in (
        lambda g: g.add(crops),
        lambda g: g.search(crops, 1),
        lambda g: g.info(),
        lambda g: g.remove_files(crops),
    ):
        with pytest.raises(GalleryError, match=r"g1\.entries: can't be read .* build it anew"):
            act(Gallery.open(str(where), model))


# ---------------------------------------------------------------------- Milvus

CUT = """
import os, signal, sys
sys.path.insert(0, "tests")
import torch
from test_gallery_adding import pixels
from lrreid_ext.retrieval import Gallery, milvus
from lrreid_ext.retrieval.milvus import MilvusStore

def dies(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def second(work):
    calls = []
    def counted(*args):
        calls.append(1)
        return dies() if len(calls) == 2 else work(*args)
    return counted

POINTS = {
    "rows": lambda: setattr(MilvusStore, "_upsert", second(MilvusStore._upsert)),
    "index": lambda: setattr(MilvusStore, "_indexed", dies),
    "reindex": lambda: setattr(MilvusStore, "_params", dies),
    "moves": lambda: setattr(MilvusStore, "_upsert", second(MilvusStore._upsert)),
    "remove": lambda: setattr(MilvusStore, "_indexed", dies),
}
milvus._BATCH = 4
base, *files = sys.argv[1:]
torch.manual_seed(0)
model = pixels()

def begins(where, point):
    # One vector has no graph: with the next ones the index is made anew.
    if point == "reindex":
        Gallery.build(where, model, files[:1], kind="hnsw")
    else:
        Gallery.build(where, model, files if point in ("moves", "remove") else files[:3])

def goes_on(where, point):
    POINTS[point]()
    gallery = Gallery.open(where, model)
    if point == "remove":
        gallery.remove_files(files[:1])
    if point == "moves":  # every file gets the next one's content
        contents = [open(f, "rb").read() for f in files]
        for file, content in zip(files, [*contents[1:], contents[0]]):
            open(file, "wb").write(content)
    gallery.add(files, batch_size=2)

for point in POINTS:
    for work in (begins, goes_on):
        child = os.fork()  # the imports take most of the time
        if not child:
            work(f"milvus:{base}/{point}.db", point)
            os._exit(0)
        print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@MILVUS
def test_repeating_completes_a_milvus_write_that_was_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, crops = pixels(), tmp_path / "crops"
    files = drawn(crops, **{f"n{k}": k for k in range(8)})
    command = [sys.executable, "-c", CUT, str(tmp_path), *map(str, files)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    points = ["rows", "index", "reindex", "moves", "remove"]
    wanted = [f"{point} {code}" for point in points for code in (0, -9)]
    assert done.stdout.split("\n")[:-1] == wanted, done.stderr
    for point in points:
        where = f"milvus:{tmp_path / point}.db"
        caplog.clear()
        again = Gallery.open(where, model)
        assert "a write was cut off" in caplog.text
        if point == "remove":
            with pytest.raises(GalleryError, match=r"holds no .*n0\.png"):
                again.remove_files(files[:1])
            # That has ended it all the same.
            assert not again.store.unfinished and len(again.store) == 7
            again.store.close()
            caplog.clear()
            again = Gallery.open(where, model)
            assert "cut off" not in caplog.text
        change: Change = again.add(crops)
        done_before = change.unchanged + len(change.moved)
        assert change.added + done_before == 8 == len(again.store)
        assert len({e.id for e in again.store.entries()}) == 8
        assert again.store.kind == ("hnsw" if point == "reindex" else "exact")
        assert_finds_itself(again)
        again.store.close()
        caplog.clear()
        assert_finds_itself(Gallery.open(where, model))
        assert "cut off" not in caplog.text


@MILVUS
def test_a_second_process_is_told_to_wait(model: Pixels, tmp_path: Path) -> None:
    where = f"milvus:{tmp_path / 'g.db'}"
    gallery, _ = Gallery.build(where, model, drawn(tmp_path / "crops", a=1))
    code = (
        f"from lrreid_ext.cli import main; raise SystemExit(main(['gallery', 'info', {where!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "one process at a time" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    gallery.store.close()
    assert len(open_store(where)) == 1
