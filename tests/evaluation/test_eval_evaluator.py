"""The standard evaluator: its figures are those of the functions, its file and table say how."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.evaluation.query_expansion import aqe

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.mixed_gallery import mixed_gallery
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import (
    CrossResolutionEvaluator,
    Features,
    Matching,
    RankStatistics,
    Side,
    SingleShot,
    bootstrap_intervals,
    k_reciprocal,
    rank_statistics,
    single_shot,
    tar_at_far,
)
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.groups import factor_parts, query_groups
from lrreid_ext.evaluation.scored import Scored
from lrreid_ext.results import Results, results_table
from lrreid_ext.results.tables import rate_table, tables

Figures = Mapping[str, float]


@dataclass
class Demo:
    """A test set with features, scored by a config."""

    cfg: CfgNode
    test_set: TestSet
    features: torch.Tensor

    def set(self, **test: Any) -> None:
        """Set keys of TEST, nested ones with __."""
        for key, value in test.items():
            self.cfg.merge_from_list([f"TEST.{key.replace('__', '.')}", value])

    def change(self, of: Callable[[Sample], dict[str, Any]]) -> None:
        """Change fields of the test set's samples."""
        samples = [replace(sample, **of(sample)) for sample in self.test_set.samples]
        self.test_set = replace(self.test_set, samples=samples)

    def results(self) -> Results:
        sizes = torch.full((len(self.features), 2), 8)
        check_config(self.cfg)
        return Scored(self.cfg, self.test_set, Features(self.features, sizes)).results

    def figures(self) -> Figures:
        return self.results().flat()

    def groups(self) -> dict[str, Any]:
        """The groups of the results file."""
        groups: dict[str, Any] = self.results().to_json()["groups"]
        return groups

    def evaluate(self, out: Path | None = None) -> OrderedDict[str, float]:
        """As a model's features come, batch by batch."""
        evaluator = CrossResolutionEvaluator(self.cfg, self.test_set, str(out) if out else None)
        evaluator.reset()
        for index in torch.arange(len(self.features)).split(7):
            batch = {"index": index, "native_size": torch.ones(len(index), 2)}
            evaluator.process(batch, self.features[index])
        return evaluator.evaluate()

    def side(self, group: str) -> Side:
        at = [i for i, s in enumerate(self.test_set.samples) if s.group == group]
        samples = [self.test_set.samples[i] for i in at]
        pids, camids = ([getattr(s, key) for s in samples] for key in ("pid", "camid"))
        return Side(self.features[at], pids, camids, group, samples=samples)

    def matching(self, group: str = "query", metric: str = "cosine") -> Matching:
        query, _, factor = group.partition("@")
        side = self.side(query)
        side = side.rows(side.factors == float(factor)) if factor else side
        return Matching(side, self.side("gallery"), metric)


@pytest.fixture
def demo() -> Demo:
    """20 queries with twins, and a gallery with distractors and junk, in no tidy order."""
    rng, samples = np.random.default_rng(0), []
    for k in range(20):
        pid, factor = int(rng.integers(1, 10)), float(rng.integers(2, 5))
        samples.append(Sample(f"q{k}.png", pid, 1, "query", factor))
        samples.append(Sample(f"h{k}.png", pid, 1, "query_hr"))
        samples += [Sample(f"h{k}.png", pid, 1, f"x{f}", f, f) for f in (10, 2, 3)]
    samples += [Sample(f"g{k}.png", k % 12 - 1, 2 + k % 2, "gallery") for k in range(60)]
    samples = [samples[i] for i in rng.permutation(len(samples))]
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 8, generator=generator)
    noise = torch.randn(len(samples), 8, generator=generator)
    features = [centres[s.pid] + 0.5 * s.factor * n for s, n in zip(samples, noise, strict=True)]
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", "model.pth"
    test_set = TestSet("demo", samples, "0123456789abcdef", {"split": np.int64(3)})
    return Demo(cfg, test_set, torch.stack(features))


def percent(share: float) -> Any:
    return pytest.approx(100 * share, abs=1e-5)


def table(results: Results, *columns: str) -> str:
    return results_table([results], list(columns) or None, names=["one"])


