from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.evaluation.query_expansion import aqe
from fastreid.utils import comm

from lrreid_ext.config import CfgNode, get_cfg
from lrreid_ext.data.mixed_gallery import mixed_gallery
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import (
    CrossResolutionEvaluator,
    Matching,
    Side,
    bootstrap_intervals,
    rank_statistics,
    single_shot,
    tar_at_far,
)
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.groups import factor_parts, query_groups
from lrreid_ext.evaluation.reranking import k_reciprocal
from lrreid_ext.registry import EVALUATOR_REGISTRY
from lrreid_ext.results import Results, results_table
from lrreid_ext.results.tables import rate_table


def saved(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = "model.pth"
    return cfg


@pytest.fixture
def test_set() -> TestSet:
    """20 queries with twins, and a gallery with distractors and junk, in no tidy order."""
    rng = np.random.default_rng(0)
    samples = []
    for k in range(20):
        pid, factor = int(rng.integers(1, 10)), float(rng.integers(2, 5))
        samples.append(Sample(f"q{k}.png", pid, 1, "query", factor))
        samples.append(Sample(f"h{k}.png", pid, 1, "query_hr"))
        samples += [Sample(f"h{k}.png", pid, 1, f"x{f}", f, f) for f in (10, 2, 3)]
    samples += [Sample(f"g{k}.png", k % 12 - 1, 2 + k % 2, "gallery") for k in range(60)]
    order = rng.permutation(len(samples))
    return TestSet("demo", [samples[i] for i in order], "0123456789abcdef", {"split": np.int64(3)})


@pytest.fixture
def features(test_set: TestSet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 8, generator=generator)
    noise = torch.randn(len(test_set.samples), 8, generator=generator)
    return torch.stack(
        [centres[s.pid] + 0.5 * s.factor * n for s, n in zip(test_set.samples, noise, strict=True)]
    )


def feed(
    evaluator: CrossResolutionEvaluator, features: torch.Tensor, order: Any, batch: int = 7
) -> None:
    for index in torch.as_tensor(order).split(batch):
        evaluator.process({"index": index}, features[index])


def sides(test_set: TestSet, features: torch.Tensor, group: str) -> tuple[Side, Side]:
    """Queries of a group, and the gallery, as they come."""

    def one(group: str) -> Side:
        at = [i for i, s in enumerate(test_set.samples) if s.group == group]
        pids, camids = ([getattr(test_set.samples[i], k) for i in at] for k in ("pid", "camid"))
        return Side(features[at], pids, camids, group, samples=[test_set.samples[i] for i in at])

    return one(group), one("gallery")


def percent(share: float) -> Any:
    return pytest.approx(100 * share, abs=1e-5)


def run(cfg: CfgNode, test_set: TestSet, features: torch.Tensor, out: Path | None = None) -> Any:
    evaluator = CrossResolutionEvaluator(cfg, test_set, str(out) if out else None)
    evaluator.reset()
    feed(evaluator, features, range(len(features)))
    return evaluator.evaluate()


def test_figures_are_those_of_the_pure_functions(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    cfg.TEST.METRIC, cfg.TEST.TRIALS, cfg.TEST.SEED = "euclidean", 4, 9
    found = run(cfg, test_set, features)
    assert type(found) is OrderedDict
    assert all(type(value) is float for value in found.values())
    assert next(iter(found)) == "single_shot/query/Rank-1"
    for group in ("query", "query_hr", "x2", "x3", "x10"):
        matching = Matching(*sides(test_set, features, group), "euclidean")
        ranked, shots = rank_statistics(matching), single_shot(matching, trials=4, seed=9)
        expected = {
            f"multi_shot/{group}/mAP": ranked.mean_ap,
            f"multi_shot/{group}/mINP": ranked.mean_inp,
            f"multi_shot/{group}/Rank-10": ranked.cmc((10,))[0],
            f"single_shot/{group}/Rank-5": shots.mean((5,))[0],
            f"single_shot/{group}/Rank-5_std": shots.std((5,))[0],
        }
        for key, share in expected.items():
            assert found[key] == pytest.approx(100 * share, abs=1e-5), key
    assert found["multi_shot/query_hr/mAP"] > found["multi_shot/x10/mAP"]


def test_queries_are_split_by_their_own_factor(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    found = run(cfg, test_set, features)
    query, gallery = sides(test_set, features, "query")
    assert set(query.factors) == {2, 3, 4}
    for factor in (2, 3, 4):
        ranked = rank_statistics(Matching(query.rows(query.factors == factor), gallery))
        assert found[f"multi_shot/query@{factor}/mAP"] == pytest.approx(100 * ranked.mean_ap)
    assert "multi_shot/query_hr@1/mAP" not in found


def test_order_and_processes_change_nothing(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(cfg, test_set, features)
    total = len(test_set.samples)
    order = np.random.default_rng(1).permutation(total)
    shares: list[Any] = []

    def gather(data: Any, dst: int = 0) -> list[Any]:
        shares.append(data)
        return shares[::-1] if comm.is_main_process() else []

    monkeypatch.setattr(comm, "gather", gather)
    # Three processes, of which one got nothing; the first one comes last.
    for rank, share in ((2, order[:0]), (1, order[:40]), (0, order[40:])):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        evaluator = CrossResolutionEvaluator(cfg, test_set)
        feed(evaluator, features, share.copy(), batch=11)
        found = evaluator.evaluate()
        assert found == (expected if rank == 0 else {})


def test_missing_and_repeated_images(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    total = len(test_set.samples)
    evaluator = CrossResolutionEvaluator(cfg, test_set)
    feed(evaluator, features, range(total - 2))
    with pytest.raises(ValueError, match=r"'demo'.* 2 are missing and 0 came more than once"):
        evaluator.evaluate()
    evaluator.reset()
    feed(evaluator, features, [*range(total), 5])
    with pytest.raises(ValueError, match="0 are missing and 1 came more than once"):
        evaluator.evaluate()
    evaluator.reset()
    with pytest.raises(ValueError, match="no images"):
        evaluator.evaluate()
    evaluator.process({"index": torch.tensor([total])}, features[:1])
    with pytest.raises(ValueError, match="outside"):
        evaluator.evaluate()


def test_a_second_round_starts_anew(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    evaluator = CrossResolutionEvaluator(cfg, test_set)
    for _ in range(2):
        evaluator.reset()
        feed(evaluator, features, range(len(features)))
        found = evaluator.evaluate()
    assert found == run(cfg, test_set, features)


def test_results_file(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", f"--out={tmp_path}/my run", "x y"])
    found = run(cfg, test_set, features, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["results_demo.json"]
    content = saved(tmp_path / "out" / "results_demo.json")
    assert content["manifest_hash"] == "0123456789abcdef"
    assert content["info"] == {"split": 3}
    assert (content["trials"], content["seed"], content["metric"]) == (10, 0, "cosine")
    assert content["protocols"] == ["single_shot", "multi_shot"]
    assert content["counts"] == {
        "gallery": 55,
        "gallery_junk": 5,
        "distractors": 5,
        "identities": 10,
        "gallery_lr": 0,
    }
    assert "wrong match" in content["tie_rule"]
    assert content["checkpoint"] == "model.pth"
    assert content["command"] == "tools/train_net.py '--out=my run' 'x y'"
    assert content["machine"]["torch"] == torch.__version__
    assert "gpu" not in content["machine"]
    groups = content["groups"]
    assert list(groups) == [
        "query", "query@2", "query@3", "query@4", "query_hr", "x2", "x3", "x10"
    ]  # fmt: skip
    assert (
        sum(groups[f"query@{f}"]["queries"] for f in (2, 3, 4)) == groups["query"]["queries"] == 20
    )
    shot = groups["query"]["single_shot"]
    trials = np.array(shot["trials"])
    assert trials.shape == (10, 4)
    assert shot["Rank-1"] == pytest.approx(trials[:, 0].mean(), abs=1e-5)
    assert shot["Rank-1_std"] == pytest.approx(trials[:, 0].std(ddof=1), abs=1e-5)
    assert found["single_shot/query/Rank-1"] == shot["Rank-1"]


def test_table_on_the_screen(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        found = run(cfg, test_set, features)
    text = next(r.getMessage() for r in caplog.records if "HR -> HR" in r.getMessage())
    assert max(len(line) for line in text.splitlines()) <= 100
    for word in ("demo, manifest 0123456789ab\n", "10 trials, seed 0", "5 junk", "x10", "mINP"):
        assert word in text
    row = next(line for line in text.splitlines() if line.startswith("HR -> HR"))
    mean, std = (found[f"single_shot/query_hr/Rank-1{end}"] for end in ("", "_std"))
    assert f"{mean:.1f} +- {std:.1f}" in row
    assert f"{found['multi_shot/query_hr/mAP']:.1f}" in row


def test_unmatched_queries_are_reported(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    samples = [
        replace(s, pid=77) if s.group == "x2" or s.path == "q0.png" else s for s in test_set.samples
    ]
    found = run(cfg, TestSet("demo", samples), features, tmp_path)
    entry = saved(tmp_path / "results_demo.json")["groups"]
    assert entry["query"]["multi_shot"]["unmatched"] == 1
    assert entry["query"]["single_shot"]["unmatched"] == 1
    assert entry["x2"]["multi_shot"] == {
        "unmatched": 20, "Rank-1": None, "Rank-5": None, "Rank-10": None, "Rank-20": None,
        "mAP": None, "mINP": None,
    }  # fmt: skip
    assert not [key for key in found if "/x2/" in key]
    assert "x2, multi_shot: 20 of 20 queries have no right answer" in caplog.text


@pytest.mark.parametrize(
    ("pid", "camid", "why"),
    [
        (1, 1, "its own camera took as well"),
        (1, 0, "camera 0 took as well"),
        (3, 1, "none of the queries' identities is in the gallery"),
    ],
)
def test_no_query_with_an_answer(
    cfg: CfgNode, features: torch.Tensor, pid: int, camid: int, why: str
) -> None:
    samples = [
        Sample("a", 1, 0, "query"),
        Sample("b", pid, 0, "gallery"),
        Sample("c", 2, camid, "gallery"),
    ]
    with pytest.raises(ConfigError, match="'alone': no query has a right answer") as caught:
        run(cfg, TestSet("alone", samples), features[:3])
    assert why in str(caught.value)


def test_a_single_query_and_answer(cfg: CfgNode, features: torch.Tensor) -> None:
    samples = [Sample("a", 1, 0, "query"), Sample("b", 1, 1, "gallery")]
    cfg.TEST.CI.REPEATS = 10
    found = run(cfg, TestSet("one", samples), features[:2])
    assert found["single_shot/query/Rank-1"] == found["multi_shot/query/mAP"] == 100
    assert found["multi_shot/query/mINP"] == 100


def test_nan_features_name_their_group(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    for group in ("x3", "gallery"):
        bad = features.clone()
        bad[[i for i, s in enumerate(test_set.samples) if s.group == group][:2], 3] = float("nan")
        with pytest.raises(ConfigError, match=f"'demo': {group}: 2 of .* NaN"):
            run(cfg, test_set, bad)


def test_half_precision_features(cfg: CfgNode, test_set: TestSet, features: torch.Tensor) -> None:
    half = features.to(torch.bfloat16)
    assert run(cfg, test_set, half) == run(cfg, test_set, half.float())


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ({"features": 1}, TypeError, "not dict"),
        (torch.zeros(3), TypeError, r"not \(3,\)"),
        (torch.zeros(2, 4), ValueError, "3 images but 2 features"),
    ],
)
def test_model_outputs_are_checked(
    cfg: CfgNode, test_set: TestSet, outputs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CrossResolutionEvaluator(cfg, test_set).process({"index": torch.arange(3)}, outputs)
    with pytest.raises(KeyError, match="index"):
        CrossResolutionEvaluator(cfg, test_set).process({}, torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.METRIC", "manhattan"),
        ("TEST.PROTOCOLS", ["multi-shot"]),
        ("TEST.PROTOCOLS", []),
        ("TEST.RANKS", [0]),
        ("TEST.TRIALS", 0),
        ("TEST.SEED", -1),
        ("TEST.DRAW", "per-query"),
        ("TEST.FACTOR_BINS", [2, 4]),
        ("TEST.FACTOR_BINS", [1, 4, 4]),
        ("TEST.FACTOR_BINS", []),
        ("TEST.GALLERY.LR_SHARE", 1.5),
        ("TEST.CI.REPEATS", 1),
        ("TEST.CI.LEVEL", 1.0),
        ("TEST.CI.BY", "image"),
    ],
)
def test_settings_that_cannot_be_followed(
    cfg: CfgNode, test_set: TestSet, key: str, value: Any
) -> None:
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=key):
        CrossResolutionEvaluator(cfg, test_set)


@pytest.mark.parametrize(
    ("switch", "key", "value"),
    [
        ("RERANK", "TEST.RERANK.K2", 21),
        ("RERANK", "TEST.RERANK.LAMBDA", 1.5),
        ("AQE", "TEST.AQE.QE_K", 0),
        ("ROC", "TEST.ROC.FARS", []),
        ("ROC", "TEST.ROC.FARS", [0.0]),
        *((switch, "TEST.PROTOCOLS", ["single_shot"]) for switch in ("RERANK", "AQE", "ROC")),
    ],
)
def test_settings_of_a_switch(cfg: CfgNode, switch: str, key: str, value: Any) -> None:
    cfg.merge_from_list([key, value])
    check_config(cfg)  # nobody asks for it
    cfg.TEST[switch].ENABLED = True
    with pytest.raises(ConfigError, match=f"TEST.{switch}"):
        check_config(cfg)


def test_rates_are_those_of_the_pure_function(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = run(cfg, test_set, features)
    cfg.TEST.ROC.ENABLED, cfg.TEST.ROC.FARS = True, [1e-3, 0.055, 0.2]
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        found = run(cfg, test_set, features, tmp_path)
    assert plain.items() <= found.items()
    entry = saved(tmp_path / "results_demo.json")["groups"]
    for group in ("query", "x3", "query@2"):
        query, gallery = sides(test_set, features, group.split("@")[0])
        query = query.rows(query.factors == 2) if "@" in group else query
        rates = tar_at_far(Matching(query, gallery), cfg.TEST.ROC.FARS)
        figures = entry[group]["multi_shot"]
        for name, rate in zip(("1e-3", "5.5e-2", "2e-1"), rates.tar, strict=True):
            assert found[f"multi_shot/{group}/TAR@{name}"] == pytest.approx(100 * rate, abs=1e-5)
            assert figures[f"TAR@{name}"] == found[f"multi_shot/{group}/TAR@{name}"]
        assert figures["genuine_pairs"] == rates.genuine
        assert figures["impostor_pairs"] == rates.impostors
    assert 0 < found["multi_shot/query/TAR@5.5e-2"] < found["multi_shot/query/TAR@2e-1"]
    assert "True accept rates (%)" in caplog.text
    assert "@5.5e-2" in caplog.text
    shown = results_table(
        [Results.load(tmp_path / "results_demo.json")], ["multi_shot/query/TAR@2e-1"], names=["A"]
    )
    assert f"{found['multi_shot/query/TAR@2e-1']:.1f}" in shown


def test_reranking_leaves_junk_out_and_reaches_every_figure(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor, tmp_path: Path
) -> None:
    samples = [replace(s, pid=-1) if s.path == "q3.png" else s for s in test_set.samples]
    test_set = replace(test_set, samples=samples)
    plain = run(cfg, test_set, features)
    cfg.TEST.RERANK.ENABLED, cfg.TEST.RERANK.K1, cfg.TEST.RERANK.K2 = True, 6, 3
    cfg.TEST.ROC.ENABLED, cfg.TEST.ROC.FARS = True, [0.1]
    cfg.TEST.CI.REPEATS = 40
    found = run(cfg, test_set, features, tmp_path)
    query, gallery = sides(test_set, features, "query")
    query, gallery = query.rows(~query.is_junk), gallery.rows(~gallery.is_junk)
    assert (len(query), len(gallery)) == (19, 55)
    matching = Matching(query, gallery, jaccard=k_reciprocal(query, gallery, k1=6, k2=3))
    assert found["multi_shot/query/mAP"] == percent(rank_statistics(matching).mean_ap)
    assert found["multi_shot/query/mAP"] != plain["multi_shot/query/mAP"]
    rates = tar_at_far(matching, [0.1])
    assert found["multi_shot/query/TAR@1e-1"] == percent(rates.tar[0])
    # How much the rate varies with the people, at the same threshold; junk has no say in it.
    has = rates.genuine_by_query > 0
    counts = rates.genuine_by_query[has]
    ends = bootstrap_intervals(
        rates.accepted_by_query[has, 0] / counts, query.pids[has], weights=counts, repeats=40
    )[0]
    entry = saved(tmp_path / "results_demo.json")["groups"]["query"]["multi_shot"]
    assert entry["TAR@1e-1_ci"] == pytest.approx(100 * ends, abs=1e-5)
    assert ends[0] < rates.tar[0] < ends[1]
    # A part's pairs alone, of the same distances.
    part = tar_at_far(matching.part(query.factors == 3), [0.1])
    assert found["multi_shot/query@3/TAR@1e-1"] == percent(part.tar[0])
    single = [key for key in plain if key.startswith("single_shot")]
    assert [found[key] for key in single] == [plain[key] for key in single]
    content = saved(tmp_path / "results_demo.json")
    assert content["rerank"] == {"k1": 6, "k2": 3, "lambda": 0.3}
    assert content["groups"]["query"]["junk"] == 1
    assert content["groups"]["query"]["multi_shot"]["unmatched"] == 0
    assert "rerank" in results_table([Results.from_json(content)], names=["A"])
    low, high = entry["TAR@1e-1_ci"]
    assert f"[{low:.1f}, {high:.1f}]" in rate_table(Results.from_json(content))
    assert "_ci" not in rate_table(Results.from_json(content))


def test_no_pairs_no_rates(cfg: CfgNode, features: torch.Tensor, tmp_path: Path) -> None:
    """One identity in the gallery: there is no impostor pair."""
    cfg.TEST.ROC.ENABLED = True
    samples = [Sample("a", 1, 0, "query"), Sample("b", 1, 1, "gallery")]
    found = run(cfg, TestSet("one", samples), features[:2], tmp_path)
    assert found["multi_shot/query/mAP"] == 100
    assert not [key for key in found if "TAR@" in key]
    entry = saved(tmp_path / "results_one.json")["groups"]["query"]["multi_shot"]
    assert (entry["TAR@1e-4"], entry["impostor_pairs"]) == (None, 0)


def test_fused_anchors_are_verified_but_not_reranked(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    cfg.MODEL.ANCHORS.FACTORS = [2.0, 4.0]
    several = torch.stack([features, features + 0.1], dim=1)
    cfg.TEST.ROC.ENABLED = True

    def scored() -> Any:
        evaluator = CrossResolutionEvaluator(cfg, test_set)
        sizes = torch.full((len(several), 2), 8)
        evaluator.process({"index": torch.arange(len(several)), "native_size": sizes}, several)
        return evaluator.evaluate()

    assert "multi_shot/query/TAR@1e-2" in scored()
    for key in ("RERANK", "AQE"):
        cfg.TEST[key].ENABLED = True
        with pytest.raises(ConfigError, match=f"TEST.{key}.ENABLED: not available"):
            scored()
        cfg.TEST[key].ENABLED = False


def test_test_set_needs_query_and_gallery(cfg: CfgNode) -> None:
    for group in ("query", "gallery"):
        with pytest.raises(ConfigError, match="needs both"):
            CrossResolutionEvaluator(cfg, TestSet("half", [Sample("a", 1, 1, group)]))


def test_query_expansion_is_fastreids(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    plain = run(cfg, test_set, features)
    cfg.TEST.AQE.ENABLED = True
    found = run(cfg, test_set, features)
    query, gallery = sides(test_set, features, "query")
    gallery = gallery.rows(~gallery.is_junk)
    expanded = aqe(query.features, gallery.features, 1, 5, 3.0)
    query, gallery = (
        replace(s, features=f) for s, f in zip((query, gallery), expanded, strict=True)
    )
    ranked = rank_statistics(Matching(query, gallery))
    assert found["multi_shot/query/mAP"] == percent(ranked.mean_ap)
    assert found["multi_shot/query/mAP"] != plain["multi_shot/query/mAP"]
    single = [key for key in plain if key.startswith("single_shot")]
    assert [found[key] for key in single] == [plain[key] for key in single]
    cfg.TEST.AQE.QE_K = 75
    with pytest.raises(ConfigError, match="QE_K: 75 neighbours of 75 images"):
        run(cfg, test_set, features)


def test_one_protocol_alone(cfg: CfgNode, test_set: TestSet, features: torch.Tensor) -> None:
    both = run(cfg, test_set, features)
    for protocol in ("single_shot", "multi_shot"):
        cfg.TEST.PROTOCOLS = [protocol]
        found = run(cfg, test_set, features)
        assert found == {k: v for k, v in both.items() if k.startswith(protocol)}


def test_one_trial_has_no_deviation(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    cfg.TEST.TRIALS = 1
    found = run(cfg, test_set, features)
    assert "single_shot/query/Rank-1" in found
    assert not [key for key in found if key.endswith("_std")]


def test_no_compiler_is_called(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    started: list[list[str]] = []
    original = subprocess.run

    def watched(command: list[str], *args: Any, **kwargs: Any) -> Any:
        started.append(command)
        return original(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setenv("PATH", str(tmp_path))  # no make, no compiler, no git
    before = {name for name in sys.modules if "rank_cylib" in name}
    assert run(cfg, test_set, features, tmp_path)
    assert {name for name in sys.modules if "rank_cylib" in name} == before
    assert all(command[0] == "git" for command in started)
    assert saved(tmp_path / "results_demo.json")["commit"] == ""


def test_is_registered() -> None:
    assert EVALUATOR_REGISTRY.get("CrossResolutionEvaluator") is CrossResolutionEvaluator


def test_per_query_draw(cfg: CfgNode, test_set: TestSet, features: torch.Tensor) -> None:
    shared = run(cfg, test_set, features)
    cfg.TEST.DRAW, cfg.TEST.TRIALS, cfg.TEST.SEED = "per_query", 6, 3
    found = run(cfg, test_set, features)
    matching = Matching(*sides(test_set, features, "query"))
    shots = single_shot(matching, trials=6, seed=3, draw="per_query")
    assert found["single_shot/query/Rank-5"] == pytest.approx(100 * shots.mean((5,))[0])
    assert found["single_shot/query/Rank-1_std"] != shared["single_shot/query/Rank-1_std"]
    assert found["multi_shot/query/mAP"] == shared["multi_shot/query/mAP"]


@pytest.mark.parametrize("by", ["identity", "query"])
def test_intervals_are_those_of_the_pure_function(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    by: str,
) -> None:
    cfg.TEST.CI.REPEATS, cfg.TEST.CI.BY, cfg.TEST.SEED = 50, by, 4
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        run(cfg, test_set, features, tmp_path)
    content = saved(tmp_path / "results_demo.json")
    assert content["ci"] == {"level": 0.95, "repeats": 50, "by": by, "seed": 4}
    matching = Matching(*sides(test_set, features, "query"))
    ranked, shots = rank_statistics(matching), single_shot(matching, seed=4)
    how = {"repeats": 50, "by": by, "seed": 4}
    expected = {
        name: bootstrap_intervals(values, matching.query.pids, **how)[0]
        for name, values in (("mAP", ranked.ap), ("Rank-1", (shots.first_rank <= 1).mean(0)))
    }
    entry = content["groups"]["query"]
    assert entry["multi_shot"]["mAP_ci"] == pytest.approx(100 * expected["mAP"], abs=1e-5)
    assert entry["single_shot"]["Rank-1_ci"] == pytest.approx(100 * expected["Rank-1"], abs=1e-5)
    low, high = entry["multi_shot"]["mAP_ci"]
    assert low < entry["multi_shot"]["mAP"] < high
    units = "identities" if by == "identity" else "queries"
    assert f"95 % intervals, 50 bootstrap draws of {units}, seed 4" in caplog.text
    assert f"[{low:.1f}, {high:.1f}]" in caplog.text
    table = results_table([Results.from_json(content)], ["multi_shot/query/mAP"], names=["A"])
    assert f"{entry['multi_shot']['mAP']:.1f} [{low:.1f}, {high:.1f}]" in table
    assert f"50 bootstrap draws of {units}" in table


def test_parts_by_the_galleries_factors(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor
) -> None:
    """As in the SALR sets: HR queries, each with an answer of another factor."""
    samples = []
    for s in test_set.samples:
        if s.group == "gallery":
            s = replace(s, factor=4 + 0.5 * s.pid + 0.1 * s.camid)
        samples.append(replace(s, factor=1.0) if s.group == "query" else s)
    salr = TestSet("salr", samples)
    cfg.TEST.FACTOR_BINS = [1, 6, 8]
    groups = query_groups(salr, cfg.TEST.FACTOR_BINS)
    names = [name for name in groups if "@" in name]
    assert names == ["query@gallery1-6", "query@gallery6-8", "query@gallery8+"]
    for name, (low, high) in zip(names, [(1, 6), (6, 8), (8, 99)], strict=True):
        for i in groups["query"]:
            pid = salr.samples[i].pid
            answers = [s.factor for s in salr.samples if s.group == "gallery" and s.pid == pid]
            assert (i in groups[name]) == (low <= min(answers, default=0) < high)
    found = run(cfg, salr, features)
    assert "multi_shot/query@gallery1-6/mAP" in found


def test_unknown_factors_have_no_part(test_set: TestSet) -> None:
    """As in CAVIAR4REID: nobody knows by how much the queries are reduced."""
    samples = [
        replace(s, factor=float("nan")) if s.group == "query" else s for s in test_set.samples
    ]
    assert not [name for name in query_groups(TestSet("caviar", samples)) if "@" in name]
    assert factor_parts(np.array([np.nan, np.nan, 2.0])) == []
    parts = factor_parts(np.array([np.nan, 3.0, 2.0]))
    assert [label for label, _ in parts] == ["2", "3"]


def test_left_out_queries_have_a_column(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [
        replace(s, pid={"q0.png": 77, "q1.png": -1, "q2.png": 78}.get(s.path, s.pid))
        for s in test_set.samples
    ]
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        run(cfg, TestSet("demo", samples), features)
    lines = caplog.text.splitlines()
    assert next(line for line in lines if line.startswith("MLR ")).split()[1:3] == ["20", "3"]
    assert next(line for line in lines if line.startswith("HR -> HR ")).split()[3:5] == ["20", "0"]


def test_mixed_gallery_is_told(
    cfg: CfgNode,
    test_set: TestSet,
    features: torch.Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixed = mixed_gallery(test_set, 0.5, [2, 4], 0)
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        run(cfg, mixed, features, tmp_path)
    reduced = sum(s.group == "gallery" and s.factor > 1 for s in mixed.samples)
    content = saved(tmp_path / "results_demo.json")
    assert content["counts"]["gallery_lr"] == reduced > 0
    assert f"{reduced} low-resolution" in caplog.text
    assert "50 % of the gallery reduced by 2, 4" in results_table(
        [Results.from_json(content)], names=["A"]
    )
    # The queries are parted by their own factors, whatever the gallery's are.
    assert list(content["groups"])[:2] == ["query", "query@2"]


def test_factor_parts(cfg: CfgNode) -> None:
    assert factor_parts(np.full(5, 3.0)) == []
    few = factor_parts(np.array([2.0, 2.5, 2.0]))
    assert [(label, mask.tolist()) for label, mask in few] == [
        ("2", [True, False, True]),
        ("2.5", [False, True, False]),
    ]
    # Bins that were asked for are made of few factors too; the default's, given as a config has
    # them, aren't asked for.
    drawn = np.array([2.0, 2.5, 4.0])
    binned = [(label, mask.tolist()) for label, mask in factor_parts(drawn, [1, 3])]
    assert binned == [("1-3", [True, True, False]), ("3+", [False, False, True])]
    parts = factor_parts(drawn, cfg.TEST.FACTOR_BINS)
    assert [label for label, _ in parts] == ["2", "2.5", "4"]
    many = np.array([1.0, 1.5, 2.0, 2.2, 2.9, 3.0, 4.1, 5.9, 6.0, 40.0])
    parts = factor_parts(many)
    assert [label for label, _ in parts] == ["1-2", "2-3", "3-4", "4-6", "6-8", "16+"]
    assert np.sum([mask for _, mask in parts], axis=0).tolist() == [1] * 10
    assert many[dict(parts)["4-6"]].tolist() == [4.1, 5.9]


def test_results_are_readable_json_of_finite_numbers(
    cfg: CfgNode, test_set: TestSet, features: torch.Tensor, tmp_path: Path
) -> None:
    cfg.TEST.TRIALS = 1
    run(cfg, test_set, features, tmp_path)
    text = (tmp_path / "results_demo.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["groups"]["query"]["single_shot"]["Rank-1_std"] is None
