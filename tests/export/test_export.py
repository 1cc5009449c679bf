"""Exported models compute what the evaluation does, whatever sizes come; or there is no file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from mini_systems import MINI, OSNET, SYSTEMS
from PIL import Image
from torch import Tensor, nn

from lrreid_ext.cli import main
from lrreid_ext.config import load_cfg
from lrreid_ext.errors import ConfigError, ParityError
from lrreid_ext.export.deployable import Deployable, expected, pack
from lrreid_ext.export.formats import (
    describe,
    dynamic_shapes,
    read_metadata,
    write_onnx,
    write_torch,
)
from lrreid_ext.export.parity import Parity
from lrreid_ext.modeling.build import build_model
from lrreid_ext.registry import META_ARCH_REGISTRY
from lrreid_ext.trained import TrainedModel


def run_of(
    yaml: str, options: Sequence[str], folder: str = "", anchors: bool = True
) -> TrainedModel:
    """A model with weights that make every part of it show."""
    words = [*TINY, *options, "MODEL.HEADS.NUM_CLASSES", "6", "OUTPUT_DIR", folder or "logs"]
    cfg = load_cfg(str(ROOT / yaml), words)
    model = build_model(cfg).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.std() if parameter.numel() > 1 else torch.tensor(0.0)
            parameter.add_(0.1 * size.clamp(min=0.1) * torch.randn(parameter.shape, generator=draw))
    if anchors and hasattr(model, "trained"):
        model.trained.fill_(True)
    return TrainedModel("tiny", cfg, model, {"command": "tools/train_net.py OUTPUT_DIR /home/me/x"})


def parts(run: TrainedModel, resized: bool = False) -> tuple[Deployable, Parity]:
    return Deployable(run.cfg, run.module, resized=resized), Parity(
        run.cfg, run.module, resized=resized
    )


@pytest.mark.parametrize("system", ["SING", "Bilinear"])
def test_the_graph_agrees_on_mixed_sizes_and_batches(system: str, tmp_path: Path) -> None:
    run = run_of(*SYSTEMS[system])
    deployable, parity = parts(run)
    path = tmp_path / "model.pt2"
    written = write_torch(path, deployable, parity, describe(run, deployable))
    assert written["parity"]["batches"] == [1, 3, 8]
    assert read_metadata(path) == written
    assert b"/home/" not in path.read_bytes() and str(ROOT).encode() not in path.read_bytes()
    if system == "Bilinear":
        return
    assert written["fusion"]["anchors"] == [2.0, 3.0]
    # SING restores what has fewer native rows than the input: a constant would be caught.
    images, native = pack([np.full((64, 32, 3), 90, np.uint8), np.full((20, 10, 3), 90, np.uint8)])
    program = torch.export.load(path).module()
    at_size = expected(run.cfg, run.module, [np.full((64, 32, 3), 90, np.uint8)])
    embeddings = program(images, native)
    torch.testing.assert_close(embeddings[:1], at_size)
    assert (embeddings[1] - embeddings[0]).abs().max() > 1e-3


# CSRGAN is exported by the test of benchmarks/export.py, PS-HRNet by that of the command below.
@pytest.mark.parametrize("system", ["SING", "RIFE", "RAIN"])
def test_onnx_runtime_agrees(system: str, tmp_path: Path) -> None:
    run = run_of(*SYSTEMS[system])
    deployable, parity = parts(run, resized=system == "RIFE")
    path = tmp_path / "model.onnx"
    written = write_onnx(path, deployable, parity, describe(run, deployable))
    assert 0 <= written["parity"]["largest_difference"] < 1e-4
    assert read_metadata(path) == written
    assert len(written["weights_hash"]) == len(written["config_hash"]) == 64
    assert str(ROOT).encode() not in path.read_bytes()


def test_flip_and_length_are_those_of_the_evaluation() -> None:
    run = run_of("configs/osnet_copies.yml", [*OSNET, *MINI, "TEST.FLIP.ENABLED", "True"])
    deployable, parity = parts(run)
    for images, native, wanted in parity.batches:
        torch.testing.assert_close(deployable(images, native), wanted)
        torch.testing.assert_close(wanted.norm(dim=1), torch.ones(len(wanted)))
    plain = run_of("configs/osnet_copies.yml", [*OSNET, "TEST.METRIC", "euclidean"])
    crop = np.full((40, 20, 3), 90, np.uint8)
    wanted = expected(plain.cfg, plain.module, [crop])
    assert abs(float(wanted.norm()) - 1) > 0.1
    torch.testing.assert_close(Deployable(plain.cfg, plain.module)(*pack([crop])), wanted)


def test_what_only_training_needs_stays_out() -> None:
    run = run_of(*SYSTEMS["CSRGAN"])
    deployable, parity = parts(run)
    names = {name.split(".")[1] for name in deployable.state_dict()}
    assert names == {"frontend", "backbone", "heads"}
    assert any(name.startswith("discriminators") for name in run.module.state_dict())
    for images, native, wanted in parity.batches:
        torch.testing.assert_close(deployable(images, native), wanted)


def test_untrained_anchors_stay_out() -> None:
    run = run_of(*SYSTEMS["SING"], anchors=False)
    run.module.trained[0] = True
    deployable, parity = parts(run)
    assert deployable.factors == [2.0]
    images, native, wanted = parity.batches[1]
    assert wanted.shape[1] == 1 and bool(wanted.isfinite().all())
    torch.testing.assert_close(deployable(images, native), wanted)


@META_ARCH_REGISTRY.register()
class _Baked(nn.Module):
    """Decides by what it sees, in Python: a trace keeps one answer for all."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.scale * batch["images"].mean((2, 3))
        exporting = torch.compiler.is_exporting()
        return features if exporting or int(batch["native_size"][0, 0]) > 30 else -features


