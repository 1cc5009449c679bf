from __future__ import annotations

import importlib.util
import json
import mmap
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import load_script
from sklearn.metrics import average_precision_score


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("benchmarks/ranking.py")


def test_data_are_neither_trivial_nor_hopeless(bench: ModuleType) -> None:
    data = bench.make_data(60, 2000, 128)
    assert data.query.shape == (60, 128) and data.gallery.dtype == torch.float32
    assert set(data.q_camids) == set(data.g_camids) == set(range(6))
    distance = 1 - torch.nn.functional.cosine_similarity(data.query[:, None], data.gallery, dim=2)
    precision = []
    for i in range(60):
        same = data.g_pids == data.q_pids[i]
        kept = ~(same & (data.g_camids == data.q_camids[i]))
        assert same[kept].any()
        precision.append(average_precision_score(same[kept], -distance[i].numpy()[kept]))
    assert 0.35 < np.mean(precision) < 0.65
    again = bench.make_data(60, 2000, 128)
    assert torch.equal(again.query, data.query) and torch.equal(again.gallery, data.gallery)


def test_what_was_timed_on_some_queries_is_scaled(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.make_data(40, 300, 32)
    host = bench.measure("ranking-python", data, bench.Asked(2, 10, ""))
    assert len(host["seconds"]) == 2 and host["scaled_from"] == 10
    # 4 bytes a distance of all; 8 for the order and 8 for the CMC of each of the ranked, scaled.
    assert host["peak_bytes"] >= 40 * 300 * (4 + 8 + 8)
    everything = bench.Asked(1, 1000, "")
    assert bench.measure("ranking-python", data, everything)["scaled_from"] is None
    monkeypatch.setattr(
        bench, "_timed", lambda work, repeats: ([0.5] * repeats, work())
    )  # half a second for the distances, and for the ranking of a quarter of the queries
    found = bench.measure("ranking-python", data, bench.Asked(2, 10, ""))
    assert found["seconds"] == [0.5 + 4 * 0.5] * 2


def test_contenders_agree(bench: ModuleType) -> None:
    """Those that need no compiler, in this process, and so without peak memory that means much."""
    data, asked = bench.make_data(40, 300, 32), bench.Asked(1, 25, "")
    names = [name for name, c in bench.CONTENDERS.items() if not c.compiled]
    found = {name: bench.measure(name, data, asked) for name in names}
    bench._check_agreement(found)
    assert found["ranking"]["figures"]["mAP"] > 0
    assert found["reranking"]["figures"]["mAP"] != found["ranking"]["figures"]["mAP"]
    for name in ("single-shot", "single-shot-python", "single-shot-100"):
        assert found[name]["figures"]["Rank1"] == pytest.approx(0.6, abs=0.25)


@pytest.mark.skipif(
    not (shutil.which("cc") and importlib.util.find_spec("Cython")), reason="no compiler or Cython"
)
def test_compiled_contenders_agree(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.compile_host(str(tmp_path)) == ""
    data, asked = bench.make_data(40, 300, 32), bench.Asked(1, 25, str(tmp_path))
    names = ("ranking", "ranking-cython", "tar", "tar-cython")
    found = {name: bench.measure(name, data, asked) for name in names}
    bench._check_agreement(found)
    assert 0 < found["tar"]["figures"]["TAR"] < 1


def test_peak_memory_sees_what_was_freed(bench: ModuleType) -> None:
    peak = bench.PeakMemory()
    # Straight from the system: an allocator may hand out pages that it kept, which count already.
    with mmap.mmap(-1, 100 * 2**20) as pages:
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
    assert peak.read() > 90 * 2**20


def test_the_whole_run(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "compile_host", lambda folder: "no compiler")
    fresh, ran, said = bench.in_fresh_process, [], []

    def one_fresh(script: str, words: list[str], threads: int, what: str) -> dict:
        ran.append(what)
        if len(ran) == 1:
            return fresh(script, words, threads, what)
        assert bench.main(words) == 0  # quicker: here
        before, brace, found = capsys.readouterr().out.partition("{")
        said.append(before)
        return json.loads(brace + found)

    monkeypatch.setattr(bench, "in_fresh_process", one_fresh)
    out = tmp_path / "figures" / "ranking.json"
    sizes = ["--queries", "30", "--gallery", "150", "--dim", "16", "--host-queries", "10"]
    names = ["product", "ranking", "ranking-python", "ranking-cython"]
    words = [*sizes, "--repeats", "1", "--threads", "1", "--out", str(out), "--only", *names]
    assert bench.main(words) == 0
    printed = "\n".join([*said, capsys.readouterr().out])
    assert "[2/4] ranking, lrreid_ext ..." in printed and "left out: no compiler" in printed
    results = json.loads(out.read_text())
    assert list(results["contenders"]) == names[:3]
    assert results["left_out"] == {"ranking-cython": "no compiler"}
    assert results["contenders"]["product"]["threads"] == 1
    assert results["machine"]["torch"] and results["settings"]["gallery"] == 150
    page = out.with_suffix(".md").read_text()
    assert page.count("\n| ") == 3 and "timed on 10 queries" in page and "left out, no" in page
    assert "| matrix product" in page and "1.00 |" in page
    assert sorted(p.name for p in out.parent.iterdir()) == ["ranking.json", "ranking.md"]


def test_figures_that_differ_are_refused(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    maps = {"ranking": 0.5, "ranking-python": 0.51}
    monkeypatch.setattr(
        bench,
        "in_fresh_process",
        lambda script, words, threads, name: {"seconds": [1.0], "figures": {"mAP": maps[name]}},
    )
    assert bench.main(["--only", *maps, "--out", str(tmp_path / "r.json")]) == 1
    message = "ranking: mAP differs: lrreid_ext 0.500000, fast-reid, Python 0.510000"
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--gallery", "1"], "--gallery must be at least 2"),
        (["--threads", "-1"], "'-1' is not a whole number"),
        (["--only", "rank"], "invalid choice: 'rank'"),
        (["--out", "figures"], "must end in .json"),
    ],
)
def test_options_that_cannot_be_used(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