def check(figures: Figures, group: str, *statistics: RankStatistics | SingleShot) -> None:
    """The figures of a group are those of the functions."""
    for one in statistics:
        if isinstance(one, SingleShot):
            for k in (1, 5):
                assert figures[f"single_shot/{group}/Rank-{k}"] == percent(one.mean((k,))[0])
                assert figures[f"single_shot/{group}/Rank-{k}_std"] == percent(one.std((k,))[0])
        else:
            assert figures[f"multi_shot/{group}/Rank-10"] == percent(one.cmc((10,))[0])
            assert figures[f"multi_shot/{group}/mAP"] == percent(one.mean_ap)
            assert figures[f"multi_shot/{group}/mINP"] == percent(one.mean_inp)


# ---------------------------------------------------------------- figures
def test_figures_are_those_of_the_functions(demo: Demo) -> None:
    demo.set(METRIC="euclidean", TRIALS=4, SEED=9)
    figures = demo.evaluate()
    assert type(figures) is OrderedDict
    assert all(type(value) is float for value in figures.values())
    assert next(iter(figures)) == "single_shot/query/Rank-1"
    for group in ("query", "query_hr", "x2", "x3", "x10"):
        matching = demo.matching(group, "euclidean")
        check(figures, group, rank_statistics(matching), single_shot(matching, trials=4, seed=9))
    # A part's single-shot draws are those of the whole.
    for factor in (2, 3, 4):
        part = f"query@{factor}"
        check(figures, part, rank_statistics(demo.matching(part, "euclidean")))
        chosen = demo.side("query").factors == factor
        shots = single_shot(demo.matching("query", "euclidean"), trials=4, seed=9)
        check(figures, part, shots.subset(chosen))
    assert figures["multi_shot/query_hr/mAP"] > figures["multi_shot/x10/mAP"]
    assert "multi_shot/query_hr@1/mAP" not in figures


def test_per_query_draw(demo: Demo) -> None:
    shared = demo.figures()
    demo.set(DRAW="per_query", TRIALS=6, SEED=3)
    figures = demo.figures()
    check(figures, "query", single_shot(demo.matching(), trials=6, seed=3, draw="per_query"))
    assert figures["single_shot/query/Rank-1_std"] != shared["single_shot/query/Rank-1_std"]
    assert figures["multi_shot/query/mAP"] == shared["multi_shot/query/mAP"]


def test_query_expansion_is_fastreids(demo: Demo) -> None:
    plain = demo.figures()
    demo.set(AQE__ENABLED=True)
    figures = demo.figures()
    query, gallery = demo.side("query"), demo.side("gallery")
    gallery = gallery.rows(~gallery.is_junk)
    expanded = aqe(query.features, gallery.features, 1, 5, 3.0)
    query, gallery = (
        replace(s, features=f) for s, f in zip((query, gallery), expanded, strict=True)
    )
    check(figures, "query", rank_statistics(Matching(query, gallery)))
    assert figures["multi_shot/query/mAP"] != plain["multi_shot/query/mAP"]
    assert all(figures[key] == plain[key] for key in plain if key.startswith("single_shot"))
    demo.set(AQE__QE_K=75)
    with pytest.raises(ConfigError, match="QE_K: 75 neighbours of 75 images"):
        demo.figures()


