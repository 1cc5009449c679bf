"""Galleries of trained models: ranks against the evaluator's, other models refused, the command."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, TINY_OSNET
from PIL import Image

from lrreid_ext import TrainedModel, load_model, trained
from lrreid_ext.cli import main
from lrreid_ext.config import load_cfg
from lrreid_ext.errors import GalleryError
from lrreid_ext.evaluation.distance import distance_matrix
from lrreid_ext.evaluation.fusion import anchor_weights, areas
from lrreid_ext.files import write_text
from lrreid_ext.modeling.build import build_model
from lrreid_ext.search import Gallery

MILVUS = pytest.mark.skipif(
    not all(importlib.util.find_spec(m) for m in ("pymilvus", "milvus_lite")),
    reason="pymilvus and milvus-lite aren't installed",
)

ANCHORS = [
    "MODEL.META_ARCHITECTURE", "Anchors", "MODEL.ANCHORS.OF", "Pipeline",
    "MODEL.ANCHORS.FACTORS", "[2, 3, 4]", "TEST.FUSION.SIGMA", "0.3",
]  # fmt: skip


class Files(NamedTuple):
    """Runs of networks that were only drawn (one with three anchors, of which one isn't trained),
    and folders of images of many sizes, no two alike."""

    run: Path
    fused_run: Path
    gallery: Path
    queries: Path


@pytest.fixture(scope="module")
def files(market_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    files = Files(*(folder / name for name in ("run", "fused", "gallery", "queries")))
    torch.set_num_threads(1)
    for run, options in ((files.run, []), (files.fused_run, ANCHORS)):
        classes = ["MODEL.HEADS.NUM_CLASSES", "6", "OUTPUT_DIR", str(run)]
        config = str(ROOT / "configs/osnet_copies.yml")
        cfg = load_cfg(config, [*TINY_OSNET, *classes, *options])
        network = build_model(cfg)
        if options:
            network.trained[0] = network.trained[2] = True
        write_text(run / "config.yaml", cfg.dump(sort_keys=False))
        torch.save({"model": network.state_dict()}, run / "model.pth")
        write_text(run / "last_checkpoint", "model.pth")
    market = market_root / "Market-1501-v15.09.15"
    (files.gallery / "deep").mkdir(parents=True)
    files.queries.mkdir()
    for n, path in enumerate(sorted((market / "bounding_box_test").iterdir())[:24]):
        size = (32 - n % 5, 64 - 2 * (n % 5))
        Image.open(path).resize(size).save(files.gallery / ("deep" if n % 2 else "") / path.name)
    for n, path in enumerate(sorted((market / "query").iterdir())[:6]):
        Image.open(path).resize((8 + 2 * n, 16 + 4 * n)).save(files.queries / path.name)
    return files


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tool(*words: object) -> int:
    return main(["gallery", *map(str, words)])


def reference(
    model: TrainedModel, gallery_files: list[str], query_files: list[Path], anchors: list[int]
) -> torch.Tensor:
    """Distances as the evaluator measures them."""
    gallery, query = model.embed(gallery_files), model.embed(query_files)
    weights = None
    if gallery.ndim == 3:
        sizes = [
            torch.tensor([Image.open(f).size[::-1] for f in names])
            for names in (gallery_files, query_files)
        ]
        factors = [float(model.cfg.MODEL.ANCHORS.FACTORS[k]) for k in anchors]
        sigma = model.cfg.TEST.FUSION.SIGMA
        weights = anchor_weights(areas(sizes[1]), areas(sizes[0]), factors, sigma)
        gallery, query = gallery[:, anchors], query[:, anchors]
    return distance_matrix(query, gallery, model.cfg.TEST.METRIC, weights)


def assert_ranked(gallery: Gallery, queries: Path, distances: torch.Tensor, k: int) -> None:
    """The answers are in the reference's order, with its distances."""
    names = [e.file for e in gallery.store.entries()]
    for answer, row in zip(gallery.search([queries], k), distances, strict=True):
        values, order = row.sort(stable=True)
        assert [m.entry.file for m in answer.matches] == [names[i] for i in order[:k]]
        ranked = torch.tensor([m.distance for m in answer.matches])
        torch.testing.assert_close(ranked, values[:k], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("metric", "kind", "fused", "where"),
    [
        ("cosine", "exact", False, "g"),
        ("euclidean", "hnsw", False, "g"),
        ("cosine", "hnsw", True, "g"),
        ("euclidean", "hnsw", True, "g"),
        pytest.param("cosine", "hnsw", True, "milvus:g.db#faces", marks=MILVUS),
        pytest.param("euclidean", "exact", False, "milvus:g.db", marks=MILVUS),
    ],
)
def test_ranks_as_the_evaluator_does(
    metric: str, kind: str, fused: bool, where: str, files: Files
) -> None:
    options = ["TEST.METRIC", metric, "TEST.FLIP.ENABLED", str(not fused)]
    model = load_model(files.fused_run if fused else files.run, opts=options)
    gallery, change = Gallery.create(where, model, [files.gallery], kind=kind, recall=1.0)
    assert change.added == len(gallery.store) == 24
    # Sums of several lengths can't be ranked by an index of whole vectors.
    assert gallery.store.recall.kind == ("exact" if fused and metric == "euclidean" else kind)
    assert gallery.store.settings.anchors == ((2.0, 4.0) if fused else ())
    names = [e.file for e in gallery.store.entries()]
    distances = reference(model, names, sorted(files.queries.iterdir()), [0, 2])
    assert distances.std() > 1e-3
    assert_ranked(gallery, files.queries, distances, 7)
    gallery.close()
    gallery = Gallery.open(where, model)
    assert_ranked(gallery, files.queries, distances, 100)
    if fused:
        answers = gallery.search([files.queries], 1)
        assert [list(a.weights) for a in answers] == [["x2", "x4"]] * 6
        assert answers[0].weights != answers[-1].weights
        answers = gallery.search([files.queries], 1, native_size=(16, 8))
        assert len({tuple(a.weights.values()) for a in answers}) == 1


def test_another_model_is_refused(files: Files) -> None:
    Gallery.create("g", load_model(files.run), [files.gallery], run="the first run")
    assert Gallery.open("g", load_model(files.run)).search([files.queries], 1)
    other = load_model(files.run)
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.01)
    with pytest.raises(GalleryError, match=r"another model \(the first run\); its weights differ"):
        Gallery.open("g", other)
    for key, value, message in (
        ("INPUT.SIZE_TEST", "[32, 16]", "its config differ"),
        ("TEST.METRIC", "euclidean", "TEST.METRIC cosine, the model's config says euclidean"),
        ("TEST.METRIC", "manhattan", "'manhattan' is none of"),
        ("TEST.FLIP.ENABLED", "True", "TEST.FLIP.ENABLED False"),
    ):
        with pytest.raises(GalleryError, match=message):
            Gallery.open("g", load_model(files.run, opts=[key, value]))
    with pytest.raises(GalleryError, match="a model is needed"):
        Gallery.open("g").search([files.queries])


