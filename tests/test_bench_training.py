from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import TINY_PSHRNET, load_script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("benchmarks/training.py")


def test_a_system_trains_in_each_precision(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small, and in this process: to be quick.
    at = TINY_PSHRNET.index("DATASETS.NAMES")
    small = [*TINY_PSHRNET[:at], *TINY_PSHRNET[at + 4 :]]
    monkeypatch.setattr(bench, "SYSTEMS", {"PSHRNet": small})
    people = {"identities": 12, "cameras": 2, "shots": 2, "height": 64, "width": 32}
    monkeypatch.setattr(bench, "PEOPLE", people)
    steps = []

    def here(_: str, words: list[str], threads: int, what: str) -> dict[str, Any]:
        args = bench.parser().parse_args(words)
        steps.append((what, args.iterations + args.warm_up))
        return bench.train(*args.task, args)

    monkeypatch.setattr(bench, "in_fresh_process", here)
    out = tmp_path / "training.json"
    words = ["--iterations", "2", "--warm-up", "2", "--workers", "0", "--out", str(out)]
    assert bench.main(words) == 0
    # More iterations than an epoch has.
    assert steps == [("PSHRNet, float32", 4), ("PSHRNet, bfloat16", 4)]
    runs = json.loads(out.read_text())["systems"]["PSHRNet"]
    assert list(runs) == ["float32", "bfloat16"]
    for found in runs.values():
        assert len(found["seconds"]) == len(found["waited"]) == 2
        assert all(0 < w < s for w, s in zip(found["waited"], found["seconds"], strict=True))
        assert (found["phase"], found["size"], found["images"]) == ("student", [64, 32], 8)
    assert runs["float32"]["loss"] != runs["bfloat16"]["loss"]
    page = out.with_suffix(".md").read_text().splitlines()
    plain, mixed = [line.split("|") for line in page if line.startswith("| PSHRNet")]
    faster = runs["bfloat16"]["images_per_second"] / runs["float32"]["images_per_second"]
    assert (plain[7].strip(), mixed[7].strip()) == ("1.00", f"{faster:.2f}")


def test_what_cannot_run_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--precision", "float16"])
    assert "--device cuda" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            bench.main(["--device", "cuda"])
        assert "no GPU" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_fails(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "build_dataset", lambda *_, **__: None)
    found = {"loss": float("nan"), "seconds": [1.0], "images": 2}
    monkeypatch.setattr(bench, "in_fresh_process", lambda *_: dict(found))
    args: argparse.Namespace = bench.parser().parse_args(["--only", "RAIN"])
    with pytest.raises(bench.BenchmarkError, match="RAIN, float32: the loss"):
        bench.run_all(args)
