from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from lrreid_ext.cli import main
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.matching import Matching, Side
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.report.plots import save
from lrreid_ext.trained import run_cfg
from projects.SING.fusion import (
    SIGMAS,
    Curves,
    anchor_subsets,
    best_sigma,
    draw,
    fold_curves,
    fold_of,
    subset_name,
    table,
)

FACTORS = (2.0, 4.0)


@pytest.fixture
def each_knows_its_own() -> Matching:
    """Each anchor is right about the queries of its own resolution, and wrong about others.

    Of 20 queries, half are at resolution 1/2 and half at 1/4. The anchor of a query's resolution
    sees seven tenths of the right person and three tenths of the next one, the other anchor
    nothing but the next one.
    """
    people = np.arange(20)
    looks = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    looks /= looks.norm(dim=1, keepdim=True)
    wrong = looks.roll(-1, 0)
    near_first = torch.from_numpy(people % 2 == 0)
    knows, errs = 0.7 * looks + 0.3 * wrong, wrong
    query = torch.stack([knows, errs], 1)
    query[~near_first] = query[~near_first].flip(1)
    sizes = torch.where(near_first, 5.0, 2.5)[:, None].expand(-1, 2)
    return Matching(
        Side(query, people + 1, np.ones(20), native_size=sizes),
        gallery_of(looks),
        "euclidean",
    )


def gallery_of(looks: torch.Tensor) -> Side:
    """Both anchors see every person as they are, at full resolution."""
    count = len(looks)
    features, sizes = looks[:, None].expand(-1, 2, -1), torch.full((count, 2), 10)
    return Side(features, np.arange(count) + 1, np.full(count, 2), native_size=sizes)


