from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("benchmarks/search.py")


def test_vectors_are_clustered_and_the_same_each_time(bench: ModuleType) -> None:
    drawn = bench.Drawn(5000, 64, 0)
    vectors = np.concatenate(list(drawn.blocks()))
    assert vectors.shape == (5000, 64) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = bench.Drawn(5000, 64, 0)
    assert np.array_equal(np.concatenate(list(again.blocks())), vectors)
    queries, people = drawn.queries(100)
    nearest = np.argmax(queries @ vectors.T, axis=1)
    right = np.mean(nearest % drawn.identities == people)
    assert 0.3 < right < 0.98  # neither hopeless nor trivial


def test_kinds_are_compared_with_the_exact_search(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In this process, to be quick.
    def here(task: str, kind: str, folder: Path, args: object) -> dict[str, object]:
        drawn = bench.Drawn(1200, 16, 0)
        if task == "build":
            return bench.build(kind, folder, drawn, 16, 0.8)
        return bench.serve(folder, drawn, 30)

    monkeypatch.setattr(bench, "_in_fresh_process", here)
    out = tmp_path / "figures" / "search.json"
    words = ["--vectors", "1200", "--dim", "16", "--queries", "30", "--recall", "0.8"]
    assert bench.main([*words, "--work", str(tmp_path), "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert list(results["kinds"]) == ["exact", "hnsw"]
    for kind, figures in results["kinds"].items():
        assert figures["index"] == kind
        assert 0 < figures["p50_milliseconds"] <= figures["p99_milliseconds"]
        assert figures["own_recall"] >= 0.8 and figures["recall_at_1"] > 0.6
    assert results["kinds"]["exact"]["recall_at_1"] == 1
    assert results["drawn"].startswith("Vectors are clusters")
    page = out.with_suffix(".md").read_text()
    assert page.count("\n| ") == 2 and "1200 vectors of 16 values" in page
    assert "[2/2] hnsw" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["figures"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--vectors", "10"], "--vectors must be"), (["--recall", "0"], "--recall must be")],
)
def test_options_that_cannot_be_used(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        bench.main(words)
    assert message in capsys.readouterr().err


def test_a_machine_too_small_is_told(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vectors", str(10**12), "--out", str(tmp_path / "s.json")]
    assert bench.main(words) == 1
    assert "GiB are needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
