"""Galleries of trained models: ranks against the evaluator's, other models refused, the command."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

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
    metric: str,
    kind: str,
    fused: bool,
    where: str,
    run: Path,
    fused_run: Path,
    crops: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["TEST.METRIC", metric, "TEST.FLIP.ENABLED", str(not fused)]
    model = load_model(fused_run if fused else run, opts=options)
    shown, asked = crops
    gallery, change = Gallery.create(where, model, [shown], kind=kind, recall=1.0)
    assert change.added == len(gallery.store) == 24
    # Sums of several lengths can't be ranked by an index of whole vectors.
    assert gallery.store.recall.kind == ("exact" if fused and metric == "euclidean" else kind)
    assert gallery.store.settings.anchors == ((2.0, 4.0) if fused else ())
    files = [e.file for e in gallery.store.entries()]
    distances = reference(model, files, sorted(asked.iterdir()), [0, 2], not fused)
    assert distances.std() > 1e-3
    assert_ranked(gallery, asked, distances, 7)
    gallery.close()
    gallery = Gallery.open(where, model)
    assert_ranked(gallery, asked, distances, 100)
    if fused:
        answers = gallery.search([asked], 1)
        assert [list(a.weights) for a in answers] == [["x2", "x4"]] * 6
        assert answers[0].weights != answers[-1].weights
        told = gallery.search([asked], 1, native_size=(16, 8))
        assert len({tuple(a.weights.values()) for a in told}) == 1


# ---------------------------------------------------------------------- refusals


def test_another_model_is_refused(
    run: Path, model: TrainedModel, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    where = str(tmp_path / "g")
    Gallery.create(where, model, [crops[0]], run="the first run")
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
    monkeypatch.setattr(trained, "download", lambda name: run)
    words = ["build", "g", str(shown), "--model", "hub:some/body", "--opts", *opts]
    assert tool(words) == 0
    settings = Gallery.open("g").store.settings
    assert (settings.run, settings.opts, settings.metric) == (
        "hub:some/body",
        tuple(opts),
        "euclidean",
    )
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