def test_small_sigma_is_best_where_each_anchor_knows_its_own(each_knows_its_own: Matching) -> None:
    sigmas = (0.0, 0.05, 0.1, 0.25, 0.28, 5.0)
    curves = fold_curves(each_knows_its_own, FACTORS, sigmas, ranks=(1, 2))
    assert curves.subsets == ((0,), (1,), (0, 1))
    # Either anchor alone is right half of the time.
    np.testing.assert_allclose(curves.cmc[:, :2, 0], 0.5)
    # With d between the two persons and w the farther anchor's weight, the right one is at
    # 0.3 d + w d and the wrong one at 0.7 d: w = exp(-(1/4 / sigma)^2) must be below 0.4, which it
    # is for sigma below 1/4 / sqrt(log(2.5)) = 0.261.
    np.testing.assert_allclose(curves.cmc[:, 2, 0], [0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(curves.mean_ap[:, 2], [0.5, 1, 1, 1, 0.5, 0.5])
    # Of those that are as good, the largest.
    assert best_sigma(sigmas, curves.cmc[:, 2, 0]) == 0.25


def test_equal_weights_are_best_where_resolution_misleads() -> None:
    """The anchor that is nearer is the one that is wrong, but feebly: both together are right."""
    looks = torch.eye(4)
    right, wrong = looks[0], looks[1]
    # The first anchor sees 3/5 of another person; the second 4/5 of the right one.
    query = torch.stack([0.4 * right + 0.6 * wrong, 0.8 * right + 0.2 * wrong])[None]
    side = Side(query, [1], [1], native_size=torch.full((1, 2), 5))
    fold = Matching(side, gallery_of(looks), "euclidean")
    sigmas = (0.02, 0.1, 0.2, 1.0, 0.0)
    curves = fold_curves(fold, FACTORS, sigmas)
    fused = curves.cmc[:, 2, 0]
    # Worked by hand: the first anchor errs by |q1 - right| - |q1 - wrong|, the second makes good
    # for it as soon as its weight exceeds their ratio.
    lengths = [
        [math.dist((0.4, 0.6), (1, 0)) - math.dist((0.4, 0.6), (0, 1))],
        [math.dist((0.8, 0.2), (0, 1)) - math.dist((0.8, 0.2), (1, 0))],
    ]
    needed = lengths[0][0] / lengths[1][0]
    for sigma, score in zip(sigmas, fused, strict=True):
        weight = math.exp(-((0.25 / sigma) ** 2)) if sigma else 1.0
        assert score == float(weight > needed), sigma
    assert best_sigma(sigmas, fused) == 0


def test_scores_are_those_of_the_weighted_distances(each_knows_its_own: Matching) -> None:
    """Against a loop over queries, with weights that are neither equal nor all or nothing."""
    generator = torch.Generator().manual_seed(9)
    gallery, side = each_knows_its_own.gallery, each_knows_its_own.query
    query = side.features + 0.8 * torch.randn(side.features.shape, generator=generator)
    areas = 100 * torch.rand(20, generator=generator)
    sizes = torch.stack([areas, torch.ones(20)], 1)
    fold = replace(each_knows_its_own, query=replace(side, features=query, native_size=sizes))
    sigma = 0.3
    curves = fold_curves(fold, FACTORS, [sigma], ranks=(1, 3))
    ranks = []
    for q in range(20):
        r = math.sqrt(float(areas[q]) / 100)
        weights = [math.exp(-((r - 1 / f) ** 2) / sigma**2) for f in FACTORS]
        distances = [
            sum(w * math.dist(query[q, k], gallery.features[g, k]) for k, w in enumerate(weights))
            for g in range(20)
        ]
        right = int(side.pids[q]) - 1
        ranks.append(sum(d <= distances[right] for d in distances))
    assert len(set(ranks)) > 2
    expected = [np.mean([rank <= k for rank in ranks]) for k in (1, 3)]
    np.testing.assert_allclose(curves.cmc[0, 2], expected)
    # With one image of each person, average precision is the inverse of its rank.
    assert curves.mean_ap[0, 2] == pytest.approx(np.mean([1 / rank for rank in ranks]))


# ---------------------------------------------------------------- pieces
def test_subsets() -> None:
    assert anchor_subsets(3) == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert subset_name((0, 2), (2.0, 3.0, 4.5)) == "x2+x4.5"


def test_best_sigma() -> None:
    assert best_sigma([0.1, 0.2, 0.3], [0.5, 0.9, 0.4]) == 0.2
    assert best_sigma([0.3, 0.1, 0.2], [0.9, 0.9 - 1e-9, 0.9]) == 0.3
    # Equal weights are the limit of large sigmas, and so the largest of all.
    assert best_sigma([0.0, 0.1, 5.0], [0.9, 0.9, 0.9]) == 0
    assert best_sigma([0.0, 0.1], [0.5, 0.9]) == 0.1


def test_default_grid_holds_equal_weights_and_an_even_range() -> None:
    assert SIGMAS[0] == 0
    assert list(SIGMAS) == sorted(set(SIGMAS))
    steps = np.diff(np.log(SIGMAS[1:]))
    assert steps.max() < 1.5 * steps.mean()
    # From a range where the nearest of the anchors 2, 3 and 4 counts alone to (almost) equal ones.
    near, far = (math.exp(-(((1 / 3 - 1 / 4) / sigma) ** 2)) for sigma in (SIGMAS[1], SIGMAS[-1]))
    assert near < 1e-6
    assert far > 0.99


def test_fold_of_takes_queries_and_gallery_in_place() -> None:
    samples = [
        Sample("g0", 1, 2, "gallery"),
        Sample("q0", 1, 1, "query", 2.0),
        Sample("junk", -1, 2, "gallery"),
        Sample("h0", 1, 1, "query_hr"),
        Sample("q1", 2, 1, "query", 4.0),
        Sample("g1", 2, 3, "gallery"),
    ]
    features = torch.arange(6 * 2 * 3.0).reshape(6, 2, 3)
    sizes = torch.tensor([[20, 10], [10, 5], [1, 1], [20, 10], [6, 4], [40, 20]])
    fold = fold_of(Features(features, sizes), TestSet("s", samples))
    for side, at, pids, camids in (
        (fold.query, [1, 4], [1, 2], [1, 1]),
        (fold.gallery, [0, 5], [1, 2], [2, 3]),
    ):
        assert torch.equal(side.features, features[at])
        assert torch.equal(side.native_size, sizes[at])
        assert (side.pids.tolist(), side.camids.tolist()) == (pids, camids)


def curves_of(*rank1: float, sigmas: tuple[float, ...] = (0.0, 0.1)) -> Curves:
    """Three subsets, of which the fused one scores ``rank1``."""
    cmc = np.full((len(sigmas), 3, 2), 0.25)
    cmc[:, 2, 0] = rank1
    cmc[:, :, 1] = 1
    return Curves(sigmas, anchor_subsets(2), (1, 5), cmc, cmc[:, :, 0] / 2)


def test_mean_of_folds() -> None:
    mean = Curves.mean([curves_of(0.2, 0.4), curves_of(0.6, 0.5)])
    np.testing.assert_allclose(mean.cmc[:, 2, 0], [0.4, 0.45])
    np.testing.assert_allclose(mean.mean_ap[:, 2], [0.2, 0.225])


def test_table_and_figure(tmp_path) -> None:
    folds = {"fold0": curves_of(0.2, 0.4), "fold1": curves_of(0.6, 0.5)}
    rows = list(csv.DictReader(io.StringIO(table(folds, FACTORS))))
    assert len(rows) == 3 * 3 * 2
    assert list(rows[0]) == ["fold", "anchors", "sigma", "Rank-1", "Rank-5", "mAP"]
    last = rows[-1]
    assert (last["fold"], last["anchors"], last["sigma"]) == ("mean", "x2+x4", "0.1")
    assert float(last["Rank-1"]) == pytest.approx(45)
    assert float(last["mAP"]) == pytest.approx(22.5)
    figure = draw(Curves.mean(list(folds.values())), FACTORS, 0.1)
    for axis in figure.axes:
        names = [line.get_label() for line in axis.lines[:3]]
        assert names == ["x2", "x4", "x2+x4"]
        # Equal weights come last, where large sigmas lead.
        assert list(axis.lines[2].get_xdata()) == ["0.1", "equal"]
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), [45, 40])
    save(figure, tmp_path / "sigma.svg")
    assert "x2+x4" in (tmp_path / "sigma.svg").read_text()


