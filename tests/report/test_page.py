"""The page about runs: what it holds, what it leaves out, whom it shows."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_PSHRNET
from mini_runs import SYNTH, trained_run, untrained_run
from PIL import Image

from lrreid_ext.cli import main
from lrreid_ext.commands import report
from lrreid_ext.config import changed, get_cfg, load_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.build import build_model, set_step
from lrreid_ext.report.blocks import Cell, LeftOut, Note, Section, Table, figure_of, picture_of
from lrreid_ext.report.context import Context, front_end
from lrreid_ext.report.page import render
from lrreid_ext.report.plots import line, new_figure
from lrreid_ext.report.scored import ScoredRun, score_runs
from lrreid_ext.report.scores import seen_factors
from lrreid_ext.report.sections import build, sections
from lrreid_ext.results import Figure, Results, results_file
from lrreid_ext.results.provenance import config_hash
from lrreid_ext.trained import TrainedModel, load_model

get_cfg()  # the plugins, and their sections


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained run with front-end and gates, and an untrained one."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("runs")
    sets = base / "sets"
    return trained_run(sets, base / "dual"), untrained_run(sets, base / "plain", *SYNTH)


@pytest.fixture(scope="module")
def scored(runs: tuple[Path, Path]) -> ScoredRun:
    """The trained run's features, with the factors of its config."""
    return score_runs([load_model(str(runs[0]))])[0]


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about both, by the command, with files beside it."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    words = [f"dual <streams>={runs[0]}", str(runs[1]), "--out", str(out)]
    words += ["--files", str(out.parent / "files")]
    words += ["--factors", "2", "4", "--queries", "3", "--depth", "4", "--people", "4"]
    assert main(["report", *words]) == 0
    return out