@pytest.mark.parametrize("write", [write_onnx, write_torch])
def test_a_graph_that_differs_is_not_written(write: Any, tmp_path: Path) -> None:
    run = run_of("configs/osnet_copies.yml", [*OSNET, "MODEL.META_ARCHITECTURE", "_Baked"])
    deployable, parity = parts(run)
    path = tmp_path / "model.pt2"
    path.write_text("an older one")
    with pytest.raises(ParityError, match=r"model\.pt2.*nothing was written.*routing"):
        write(path, deployable, parity, {})
    assert path.read_text() == "an older one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("difference", "passes"), [(3e-5, True), (3e-4, False), (float("nan"), False)]
)
def test_how_far_a_graph_may_be_off(difference: float, passes: bool) -> None:
    run = run_of("configs/osnet_copies.yml", [*OSNET, *MINI])
    parity = Parity(run.cfg, run.module)
    batches = iter(parity.batches)

    def graph(images: Tensor, native: Tensor) -> Tensor:
        wanted = next(batches)[2].clone()
        wanted[-1, 0] += difference * wanted.abs().max()
        return wanted

    if passes:
        assert parity.check(graph, "m")["largest_difference"] == pytest.approx(difference, rel=0.05)
    else:
        with pytest.raises(ParityError, match="m: embeddings differ"):
            parity.check(graph, "m")


def test_what_cannot_be_exported_says_why() -> None:
    run = run_of("configs/osnet_copies.yml", [*OSNET, "INPUT.CROP.ENABLED", "True"])
    with pytest.raises(ConfigError, match=r"INPUT\.CROP"):
        Deployable(run.cfg, run.module)


def test_without_the_extra_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(tmp_path), "--to", "onnx"]) == 2
    assert "pip install -e .[export]" in capsys.readouterr().err


def test_sizes_out_of_range_count_as_the_nearest(tmp_path: Path) -> None:
    run = run_of(*SYSTEMS["Bilinear"], str(tmp_path))
    deployable = Deployable(run.cfg, run.module)
    images = torch.randint(0, 256, (3, 3, 40, 20), dtype=torch.uint8)
    program = torch.export.export(
        deployable, (images, torch.full((3, 2), 20)), dynamic_shapes=dynamic_shapes(deployable)
    ).module()
    far = program(images, torch.tensor([[0, 20], [900, 20], [40, -3]]))
    near = program(images, torch.tensor([[1, 20], [40, 20], [40, 1]]))
    assert torch.isfinite(far).all() and torch.equal(far, near)


def saved(run: TrainedModel, folder: Path) -> None:
    """Keep a run as training does."""
    torch.save({"model": run.module.state_dict()}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    (folder / "config.yaml").write_text(run.cfg.dump(sort_keys=False))


def test_a_place_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").touch()
    words = [str(tmp_path), "--to", "safetensors", "--out", str(tmp_path / "f")]
    assert main(["export", *words]) == 2
    assert "can't be a folder" in capsys.readouterr().err


def test_one_command_and_ten_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(*SYSTEMS["PSHRNet"], str(tmp_path))
    saved(run, tmp_path)
    assert main(["export", str(tmp_path), "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out

    crop = np.random.default_rng(0).integers(0, 256, (50, 21, 3), dtype=np.uint8)
    Image.fromarray(crop).save(tmp_path / "a.png")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "docs/examples/onnx_embed.py"),
            str(tmp_path / "out/model.onnx"), str(tmp_path / "a.png"),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    embedding = expected(run.cfg, run.module, [crop])
    assert f"a.png {tuple(embedding.shape)}" in done.stdout
    numbers = [float(word) for word in done.stdout.split("[")[1].strip("] \n").split()]
    assert numbers == pytest.approx(embedding[0, :4].tolist(), abs=1e-5)
