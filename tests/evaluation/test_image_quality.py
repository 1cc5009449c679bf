from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_OSNET
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from PIL import Image
from torch import nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_loader, build_test_set
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation import (
    CrossResolutionEvaluator,
    ImageQualityEvaluator,
    extract,
    psnr,
    ssim,
    twin_files,
)
from lrreid_ext.evaluation.run import evaluate
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.frontends import FrontendOutput

OSNET = "configs/osnet_copies.yml"
BOTH = '["CrossResolutionEvaluator", "ImageQualityEvaluator"]'


def naive_psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.clip(0, 255) - b.clip(0, 255)) ** 2)
    return 10 * math.log10(255**2 / error)


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """A window around each pixel of each channel, one by one."""
    a, b = a.clip(0, 255), b.clip(0, 255)
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(a, b, strict=True):
        x, y = np.pad(x, 5, mode="reflect"), np.pad(y, 5, mode="reflect")
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + c1) * (2 * cov + c2)
                values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def images(*errors: float, size: tuple[int, int] = (16, 12)) -> tuple[torch.Tensor, torch.Tensor]:
    """HR images that reach beyond 0-255, and the same with noise of each deviation."""
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(len(errors), 3, *size, generator=generator) * 275 - 10
    noise = torch.randn(hr.shape, generator=generator)
    return hr + torch.tensor(errors).view(-1, 1, 1, 1) * noise, hr


def test_per_image_figures_are_those_of_the_formulas() -> None:
    restored, hr = images(1.0, 10.0, 60.0)
    found = psnr(restored, hr), ssim(restored, hr)
    assert found[0].shape == found[1].shape == (3,)
    for k in range(3):
        pair = restored[k].double().numpy(), hr[k].double().numpy()
        assert found[0][k].item() == pytest.approx(naive_psnr(*pair), abs=1e-4)
        assert found[1][k].item() == pytest.approx(naive_ssim(*pair), abs=1e-5)


def test_mean_of_images_is_not_the_pooled_error() -> None:
    restored, hr = images(1.0, 30.0)
    pooled = naive_psnr(restored.double().numpy(), hr.double().numpy())
    assert psnr(restored, hr).mean().item() > pooled + 10


def test_limits_and_refusals() -> None:
    _, hr = images(1.0, 1.0)
    assert psnr(hr, hr).tolist() == [100.0, 100.0]
    assert ssim(hr, hr).tolist() == pytest.approx([1.0, 1.0])
    # Black against white: no decibels left, and no likeness.
    black, white = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 255.0)
    assert psnr(black, white).tolist() == pytest.approx([0.0], abs=1e-5)
    assert ssim(black, white).item() == pytest.approx(1e-4, rel=1e-2)
    for figure in (psnr, ssim):
        with pytest.raises(ValueError, match="both alike"):
            figure(hr, hr[:1])
        assert figure(hr.half(), hr).dtype == torch.float32


