"""What a GPU computes is what the processor does, and training runs there; skipped without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from mini_systems import METHODS, PEOPLE

from lrreid_ext import load_model
from lrreid_ext.config import load_cfg
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.evaluation import (
    METRICS,
    Matching,
    Side,
    distance_matrix,
    expand,
    k_reciprocal,
    nearest,
    rank_statistics,
    single_shot,
    tar_at_far,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def people() -> tuple[Side, Side]:
    """Features of 30 people by six cameras, some images twice, and who they are and where."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((31, 64))
    q_pids, g_pids = random.integers(1, 31, 60), random.integers(-1, 31, 700)
    q_camids, g_camids = random.integers(0, 6, 60), random.integers(0, 6, 700)

    def features(pids: np.ndarray) -> torch.Tensor:
        noise = random.standard_normal((len(pids), 64))
        return torch.from_numpy(centres[pids] + 1.5 * noise).float()

    query, gallery = features(q_pids), features(g_pids)
    gallery[600:650] = gallery[:50]
    return Side(query, q_pids, q_camids, "query"), Side(gallery, g_pids, g_camids, "gallery")


def on_gpu(side: Side) -> Side:
    return replace(side, features=side.features.cuda())


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_the_processor(people: tuple[Side, Side], metric: str) -> None:
    query, gallery = (side.features for side in people)
    here = distance_matrix(query, gallery, metric)
    there = distance_matrix(query.cuda(), gallery.cuda(), metric)
    assert there.is_cuda and torch.allclose(there.cpu(), here, atol=1e-5, rtol=1e-5)
    assert torch.equal(there[:, 600:650], there[:, :50])  # copies are exactly as far


@pytest.mark.parametrize("chunk", (None, 7))
def test_ranks_are_those_of_the_processor(people: tuple[Side, Side], chunk: int | None) -> None:
    query, gallery = people
    here = rank_statistics(Matching(query, gallery, chunk=chunk))
    there = rank_statistics(Matching(on_gpu(query), on_gpu(gallery), chunk=chunk))
    assert np.array_equal(there.first_rank, here.first_rank)
    assert np.allclose(there.ap, here.ap, equal_nan=True)
    assert np.allclose(there.inp, here.inp, equal_nan=True)


@pytest.mark.parametrize(
    "figures",
    (
        lambda *sides: single_shot(Matching(*sides), trials=3).first_rank,
        lambda *sides: single_shot(Matching(*sides), trials=3, draw="per_query").first_rank,
        lambda *sides: tar_at_far(Matching(*sides), (1e-3, 1e-2, 1)).tar,
        lambda *sides: rank_statistics(Matching(*sides, jaccard=k_reciprocal(*sides))).ap,
        lambda *sides: rank_statistics(Matching(*expand(*sides))).ap,
        lambda *sides: nearest(Matching(*sides).part([5, 2]), 3).order,
    ),
    ids=("single-shot", "per query", "TAR at FAR", "re-ranking", "expansion", "nearest"),
)
def test_protocols_agree(people: tuple[Side, Side], figures: Callable[..., np.ndarray]) -> None:
    # 60 values are no multiple of a warp.
    query, gallery = (replace(side, features=side.features[:, :60]) for side in people)
    gallery = gallery.rows(np.arange(600))
    here, there = figures(query, gallery), figures(on_gpu(query), on_gpu(gallery))
    assert np.allclose(there, here, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_parameters_learn_in_each_precision(method: str, tmp_path: Path) -> None:
    def learned(device: str, precision: str) -> set[str]:
        options = [
            *PEOPLE, *METHODS[method], "DATASETS.TESTS", "[]",
            "DATASETS.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / device / precision),
            "MODEL.DEVICE", device, "TEST.EVAL_PERIOD", "0",
            "SOLVER.AMP.ENABLED", str(precision != "float32"),
            "SOLVER.AMP.DTYPE", precision.replace("float32", "bfloat16"),
        ]  # fmt: skip
        cfg = load_cfg(str(ROOT / f"projects/{method}/synth.yml"), options)
        cfg.defrost()
        for phase in cfg.PHASES.values():
            # In float16 the first dozen steps may only find the scale of the gradients.
            phase.EPOCHS = 8
        trainer = Trainer(cfg)
        model = trainer.raw_model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        trainer.train()
        assert {value.device.type for value in model.parameters()} == {device}
        assert all(torch.isfinite(value).all() for value in model.parameters())
        return {name for name, value in model.named_parameters()
                if not torch.equal(value, before[name])}  # fmt: skip

    wanted = learned("cpu", "float32")
    assert wanted
    for precision in ("float32", "float16", "bfloat16"):
        assert learned("cuda", precision) == wanted, precision


def test_a_run_is_trained_resumed_evaluated_and_used(tmp_path: Path) -> None:
    """By the commands a user types, in one NCCL process; the features are the processor's."""
    run = tmp_path / "run"
    words = [
        "--config-file", "projects/PSHRNet/synth.yml", *PEOPLE, *METHODS["PSHRNet"],
        "PHASES.teacher.EPOCHS", "2", "PHASES.student.EPOCHS", "2",
        "DATASETS.ROOT", str(tmp_path), "OUTPUT_DIR", str(run),
        "SOLVER.AMP.ENABLED", "True", "TEST.EVAL_PERIOD", "2",
    ]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]

    def command(*own: str) -> dict:
        done = subprocess.run(
            [sys.executable, *torchrun, "tools/train_net.py", *own, *words],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return json.loads((run / "results_synth_pedestrians.json").read_text())

    first = command()
    assert "gpu" in first["machine"]
    weights = torch.load(run / "model_final.pth", weights_only=True)["model"]
    (run / "last_checkpoint").write_text("phase_teacher.pth")
    command("--resume")
    again = torch.load(run / "model_final.pth", weights_only=True)["model"]
    close = [torch.allclose(again[k].float(), v.float(), atol=1e-2) for k, v in weights.items()]
    assert all(close)
    assert command("--eval-only")["groups"].keys() == first["groups"].keys()

    image = np.random.default_rng(0).integers(0, 255, (40, 20, 3), dtype=np.uint8)
    here = load_model(run, device="cpu").embed([image])
    there = load_model(run, device="cuda").embed([image])
    assert torch.allclose(there.cpu(), here, atol=1e-2 * here.abs().max().item())
