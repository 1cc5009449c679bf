"""Features in a file: found again while nothing changed, never when something did."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_OSNET
from fastreid.config import CfgNode

from lrreid_ext.cli import main
from lrreid_ext.config import changed, get_cfg, load_cfg
from lrreid_ext.data.recipes import load_manifest
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.engine import trainer
from lrreid_ext.errors import CacheError
from lrreid_ext.evaluation import cache as caching
from lrreid_ext.evaluation.cache import CachedFeatures, cache_key, load_cache, save_cache
from lrreid_ext.evaluation.features import Features
from lrreid_ext.plugins import plugin_files
from lrreid_ext.registry import EVALUATOR_REGISTRY
from lrreid_ext.results.provenance import tensors_hash
from lrreid_ext.trained import TrainedWeights

NAN = float("nan")


def small_set(root: Path | None = None) -> TestSet:
    """Five images, which there are if a folder for them is given."""
    samples = [
        Sample("/sets/demo/query/q0.png", 1, 2, "query", 2.5),
        Sample("/sets/demo/query/q1.png", 2, 2, "query", NAN),
        Sample("/sets/demo/query_hr/q0.png", 1, 2, "x3", 3.0, 3.0, "area", 5),
        Sample("/sets/demo/gallery/g0.png", 1, 1, "gallery"),
        Sample("/sets/demo/gallery/g1.png", -1, 1, "gallery"),
    ]
    if root is not None:
        samples = [replace(s, path=s.path.replace("/sets", str(root))) for s in samples]
        for path in {Path(s.path) for s in samples if not Path(s.path).exists()}:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return TestSet("demo", samples, "0123456789abcdef", {"split": np.int64(2)})


def small_file(path: Path) -> CachedFeatures:
    features = Features(torch.randn(5, 2, 4), torch.arange(10).view(5, 2))
    about = {"checkpoint": "", "folder": "", "anchors": [2.0, 4.0], "flip": False}
    cached = CachedFeatures(small_set(), features, {"weights": "w"}, about)
    save_cache(path, cached)
    return cached


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = small_file(tmp_path / "a" / "f.safetensors")
    read = load_cache(tmp_path / "a" / "f.safetensors")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f.safetensors"]
    assert torch.equal(read.features.features, written.features.features)
    assert torch.equal(read.features.native_size, written.features.native_size)
    assert (read.key, read.about) == (written.key, written.about)
    assert read.test_set.name == "demo"
    assert read.test_set.manifest_hash == "0123456789abcdef"
    for a, b in zip(read.test_set.samples, written.test_set.samples, strict=True):
        assert a.path == b.path.removeprefix("/sets/demo/")
        assert repr(replace(a, path="")) == repr(replace(b, path=""))  # NaN equals NaN


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file of features"):
        load_cache(path)
    small_file(path)
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # one bit of a feature
    path.write_bytes(bytes(data))
    with pytest.raises(CacheError, match="damaged"):
        load_cache(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CacheError, match="can't be read"):
        load_cache(path)


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    cfg, test_set = get_cfg(), small_set(tmp_path)
    state = {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    base = cache_key(cfg, tensors_hash(state), test_set)
    assert base == cache_key(cfg.clone(), tensors_hash(dict(reversed(state.items()))), test_set)

    def differs(part: str, *args: Any, **kwargs: Any) -> None:
        key = cache_key(*args, **kwargs)
        assert [k for k in base if base[k] != key[k]] == [part]

    for other in ({**state, "a": torch.arange(4)}, {**state, "a": torch.arange(4.0)[None]}):
        differs("weights", cfg, tensors_hash(other), test_set)
    weights = tensors_hash(state)
    for settings in (
        ("INPUT.SIZE_TEST", [8, 8]),
        ("INPUT.NATIVE_SIZE", "estimated"),
        ("TEST.FLIP.ENABLED", True),
        ("MODEL.SR.APPLY", "lr"),
        ("SING.EPS", 1.0),  # a plugin's key
    ):
        if settings[0] == "SING.EPS":
            with_key = cfg.clone()
            with_key.SING = CfgNode({"EPS": 1.0})
            differs("config", with_key, weights, test_set)
        else:
            differs("config", changed(cfg, settings), weights, test_set)
    phase = replace(test_set, info={**test_set.info, "training": {"phase": "student"}})
    differs("config", cfg, weights, phase)
    differs("manifest", cfg, weights, replace(test_set, manifest_hash="other"))
    for field, value in (
        ("pid", 9),
        ("group", "x2"),
        ("degrade", 2.0),
        ("kernel", "area"),
        ("seed", 7),
    ):
        samples = [replace(test_set.samples[0], **{field: value}), *test_set.samples[1:]]
        differs("samples", cfg, weights, replace(test_set, samples=samples))
    # And what doesn't reach the features doesn't.
    for settings in (
        ("TEST.METRIC", "euclidean"),
        ("MODEL.WEIGHTS", "elsewhere.pth"),
        ("MODEL.DEVICE", "cpu"),
        ("SOLVER.BASE_LR", 1.0),
        ("OUTPUT_DIR", "elsewhere"),
    ):
        assert cache_key(changed(cfg, settings), weights, test_set) == base
    there = tmp_path / "elsewhere" / "demo"
    shutil.copytree(tmp_path / "demo", there)
    old, new = str(tmp_path / "demo"), str(there)
    moved = [replace(s, path=s.path.replace(old, new)) for s in test_set.samples]
    assert cache_key(cfg, weights, replace(test_set, samples=moved)) == base


def test_plugins_and_what_they_import_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrreid_ext.plugins._imported", {})
    folder = tmp_path / "plug"
    (folder / "night_parts").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    plugin, helper, deep = folder / "night.py", folder / "night_help.py", "night_parts/gain.py"
    late = folder / "night_late.py"  # imported when the model runs, if at all
    plugin.write_text("import night_help\nimport night_parts.gain\n")
    for file in (helper, folder / deep, late):
        file.write_text("GAIN = 1\n")
    cfg = get_cfg([str(plugin), "json"])  # a package's files are all of it
    keys = [cache_key(cfg, "w", small_set(tmp_path))]
    assert keys[0] == cache_key(cfg, "w", small_set(tmp_path))
    for file in (helper, folder / deep, late, plugin):
        file.write_text("GAIN = 2\n")
        keys.append(cache_key(cfg, "w", small_set(tmp_path)))
        assert [k for k in keys[0] if keys[-1][k] != keys[-2][k]] == ["code"], file
    (folder / "notes.txt").write_text("no code\n")
    assert cache_key(cfg, "w", small_set(tmp_path)) == keys[-1]
    assert {path.name for path in plugin_files()} >= {"night.py", "decoder.py", "psnet.py"}
    assert not [f for f in plugin_files() if "site-packages" in f.parts]


def test_files_without_a_manifest_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    test_set = TestSet("plain", [Sample(str(tmp_path / "a.png"), 1, 1, "query")])
    before = cache_key(get_cfg(), "w", test_set)
    then = (tmp_path / "a.png").stat().st_mtime_ns
    (tmp_path / "a.png").write_bytes(b"two")
    os.utime(tmp_path / "a.png", ns=(then, then))
    after = cache_key(get_cfg(), "w", test_set)
    assert [k for k in before if before[k] != after[k]] == ["manifest"]


def test_images_that_changed_or_are_gone(tmp_path: Path) -> None:
    test_set = small_set(tmp_path)
    image = Path(test_set.samples[3].path)
    before = cache_key(get_cfg(), "w", test_set)
    os.utime(image, ns=(1, 1))
    touched = cache_key(get_cfg(), "w", test_set)
    image.write_bytes(b"other")
    os.utime(image, ns=(1, 1))
    larger = cache_key(get_cfg(), "w", test_set)
    for a, b in ((before, touched), (touched, larger)):
        assert [k for k in a if a[k] != b[k]] == ["files"]
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"gallery/g0.png: no such image"):
        cache_key(get_cfg(), "w", test_set)


# ---------------------------------------------------------------- through the commands
@pytest.fixture(scope="module")
def evaluated(market_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, as training leaves it, and the ``features`` that were kept."""
    folder = tmp_path_factory.mktemp("cache")
    torch.set_num_threads(1)
    cfg = load_cfg(
        str(ROOT / "configs/osnet_copies.yml"),
        [*TINY_OSNET, "DATASETS.ROOT", str(market_root), "MODEL.HEADS.NUM_CLASSES", "6"],
    )
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(changed(cfg, ("MODEL.HEADS.NUM_CLASSES", 0)).dump())
    info = {"phase": "main", "data_sets": ["mlr_market1501"], "fold": [], "seed": 0}
    model = trainer.build_model(cfg)
    torch.save({"model": model.state_dict(), "trainer": {"info": info}}, run / "model.pth")
    (run / "last_checkpoint").write_text("model.pth")
    with contextlib.chdir(folder):
        assert evaluate("run") == 0
    return folder


