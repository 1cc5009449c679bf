from __future__ import annotations

import json
import mmap
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


def test_contenders_agree_and_the_host_is_scaled(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.make_data(40, 300, 32)
    ours = bench.measure(bench.OURS, data, 2, 10)
    host = bench.measure(bench.HOST, data, 2, 10)
    assert len(ours["seconds"]) == len(host["seconds"]) == 2
    assert host["map"] == pytest.approx(ours["map"], abs=1e-6)
    assert (ours["scaled_from"], host["scaled_from"]) == (None, 10)
    # 4 bytes a distance of all; 8 for the order and 8 for the CMC of each of the ranked, scaled.
    assert host["peak_bytes"] >= 40 * 300 * (4 + 8 + 8)
    assert bench.measure(bench.HOST, data, 1, 1000)["scaled_from"] is None
    monkeypatch.setattr(
        bench, "_seconds", lambda work, repeats: ([0.5] * repeats, work())
    )  # half a second for the distances, and for the ranking of a quarter of the queries
    assert bench.measure(bench.HOST, data, 2, 10)["seconds"] == [0.5 + 4 * 0.5] * 2


def test_peak_memory_sees_what_was_freed(bench: ModuleType) -> None:
    peak = bench.PeakMemory()
    # Straight from the system: an allocator may hand out pages that it has kept, which count already.
    with mmap.mmap(-1, 100 * 2**20) as pages:
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
    assert peak.read() > 90 * 2**20


def test_the_whole_run(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures" / "ranking.json"
    sizes = ["--queries", "30", "--gallery", "150", "--dim", "16", "--host-queries", "10"]
    assert bench.main([*sizes, "--repeats", "1", "--threads", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert list(results["contenders"]) == list(bench.CONTENDERS)
    assert all(f"[{k}/3] {name}" in printed for k, name in enumerate(bench.CONTENDERS, start=1))
    bare = results["contenders"][bench.PRODUCT]
    assert bare["ratio"] == 1 and bare["threads"] == 1
    assert results["machine"]["torch"] and results["settings"]["gallery"] == 150
    page = out.with_suffix(".md").read_text()
    assert page.count("\n| ") == 3 and "ranking timed on 10 queries" in page
    assert sorted(p.name for p in out.parent.iterdir()) == ["ranking.json", "ranking.md"]


def test_figures_that_differ_are_refused(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    maps = {bench.PRODUCT: None, bench.OURS: 0.5, bench.HOST: 0.51}
    monkeypatch.setattr(
        bench, "_in_fresh_process", lambda name, args: {"seconds": [1.0], "map": maps[name]}
    )
    assert bench.main(["--out", str(tmp_path / "r.json")]) == 1
    assert "mAP differs: ours 0.500000, fast-reid's 0.510000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--gallery", "1"], "--gallery must be at least 2"),
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
