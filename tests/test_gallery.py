"""Galleries against a brute-force reference; what is refused; and writes that are cut off."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_OSNET
from PIL import Image

from lrreid_ext import TrainedModel, load_model
from lrreid_ext.analysis import runs as runs_module
from lrreid_ext.cli import main
from lrreid_ext.config import load_cfg
from lrreid_ext.engine.trainer import build_model
from lrreid_ext.errors import GalleryError, ImageError
from lrreid_ext.evaluation.distance import distance_matrix
from lrreid_ext.evaluation.fusion import anchor_weights, areas
from lrreid_ext.files import write_text
from lrreid_ext.retrieval import Gallery, open_store
from lrreid_ext.retrieval import ann as ann_module
from lrreid_ext.retrieval import folder as folder_module

ANCHORS = [
    "MODEL.META_ARCHITECTURE", "Anchors", "MODEL.ANCHORS.OF", "Pipeline",
    "MODEL.ANCHORS.FACTORS", "[2, 3, 4]", "TEST.FUSION.SIGMA", "0.3",
]  # fmt: skip


def made_run(out: Path, *options: str, trained: tuple[int, ...] = ()) -> Path:
    """A folder as training leaves it, of a network that was only drawn."""
    torch.set_num_threads(1)
    cfg = load_cfg(
        str(ROOT / "configs/osnet_copies.yml"),
        [*TINY_OSNET, "MODEL.HEADS.NUM_CLASSES", "6", "OUTPUT_DIR", str(out), *options],
    )
    network = build_model(cfg)
    for k in trained:
        network.trained[k] = True
    write_text(out / "config.yaml", cfg.dump(sort_keys=False))
    torch.save({"model": network.state_dict()}, out / "model.pth")
    write_text(out / "last_checkpoint", "model.pth")
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def fused_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With three anchors, of which one isn't trained."""
    return made_run(tmp_path_factory.mktemp("fused"), *ANCHORS, trained=(0, 2))


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(run)