@pytest.fixture
def features(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of features; the working directory is a copy of the folder."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (file,) = Path("features").iterdir()
    return file


def evaluate(*words: Any) -> int:
    return main(["eval", *map(str, words), "--cache", "features", "--out", "out"])


def figures(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return {key: content[key] for key in ("groups", "counts", "manifest_hash", "protocols")}


def test_scores_are_those_of_an_evaluation(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config-file", "run/config.yaml", "--eval-only", "OUTPUT_DIR", "run"]
    assert main(words) == 0
    plain = figures("run/results_mlr_market1501.json")
    # The same figures while features are extracted and kept, and when they are read.
    extracted: list[Any] = []
    original = caching.extract_features
    monkeypatch.setattr(caching, "extract_features", lambda *a: extracted.append(a) or original(*a))
    for _ in range(2):
        assert main([*words, "TEST.CACHE", "store"]) == 0
        assert figures("run/results_mlr_market1501.json") == plain
        assert len(extracted) == 1
    assert [path.name for path in Path("store").iterdir()] == [features.name]
    # The command finds the same file, without building the network.
    monkeypatch.setattr(TrainedWeights, "build", lambda *a: pytest.fail("the network was built"))
    assert evaluate("run") == 0
    assert "run on mlr_market1501: features read" in capsys.readouterr().out
    assert figures("out/run/results_mlr_market1501.json") == plain
    # From the file alone, by another protocol.
    opts = ["--opts", "TEST.DRAW", "per_query", "TEST.TRIALS", "7", "TEST.CI.REPEATS", "20"]
    assert evaluate(f"alone={features}", *opts) == 0
    content = json.loads(Path("out/alone/results_mlr_market1501.json").read_text())
    assert (content["draw"], content["trials"], content["ci"]["repeats"]) == ("per_query", 7, 20)
    assert content["groups"]["query"]["multi_shot"]["mAP"] == pytest.approx(
        plain["groups"]["query"]["multi_shot"]["mAP"]
    )
    assert content["info"]["training"]["data_sets"] == ["mlr_market1501"]
    assert len(extracted) == 1


def test_what_changed_is_extracted_anew_and_files_refused(
    features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opts = ["--opts", "TEST.GALLERY.LR_SHARE", "0.5"]
    for state in ("extracted", "read"):
        assert evaluate("run", *opts) == 0
        assert f"features {state}" in capsys.readouterr().out
    # Other weights under the same name.
    data = torch.load("run/model.pth", weights_only=True)
    next(iter(data["model"].values())).add_(1)
    torch.save(data, "run/model.pth")
    assert evaluate(features) == 2
    assert "has other weights now" in capsys.readouterr().err
    assert evaluate("run") == 0
    assert "features extracted" in capsys.readouterr().out
    assert len(list(Path("features").iterdir())) == 3
    # Without the checkpoint nobody can tell.
    Path("run/model.pth").unlink()
    assert evaluate(features) == 0
    assert "model.pth is not at hand; not checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "opts", "message"),
    [
        ("run", ["TEST.EVALUATORS", "['Foo']"], "TEST.EVALUATORS: 'Foo' is not registered"),
        ("run", ["TEST.INITIAL", "True", "MODEL.INIT.WEIGHTS", "x.pth"], "TEST.INITIAL: "),
        ("file", ["TEST.FLIP.ENABLED", "True"], "TEST.FLIP.ENABLED: can't be changed"),
        ("file", ["TEST.METRICS", "cosine"], "Did you mean 'TEST.METRIC'"),
    ],
)
def test_options_that_are_refused(
    features: Path, word: str, opts: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(features if word == "file" else word, "--opts", *opts) == 2
    assert message in capsys.readouterr().err


def test_evaluators_of_features_are_run(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []

    class Counts:
        def __init__(self, cfg: CfgNode, test_set: TestSet, output_dir: str | None) -> None: ...

        def reset(self) -> None: ...

        def process(self, inputs: Any, outputs: torch.Tensor) -> None:
            counts.append(len(outputs))

        def evaluate(self) -> dict[str, float]:
            return {}

    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "Counts", Counts)
    assert evaluate("run", "--opts", "TEST.EVALUATORS", "['ImageQualityEvaluator', 'Counts']") == 0
    printed = capsys.readouterr().out
    assert "ImageQualityEvaluator runs the network and is left out" in printed
    assert counts == [len(load_cache(features).test_set.samples)]
    assert Path("out/run/results_mlr_market1501.json").is_file()


def test_changed_images_are_refused(
    features: Path, market_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((market_root / "mlr_market1501" / "gallery").iterdir())
    content, status = image.read_bytes(), image.stat()
    try:
        os.utime(image, ns=(1, 1))
        assert evaluate(features) == 0  # the same bytes
        image.write_bytes(content + b"0")
        assert evaluate(features) == 2
        assert "mlr_market1501 have changed" in capsys.readouterr().err
        image.unlink()
        for word, message in ((features, "no such image"), ("run", "is gone; build")):
            assert evaluate(word) == 2
            assert f"{image.name}: {message}" in capsys.readouterr().err
    finally:
        image.write_bytes(content)
        os.utime(image, ns=(status.st_mtime_ns, status.st_mtime_ns))


def test_a_changed_data_set_is_refused(
    features: Path, market_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_manifest(market_root / "mlr_market1501")
    assert load_cache(features).about["folder"].endswith("mlr_market1501")
    other = replace(loaded, images=loaded.images[1:])
    monkeypatch.setattr("lrreid_ext.evaluation.cache.load_manifest", lambda folder: other)
    with pytest.raises(CacheError, match="mlr_market1501 has another manifest now"):
        caching.load_unchanged(features)


def test_a_damaged_file_is_not_used(
    features: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = features.read_bytes()
    features.write_bytes(whole[:-40] + bytes(40))
    with caplog.at_level(logging.WARNING):
        assert evaluate("run") == 0
    assert "damaged" in caplog.text
    assert "features extracted" in capsys.readouterr().out
    assert tensors_of(features.read_bytes()) == tensors_of(whole)


def tensors_of(content: bytes) -> bytes:
    """The tensors of a safetensors file, without its header, which names the command."""
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_trained_here_tested_there(features: Path, market_root: Path) -> None:
    """One checkpoint on two data sets, neither of which has as many identities as its classifier,
    by one command of either kind."""
    opts = ["DATASETS.ROOT", "sets"]
    for option in ("identities 16", "cameras 2", "shots 1", "height 32", "width 16"):
        key, value = option.split()
        opts += [f"DATASETS.OPTIONS.synth_pedestrians.{key}", value]
    # Both below one root: one recipe's source is found there, the other recipe has none.
    Path("sets").mkdir()
    source = market_root / "Market-1501-v15.09.15"
    Path("sets", source.name).symlink_to(source)
    words = ["train", "--config-file", "run/config.yaml", "--eval-only", *opts]
    words += ["MODEL.WEIGHTS", "run/model.pth", "OUTPUT_DIR", "both"]
    assert main([*words, "DATASETS.TESTS", "['mlr_market1501', 'synth_pedestrians']"]) == 0
    for name in ("mlr_market1501", "synth_pedestrians"):
        content = json.loads(Path(f"both/results_{name}.json").read_text())
        assert content["info"]["recipe"] == name
        assert content["info"]["training"]["data_sets"] == ["mlr_market1501"]
    assert evaluate("run", "--data-set", "synth_pedestrians", "--opts", *opts) == 0
    name = "results_synth_pedestrians.json"
    assert figures(f"out/run/{name}") == figures(f"both/{name}")