# ---------------------------------------------------------------------- the command


def test_the_command(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop = sorted(files.gallery.rglob("*.png"))[0]
    (tmp_path / "bad<&>.png").write_bytes(b"no image")
    assert tool("build", "people", files.gallery, "bad<&>.png", "--model", files.run) == 0
    printed = capsys.readouterr()
    assert "people: 24 added, 1 damaged; 24 images, exact search" in printed.out
    assert "damaged, left out: " in printed.err and "bad<&>.png: can't be read" in printed.err
    assert tool("add", "people", crop) == 0
    assert "0 added, 1 unchanged" in capsys.readouterr().out

    query = shutil.copy(sorted(files.queries.iterdir())[0], tmp_path / "0007_c1_&<q>.png")
    Image.open(query).resize((8, 16)).save(query)
    outputs = ["--json", "out/a.json", "--html", "out/a.html"]
    assert tool("search", "people", query, crop, "bad<&>.png", "--top", "4", *outputs) == 0
    printed = capsys.readouterr()
    assert "(the query itself)" in printed.out and "bad<&>.png: can't be read" in printed.err
    assert "right" in printed.out and "wrong" in printed.out
    content = json.loads((tmp_path / "out/a.json").read_text())
    assert content["index"] == "exact search" and len(content["model_hash"]) == 64
    first, second = content["answers"]
    assert [len(a["matches"]) for a in (first, second)] == [4, 4]
    assert (first["query"]["height"], first["query"]["width"]) == (16, 8)
    match = second["matches"][0]
    assert match["file"] == str(crop) and match["same_file"] and match["distance"] < 1e-5
    # Names are escaped; the images are in the page, and nothing is fetched.
    page = (tmp_path / "out/a.html").read_text(encoding="utf-8")
    assert "&amp;&lt;q&gt;.png" in page and "<q>" not in page
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == 10
    assert not any(word in page for word in ("href", "<script", "@import", "url("))
    assert page.count('<figure class="query">') == 2
    assert '<figure class="right">' in page and '<figure class="wrong">' in page
    assert all(page.count(f"<{t}") == page.count(f"</{t}>") for t in ("figure", "div", "section"))

    assert tool("remove", "people", crop) == 0
    assert "1 removed, 23 images left" in capsys.readouterr().out
    assert tool("info", "people") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["images"], about["index"], about["metric"]) == (23, "exact", "cosine")
    assert about["run"] == str(files.run) and about["native sizes"] == [[56, 28], [64, 32]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("info none", "no gallery is there"),
        ("remove none --identity 3", "no gallery is there"),
        ("remove none", "remove: name files, or an --identity"),
        ("build g nothing --model RUN", "nothing: no such file or folder"),
        ("build g . --model nowhere", "nowhere: no such run"),
        ("build g . --model RUN --recall 2", "recall 2.0 must be"),
        ("build g . --model RUN --device gpu", "'gpu' is no device"),
        ("build f/x IMAGES --model RUN", "can't be a folder, f is a file"),
        ("search g . --json .", ".: is a folder; name a file to write"),
        ("search g . --html f/x", "f: can't be a folder, f is a file"),
        (f"search g . --json {'n' * 252}.json", "File name too long"),
        ("search g . --json a --html a", "a can't be both"),
        ("build g . --model RUN --device meta", "computes nothing"),
        ("build g . --model RUN --device xpu", "'xpu' can't be used here"),
        ("build g . --model RUN --opts TEST.METRIC", "'TEST.METRIC' has no"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: str, message: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").touch()
    paths = {"RUN": files.run, "IMAGES": files.gallery}
    assert tool(*(paths.get(word, word) for word in words.split())) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and message in printed


def test_anchors_are_searched_by_the_command(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    query = sorted(files.queries.iterdir())[0]
    assert tool("build", "g", files.gallery, "--model", files.fused_run) == 0
    assert tool("search", "g", query, "--opts", "TEST.FUSION.SIGMA", "0.2") == 0
    assert tool("add", "g", query) == 0
    assert "25 images" in capsys.readouterr().out
    # One that is named and not trained is left out, whenever the gallery is opened.
    named = ["--opts", "TEST.FUSION.ANCHORS", "[2, 3]"]
    assert tool("build", "h", files.gallery, "--model", files.fused_run, *named) == 0
    assert tool("search", "h", query, *named) == 0
    assert tool("search", "h", query, "--opts", "TEST.FUSION.ANCHORS", "[4]") == 2
    assert "made with TEST.FUSION.ANCHORS [2.0]" in capsys.readouterr().err


def test_the_command_loads_the_model_as_it_was_loaded(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    opts = ["INPUT.SIZE_TEST", "[32, 16]", "TEST.METRIC", "euclidean"]
    # A model of the hub is named as it was, and isn't looked for in this folder.
    monkeypatch.setattr(trained, "download", lambda name: files.run)
    assert tool("build", "g", files.gallery, "--model", "hub:some/body", "--opts", *opts) == 0
    settings = Gallery.open("g").store.settings
    assert (settings.run, settings.opts) == ("hub:some/body", tuple(opts))
    assert tool("search", "g", files.queries) == 0
    assert tool("search", "g", files.queries, "--opts", "INPUT.SIZE_TEST", "[64, 32]") == 2
    assert "its config differ" in capsys.readouterr().err
    # Paths in them hold from any folder.
    (tmp_path / "plug.py").write_text("")
    plugins = ["--opts", "PLUGINS", "['plug.py']"]
    assert tool("build", "h", files.gallery, "--model", files.run, *plugins) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tool("search", "../h", files.queries) == 0


def test_queries_that_are_all_damaged(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert tool("build", "g", files.gallery, "--model", files.run) == 0
    assert tool("search", "g", "bad.png") == 2
    assert "no query can be read" in capsys.readouterr().err
