from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_OSNET
from PIL import Image

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.distance import comparable
from lrreid_ext.report.plots import new_figure, save
from lrreid_ext.trained import load_model, run_cfg, run_names
from projects.FFSR_RIFE.objective import (
    PANELS,
    RESOLUTIONS,
    Objective,
    curves,
    draw,
    hr_images,
    objective,
    pair_counts,
    reduced,
    table,
)


def naive(
    first: torch.Tensor, second: torch.Tensor, pids: list[int], camids: list[int], same: bool
) -> Objective:
    """Eq. 2 pair by pair."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(pids)):
        for j in range(len(pids)):
            alike = pids[i] == pids[j]
            if i == j or (alike and camids[i] == camids[j] and not same):
                continue
            difference = first[i].double() - second[j].double()
            found[alike].append(float((difference**2).sum()))
    return Objective(
        float(np.mean(found[True])),
        float(np.mean(found[False])),
        len(found[True]),
        len(found[False]),
    )


@pytest.mark.parametrize("same_camera", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_objective_is_the_loop_over_pairs(same_camera: bool, offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    pids = [5, 5, 5, 9, 9, 2, 2, 2, 2, 7]
    camids = [1, 2, 2, 1, 3, 1, 1, 2, 3, 1]
    first = torch.randn(10, 6, generator=generator) + offset
    second = torch.randn(10, 6, generator=generator) + offset + 0.5
    expected = naive(first, second, pids, camids, same_camera)
    found = objective(first, second, pids, camids, same_camera=same_camera)
    assert (found.same_pairs, found.different_pairs) == (
        expected.same_pairs,
        expected.different_pairs,
    )
    assert found.same == pytest.approx(expected.same, rel=1e-9)
    assert found.different == pytest.approx(expected.different, rel=1e-9)
    assert found.value == pytest.approx(expected.same / expected.different, rel=1e-9)
    counts = pair_counts(pids, camids, same_camera=same_camera)
    assert counts == (expected.same_pairs, expected.different_pairs)


def test_worked_by_hand() -> None:
    # Persons at 0 and 3 (x) and at 1 and 5 (y); each once in cameras 1 and 2.
    x = torch.tensor([[0.0], [0.0], [3.0], [3.0]])
    y = torch.tensor([[1.0], [1.0], [5.0], [5.0]])
    found = objective(x, y, [1, 1, 2, 2], [1, 2, 1, 2])
    assert found.same == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert found.different == pytest.approx((4 * 25 + 4 * 4) / 8)
    assert found.value == pytest.approx(2.5 / 14.5)
    assert (found.same_pairs, found.different_pairs) == (4, 8)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = [k % 7 for k in range(50)], [k % 3 for k in range(50)]
    whole = objective(features, features.flip(1), *labels)
    monkeypatch.setattr("projects.FFSR_RIFE.objective._CHUNK", 8)
    parts = objective(features, features.flip(1), *labels)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)


def test_one_feature_for_all_has_no_objective() -> None:
    features = torch.ones(4, 3)
    assert math.isnan(objective(features, features, [1, 1, 2, 2], [1, 2, 1, 2]).value)


# ---------------------------------------------------------------- features
def test_cosine_compares_directions() -> None:
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) * 9
    unit = comparable(features, "cosine")
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))
    # |a - b|^2 = 2 (1 - cos), so O is a ratio of the cosine distances that ranking uses.
    cosine = torch.nn.functional.cosine_similarity(features[:1], features[1:])
    torch.testing.assert_close((unit[0] - unit[1:]).square().sum(1), 2 * (1 - cosine))
    torch.testing.assert_close(comparable(features, "euclidean"), features)
    features[2, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 features"):
        comparable(features, "euclidean")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_anchors_distances_add_up(metric: str) -> None:
    features = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2))
    both = comparable(features, metric, [0, 2])
    alone = [comparable(features[:, k], metric) for k in (0, 2)]
    total = sum((a[0] - a[1:]).square().sum(1) for a in alone)
    torch.testing.assert_close((both[0] - both[1:]).square().sum(1), total)
    assert comparable(features, metric).shape == (6, 12)


# ---------------------------------------------------------------- images
@pytest.fixture
def samples() -> TestSet:
    queries = [Sample(f"q{k}", k, 1, "query", factor=2.0) for k in (1, 2, 3)]
    queries.append(Sample("genuine", 4, 1, "query", factor=float("nan")))
    twins = [Sample(f"h{k}", k, 1, "query_hr") for k in (1, 2, 3)]
    degraded = [Sample(f"h{k}", k, 1, "x2", 2.0, 2.0) for k in (1, 2, 3)]
    gallery = [Sample(f"g{k}{s}", k, 2, "gallery") for k in (-1, 0, 1, 2, 3) for s in range(k + 2)]
    return TestSet("some", [*queries, *twins, *degraded, *gallery])


def test_hr_images_are_twins_and_gallery(samples: TestSet) -> None:
    paths = [s.path for s in hr_images(samples)]
    assert paths == sorted(
        ["h1", "h2", "h3"] + [f"g{k}{s}" for k in (1, 2, 3) for s in range(k + 2)]
    )
    small = TestSet("small", [s for s in samples.samples if s.group == "query"])
    with pytest.raises(ConfigError, match="small has no HR images"):
        hr_images(small)


def test_hr_queries_count_where_the_gallery_is_small() -> None:
    queries = [Sample(f"q{k}", k, 1, "query") for k in (1, 2)]
    gallery = [Sample(f"g{k}", k, 2, "gallery", factor=4.0) for k in (1, 2)]
    # The same files again as twins: no file comes twice.
    twins = [Sample(f"q{k}", k, 1, "query_hr") for k in (1, 2)]
    assert [s.path for s in hr_images(TestSet("s", [*queries, *gallery, *twins]))] == ["q1", "q2"]


def test_limit_takes_whole_persons(samples: TestSet) -> None:
    everything = hr_images(samples)
    sizes = {1: 4, 2: 5, 3: 6}
    for limit in range(1, len(everything) + 3):
        taken = hr_images(samples, limit)
        assert len(taken) <= limit
        people = {s.pid for s in taken}
        assert taken == [s for s in everything if s.pid in people]
        assert all(len(taken) + n > limit for p, n in sizes.items() if p not in people)
    assert hr_images(samples, 6, seed=1) == hr_images(samples, 6, seed=1)
    assert len({tuple(hr_images(samples, 6, seed=s)) for s in range(20)}) > 1


def test_reduced_images() -> None:
    images = [Sample("a", 1, 2, "gallery"), Sample("b", 3, 4, "query_hr")]
    half = reduced(images, 0.5, "area", "set").samples
    assert [(s.path, s.pid, s.camid) for s in half] == [("a", 1, 2), ("b", 3, 4)]
    assert {(s.factor, s.degrade, s.kernel) for s in half} == {(2.0, 2.0, "area")}
    assert {(s.factor, s.degrade) for s in reduced(images, 1, "area", "set").samples} == {
        (1.0, 1.0)
    }


def test_curves_compare_the_right_resolutions() -> None:
    images = [Sample(f"{k}", k // 2, k % 2, "gallery") for k in range(8)]
    pids, camids = [s.pid for s in images], [s.camid for s in images]
    asked: list[float] = []

    def features_at(r: float) -> torch.Tensor:
        asked.append(r)
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(int(100 * r)))

    found = curves(images, features_at, [0.25, 0.5, 1.0])
    assert sorted(asked) == [0.25, 0.5, 1.0]
    for k, r in enumerate((0.25, 0.5, 1.0)):
        at, full = features_at(r), features_at(1.0)
        same = naive(at, at, pids, camids, False)
        mixed = naive(at, full, pids, camids, False)
        assert found["r1=r2"][k].value == pytest.approx(same.value, rel=1e-9)
        assert found["r2=1"][k].value == pytest.approx(mixed.value, rel=1e-9)
    assert found["r1=r2"][2] == found["r2=1"][2]


# ---------------------------------------------------------------- what is written
@pytest.fixture
def two_runs() -> dict[str, dict[str, list[Objective]]]:
    return {
        name: {panel: [Objective(k, 4.0, 6, 8), Objective(k + 1, 4.0, 6, 8)] for panel in PANELS}
        for k, name in enumerate(("one, or so", "two"), start=1)
    }


def test_table_has_a_row_per_run_panel_and_resolution(two_runs) -> None:
    rows = list(csv.DictReader(io.StringIO(table(two_runs, [0.5, 1]))))
    assert [(r["run"], r["panel"], r["r"]) for r in rows] == [
        (run, panel, r) for run in two_runs for panel in PANELS for r in ("0.5", "1")
    ]
    assert [r["objective"] for r in rows] == ["0.25", "0.5"] * 2 + ["0.5", "0.75"] * 2
    assert {(r["same_pairs"], r["different_pairs"]) for r in rows} == {("6", "8")}


def test_figure_shows_every_run_in_both_panels(two_runs, tmp_path: Path) -> None:
    figure = draw(two_runs, [0.5, 1])
    panels = figure.axes
    assert len(panels) == 2
    for axis in panels:
        assert [line.get_label() for line in axis.lines] == list(two_runs)
        np.testing.assert_allclose(axis.lines[1].get_ydata(), [0.5, 0.75])
        looks = {(ln.get_color(), ln.get_marker(), ln.get_linestyle()) for ln in axis.lines}
        assert all(len(set(kind)) == 2 for kind in zip(*looks, strict=True))
    save(figure, tmp_path / "f.svg")
    save(figure, tmp_path / "new" / "f.png")
    with Image.open(tmp_path / "new" / "f.png") as image:
        assert image.width > image.height > 200
    save(draw(two_runs, [0.5, 1]), tmp_path / "again.svg")
    assert (tmp_path / "f.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    text = "".join(ElementTree.parse(tmp_path / "f.svg").getroot().itertext())
    assert "one, or so" in text and "r1 = r2" in text


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.png"):
        save(new_figure()[0], tmp_path / "f.gif")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a trained run
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, market_root: Path) -> Path:
    """A tiny OSNet after one epoch, in the folder as tools/train_net.py leaves it."""
    from lrreid_ext.cli import main

    out = tmp_path_factory.mktemp("runs") / "tiny"
    status = main(["train", 
            "--config-file", str(ROOT / "configs/osnet_copies.yml"), *TINY_OSNET,
            "SOLVER.MAX_EPOCH", "1", "DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(out),
        ])  # fmt: skip
    assert status == 0
    return out


def test_tool_from_end_to_end(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = [str(run), f"again={run / 'model_final.pth'}", "--out", str(tmp_path / "o")]
    assert main(["objective", *args, "--resolutions", "1", "0.25", "--limit", "30"]) == 0
    assert "again" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "o" / "objective.csv").open()))
    assert [(r["run"], r["panel"], r["r"]) for r in rows] == [
        (name, panel, r) for name in ("tiny", "again") for panel in PANELS for r in ("0.25", "1")
    ]
    # The folder's last checkpoint is the final one, so both runs are the same model.
    assert [r["objective"] for r in rows[:4]] == [r["objective"] for r in rows[4:]]
    values = {(r["panel"], r["r"]): float(r["objective"]) for r in rows[:4]}
    assert values["r1=r2", "1"] == values["r2=1", "1"]
    assert values["r1=r2", "0.25"] != values["r2=1", "0.25"]
    assert all(0 < value < 2 for value in values.values())
    content = json.loads((tmp_path / "o" / "objective.json").read_text())["runs"]["tiny"]
    assert content["images"] <= 30
    assert content["checkpoint"].endswith("model_final.pth")
    assert content["training"]["epochs"] == 1
    assert (tmp_path / "o" / "objective.svg").is_file()
    assert (tmp_path / "o" / "objective.png").is_file()


def test_tool_measures_what_the_model_gives(run: Path) -> None:
    """The curve at one resolution, from images reduced by hand."""
    tool = import_module("projects.FFSR_RIFE.commands.objective")
    trained = load_model(str(run))
    found, note = tool.measure(trained, resolutions=[0.5], limit=24)
    from lrreid_ext.data.loaders import build_test_set

    images = hr_images(build_test_set(trained.cfg, "mlr_market1501"), 24)
    assert note["images"] == len(images)

    def feature(path: str, scale: float) -> torch.Tensor:
        image = Image.open(path).convert("RGB")
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.resize((32, 64), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        native = torch.tensor([[size[1], size[0]]])
        with torch.no_grad():
            return trained.module(
                {"images": pixels, "native_size": native, "factor": torch.tensor([1 / scale])}
            )[0]

    half, full = (torch.stack([feature(s.path, r) for s in images]) for r in (0.5, 1.0))
    half, full = (torch.nn.functional.normalize(f) for f in (half, full))
    labels = [s.pid for s in images], [s.camid for s in images]
    assert found["r1=r2"][0].value == pytest.approx(naive(half, half, *labels, False).value, 1e-3)
    assert found["r2=1"][0].value == pytest.approx(naive(half, full, *labels, False).value, 1e-3)


def test_tool_says_what_is_wrong(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = ["--out", str(tmp_path / "o")]
    for args, message in (
        ([str(tmp_path / "nowhere")], "nowhere: no such run"),
        ([str(tmp_path)], "holds no config.yaml"),
        ([str(run), str(run)], "two runs are called 'tiny'; call one of them NAME=RUN"),
        ([str(run), "--resolutions", "0"], "above 0 and at most 1"),
        ([str(run), "--limit", "1"], "hold no two of one person in two cameras"),
        ([str(run), "--data-set", "mlr_markt"], "mlr_markt"),
        ([str(run), "--opts", "TEST.METRIK", "cosine"], "TEST.METRIK is not a config key"),
    ):
        assert main(["objective", *args, *out]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["objective", str(run), "--limit", "-1", *out])
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- runs
def test_a_run_is_read_as_it_was_trained(
    run: Path, tmp_path: Path, make_cfg: Callable[..., CfgNode]
) -> None:
    cfg = run_cfg(f"nice name={run}", ["TEST.TRIALS", "7"])
    found = [cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.TEST.TRIALS]
    assert found == [str(run), "", 7]
    assert cfg.is_frozen()
    named = run_cfg(str(run / "model_final.pth"))
    assert Path(named.MODEL.WEIGHTS) == run / "model_final.pth"
    # Weights that a training began with are not those that it made.
    began = Trainer(make_cfg("configs/osnet_copies.yml", TINY_OSNET, "SEED", "5"))
    began.checkpointer.save("start")
    weights = str(Path(began.cfg.OUTPUT_DIR) / "start.pth")
    folder = tmp_path / "second"
    folder.mkdir()
    second = run_cfg(str(run), ["MODEL.WEIGHTS", weights])
    (folder / "config.yaml").write_text(
        make_cfg("configs/osnet_copies.yml", TINY_OSNET, "MODEL.WEIGHTS", weights).dump()
    )
    for file in ("model_final.pth", "last_checkpoint"):
        (folder / file).write_bytes((run / file).read_bytes())
    assert second.MODEL.WEIGHTS == ""
    loaded, own = load_model(str(folder)), load_model(str(run))
    for a, b in zip(loaded.module.parameters(), own.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not loaded.module.training


def test_run_names(run: Path) -> None:
    assert run_names([str(run), f"HR=only={run}", str(run / "model_final.pth")]) == [
        "tiny",
        "HR",
        "tiny/model_final",
    ]


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert run_names([str(folder)]) == ["lr=0.1"]


def test_default_resolutions() -> None:
    assert len(RESOLUTIONS) == 8
    assert (RESOLUTIONS[0], RESOLUTIONS[-1]) == (0.125, 1.0)
    assert np.allclose(np.diff(RESOLUTIONS), 0.125)