@pytest.fixture
def test_set(tmp_path: Path) -> TestSet:
    """Three queries of factors 2, 1 and 4, twins, x3 twins and a gallery, all of noise."""
    rng = np.random.default_rng(0)

    def image(name: str, height: int) -> str:
        path = tmp_path / name
        pixels = rng.integers(0, 256, (height, height // 2, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    hr = [image(f"h{k}.png", 64) for k in range(3)]
    lr = [image(f"q{k}.png", 64 // f) for k, f in enumerate((2, 1, 4))]
    samples = [
        Sample(p, 7, k, "query", f) for k, (p, f) in enumerate(zip(lr, (2, 1, 4), strict=True))
    ]
    samples += [Sample(image("g.png", 64), 7, 9, "gallery", 2, 2)]
    samples += [Sample(p, 7, k, "query_hr") for k, p in enumerate(hr)]
    samples += [Sample(p, 7, k, "x3", 3, 3) for k, p in enumerate(hr)]
    return TestSet("demo", samples, "0123456789abcdef", {"split": np.int64(3)})


class Restores(nn.Module):
    """A model of which the front-end alone may be run."""

    def __init__(self, restore: Callable[[dict[str, Any]], torch.Tensor]) -> None:
        super().__init__()
        self.made = restore
        self.seen: list[int] = []

    def restore(self, batch: dict[str, Any]) -> FrontendOutput:
        self.seen += batch["index"].tolist()
        assert len(batch["img_paths"]) == len(batch["images"])
        return FrontendOutput(self.made(batch))


def run(
    cfg: CfgNode, test_set: TestSet, model: nn.Module, out: Path | None = None
) -> dict[str, Any]:
    evaluator = ImageQualityEvaluator(cfg, test_set, str(out) if out else None)
    return extract(evaluator.attach(model), build_test_loader(cfg, test_set), evaluator)


@pytest.fixture
def cfg(make_cfg: Callable[..., CfgNode]) -> CfgNode:
    return make_cfg(OSNET, TINY_OSNET, "TEST.IMS_PER_BATCH", "2", "INPUT.SIZE_TEST", "[32, 16]")


def test_pairs_by_twin(cfg: CfgNode, test_set: TestSet, tmp_path: Path) -> None:
    paths = [s.path for s in test_set.samples]
    expected = {0: paths[4], 2: paths[6], 7: paths[4], 8: paths[5], 9: paths[6]}
    assert twin_files(test_set) == expected
    transform = build_transforms(cfg, is_train=False)

    def hr(batch: dict[str, Any]) -> torch.Tensor:
        files = [Image.open(expected[i]).convert("RGB") for i in batch["index"].tolist()]
        return torch.stack([transform(file) for file in files])

    model = Restores(hr)
    found = run(cfg, test_set, model, tmp_path / "out")
    assert sorted(model.seen) == sorted(expected)  # nothing else is restored, and nothing twice
    groups = ("query", "query@2", "query@4", "x3")
    names = {
        f"quality/{g}/{f}{i}" for g in groups for f in ("PSNR", "SSIM") for i in ("", "_input")
    }
    assert set(found) == names
    for group in groups:
        assert found[f"quality/{group}/PSNR"] == 100.0
        assert found[f"quality/{group}/SSIM"] == pytest.approx(1.0)
        assert found[f"quality/{group}/PSNR_input"] < 30
    # The input's own figure, by hand.
    low = transform(Image.open(paths[2]).convert("RGB")).double().numpy()
    high = transform(Image.open(paths[6]).convert("RGB")).double().numpy()
    assert found["quality/query@4/PSNR_input"] == pytest.approx(naive_psnr(low, high), abs=1e-4)
    assert found["quality/query@4/SSIM_input"] == pytest.approx(naive_ssim(low, high), abs=1e-5)
    both = [found[f"quality/query@{f}/PSNR_input"] for f in (2, 4)]
    assert found["quality/query/PSNR_input"] == pytest.approx(np.mean(both))

    written = json.loads((tmp_path / "out" / "quality_demo.json").read_text())
    assert written["groups"]["x3"]["images"] == 3
    assert written["groups"]["query"]["PSNR_input"] == found["quality/query/PSNR_input"]
    assert written["info"] == {"split": 3}
    assert written["size"] == [32, 16]
    assert {"command", "commit", "machine", "checkpoint", "manifest_hash"} < written.keys()


def test_several_processes(
    cfg: CfgNode, test_set: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Restores(lambda batch: batch["images"] * 0.9)
    expected = run(cfg, test_set, model)
    batches = list(build_test_loader(cfg, test_set))
    shares: list[Any] = []

    def gather(data: Any, dst: int = 0) -> list[Any]:
        shares.append(data)
        return shares[::-1] if comm.is_main_process() else []

    monkeypatch.setattr(comm, "gather", gather)
    # Process 2 gets nothing, process 1 a batch without twins too.
    for rank, share in ((2, batches[:0]), (1, batches[2:]), (0, batches[:2])):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        evaluator = ImageQualityEvaluator(cfg, test_set)
        restoration = evaluator.attach(model)
        for batch in share:
            evaluator.process(batch, restoration(batch))
        found = evaluator.evaluate()
        if rank == 0:
            assert found == pytest.approx(expected)
        else:
            assert found == {}


def test_each_image_once_and_only_numbers(cfg: CfgNode, test_set: TestSet) -> None:
    batches = list(build_test_loader(cfg, test_set))
    evaluator = ImageQualityEvaluator(cfg, test_set)
    restoration = evaluator.attach(Restores(lambda batch: batch["images"]))
    for batch in batches[:-1]:
        evaluator.process(batch, restoration(batch))
    with pytest.raises(ValueError, match=r"each of its 5 images must come once, but 2 are missing"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="not numbers in 5 of 5"):
        run(cfg, test_set, Restores(lambda batch: batch["images"] * math.nan))


def test_groups_out_of_step_are_refused(test_set: TestSet) -> None:
    samples = list(test_set.samples)
    samples[4], samples[5] = samples[5], samples[4]
    with pytest.raises(ValueError, match=r"q0\.png shows identity 7 in camera 0.*h1\.png"):
        twin_files(replace(test_set, samples=samples))
    del samples[4]
    with pytest.raises(ValueError, match="3 images in 'query' but 2 in 'query_hr'"):
        twin_files(replace(test_set, samples=samples))


def test_sets_without_twins_warn(
    cfg: CfgNode, test_set: TestSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = replace(test_set, samples=test_set.samples[:4])
    with caplog.at_level(logging.WARNING):
        found = run(cfg, genuine, Restores(lambda batch: batch["images"]), tmp_path / "out")
    assert found == {}
    assert "2 low-resolution queries have no HR twin" in caplog.text
    assert "TEST.HR" in caplog.text
    caplog.clear()
    ImageQualityEvaluator(cfg, replace(genuine, samples=[replace(genuine.samples[0], factor=1)]))
    assert "no image quality" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_front_end_is_refused(cfg: CfgNode, test_set: TestSet) -> None:
    with pytest.raises(ConfigError, match=r"TEST\.EVALUATORS.*Linear has none"):
        ImageQualityEvaluator(cfg, test_set).attach(nn.Linear(1, 1))


def test_both_evaluators_by_config(make_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    """With the flip test on, which must not touch the images that are compared."""
    options = ("TEST.EVALUATORS", BOTH, "TEST.FLIP.ENABLED", "True", "TEST.TRIALS", "1")
    cfg = make_cfg(OSNET, TINY_OSNET, "MODEL.HEADS.NUM_CLASSES", "6", *options)
    model = build_model(cfg).train()
    found = evaluate(cfg, model, str(tmp_path / "out"))["mlr_market1501"]
    assert model.training
    assert "single_shot/query/Rank-1" in found
    for group in ("query", "x2"):
        for figure in ("PSNR", "SSIM"):  # of Identity
            value = found[f"quality/{group}/{figure}"]
            assert value == found[f"quality/{group}/{figure}_input"]
    written = json.loads((tmp_path / "out" / "quality_mlr_market1501.json").read_text())

    # Independently: every pair of the built data set, by file name.
    transform = build_transforms(cfg, is_train=False)
    samples = build_test_set(cfg, "mlr_market1501").samples
    queries = [Path(s.path) for s in samples if s.group == "query" and s.factor > 1]
    assert written["groups"]["query"]["images"] == len(queries) > 0
    values = []
    for query in queries:
        pair = [query, query.parent.parent / "query_hr" / query.name]
        pixels = [transform(Image.open(p).convert("RGB")).double().numpy() for p in pair]
        values.append(naive_psnr(*pixels))
    assert found["quality/query/PSNR"] == pytest.approx(np.mean(values), abs=1e-4)
    assert (tmp_path / "out" / "results_mlr_market1501.json").exists()
    assert not hasattr(CrossResolutionEvaluator, "attach")
