"""The resolution estimator: against its definition, on rendered people, and through its switch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, run_script
from PIL import Image

from lrreid_ext.config import get_cfg
from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.loaders import build_test_loader
from lrreid_ext.data.resolution import (
    COEFFICIENTS,
    CUTOFFS,
    LARGEST,
    estimated_factor,
    estimated_size,
    factor_from,
    fit_coefficients,
    tail_shares,
)
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.data.synth import render
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.trained import TrainedModel

tool = load_script("benchmarks/resolution.py")


def people(count: int, first: int = 0) -> Iterator[Image.Image]:
    for k in range(first, first + count):
        yield Image.fromarray(render(k, k % 3, 0, seed=5, height=128, width=64))


def enlarged(image: Image.Image, factor: float, kernel: str = "bicubic") -> Image.Image:
    return degrade(image, factor, kernel).resize(image.size, Image.Resampling.BICUBIC)


def test_shares_are_those_of_a_naive_transform() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (12, 9)).astype(np.uint8)
    window = np.outer(
        [0.5 - 0.5 * np.cos(2 * np.pi * (y + 1) / 13) for y in range(12)],
        [0.5 - 0.5 * np.cos(2 * np.pi * (x + 1) / 10) for x in range(9)],
    )
    pixels = grey / 255
    faded = (pixels - (pixels * window).sum() / window.sum()) * window
    power = np.zeros((12, 9))
    for v in range(12):
        for u in range(9):
            wave = np.exp(
                -2j * np.pi * (v * np.arange(12)[:, None] / 12 + u * np.arange(9)[None] / 9)
            )
            power[v, u] = abs((faded * wave).sum()) ** 2 / (window**2).sum() / 108
    expected = []
    for factor in CUTOFFS:
        beyond = sum(
            power[v, u]
            for v in range(12)
            for u in range(9)
            if max(min(v, 12 - v) / 12, min(u, 9 - u) / 9) > 0.5 / factor - 1e-9
        )
        expected.append(np.log10((beyond + 1e-7) / (power.sum() + 1e-7)))
    np.testing.assert_allclose(tail_shares(Image.fromarray(grey)), expected, atol=1e-9)


def test_estimates_follow_the_factor() -> None:
    """People whom the coefficients weren't fitted on, each reduced and enlarged again."""
    for kernel in ("bicubic", "area"):
        previous = 1.0
        for factor in (1.5, 2, 3, 4, 6, 8):
            found = [estimated_factor(enlarged(image, factor, kernel)) for image in people(12)]
            assert previous < np.median(found), (kernel, factor)
            assert np.median(found) == pytest.approx(factor, rel=0.25)
            previous = float(np.median(found))
    sharp = [estimated_factor(image) for image in people(12)]
    assert np.median(sharp) < 1.5
    assert all(1 <= f <= LARGEST for f in sharp)
    # Images left at their small size have what pixels they have.
    small = [estimated_factor(degrade(image, 4)) for image in people(12)]
    assert np.median(small) < 1.3


def test_sizes_and_what_nothing_can_be_told_of() -> None:
    image = enlarged(next(people(1)), 4)
    height, width = estimated_size(image)
    factor = estimated_factor(image)
    assert (height, width) == (round(128 / factor), round(64 / factor))
    tiny = Image.new("RGB", (7, 20))
    assert estimated_factor(tiny) == 1
    assert estimated_size(tiny) == (20, 7)
    flat = estimated_factor(Image.new("RGB", (64, 128), (9, 9, 9)))
    assert 1 <= flat <= LARGEST
    grey = image.convert("L")
    assert estimated_factor(grey) == pytest.approx(factor, rel=0.01)


def test_fit_finds_the_coefficients_that_made_the_factors() -> None:
    rng = np.random.default_rng(0)
    shares = -np.abs(rng.normal(2, 1, (400, 7)))
    true = np.array([1.5, *rng.normal(0, 0.1, 14)])
    terms = np.concatenate([np.ones((400, 1)), shares, shares**2], axis=1)
    factors = 2 ** np.clip(terms @ true, 0, None)
    inner = factors > 1
    found = fit_coefficients(shares[inner], factors[inner], penalty=1e-9)
    np.testing.assert_allclose(found, true, atol=2e-3)
    np.testing.assert_allclose(factor_from(shares, true), np.minimum(factors, 16), rtol=1e-9)
    with pytest.raises(ValueError, match="two factors"):
        fit_coefficients(shares, np.full(400, 2.0))
    with pytest.raises(ValueError, match="don't fit 3"):
        fit_coefficients(shares, [1, 2, 3])


def test_every_factor_weighs_the_same() -> None:
    """However many images there are of one."""
    rng = np.random.default_rng(1)
    shares, factors = -rng.random((60, 7)), np.repeat([1.0, 4.0], 30)
    shares[30:] -= 0.3
    more = np.concatenate([shares, *[shares[30:]] * 9])
    labels = np.concatenate([factors, *[factors[30:]] * 9])
    np.testing.assert_allclose(
        fit_coefficients(more, labels), fit_coefficients(shares, factors), atol=1e-3
    )