# ---------------------------------------------------------------- the tool
def fold_cfg(fold: list[int], names: tuple[str, ...] = ("a",), seed: int = 0) -> Any:
    data = SimpleNamespace(FOLD=fold, NAMES=list(names))
    return SimpleNamespace(DATASETS=data, SEED=seed)


def test_runs_must_be_folds_of_one_cross_validation() -> None:
    check = import_module("projects.SING.commands.choose_sigma").check_folds
    assert check({"r0": fold_cfg([0, 2]), "r1": fold_cfg([1, 2])}) == []
    assert check({"r1": fold_cfg([1, 3])}) == ["note: 2 of 3 folds are not among the runs"]
    for cfgs, message in (
        ({"r0": fold_cfg([])}, r"r0: DATASETS.FOLD is \[\]"),
        ({"r0": fold_cfg([1, 3]), "again": fold_cfg([1, 3])}, "again: .* as in r0"),
        ({"r0": fold_cfg([0, 3]), "r1": fold_cfg([1, 2])}, "number of folds is 2, but 3 in r0"),
        ({"r0": fold_cfg([0, 2]), "r1": fold_cfg([1, 2], seed=1)}, "SEED is 1, but 0"),
        ({"r0": fold_cfg([0, 2]), "r1": fold_cfg([1, 2], ("b",))}, "DATASETS.NAMES"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(cfgs)


def test_tool_prints_what_it_chose(monkeypatch, tmp_path, capsys) -> None:
    """With runs that need no training: the figures are given."""
    tool = import_module("projects.SING.commands.choose_sigma")
    sigmas = (0.0, 0.1, 0.2)
    curves = {
        "r0": curves_of(0.5, 0.9, 0.7, sigmas=sigmas),
        "r1": curves_of(0.6, 0.7, 1.0, sigmas=sigmas),
    }

    def score(text: str, *args: Any, **kwargs: Any) -> Any:
        assert tuple(kwargs["sigmas"]) == sigmas
        return tool.Scored(curves[text], FACTORS, (0, 1), {"fold": [int(text[1]), 2]})

    monkeypatch.setattr(tool, "score", score)
    monkeypatch.setattr(tool, "run_cfg", lambda text, opts: fold_cfg([int(text[1]), 2]))
    out = tmp_path / "out"
    assert main(["choose-sigma", "r0", "r1", "--out", str(out), "--sigmas", "0.2", "0", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "Best for x2+x4: Rank-1 85.0 % with\n\n    TEST.FUSION.SIGMA 0.2\n" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "(equal)", "25.0", "25.0", "55.0"] in rows
    assert ["*", "0.2", "25.0", "25.0", "85.0"] in rows
    assert ["x2+x4", "0.2", "85.0", "100.0", "42.5", "55.0"] in rows
    assert {path.name for path in out.iterdir()} == {
        f"sigma.{e}" for e in ("csv", "json", "svg", "png")
    }
    assert (out / "sigma.json").read_text().startswith('{\n  "sigma": 0.2,')


def test_tool_refuses_other_anchors(monkeypatch, tmp_path, capsys) -> None:
    tool = import_module("projects.SING.commands.choose_sigma")
    factors = {"r0": (2.0, 4.0), "r1": (2.0, 3.0)}

    def score(text: str, *args: Any, **kwargs: Any) -> Any:
        return tool.Scored(curves_of(0.5, 0.9), factors[text], (0, 1), {})

    monkeypatch.setattr(tool, "score", score)
    monkeypatch.setattr(tool, "run_cfg", lambda text, opts: fold_cfg([int(text[1]), 2]))
    assert main(["choose-sigma", "r0", "r1", "--out", str(tmp_path / "out")]) == 2
    assert "r1: its anchors differ" in capsys.readouterr().err
    for bad in (["--sigmas", "-1"], ["--ranks", "0"]):
        with pytest.raises(SystemExit):
            main(["choose-sigma", "r0", *bad])
    assert not (tmp_path / "out").exists()


ANCHORS = """
_BASE_: {base}
MODEL: {{META_ARCHITECTURE: Anchors, ANCHORS: {{FACTORS: [2, 4]}}}}
PHASES:
  x2: {{EPOCHS: 1, STEP: x2, TRAIN: [anchors.x2]}}
  x4: {{EPOCHS: 1, STEP: x4, TRAIN: [anchors.x4]}}
"""


def test_tool_scores_as_the_evaluator_does(market_root: Path, tmp_path: Path, capsys) -> None:
    """One fold of a tiny model, scored by the tool and by --eval-only on the same identities."""
    yaml, run, out = tmp_path / "anchors.yml", tmp_path / "fold", tmp_path / "out"
    yaml.write_text(ANCHORS.format(base=ROOT / "configs" / "osnet_copies.yml"))
    options = [
        *TINY, "MODEL.INIT.WEIGHTS", "", "TEST.EVAL_PERIOD", "0", "SOLVER.IMS_PER_BATCH", "4",
        "INPUT.LR.FACTORS", "[2, 4]", "DATASETS.FOLD", "[1, 2]",
        "DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(run),
    ]  # fmt: skip
    assert main(["train", "--config-file", str(yaml), *options]) == 0
    assert main(["choose-sigma", str(run), "--out", str(out), "--sigmas", "0", "0.1", "0.4"]) == 0
    said = capsys.readouterr().out
    assert "note: 1 of 2 folds are not among the runs" in said
    assert "TEST.FUSION.SIGMA" in said
    rows = {
        (r["fold"], r["anchors"], r["sigma"]): r for r in csv.DictReader((out / "sigma.csv").open())
    }
    assert len(rows) == 2 * 3 * 3
    for anchors, name, sigma in (("[]", "x2+x4", "0.4"), ("[4]", "x4", "0")):
        options = [
            "TEST.ON_FOLD", "True", "TEST.FUSION.SIGMA", sigma, "TEST.FUSION.ANCHORS", anchors,
        ]  # fmt: skip
        figures = next(iter(evaluate_trained(run_cfg(str(run), options)).values()))
        row = rows["fold", name, sigma]
        assert float(row["Rank-1"]) == pytest.approx(figures["single_shot/query/Rank-1"], 1e-4)
        assert float(row["mAP"]) == pytest.approx(figures["multi_shot/query/mAP"], 1e-4)
    for options, message in (
        (["TEST.FUSION.ANCHORS", "[2]"], "a single anchor"),
        (["DATASETS.FOLD", "[]"], "DATASETS.FOLD is []"),
        (["DATASETS.NAMES", "['a', 'b']"], "name one with --data-set"),
    ):
        assert main(["choose-sigma", str(run), "--out", str(out), "--opts", *options]) == 2
        assert message in capsys.readouterr().err
