from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import TINY, load_script
from mini_systems import SYSTEMS

from lrreid_ext.errors import ConfigError


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("benchmarks/export.py")


def test_both_files_are_written_compared_and_timed(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small, and in this process: to be quick.
    def here(_: str, words: list[str], threads: int, what: str) -> dict[str, Any]:
        args = bench.parser().parse_args(words)
        system, folder = args.task
        row = bench.export(system, Path(folder), args, [*TINY, *SYSTEMS[system][1]])
        assert {path.suffix for path in Path(folder).iterdir()} == {".pt2", ".onnx"}
        return row

    monkeypatch.setattr(bench, "in_fresh_process", here)
    out = tmp_path / "export.json"
    words = ["--only", "SING", "--batches", "2", "3", "--repeats", "3", "--warm-up", "1"]
    assert bench.main([*words, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["systems"].values()
    assert row["size"] == [64, 32] and row["crops"] == [32, 16]
    for file in row["files"].values():
        assert 0 <= file["largest_difference"] <= 1e-4 and file["bytes"] > 1000
    assert {key: set(kinds) for key, kinds in row["passes"].items()} == {
        "2": {"eager", "torch", "onnx"}, "3": {"eager", "torch", "onnx"},
    }  # fmt: skip
    assert all(len(times) == 3 for kinds in row["passes"].values() for times in kinds.values())
    page = out.with_suffix(".md").read_text().splitlines()
    cells = [cell.strip() for cell in next(x for x in page if x.startswith("| SING")).split("|")]
    median = {kind: statistics.median(times) for kind, times in row["passes"]["3"].items()}
    ratios = [f"{median['eager'] / median[kind]:.2f}" for kind in ("torch", "onnx")]
    assert cells[-3:-1] == ratios


def test_what_fails_is_said_and_leaves_no_file(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "export.json"
    with pytest.raises(SystemExit):
        bench.main(["--batches", "0", "--out", str(out)])
    assert "--batches must be at least 1" in capsys.readouterr().err

    def missing() -> None:
        raise ConfigError("--to onnx needs onnx")

    monkeypatch.setattr(bench, "runtime", missing)
    assert bench.main(["--out", str(out)]) == 1
    assert "needs onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