class Outline(HTMLParser):
    """What a test asks of a page: ids, images, links, headings, tables' texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.images: list[dict] = []
        self.targets: list[str] = []
        self.sources: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag == "img" else []
        self.targets += [values["href"]] if tag == "a" else []
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "xlink:href", "data") and v]
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Outline(text)
    assert all(source.startswith(("data:image/", "#")) for source in found.sources)
    assert not re.search(r"url\((?!#)|@import|<link(?! rel=\"icon\")|<iframe", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert len(set(found.ids)) == len(found.ids)
    assert all(target[1:] in found.ids for target in found.targets)
    assert found.headings[0] == 1 and 1 not in found.headings[1:]
    assert all(b - a <= 1 for a, b in zip(found.headings, found.headings[1:], strict=False))
    assert "dual &lt;streams&gt;" in text and "<streams>" not in text


def test_every_section_is_there_for_these_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Outline(text)
    assert set(sections()) <= set(found.ids)
    assert "left-out" not in found.ids
    # Query and depth matches of 3 queries for 2 runs, at least; and the same of the failures.
    assert len(found.images) >= 3 * (1 + 2 * 4)
    assert all(image["alt"] for image in found.images)
    alts = [image["alt"] for image in found.images]
    assert any(re.fullmatch(r"rank 1, (right|wrong): person \d+, camera \d+, .*", a) for a in alts)
    assert any("restored by dual <streams>, PSNR" in a for a in alts)
    assert "Gates learned" in text and "nobody is shown" in text


def test_its_figures_are_those_of_the_results_file(runs, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    kept = json.loads((runs[0] / "results_synth_pedestrians.json").read_text())
    shot = kept["groups"]["query"]["single_shot"]
    assert f"{shot['Rank-1']:.1f} ± {shot['Rank-1_std']:.1f}" in text
    assert "equal to what is stored beside the checkpoint: dual &lt;streams&gt;" in text
    assert "plain: no results_synth_pedestrians.json" in text
    assert kept["manifest_hash"] in text
    quality = json.loads((runs[0] / "quality_synth_pedestrians.json").read_text())
    assert f"{quality['groups']['query']['PSNR']:.2f}" in text


def text_of(run: ScoredRun, *keys: str) -> str:
    """The page about one run with some sections."""
    made = build(Context([run], images=True), [key for key in sections() if key not in keys])
    return render("page", "about", *made)


def test_stored_results_that_differ_are_said(runs, scored: ScoredRun, tmp_path: Path) -> None:
    run = replace(scored, cfg=changed(scored.cfg, ("OUTPUT_DIR", str(tmp_path))))
    path = tmp_path / results_file("synth_pedestrians")
    kept = Results.load(runs[0] / path.name)
    assert scored.results.groups == kept.groups
    figures = kept.groups["query"].protocols["single_shot"]
    figures.named["Rank-1"] = Figure(figures.named["Rank-1"].value + 3)
    kept.save(path)
    text = text_of(run, "results")
    assert "beside the checkpoint differs: MLR Rank-1" in text
    assert text.count("not asked for") == len(sections()) - 1

    # Of later weights than those that are shown: nothing to compare.
    replace(kept, training=replace(kept.training, phase="student", epochs=5)).save(path)
    text = text_of(run, "results")
    assert "results_synth_pedestrians.json is of phase student after 5 epochs, beside" in text
    assert "differs" not in text

    # The results of an earlier phase are in a folder of its name.
    (tmp_path / "main").mkdir()
    shutil.copy(runs[0] / path.name, tmp_path / "main" / path.name)
    assert "equal to what is stored beside the checkpoint: dual" in text_of(run, "results")


def test_intervals_and_rates_are_shown_with_their_pairs(scored: ScoredRun) -> None:
    cfg = changed(scored.cfg, ("TEST.CI.REPEATS", 20), ("TEST.ROC.ENABLED", True))
    run = replace(scored, cfg=cfg)
    text = text_of(run, "results", "config", "origins")
    for name in ("single_shot/query/Rank-1", "multi_shot/query/TAR@1e-2"):
        assert run.results.figure(name).interval in text
    multi = run.results.groups["query"].protocols["multi_shot"]
    assert "genuine pairs" in text and f">{multi.impostor_pairs}<" in text
    assert config_hash(cfg) in text


def test_draws_that_cannot_differ_are_said(runs, scored: ScoredRun) -> None:
    note = "± 0.0: every person has one gallery image"
    assert note not in text_of(scored, "results")
    opts = ["DATASETS.OPTIONS.synth_pedestrians.cameras", "2"]
    assert note in text_of(
        score_runs([load_model(str(runs[0]), "", opts)], factors=())[0], "results"
    )


def test_weights_from_the_middle_of_a_phase_are_said(scored: ScoredRun) -> None:
    training = {**scored.model.training, "epochs": 1, "of": 2}
    run = replace(scored, model=replace(scored.model, training=training))
    assert "trained 1 of 2 epochs, not to an end" in text_of(run, "results")


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place, what in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.html", "can't be")):
        assert main(["report", str(runs[0]), "--out", str(place)]) == 2
        shown = capsys.readouterr().err
        assert f"error: {place}: {what}" in shown and "features" not in shown


def test_one_plain_run_leaves_out_what_it_has_not(runs) -> None:
    wanted = ("restored", "gates", "training", "config")
    text = report.page(
        [str(runs[1])], factors=[2], without=[k for k in sections() if k not in wanted]
    )
    assert "no run has a super-resolution front-end" in text
    assert "no run has a dual-stream backbone" in text
    assert "no metrics.json" in text
    assert "differs from the defaults" in text


def test_real_people_are_shown_only_if_asked_for(market_root: Path, tmp_path: Path) -> None:
    run, files = untrained_run(market_root, tmp_path / "run"), tmp_path / "files"
    out = tmp_path / "page.html"
    words = ["report", str(run), "--out", str(out), "--files", str(files), "--factors", "2"]
    words += ["--only", "galleries", "failures", "restored", "--queries", "2", "--depth", "2"]
    assert main(words) == 0
    text = out.read_text()
    assert text.count("not asked for") == len(sections()) - 3
    assert {p.suffix for p in files.iterdir()} == {".csv", ".json"}
    assert Outline(text).images == []
    assert "pictures of real people are left out" in text
    assert report.NOTICE not in text.replace("&#39;", "'")
    assert main([*words, "--images"]) == 0
    text = out.read_text()
    assert (files / "galleries.png").is_file()
    assert len(Outline(text).images) >= 2 * (1 + 2)
    assert report.NOTICE in text.replace("&#39;", "'")
    assert "nobody is shown" not in text


def test_runs_on_other_images_are_not_compared(runs, tmp_path, capsys) -> None:
    other = untrained_run(
        tmp_path / "sets", tmp_path / "other", *SYNTH,
        "DATASETS.OPTIONS.synth_pedestrians.identities", "12",
    )  # fmt: skip
    out = tmp_path / "report.html"
    assert main(["report", str(runs[1]), str(other), "--out", str(out)]) == 2
    assert "the images of the runs 'plain' (" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ConfigError, match="--factors: a degradation factor is above 1, not 1"):
        score_runs([load_model(str(runs[1]))], factors=[1.0])


def test_sections_write_their_files(page: Path) -> None:
    out, names = page.parent / "files", ("dual <streams>", "plain")
    rows = list(csv.DictReader((out / "tsne.csv").open()))
    assert {row["run"] for row in rows} == set(names) and len({r["person"] for r in rows}) == 4
    assert {row["factor"] for row in rows} == {"1", "2", "4"}
    assert len(list(csv.DictReader((out / "galleries.csv").open()))) == 2 * 3 * 4
    assert Image.open(out / "galleries.png").width > 100
    origins = json.loads((out / "report.json").read_text())
    assert set(origins["runs"]) == set(names) and origins["manifest_hash"]
    planes = {f"tsne_{run}.{ending}" for run in names for ending in ("svg", "png")}
    tables = {f"{name}.{ending}" for name in ("galleries", "failures") for ending in ("csv", "png")}
    assert {p.name for p in out.iterdir()} == {"tsne.csv", "report.json"} | tables | planes


# ---------------------------------------------------------------- parts
def test_seen_factors_follow_the_phases() -> None:
    cfg = get_cfg()
    cfg.INPUT.LR.TRAIN_ON = "hr"
    assert seen_factors(cfg) == ([1.0], None)
    cfg.INPUT.LR.TRAIN_ON = "lr"
    cfg.PHASES["teacher"] = {"EPOCHS": 1, "TRAIN_ON": "hr"}
    cfg.PHASES["student"] = {"EPOCHS": 1}
    assert seen_factors(cfg) == ([1.0, 2.0, 3.0, 4.0], None)
    cfg.PHASES["student"] = {"EPOCHS": 1, "INPUT": {"LR": {"RANGE": [1.5, 6.0]}}}
    assert seen_factors(cfg) == ([1.0], (1.5, 6.0))
    # A checkpoint of the first phase, and that phase's network of the last checkpoint.
    assert seen_factors(cfg, epochs=1) == ([1.0], None)
    assert seen_factors(cfg, epochs=2) == ([1.0], (1.5, 6.0))
    cfg.TEST.PHASE = "teacher"
    assert seen_factors(cfg, epochs=2) == ([1.0], None)


def test_a_figure_takes_the_pages_colours_and_keeps_its_ids_apart() -> None:
    figure, axes = new_figure()
    line(axes[0], [0, 1], [0, 1], "<b> & #000000", 0)
    line(axes[0], [0, 1], [1, 0], "black", 6)
    axes[0].legend()
    first, second = (figure_of(figure, key, 'a "b"') for key in ("one", "two"))
    assert "stroke: currentColor" in first.svg and "var(--c0072b2)" in first.svg
    assert "stroke: #000000" not in first.svg and "stroke: #dddddd" not in first.svg
    assert "&lt;b&gt; &amp; #000000" in first.svg and 'aria-label="a &#34;b&#34;"' in first.svg
    ids = [set(re.findall(r'\bid="([^"]+)"', f.svg)) for f in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', first.svg))
    assert {a or b for a, b in used} <= ids[0]


def test_pictures_keep_the_pixels_that_matter() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 8, 3), dtype=np.uint8))
    found = picture_of(small, "query")
    assert found.src.startswith("data:image/png;base64,") and found.pixels
    large = small.resize((64, 128))
    assert picture_of(large, "match").src.startswith("data:image/jpeg;base64,")
    assert picture_of(large, "query", lossless=True).src.startswith("data:image/png")


def test_what_is_written_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    section = Section("a", evil, [Note(evil), Table(evil, [evil, "b"], [[evil, Cell(evil, 1.0)]])])
    text = render(evil, evil, [section], [LeftOut("b", evil, evil)], notice=evil, written=evil)
    assert "<img" not in text and text.count("&lt;img") >= 9


def test_a_teacher_goes_without_the_students_front_end(runs) -> None:
    """PS-HRNet's teacher looks at images as they are; its student's front-end is in the file."""
    root = load_model(str(runs[0])).cfg.DATASETS.ROOT
    options = [*TINY_PSHRNET, *SYNTH, "MODEL.HEADS.NUM_CLASSES", "8", "DATASETS.ROOT", root]
    options += ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    cfg = load_cfg(str(ROOT / "projects/PSHRNet/synth.yml"), options)
    model = build_model(cfg).eval()
    for step, name in (("student", cfg.MODEL.SR.NAME), ("teacher", "Identity")):
        set_step(model, step)
        assert front_end(score_runs([TrainedModel("one", cfg, model, {})])[0]) == name