def test_rates_are_those_of_the_function(
    demo: Demo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = demo.figures()
    demo.set(ROC__ENABLED=True, ROC__FARS=[1e-3, 0.055, 0.2])
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        figures = demo.evaluate(tmp_path)
    assert plain.items() <= figures.items()
    results = Results.load(tmp_path / "results_demo.json")
    groups = results.to_json()["groups"]
    for group in ("query", "x3", "query@2"):
        rates = tar_at_far(demo.matching(group), demo.cfg.TEST.ROC.FARS)
        entry = groups[group]["multi_shot"]
        for name, rate in zip(("1e-3", "5.5e-2", "2e-1"), rates.tar, strict=True):
            assert figures[f"multi_shot/{group}/TAR@{name}"] == percent(rate)
            assert entry[f"TAR@{name}"] == figures[f"multi_shot/{group}/TAR@{name}"]
        assert (entry["genuine_pairs"], entry["impostor_pairs"]) == (rates.genuine, rates.impostors)
    rate = figures["multi_shot/query/TAR@2e-1"]
    assert 0 < figures["multi_shot/query/TAR@5.5e-2"] < rate
    assert "True accept rates (%)" in caplog.text and "@5.5e-2" in caplog.text
    assert f"{rate:.1f}" in table(results, "multi_shot/query/TAR@2e-1")


def test_no_pairs_no_rates(demo: Demo) -> None:
    """One identity in the gallery: there is no impostor pair."""
    demo.set(ROC__ENABLED=True)
    demo.test_set = TestSet("one", [Sample("a", 1, 0, "query"), Sample("b", 1, 1, "gallery")])
    demo.features = demo.features[:2]
    assert not [key for key in demo.figures() if "TAR@" in key]
    entry = demo.groups()["query"]["multi_shot"]
    assert (entry["mAP"], entry["TAR@1e-4"], entry["impostor_pairs"]) == (100, None, 0)


def test_reranking_leaves_junk_out_and_reaches_every_figure(demo: Demo) -> None:
    demo.change(lambda s: {"pid": -1} if s.path == "q3.png" else {})
    plain = demo.figures()
    demo.set(RERANK__ENABLED=True, RERANK__K1=6, RERANK__K2=3, CI__REPEATS=40)
    demo.set(ROC__ENABLED=True, ROC__FARS=[0.1])
    results = demo.results()
    figures = results.flat()
    query, gallery = (side.rows(~side.is_junk) for side in map(demo.side, ("query", "gallery")))
    assert (len(query), len(gallery)) == (19, 55)
    matching = Matching(query, gallery, jaccard=k_reciprocal(query, gallery, k1=6, k2=3))
    check(figures, "query", rank_statistics(matching))
    assert figures["multi_shot/query/mAP"] != plain["multi_shot/query/mAP"]
    rates = tar_at_far(matching, [0.1])
    assert figures["multi_shot/query/TAR@1e-1"] == percent(rates.tar[0])
    # How much the rate varies with the people, at the same threshold; junk has no say in it.
    has = rates.genuine_by_query > 0
    counts = rates.genuine_by_query[has]
    shares = rates.accepted_by_query[has, 0] / counts
    low, high = bootstrap_intervals(shares, query.pids[has], weights=counts, repeats=40)[0]
    assert low < rates.tar[0] < high
    entry = results.to_json()["groups"]["query"]
    assert entry["multi_shot"]["TAR@1e-1_ci"] == [percent(low), percent(high)]
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in rate_table(results)
    # A part's pairs alone, of the same distances.
    part = tar_at_far(matching.part(query.factors == 3), [0.1])
    assert figures["multi_shot/query@3/TAR@1e-1"] == percent(part.tar[0])
    assert all(figures[key] == plain[key] for key in plain if key.startswith("single_shot"))
    assert results.to_json()["rerank"] == {"k1": 6, "k2": 3, "lambda": 0.3}
    assert (entry["junk"], entry["multi_shot"]["unmatched"]) == (1, 0)
    assert "rerank" in table(results)


@pytest.mark.parametrize("by", ["identity", "query"])
def test_intervals_are_those_of_the_function(demo: Demo, by: str) -> None:
    demo.set(CI__REPEATS=50, CI__BY=by, SEED=4)
    results = demo.results()
    assert results.to_json()["ci"] == {"level": 0.95, "repeats": 50, "by": by, "seed": 4}
    matching = demo.matching()
    ranked, shots = rank_statistics(matching), single_shot(matching, seed=4)
    entry = results.to_json()["groups"]["query"]
    for protocol, name, values in (
        ("multi_shot", "mAP", ranked.ap),
        ("single_shot", "Rank-1", (shots.first_rank <= 1).mean(0)),
    ):
        ends = bootstrap_intervals(values, matching.query.pids, repeats=50, by=by, seed=4)[0]
        low, high = entry[protocol][f"{name}_ci"]
        assert [low, high] == [percent(end) for end in ends]
        assert low < entry[protocol][name] < high
    low, high = entry["multi_shot"]["mAP_ci"]
    units = "identities" if by == "identity" else "queries"
    assert f"95 % intervals, 50 bootstrap draws of {units}, seed 4" in tables(results)
    assert f"[{low:.1f}, {high:.1f}]" in tables(results)
    compared = table(results, "multi_shot/query/mAP")
    assert f"{entry['multi_shot']['mAP']:.1f} [{low:.1f}, {high:.1f}]" in compared
    assert f"50 bootstrap draws of {units}" in compared


def test_one_protocol_and_one_trial(demo: Demo) -> None:
    both = demo.figures()
    for protocol in ("single_shot", "multi_shot"):
        demo.set(PROTOCOLS=[protocol])
        assert demo.figures() == {k: v for k, v in both.items() if k.startswith(protocol)}
    demo.set(PROTOCOLS=["single_shot"], TRIALS=1)
    assert not [key for key in demo.figures() if key.endswith("_std")]
    assert demo.groups()["query"]["single_shot"]["Rank-1_std"] is None


# ---------------------------------------------------------------- groups
def test_parts_by_the_galleries_factors(demo: Demo) -> None:
    """As in the SALR sets: HR queries, each with an answer of another factor."""
    factors = {
        "gallery": lambda s: {"factor": 4 + 0.5 * s.pid + 0.1 * s.camid},
        "query": lambda s: {"factor": 1.0},
    }
    demo.change(lambda s: factors.get(s.group, lambda s: {})(s))
    demo.set(FACTOR_BINS=[1, 6, 8])
    groups, samples = query_groups(demo.test_set, [1, 6, 8]), demo.test_set.samples
    names = [name for name in groups if "@" in name]
    assert names == ["query@gallery1-6", "query@gallery6-8", "query@gallery8+"]
    for name, (low, high) in zip(names, [(1, 6), (6, 8), (8, 99)], strict=True):
        for i in groups["query"]:
            pid = samples[i].pid
            answers = [s.factor for s in samples if s.group == "gallery" and s.pid == pid]
            assert (i in groups[name]) == (low <= min(answers, default=0) < high)
    assert "multi_shot/query@gallery1-6/mAP" in demo.figures()


def test_unknown_factors_have_no_part(demo: Demo) -> None:
    """As in CAVIAR4REID: nobody knows by how much the queries are reduced."""
    demo.change(lambda s: {"factor": float("nan")} if s.group == "query" else {})
    assert not [name for name in query_groups(demo.test_set) if "@" in name]
    assert factor_parts(np.array([np.nan, np.nan, 2.0])) == []
    assert [label for label, _ in factor_parts(np.array([np.nan, 3.0, 2.0]))] == ["2", "3"]


def test_factor_parts(demo: Demo) -> None:
    assert factor_parts(np.full(5, 3.0)) == []

    def parts(factors: list[float], *bins: Any) -> dict[str, list[float]]:
        values = np.array(factors)
        return {label: values[mask].tolist() for label, mask in factor_parts(values, *bins)}

    assert parts([2.0, 2.5, 2.0]) == {"2": [2.0, 2.0], "2.5": [2.5]}
    # Bins other than the default ones are made of few factors too.
    assert parts([2.0, 2.5, 4.0], [1, 3]) == {"1-3": [2.0, 2.5], "3+": [4.0]}
    assert list(parts([2.0, 2.5, 4.0], demo.cfg.TEST.FACTOR_BINS)) == ["2", "2.5", "4"]
    assert parts([1.0, 1.5, 2.0, 2.2, 2.9, 3.0, 4.1, 5.9, 6.0, 40.0]) == {
        "1-2": [1.0, 1.5], "2-3": [2.0, 2.2, 2.9], "3-4": [3.0], "4-6": [4.1, 5.9], "6-8": [6.0],
        "16+": [40.0],
    }  # fmt: skip


# ---------------------------------------------------------------- file and table
def test_results_file(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", f"--out={tmp_path}/my run", "x y"])
    figures = demo.evaluate(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["results_demo.json"]
    content = json.loads((tmp_path / "out" / "results_demo.json").read_text())
    expected = {
        "manifest_hash": "0123456789abcdef", "info": {"split": 3}, "trials": 10, "seed": 0,
        "metric": "cosine", "protocols": ["single_shot", "multi_shot"], "checkpoint": "model.pth",
        "command": "tools/train_net.py '--out=my run' 'x y'",
        "counts": {
            "gallery": 55, "gallery_junk": 5, "distractors": 5, "identities": 10, "gallery_lr": 0,
        },
    }  # fmt: skip
    assert {key: content[key] for key in expected} == expected
    assert "wrong match" in content["tie_rule"]
    assert content["machine"]["torch"] == torch.__version__ and "gpu" not in content["machine"]
    groups = content["groups"]
    parts = [f"query@{factor}" for factor in (2, 3, 4)]
    assert list(groups) == ["query", *parts, "query_hr", "x2", "x3", "x10"]
    assert sum(groups[part]["queries"] for part in parts) == groups["query"]["queries"] == 20
    shot = groups["query"]["single_shot"]
    trials = np.array(shot["trials"])
    assert trials.shape == (10, 4)
    assert shot["Rank-1"] == pytest.approx(trials[:, 0].mean(), abs=1e-5)
    assert shot["Rank-1_std"] == pytest.approx(trials[:, 0].std(ddof=1), abs=1e-5)
    assert figures["single_shot/query/Rank-1"] == shot["Rank-1"]


def test_table_on_the_screen(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        figures = demo.evaluate()
    text = next(r.getMessage() for r in caplog.records if "HR -> HR" in r.getMessage())
    assert max(len(line) for line in text.splitlines()) <= 100
    for word in ("demo, manifest 0123456789ab\n", "10 trials, seed 0", "5 junk", "x10", "mINP"):
        assert word in text
    row = next(line for line in text.splitlines() if line.startswith("HR -> HR"))
    mean, std = (figures[f"single_shot/query_hr/Rank-1{end}"] for end in ("", "_std"))
    assert f"{mean:.1f} +- {std:.1f}" in row
    assert f"{figures['multi_shot/query_hr/mAP']:.1f}" in row


def test_left_out_queries_are_reported(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    new = {"q0.png": 77, "q1.png": -1, "q2.png": 78}
    demo.change(lambda s: {"pid": 77 if s.group == "x2" else new.get(s.path, s.pid)})
    results = demo.results()
    groups = results.to_json()["groups"]
    for protocol in ("multi_shot", "single_shot"):
        assert groups["query"][protocol]["unmatched"] == 2
    assert groups["query"]["junk"] == 1
    assert groups["x2"]["multi_shot"] == {
        "unmatched": 20, "Rank-1": None, "Rank-5": None, "Rank-10": None, "Rank-20": None,
        "mAP": None, "mINP": None,
    }  # fmt: skip
    assert not [key for key in results.flat() if "/x2/" in key]
    assert "x2, multi_shot: 20 of 20 queries have no right answer" in caplog.text
    lines = tables(results).splitlines()
    assert next(line for line in lines if line.startswith("MLR ")).split()[1:3] == ["20", "3"]
    assert next(line for line in lines if line.startswith("HR -> HR ")).split()[3:5] == ["20", "0"]


def test_a_mixed_gallery_is_named(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    demo.test_set = mixed_gallery(demo.test_set, 0.5, [2, 4], 0)
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        demo.evaluate()
    reduced = sum(s.group == "gallery" and s.factor > 1 for s in demo.test_set.samples)
    results = demo.results()
    assert results.counts is not None and results.counts.gallery_lr == reduced > 0
    assert f"{reduced} low-resolution" in caplog.text
    assert "50 % of the gallery reduced by 2, 4" in table(results)
    # The queries are parted by their own factors, whatever the gallery's are.
    assert list(results.groups)[:2] == ["query", "query@2"]


def test_no_compiler_is_called(demo: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unlike the host's, which makes its ranking when it is imported."""
    started: list[list[str]] = []
    original = subprocess.run

    def watched(command: list[str], *args: Any, **kwargs: Any) -> Any:
        started.append(command)
        return original(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setenv("PATH", str(tmp_path))  # no make, no compiler, no git
    before = {name for name in sys.modules if "rank_cylib" in name}
    assert demo.results().commit == ""
    assert {name for name in sys.modules if "rank_cylib" in name} == before
    assert all(command[0] == "git" for command in started)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("pid", "camid", "why"),
    [
        (1, 1, "its own camera took as well"),
        (1, 0, "camera 0 took as well"),
        (3, 1, "none of the queries' identities is in the gallery"),
    ],
)
def test_no_query_with_an_answer(demo: Demo, pid: int, camid: int, why: str) -> None:
    gallery = [Sample("b", pid, 0, "gallery"), Sample("c", 2, camid, "gallery")]
    demo.test_set = TestSet("alone", [Sample("a", 1, 0, "query"), *gallery])
    with pytest.raises(ConfigError, match="'alone': no query has a right answer") as caught:
        demo.figures()
    assert why in str(caught.value)


@pytest.mark.parametrize("group", ["query", "gallery"])
def test_a_test_set_needs_query_and_gallery(demo: Demo, group: str) -> None:
    with pytest.raises(ConfigError, match="needs both"):
        CrossResolutionEvaluator(demo.cfg, TestSet("half", [Sample("a", 1, 1, group)]))


@pytest.mark.parametrize("group", ["x3", "gallery"])
def test_nan_features_name_their_group(demo: Demo, group: str) -> None:
    rows = [i for i, s in enumerate(demo.test_set.samples) if s.group == group]
    demo.features[rows[:2], 3] = float("nan")
    with pytest.raises(ConfigError, match=f"'demo': {group}: 2 of .* NaN"):
        demo.figures()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("METRIC", "manhattan"),
        ("PROTOCOLS", ["multi-shot"]),
        ("PROTOCOLS", []),
        ("RANKS", [0]),
        ("TRIALS", 0),
        ("SEED", -1),
        ("DRAW", "per-query"),
        ("FACTOR_BINS", [2, 4]),
        ("FACTOR_BINS", [1, 4, 4]),
        ("FACTOR_BINS", []),
        ("GALLERY.LR_SHARE", 1.5),
        ("CI.REPEATS", 1),
        ("CI.LEVEL", 1.0),
        ("CI.BY", "image"),
        ("FUSION.ANCHORS", [5]),
        ("FUSION.ANCHORS", [2, 2]),
        ("FUSION.SIGMA", -1.0),
    ],
)
def test_settings_that_cannot_be_followed(demo: Demo, key: str, value: Any) -> None:
    demo.cfg.MODEL.ANCHORS.FACTORS = [2, 3, 4]
    demo.cfg.merge_from_list([f"TEST.{key}", value])
    with pytest.raises(ConfigError, match=f"TEST.{key}"):
        CrossResolutionEvaluator.check(demo.cfg)


@pytest.mark.parametrize(
    ("switch", "key", "value"),
    [
        ("RERANK", "RERANK.K2", 21),
        ("RERANK", "RERANK.LAMBDA", 1.5),
        ("AQE", "AQE.QE_K", 0),
        ("ROC", "ROC.FARS", []),
        ("ROC", "ROC.FARS", [0.0]),
        *((switch, "PROTOCOLS", ["single_shot"]) for switch in ("RERANK", "AQE", "ROC")),
    ],
)
def test_settings_of_a_switch(demo: Demo, switch: str, key: str, value: Any) -> None:
    demo.cfg.merge_from_list([f"TEST.{key}", value])
    CrossResolutionEvaluator.check(demo.cfg)  # it is off
    demo.cfg.TEST[switch].ENABLED = True
    with pytest.raises(ConfigError, match=f"TEST.{switch}"):
        CrossResolutionEvaluator.check(demo.cfg)


def test_fused_anchors_are_verified_but_neither_reranked_nor_expanded(demo: Demo) -> None:
    demo.cfg.MODEL.ANCHORS.FACTORS = [2.0, 4.0]
    demo.features = torch.stack([demo.features, demo.features + 0.1], dim=1)
    demo.set(ROC__ENABLED=True)
    assert "multi_shot/query/TAR@1e-2" in demo.figures()
    for key in ("RERANK", "AQE"):
        demo.cfg.TEST[key].ENABLED = True
        with pytest.raises(ConfigError, match=f"TEST.{key}.ENABLED: not available"):
            demo.figures()
        demo.cfg.TEST[key].ENABLED = False