@pytest.fixture(scope="module")
def crops(market_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Gallery and query images; sizes vary, and no two images are alike."""
    base = market_root / "Market-1501-v15.09.15"
    folder = tmp_path_factory.mktemp("crops")
    (folder / "shown" / "deep").mkdir(parents=True)
    (folder / "asked").mkdir()
    for n, path in enumerate(sorted((base / "bounding_box_test").iterdir())[:24]):
        size = (32 - n % 5, 64 - 2 * (n % 5))
        place = folder / "shown" / ("deep" if n % 2 else "")
        Image.open(path).resize(size).save(place / path.name)
    for n, path in enumerate(sorted((base / "query").iterdir())[:6]):
        Image.open(path).resize((8 + 2 * n, 16 + 4 * n)).save(folder / "asked" / path.name)
    return folder / "shown", folder / "asked"


def reference(
    model: TrainedModel, shown: list[str], asked: list[Path], anchors: list[int], flip: bool
) -> torch.Tensor:
    """Distances as the evaluator measures them."""
    gallery, query = (model.embed(files, flip=flip) for files in (shown, asked))
    weights = None
    if gallery.ndim == 3:
        sizes = [
            torch.tensor([Image.open(f).size[::-1] for f in files]) for files in (shown, asked)
        ]
        factors = [float(model.cfg.MODEL.ANCHORS.FACTORS[k]) for k in anchors]
        sigma = model.cfg.TEST.FUSION.SIGMA
        weights = anchor_weights(areas(sizes[1]), areas(sizes[0]), factors, sigma)
        gallery, query = gallery[:, anchors], query[:, anchors]
    return distance_matrix(query, gallery, model.cfg.TEST.METRIC, weights)


def assert_ranked(gallery: Gallery, queries: Path, distances: torch.Tensor, k: int) -> None:
    """The answers are the reference's order, its distances beside them."""
    files = [e.file for e in gallery.store.entries()]
    for answer, row in zip(gallery.search([queries], k), distances, strict=True):
        values, order = row.sort(stable=True)
        assert [m.entry.file for m in answer.matches] == [files[i] for i in order[:k]]
        got = torch.tensor([m.distance for m in answer.matches])
        torch.testing.assert_close(got, values[:k], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("metric", "kind", "fused"),
    [
        ("cosine", "exact", False),
        ("euclidean", "hnsw", False),
        ("cosine", "hnsw", True),
        ("euclidean", "hnsw", True),
    ],
)
def test_ranks_as_the_evaluator_does(
    metric: str,
    kind: str,
    fused: bool,
    run: Path,
    fused_run: Path,
    crops: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    options = ["TEST.METRIC", metric, "TEST.FLIP.ENABLED", str(not fused)]
    model = load_model(fused_run if fused else run, opts=options)
    shown, asked = crops
    gallery, change = Gallery.build(str(tmp_path / "g"), model, [shown], kind=kind, recall=1.0)
    assert change.added == len(gallery.store) == 24
    # Sums of several lengths can't be ranked by an index of whole vectors.
    assert gallery.store.kind == ("exact" if fused and metric == "euclidean" else kind)
    assert gallery.store.made.anchors == ((2.0, 4.0) if fused else ())
    files = [e.file for e in gallery.store.entries()]
    distances = reference(model, files, sorted(asked.iterdir()), [0, 2], not fused)
    assert distances.std() > 1e-3
    assert_ranked(gallery, asked, distances, 7)
    assert_ranked(Gallery.open(str(tmp_path / "g"), model), asked, distances, 100)
    if fused:
        answers = gallery.search([asked], 1)
        assert [list(a.weights) for a in answers] == [["x2", "x4"]] * 6
        assert answers[0].weights != answers[-1].weights
        told = gallery.search([asked], 1, native_size=(16, 8))
        assert len({tuple(a.weights.values()) for a in told}) == 1


def test_adds_removes_and_finds_again(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, asked = crops
    files = sorted(p for p in shown.rglob("*.png"))
    where = str(tmp_path / "g")
    gallery, _ = Gallery.build(where, model, files[:10], labels="market", kind="hnsw", recall=1.0)
    assert gallery.add([shown], labels="market").added == 14
    again = gallery.add([shown], labels="market")
    assert (again.added, again.unchanged) == (0, 24)
    whole, _ = Gallery.build(str(tmp_path / "once"), model, [shown], labels="market")
    wanted = whole.search([asked], 24)
    got = Gallery.open(where, model).search([asked], 24)
    for one, other in zip(got, wanted, strict=True):
        assert [m.entry.file for m in one.matches] == [m.entry.file for m in other.matches]

    identity = next(gallery.store.entries()).identity
    gone = gallery.remove(lambda e: e.identity == identity)
    assert {e.identity for e in gone} == {identity} and len(gone) > 1
    gone += gallery.remove_files([files[-1]])
    gone += gallery.remove_files([next(gallery.store.entries()).sha256[:10]])
    assert len(gallery.store) == 24 - len(gone)
    names = {e.file for e in gone}
    # Nothing of what was taken out is left, in no file.
    vectors = model.embed([e.file for e in gone])
    stored = gallery.store.made.space.stored(vectors)
    for path in Path(where).iterdir():
        content = path.read_bytes()
        assert not any(e.sha256.encode() in content for e in gone)
        assert not any(row.tobytes() in content for row in stored)
    kept = [m for m in wanted[0].matches if m.entry.file not in names]
    matches = Gallery.open(where, model).search([asked], 24)[0].matches
    assert [m.entry.file for m in matches] == [m.entry.file for m in kept]

    assert gallery.add([shown], labels="market").added == len(gone)
    ids = [e.id for e in gallery.store.entries()]
    assert ids == sorted(set(ids)) and not set(ids) & {e.id for e in gone}
    matches = gallery.search([asked], 24)[0].matches
    assert {m.entry.file for m in matches} == {str(f) for f in files}
    with pytest.raises(GalleryError, match="Nothing was removed"):
        gallery.remove_files([str(shown)[:-1]])
    monkeypatch.chdir(shown)
    with pytest.raises(GalleryError, match="an empty path"):
        gallery.remove_files([""])
    assert len(gallery.remove_files([shown])) == 24
    with pytest.raises(GalleryError, match="is empty"):
        gallery.search([asked])
    assert gallery.add([files[0]]).added == 1


def test_duplicates_changes_junk_and_damage_are_named(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    files = sorted(crops[0].rglob("*.png"))[:4]
    first, second = (shutil.copy(f, shown / f.name) for f in files[:2])
    copy = shutil.copy(first, shown / "copy.png")
    shutil.copy(files[2], shown / "-1_c1s1_000000_00.png")
    (shown / "cut.png").write_bytes(Path(first).read_bytes()[:100])
    (shown / "empty.jpg").touch()
    gallery, change = Gallery.build(str(tmp_path / "g"), model, [shown], labels="market")
    assert change.added == 2 and change.duplicates == [(str(copy), str(first))]
    assert [Path(f).name for f in change.junk] == ["-1_c1s1_000000_00.png"]
    assert [Path(f).name for f, _ in change.damaged] == ["cut.png", "empty.jpg"]
    assert all("can't be read" in why for _, why in change.damaged)
    shutil.copy(files[3], second)
    change = gallery.add([shown], labels="market")
    assert (change.added, change.replaced, change.unchanged) == (1, [str(second)], 1)
    assert {e.sha256 for e in gallery.store.entries()} == {
        e.sha256
        for e in Gallery.build(str(tmp_path / "h"), model, [first, second])[0].store.entries()
    }
    with pytest.raises(ImageError, match=r"cut\.png: can't be read"):
        gallery.search([shown / "cut.png"])
    with pytest.raises(GalleryError, match="can't be read as an image, nor can any other"):
        Gallery.build(str(tmp_path / "i"), model, [shown / "cut.png"])
    assert not (tmp_path / "i").exists()


def test_labels_from_a_table(model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path) -> None:
    shown, asked = crops
    files = sorted(shown.rglob("*.png"))[:3]
    table = tmp_path / "labels.csv"
    query = next(iter(sorted(asked.iterdir())))
    table.write_text(
        f"path,identity,camera,note\n{files[0]},ann,north,\n{files[1]},bo,,x\n{query},ann,south,\n"
    )
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, files, labels=str(table))
    labels = [(e.identity, e.camera) for e in gallery.store.entries()]
    assert labels == [("ann", "north"), ("bo", ""), ("", "")]
    (answer,) = gallery.search([query], 3, labels=str(table))
    told = {m.entry.identity: m.right for m in answer.matches}
    assert told == {"ann": True, "bo": False, "": None}
    for text, message in (
        ("path,identity\n", "no column 'camera'"),
        ("path,identity,camera\na.png,1\n", "line 2: has another number"),
        ("path,identity,camera\na.png,1,2\na.png,2,2\n", r"line 3: a\.png has other labels"),
    ):
        table.write_text(text)
        with pytest.raises(GalleryError, match=message):
            gallery.add([shown], labels=str(table))
    with pytest.raises(GalleryError, match="neither none, market nor"):
        gallery.add([shown], labels="markt")


# ---------------------------------------------------------------------- refusals


def test_another_model_is_refused(
    run: Path, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    where = str(tmp_path / "g")
    Gallery.build(where, model, [crops[0]], run="the first run")
    assert Gallery.open(where, load_model(run)).search([crops[1]], 1)
    other = load_model(run)
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.01)
    with pytest.raises(GalleryError, match=r"another model \(the first run\); its weights differ"):
        Gallery.open(where, other)
    with pytest.raises(GalleryError, match="its config differ"):
        Gallery.open(where, load_model(run, opts=["INPUT.SIZE_TEST", "[32, 16]"]))
    for opts, message in (
        (["TEST.METRIC", "euclidean"], "TEST.METRIC cosine, the model's config says euclidean"),
        (["TEST.FLIP.ENABLED", "True"], "TEST.FLIP.ENABLED False"),
    ):
        with pytest.raises(GalleryError, match=message):
            Gallery.open(where, load_model(run, opts=opts))
    with pytest.raises(GalleryError, match="a model is needed"):
        Gallery.open(where).search([crops[1]])


def test_places_that_cannot_be_used(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    where = tmp_path / "g"
    with pytest.raises(GalleryError, match="no gallery is there"):
        open_store(str(where))
    with pytest.raises(GalleryError, match="holds no image"):
        (tmp_path / "void").mkdir()
        Gallery.build(str(where), model, [tmp_path / "void"])
    with pytest.raises(GalleryError, match="no such file or folder"):
        Gallery.build(str(where), model, [tmp_path / "nothing"])
    (tmp_path / "void" / "thesis.tex").touch()
    with pytest.raises(GalleryError, match=r"not empty and no gallery \(it holds thesis\.tex\)"):
        Gallery.build(str(tmp_path / "void"), model, [crops[0]])
    with pytest.raises(GalleryError, match="Did you mean 'milvus'"):
        open_store("milvsu:people.db")
    gallery, _ = Gallery.build(str(where), model, [crops[0]])
    with pytest.raises(GalleryError, match="is a gallery already"):
        Gallery.build(str(where), model, [crops[0]])
    few = sorted(crops[0].glob("*.png"))[:2]
    Gallery.build(str(where), model, few, replace=True)
    assert len(open_store(str(where))) == 2
    with pytest.raises(GalleryError, match="was replaced meanwhile"):
        made = replace(gallery.store.made, run="elsewhere")
        gallery.store.made = made
        gallery.add([crops[0]])
    with pytest.raises(GalleryError, match=r"holds no .*none\.png.*Nothing was removed"):
        Gallery.open(str(where)).remove_files([few[0], tmp_path / "none.png"])
    assert len(open_store(str(where))) == 2


@pytest.mark.parametrize("what", ["vectors", "index", "meta"])
def test_damaged_galleries_are_named(
    what: str, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    Gallery.build(str(tmp_path / "g"), model, [crops[0]], kind="hnsw")
    path = next((tmp_path / "g").glob(f"*{what}*"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(GalleryError, match=path.name):
        Gallery.open(str(tmp_path / "g"), model).search([crops[1]])


def test_two_writers_are_kept_apart(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    files = sorted(crops[0].rglob("*.png"))
    one, _ = Gallery.build(str(tmp_path / "g"), model, files[:3])
    other = Gallery.open(str(tmp_path / "g"), model)
    with one.store.writing(), pytest.raises(GalleryError, match="another process is writing"):
        other.add(files[3:5])
    other.add(files[3:5])
    # What the other has written meanwhile isn't lost, nor put in twice.
    change = one.add(files[2:6])
    assert (change.added, change.unchanged) == (1, 3) and len(one.store) == 6


# ---------------------------------------------------------------------- interrupted writes

KILLED = """
import os, signal, sys
import faiss
from lrreid_ext import load_model
from lrreid_ext.retrieval import Gallery, folder, space

def dies(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def third(work):
    calls = []
    def counted(*args):
        calls.append(1)
        return dies() if len(calls) == 3 else work(*args)
    return counted

POINTS = {
    "rows": lambda: setattr(space.Space, "stored", third(space.Space.stored)),
    "index": lambda: setattr(faiss, "write_index", dies),
    "commit": lambda: setattr(folder.FolderStore, "_commit", dies),
    "replace": lambda: setattr(os, "replace", dies),
    "sweep": lambda: setattr(folder.FolderStore, "_sweep", dies),
}
run, base, *files = sys.argv[1:]
model = load_model(run)
for point in POINTS:
    child = os.fork()  # the imports take most of the time
    if not child:
        POINTS[point]()
        Gallery.open(f"{base}/{point}", model).add(files, batch_size=2)
        os._exit(0)
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_an_empty_store_overwrites_nothing_that_it_has_not_seen(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    files = sorted(crops[0].rglob("*.png"))
    where = str(tmp_path / "g")
    gallery, _ = Gallery.build(where, model, files[:1])
    gallery.remove_files(files[:1])
    one, late = Gallery.open(where, model), Gallery.open(where, model)
    assert one.add(files[:2]).added == 2
    with pytest.raises(GalleryError, match="was written meanwhile"):
        late.add(files[2:4])
    assert len(open_store(where)) == 2
    assert Gallery.open(where, model).add(files[2:4]).added == 2


@pytest.mark.parametrize("replaces", [False, True])
def test_what_a_killed_write_left_is_in_nobodys_way(
    replaces: bool, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    files, where = sorted(crops[0].rglob("*.png")), tmp_path / "g"
    if replaces:
        Gallery.build(str(where), model, files[:1])
    where.mkdir(exist_ok=True)
    new = 2 if replaces else 1
    with closing(sqlite3.connect(where / f"g{new}.entries")) as db:
        db.execute("CREATE TABLE entries (id)")
    (where / f"g{new}.vectors").write_bytes(b"half")
    (where / f"g{new}.entries-journal").write_bytes(b"half")
    (where / folder_module.LOCK_FILE).touch()
    gallery, change = Gallery.build(str(where), model, files[:3], replace=replaces)
    assert change.added == len(gallery.store) == len(open_store(str(where))) == 3


def test_anchors_are_searched_by_the_command(
    fused_run: Path, crops: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    tool: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shown, asked = crops
    query = str(sorted(asked.iterdir())[0])
    assert tool(["build", "g", str(shown), "--model", str(fused_run)]) == 0
    assert tool(["search", "g", query, "--opts", "TEST.FUSION.SIGMA", "0.2"]) == 0
    assert tool(["add", "g", query]) == 0
    assert "25 images" in capsys.readouterr().out
    # One that is named and not trained is left out, whenever the gallery is opened.
    named = ["--opts", "TEST.FUSION.ANCHORS", "[2, 3]"]
    assert tool(["build", "h", str(shown), "--model", str(fused_run), *named]) == 0
    assert tool(["search", "h", query, *named]) == 0
    assert tool(["search", "h", query, "--opts", "TEST.FUSION.ANCHORS", "[4]"]) == 2
    assert "made with TEST.FUSION.ANCHORS [2.0]" in capsys.readouterr().err


def test_the_command_loads_the_model_as_it_was_loaded(
    run: Path, crops: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    tool: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shown, asked = crops
    opts = ["INPUT.SIZE_TEST", "[32, 16]", "TEST.METRIC", "euclidean"]
    # A model of the hub is named as it was, and isn't looked for in this folder.
    monkeypatch.setattr(runs_module, "download", lambda name: run)
    words = ["build", "g", str(shown), "--model", "hub:some/body", "--opts", *opts]
    assert tool(words) == 0
    made = open_store("g").made
    assert (made.run, made.opts, made.metric) == ("hub:some/body", tuple(opts), "euclidean")
    assert tool(["search", "g", str(asked)]) == 0
    assert tool(["search", "g", str(asked), "--opts", "INPUT.SIZE_TEST", "[64, 32]"]) == 2
    assert "its config differ" in capsys.readouterr().err
    # Paths in them hold from any folder.
    (tmp_path / "plug.py").write_text("")
    words = ["build", "h", str(shown), "--model", str(run), "--opts", "PLUGINS", "['plug.py']"]
    assert tool(words) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tool(["search", "../h", str(asked)]) == 0
    monkeypatch.chdir(tmp_path)
    # What was written before overrides were kept is read as it is.
    meta = tmp_path / "g" / "meta.json"
    content = json.loads(meta.read_text())
    del content["made"]["opts"]
    meta.write_text(json.dumps(content))
    assert tool(["info", "g"]) == 0


def test_a_damaged_query_is_left_out(
    run: Path, crops: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    tool: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(crops[1], "asked")
    (tmp_path / "asked" / "bad.png").write_bytes(b"no image")
    assert tool(["build", "g", str(crops[0]), "--model", str(run)]) == 0
    assert tool(["search", "g", "asked", "--top", "1", "--json", "a.json"]) == 0
    said = capsys.readouterr()
    assert "damaged, left out" in said.err and "bad.png: can't be read" in said.err
    assert len(json.loads((tmp_path / "a.json").read_text())["answers"]) == 6
    assert tool(["search", "g", "asked/bad.png"]) == 2
    assert "no query can be read" in capsys.readouterr().err


def test_a_killed_write_leaves_the_old_gallery_or_the_new_one(
    run: Path, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    shown, asked = crops
    files = sorted(shown.rglob("*.png"))
    points = ["rows", "index", "commit", "replace", "sweep"]
    gallery, _ = Gallery.build(str(tmp_path / "rows"), model, files[:12], kind="hnsw")
    before = [a.plain() for a in gallery.search([asked], 5)]
    left = {p.name: p.read_bytes() for p in (tmp_path / "rows").iterdir()}
    for point in points[1:]:
        shutil.copytree(tmp_path / "rows", tmp_path / point)
    command = [sys.executable, "-c", KILLED, str(run), str(tmp_path), *map(str, files)]
    # One thread: a forked process has lost all others.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == [f"{point} -9" for point in points], done.stderr
    for point in points:
        where = tmp_path / point
        assert {p.name for p in where.iterdir()} > set(left)  # it was in the middle of it
        again = Gallery.open(str(where), model)
        if point == "sweep":
            assert len(again.store) == 24
        else:
            assert all((where / n).read_bytes() == c for n, c in left.items())
            assert [a.plain() for a in again.search([asked], 5)] == before
        change = again.add([shown])
        assert change.added + change.unchanged == 24 and len(again.store) == 24
        # And the next write clears away what the killed one left.
        assert len(list(where.iterdir())) == len(left)


def test_an_exception_in_a_write_leaves_no_trace(
    model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(crops[0].rglob("*.png"))
    gallery, _ = Gallery.build(str(tmp_path / "g"), model, files[:5])
    before = sorted(p.name for p in (tmp_path / "g").iterdir())

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(folder_module, "_to_disk", full)
    with pytest.raises(OSError, match="no space"):
        gallery.add(files)
    assert sorted(p.name for p in (tmp_path / "g").iterdir()) == before
    monkeypatch.undo()
    assert len(gallery.search([crops[1]], 3)[0].matches) == 3
    assert gallery.add(files).added == 19


# ---------------------------------------------------------------------- kinds of index


def test_the_kind_follows_the_size() -> None:
    sizes = (1000, 65_536, 65_537, 2_000_000, 3_000_000)
    kinds = [ann_module.choose_kind(n, 512) for n in sizes]
    assert kinds == ["exact", "exact", "hnsw", "hnsw", "ivfpq"]


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """Clustered vectors."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((100, 16))
    noise = random.standard_normal((4000, 16))
    vectors = centres[np.arange(4000) % 100] + 0.5 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def stored_vectors(
    where: Path, vectors: np.ndarray, model: TrainedModel, **made: Any
) -> folder_module.FolderStore:
    """A store of vectors that no image stands behind."""
    from lrreid_ext.retrieval.entries import Entry
    from lrreid_ext.retrieval.store import Made

    given = {
        "model": "m", "weights": "w", "config": "c", "run": "", "metric": "cosine", "anchors": (),
        "width": vectors.shape[1], "flip": False, "kind": "auto", "recall": 0.95, **made,
    }  # fmt: skip
    store = folder_module.FolderStore.create(str(where), Made(**given))
    entries = [Entry(0, f"{i:064x}", f"/{i}", 2, 1) for i in range(len(vectors))]
    with store.writing():
        store.write([(entries, vectors)])
    return store


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_recall_is_measured_reached_and_kept(
    kind: str, many: np.ndarray, model: TrainedModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Fewer vectors than should be, to be quick.
    monkeypatch.setattr(ann_module, "LEAST_IVFPQ", 2000)
    from lrreid_ext.retrieval.store import Asked

    store = stored_vectors(tmp_path / "g", many[:3000], model, kind=kind, recall=0.9)
    assert store.kind == kind
    assert 0.9 <= store.recall.measured <= 1 and store.recall.queries == 256
    queries = many[3000:3200]
    asked = Asked(queries, np.ones((200, 1), np.float32))

    def share() -> float:
        alive = np.array([int(e.file[1:]) for e in store.entries()])
        wanted = alive[np.argsort(-(queries @ many[alive].T), axis=1)[:, :10]]
        found = [[int(e.file[1:]) for e, _ in row] for row in store.search(asked, 10)]
        return float(
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)])
        )

    assert share() > 0.85
    found = store.search(asked, 3)
    exact = 1 - queries @ many.T
    for i, row in enumerate(found):
        for entry, distance in row:
            assert distance == pytest.approx(exact[i, int(entry.file[1:])], abs=1e-5)
    from lrreid_ext.retrieval.entries import Entry

    gone = [e for e in store.entries() if e.id % 3 == 0][:500]
    more = [Entry(0, f"{i:064x}", f"/{i}", 2, 1) for i in range(3200, 4000)]
    with store.writing():
        store.write([(more, many[3200:])], gone)
    assert len(store) == 3300 and store.kind == kind and store.recall.measured >= 0.9
    assert share() > 0.85
    assert not {e.id for e in gone} & {e.id for row in store.search(asked, 50) for e, _ in row}


def test_a_kind_that_misses_the_target_gives_way(
    many: np.ndarray, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(ann_module, "LEAST_IVFPQ", 2000)
    monkeypatch.setattr(ann_module, "CANDIDATES", 1)
    monkeypatch.setattr(ann_module, "VALUES_PER_BYTE", 16)
    store = stored_vectors(tmp_path / "g", many, model, kind="ivfpq", recall=0.97)
    assert store.kind == "hnsw" and store.recall.measured >= 0.97
    assert "ivfpq finds" in caplog.text and "hnsw is taken" in caplog.text
    few = stored_vectors(tmp_path / "h", many[:50], model, kind="ivfpq")
    assert few.kind == "hnsw"


# ---------------------------------------------------------------------- Milvus

MILVUS = pytest.mark.skipif(
    not all(importlib.util.find_spec(m) for m in ("pymilvus", "milvus_lite")),
    reason="pymilvus and milvus-lite aren't installed (pip install lrreid-ext[milvus])",
)


@MILVUS
@pytest.mark.parametrize(
    ("metric", "kind", "fused"), [("cosine", "hnsw", True), ("euclidean", "exact", False)]
)
def test_milvus_ranks_as_the_evaluator_does(
    metric: str,
    kind: str,
    fused: bool,
    run: Path,
    fused_run: Path,
    crops: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    model = load_model(fused_run if fused else run, opts=["TEST.METRIC", metric])
    shown, asked = crops
    where = f"milvus:{tmp_path / 'people.db'}#faces_{metric}"
    gallery, change = Gallery.build(where, model, [shown], kind=kind, recall=1.0)
    assert change.added == 24 and gallery.store.kind == kind
    assert gallery.store.recall.queries == (24 if kind == "hnsw" else 0)
    files = [e.file for e in gallery.store.entries()]
    distances = reference(model, files, sorted(asked.iterdir()), [0, 2], False)
    assert_ranked(gallery, asked, distances, 7)
    gallery.store.close()
    assert_ranked(Gallery.open(where, model), asked, distances, 24)


@MILVUS
def test_milvus_adds_removes_and_refuses(
    run: Path, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    shown, asked = crops
    files = sorted(shown.rglob("*.png"))
    where = f"milvus:{tmp_path / 'people.db'}"
    with pytest.raises(GalleryError, match="no gallery is there"):
        open_store(where)
    gallery, _ = Gallery.build(where, model, files[:10], labels="market")
    again = gallery.add([shown], labels="market")
    assert (again.added, again.unchanged) == (14, 10)
    assert gallery.add([shown], labels="market").unchanged == 24
    folder, _ = Gallery.build(str(tmp_path / "g"), model, files, labels="market")
    assert folder.store.mean_area == pytest.approx(gallery.store.mean_area)
    gone = gallery.remove_files([files[3]])
    folder.remove_files([files[3]])
    assert [e.file for e in gone] == [str(files[3])] and len(gallery.store) == 23
    for one, other in zip(gallery.search([asked], 23), folder.search([asked], 23), strict=True):
        assert [m.entry.file for m in one.matches] == [m.entry.file for m in other.matches]
        wanted = [m.distance for m in other.matches]
        assert [m.distance for m in one.matches] == pytest.approx(wanted, abs=2e-5)
    told = {k: v for k, v in gallery.info().items() if k not in ("gallery", "bytes")}
    assert told == {k: v for k, v in folder.info().items() if k in told}
    gallery.store.close()
    with pytest.raises(GalleryError, match="its config differ"):
        Gallery.open(where, load_model(run, opts=["INPUT.SIZE_TEST", "[32, 16]"]))
    with pytest.raises(GalleryError, match="is a gallery already"):
        Gallery.build(where, model, [shown])
    # An image that can't be embedded leaves no half-made gallery.
    new = f"{where}#new"
    with pytest.raises(RuntimeError, match="out of memory"):
        broken = replace_embed(model)
        Gallery.build(new, broken, files[:3])
    with pytest.raises(GalleryError, match="no gallery is there"):
        open_store(new)
    assert Gallery.build(new, model, files[:3])[1].added == 3
    for address, message in (
        (f"milvus:{tmp_path / 'people'}", "ends in"),
        ("milvus:", "write milvus:FILE"),
        (f"{where}#a-b", "letters, digits, underscores"),
        ("http://localhost:19530", "write milvus:http"),
    ):
        with pytest.raises(GalleryError, match=message):
            Gallery.build(address, model, [shown])


def replace_embed(model: TrainedModel) -> TrainedModel:
    """A model that shows its features once, and then fails."""

    class Failing(TrainedModel):
        def embed(self, images: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if isinstance(images, list):
                raise RuntimeError("out of memory")
            return super().embed(images, *args, **kwargs)

    return Failing(model.name, model.cfg, model.module, model.training)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "people.db").touch()
    with pytest.raises(GalleryError, match=r"pip install -e \.\[milvus\]"):
        open_store(f"milvus:{tmp_path / 'people.db'}")


# ---------------------------------------------------------------------- the command


class Page(HTMLParser):
    """Tags that must be closed, and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.fetched: list[str] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(own["src"] or "")
        if tag == "figure":
            self.classes.append(own.get("class") or "")
        self.fetched += [own[k] or "" for k in ("href", "src") if k in own and tag != "img"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def tool() -> Callable[..., int]:
    return lambda words: main(["gallery", *words])


def test_the_command(
    tool: Callable[..., int], run: Path, crops: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shown, asked = crops
    files = sorted(shown.rglob("*.png"))
    (tmp_path / "bad<&>.png").write_bytes(b"no image")
    words = ["build", "people", str(shown), "bad<&>.png", "--model", str(run)]
    assert tool(words) == 0
    said = capsys.readouterr()
    assert "people: 24 added, 1 damaged; 24 images, exact search" in said.out
    assert "bad<&>.png: can't be read" in said.err
    assert tool(["add", "people", str(files[0])]) == 0
    assert "0 added, 1 unchanged" in capsys.readouterr().out

    query = shutil.copy(sorted(asked.iterdir())[0], tmp_path / "0007_c1_&<q>.png")
    Image.open(query).resize((8, 16)).save(query)
    words = ["search", "people", str(query), str(files[0]), "--top", "4"]
    assert tool([*words, "--json", "out/a.json", "--html", "out/a.html"]) == 0
    table = capsys.readouterr().out
    assert "(the query itself)" in table and "right" in table and "wrong" in table
    content = json.loads((tmp_path / "out/a.json").read_text())
    assert content["index"] == "exact search" and len(content["model_hash"]) == 64
    answers = content["answers"]
    assert [len(a["matches"]) for a in answers] == [4, 4]
    assert (answers[0]["query"]["height"], answers[0]["query"]["width"]) == (16, 8)
    assert answers[1]["matches"][0]["same_file"] and answers[1]["matches"][0]["distance"] < 1e-5
    page = Page()
    page.feed((tmp_path / "out/a.html").read_text(encoding="utf-8"))
    assert not page.open and not page.fetched
    assert len(page.images) == 10 and all(s.startswith("data:image/png;") for s in page.images)
    assert page.classes.count("query") == 2 and {"right", "wrong"} <= set(page.classes)

    assert tool(["remove", "people", str(files[0])]) == 0
    assert "1 removed, 23 images left" in capsys.readouterr().out
    assert tool(["info", "people"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["images"], about["index"], about["metric"]) == (23, "exact", "cosine")
    assert about["run"] == str(run) and about["native sizes"] == [[56, 28], [64, 32]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "none"], "no gallery is there"),
        (["remove", "none", "--identity", "3"], "no gallery is there"),
        (["build", "g", "nothing", "--model", "RUN"], "nothing: no such file or folder"),
        (["build", "g", ".", "--model", "nowhere"], "nowhere: no such run"),
        (["build", "g", ".", "--model", "RUN", "--recall", "2"], "recall 2.0 must be"),
        (["build", "g", ".", "--model", "RUN", "--device", "gpu"], "'gpu' is no device"),
        (["build", "f/x", "SHOWN", "--model", "RUN"], "can't be a folder, f is a file"),
        (["search", "g", ".", "--json", "."], ".: is a folder; name a file to write"),
        (["search", "g", ".", "--html", "f/x"], "f: can't be a folder, f is a file"),
        (["search", "g", ".", "--json", "n" * 252 + ".json"], "File name too long"),
        (["search", "g", ".", "--json", "a", "--html", "a"], "a can't be both"),
        (["build", "g", ".", "--model", "RUN", "--device", "meta"], "computes nothing"),
        (["build", "g", ".", "--model", "RUN", "--device", "xpu"], "'xpu' can't be used here"),
        (["build", "g", ".", "--model", "RUN", "--opts", "TEST.METRIC"], "'TEST.METRIC' has no"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tool: Callable[..., int], words: list[str], message: str, run: Path,
    crops: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    places = {"RUN": str(run), "SHOWN": str(crops[0])}
    assert tool([places.get(w, w) for w in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