def test_a_new_fit_on_few_people_agrees_with_the_one_in_the_code() -> None:
    """The stored numbers are what the tool's own steps give, up to who is looked at."""
    found = [
        m for image in people(8, first=100) for m in tool.versions(image, (1, 2, 4, 8), ("area",))
    ]
    shares, truth = np.stack([m.shares for m in found]), np.array([m.factor for m in found])
    fresh = fit_coefficients(shares, truth)
    assert len(fresh) == len(COEFFICIENTS)
    off = [np.abs(np.log2(factor_from(shares, c) / truth)).mean() for c in (fresh, COEFFICIENTS)]
    assert off[0] <= off[1] < 0.35


# ---------------------------------------------------------------- the switch
def test_test_images_by_estimate(tmp_path: Path) -> None:
    samples = []
    for k, image in enumerate(people(3)):
        enlarged(image, 4).save(tmp_path / f"{k}.png")
        samples.append(Sample(str(tmp_path / f"{k}.png"), k + 1, k, "query", float("nan")))
    cfg = get_cfg()
    cfg.INPUT.SIZE_TEST, cfg.TEST.NUM_WORKERS = [64, 32], 0
    test_set = TestSet("crops", samples)
    (batch,) = build_test_loader(cfg, test_set)
    assert batch["native_size"].tolist() == [[128, 64]] * 3
    cfg.INPUT.NATIVE_SIZE = "estimated"
    (estimated,) = build_test_loader(cfg, test_set)
    expected = [estimated_size(Image.open(s.path)) for s in samples]
    assert [tuple(size) for size in estimated["native_size"].tolist()] == expected
    assert max(height for height, _ in expected) < 50
    assert torch.equal(estimated["images"], batch["images"])
    # A model that is called from Python goes by the same.
    seen: list[list[list[int]]] = []

    class Watched(torch.nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            seen.append(batch["native_size"].tolist())
            return torch.zeros(len(batch["images"]), 2)

    TrainedModel("watched", cfg, Watched(), {}).embed([s.path for s in samples])
    assert seen == [estimated["native_size"].tolist()]
    cfg.INPUT.NATIVE_SIZE = "guess"
    message = r"INPUT.NATIVE_SIZE: 'guess' is none of file, estimated"
    with pytest.raises(ConfigError, match=message):
        build_test_loader(cfg, test_set)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


# ---------------------------------------------------------------- the tool
@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lrreid_ext.data.recipes import build, build_recipe

    folder = tmp_path_factory.mktemp("sets")
    recipe = build_recipe("synth_pedestrians", {"identities": 8, "cameras": 2, "shots": 1})
    build(recipe, None, folder / recipe.folder(), workers=1, progress=False)
    (folder / recipe.folder()).rename(folder / "small")
    return folder


def test_tool_measures_what_it_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrreid_ext.data.recipes import RecipeDataset, load_manifest

    data = RecipeDataset.__new__(RecipeDataset)
    data.folder, data.manifest = root / "small", load_manifest(root / "small")
    monkeypatch.setattr(tool, "build_dataset_of", lambda cfg, name, key: data)
    options = ["synth_pedestrians", "--factors", "1", "2", "4", "--kernels", "area", "bicubic"]
    assert run_script(tool, [*options, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "synth_pedestrians.json").read_text())
    assert content["manifest_hash"] == data.manifest.hash
    assert content["coefficients"] == list(COEFFICIENTS)
    files = [r.file for r in data.manifest.images if r.role in ("query_hr", "gallery")]
    assert content["images"] == len(files) > 0
    row = next(
        r
        for r in content["rows"]
        if (r["reduced_by"], r["reduced"], r["enlarged"]) == ("area", 4, True)
    )
    guesses = []
    for file in files:
        image = Image.open(data.folder / file).convert("RGB")
        small = degrade(image, 4, "area")
        guesses += [
            estimated_factor(small.resize(image.size, m)) for m in tool.ENLARGED_BY.values()
        ]
    assert row["images"] == len(guesses)
    assert row["factor"] == 4
    assert row["median"] == pytest.approx(np.median(guesses), abs=1e-3)
    assert row["error"] == pytest.approx(np.abs(np.log2(np.array(guesses) / 4)).mean(), abs=1e-4)
    text = (tmp_path / "synth_pedestrians.md").read_text()
    assert f"{row['median']:.2f} ({100 * (2 ** row['error'] - 1):.0f} %)" in text
    assert "1 (reduced by 4 and left small)" in text
    assert run_script(tool, [*options, "--fit"]) == 0
    assert (
        len(
            json.loads(capsys.readouterr().out.splitlines()[-1].replace("(", "[").replace(")", "]"))
        )
        == 15
    )
    monkeypatch.undo()
    assert run_script(tool, ["synth_pedestrian", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'synth_pedestrians'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factors", "1", "--fit"], "--fit needs at least two different --factors"),
        (["--factors", "2", "2", "--fit"], "--fit needs at least two different --factors"),
        (["--factors", "1", "nan"], "--factors must be at least 1"),
        (["--factors", "nan", "2"], "--factors must be at least 1"),
        (["--factors", "inf"], "--factors must be at least 1"),
    ],
)
def test_factors_are_checked_before_anything_is_measured(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "build_dataset_of", None)
    assert run_script(tool, ["synth_pedestrians", *options]) == 2
    assert message in capsys.readouterr().err
