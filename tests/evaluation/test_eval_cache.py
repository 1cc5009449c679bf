"""Features in a file: found again while nothing changed, never when something did."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_OSNET
from fastreid.config import CfgNode

from lrreid_ext.cli import main
from lrreid_ext.config import changed, get_cfg
from lrreid_ext.data.recipes import load_manifest
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.engine import trainer
from lrreid_ext.errors import CacheError, ConfigError
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


def small_file(path: Path, **about: Any) -> CachedFeatures:
    found = Features(torch.randn(5, 2, 4), torch.arange(10).view(5, 2))
    about = {"checkpoint": "", "folder": "", "anchors": [2.0, 4.0], "flip": False, **about}
    cached = CachedFeatures(small_set(), found, {"weights": "w"}, about)
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
        found = cache_key(*args, **kwargs)
        assert [k for k in base if base[k] != found[k]] == [part]

    for other in ({**state, "a": torch.arange(4)}, {**state, "a": torch.arange(4.0)[None]}):
        differs("weights", cfg, tensors_hash(other), test_set)
    own = tensors_hash(state)
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
            differs("config", with_key, own, test_set)
        else:
            differs("config", changed(cfg, settings), own, test_set)
    phase = replace(test_set, info={**test_set.info, "training": {"phase": "student"}})
    differs("config", cfg, own, phase)
    differs("manifest", cfg, own, replace(test_set, manifest_hash="other"))
    for field, value in (
        ("pid", 9),
        ("group", "x2"),
        ("degrade", 2.0),
        ("kernel", "area"),
        ("seed", 7),
    ):
        samples = [replace(test_set.samples[0], **{field: value}), *test_set.samples[1:]]
        differs("samples", cfg, own, replace(test_set, samples=samples))
    # And what doesn't reach the features doesn't.
    for settings in (
        ("TEST.METRIC", "euclidean"),
        ("MODEL.WEIGHTS", "elsewhere.pth"),
        ("MODEL.DEVICE", "cpu"),
        ("SOLVER.BASE_LR", 1.0),
        ("OUTPUT_DIR", "elsewhere"),
    ):
        assert cache_key(changed(cfg, settings), own, test_set) == base
    there = tmp_path / "elsewhere" / "demo"
    shutil.copytree(tmp_path / "demo", there)
    old, new = str(tmp_path / "demo"), str(there)
    moved = [replace(s, path=s.path.replace(old, new)) for s in test_set.samples]
    assert cache_key(cfg, own, replace(test_set, samples=moved)) == base


def test_a_plugin_that_was_edited_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrreid_ext.plugins._imported", {})
    file = tmp_path / "sharpen.py"
    file.write_text("GAIN = 1\n")
    get_cfg([str(file), "json"])  # a package's files are all of it
    before = cache_key(get_cfg(), "w", small_set(tmp_path))
    assert before == cache_key(get_cfg(), "w", small_set(tmp_path))
    file.write_text("GAIN = 2\n")
    after = cache_key(get_cfg(), "w", small_set(tmp_path))
    assert [k for k in before if before[k] != after[k]] == ["code"]
    named = {path.name for path in plugin_files()}
    assert named >= {"sharpen.py", "decoder.py", "psnet.py"}


def test_what_a_plugin_imports_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrreid_ext.plugins._imported", {})
    folder = tmp_path / "plug"
    (folder / "night_parts").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    helper, deep = folder / "night_help.py", folder / "night_parts" / "gain.py"
    late = folder / "night_late.py"  # imported when the model runs, if at all
    for file in (helper, deep, late):
        file.write_text("GAIN = 1\n")
    (folder / "night.py").write_text("import night_help\nimport night_parts.gain\n")
    cfg = get_cfg([str(folder / "night.py")])
    keys = [cache_key(cfg, "w", small_set(tmp_path))]
    for file in (helper, deep, late):
        file.write_text("GAIN = 2\n")
        keys.append(cache_key(cfg, "w", small_set(tmp_path)))
        assert [k for k in keys[0] if keys[-1][k] != keys[-2][k]] == ["code"], file
    (folder / "notes.txt").write_text("none of it\n")
    assert cache_key(cfg, "w", small_set(tmp_path)) == keys[-1]
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
@pytest.fixture
def run(make_cfg: Callable[..., CfgNode], tmp_path: Path) -> Path:
    """A folder as training leaves it, of a model that wasn't trained."""
    cfg = make_cfg("configs/osnet_copies.yml", TINY_OSNET)
    cfg = trainer.with_num_classes(cfg, 6)
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir()
    (out / "config.yaml").write_text(changed(cfg, ("MODEL.HEADS.NUM_CLASSES", 0)).dump())
    info = {"phase": "main", "data_sets": ["mlr_market1501"], "fold": [], "seed": 0}
    model = trainer.build_model(cfg)
    torch.save({"model": model.state_dict(), "trainer": {"info": info}}, out / "model.pth")
    (out / "last_checkpoint").write_text("model.pth")
    return out


def figures(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return {key: content[key] for key in ("groups", "counts", "manifest_hash", "protocols")}


def test_scores_are_those_of_an_evaluation(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, store = str(run / "config.yaml"), tmp_path / "features"
    evaluate = ["--config-file", config, "--eval-only"]
    assert main(["train", *evaluate, "OUTPUT_DIR", str(run)]) == 0
    plain = figures(run / "results_mlr_market1501.json")
    # The same figures while the features are extracted and kept, and when they are read.
    extracted: list[Any] = []
    original = caching.extract_features
    monkeypatch.setattr(caching, "extract_features", lambda *a: extracted.append(a) or original(*a))
    for times in (1, 1):
        assert main(["train", *evaluate, "OUTPUT_DIR", str(run), "TEST.CACHE", str(store)]) == 0
        assert figures(run / "results_mlr_market1501.json") == plain
        assert len(extracted) == times
    # The tool finds the same file, without building the network.
    monkeypatch.setattr(TrainedWeights, "build", lambda *a: pytest.fail("the network was built"))
    arguments = ["--cache", str(store), "--out", str(tmp_path / "out")]
    assert main(["eval", str(run), *arguments]) == 0
    assert "run on mlr_market1501: features read" in capsys.readouterr().out
    assert figures(tmp_path / "out" / "run" / "results_mlr_market1501.json") == plain
    # From the file alone, by another protocol.
    (file,) = store.iterdir()
    opts = ["--opts", "TEST.DRAW", "per_query", "TEST.TRIALS", "7", "TEST.CI.REPEATS", "20"]
    assert main(["eval", f"alone={file}", *arguments, *opts]) == 0
    content = json.loads((tmp_path / "out/alone/results_mlr_market1501.json").read_text())
    assert (content["draw"], content["trials"], content["ci"]["repeats"]) == ("per_query", 7, 20)
    assert content["groups"]["query"]["multi_shot"]["mAP"] == pytest.approx(
        plain["groups"]["query"]["multi_shot"]["mAP"]
    )
    assert content["info"]["training"]["data_sets"] == ["mlr_market1501"]
    assert len(extracted) == 1
    # Options that decide the features are for the run.
    assert main(["eval", f"alone={file}", *arguments, "--opts", "TEST.FLIP.ENABLED", "True"]) == 2
    assert "TEST.FLIP.ENABLED: can't be changed" in capsys.readouterr().err


def test_what_changed_is_extracted_anew_and_files_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "features"
    arguments = ["--cache", str(store), "--out", str(tmp_path / "out")]
    assert main(["eval", str(run), *arguments]) == 0
    assert "features extracted" in capsys.readouterr().out
    (first,) = store.iterdir()
    opts = ["--opts", "TEST.GALLERY.LR_SHARE", "0.5"]
    assert main(["eval", str(run), *arguments, *opts]) == 0
    assert "features extracted" in capsys.readouterr().out
    assert main(["eval", str(run), *arguments, *opts]) == 0
    assert "features read" in capsys.readouterr().out
    # Other weights under the same name.
    data = torch.load(run / "model.pth", weights_only=True)
    next(iter(data["model"].values())).add_(1)
    torch.save(data, run / "model.pth")
    assert main(["eval", str(first), *arguments]) == 2
    assert "has other weights now" in capsys.readouterr().err
    assert main(["eval", str(run), *arguments]) == 0
    assert "features extracted" in capsys.readouterr().out
    assert len(list(store.iterdir())) == 3
    # Without the checkpoint nobody can tell: said, and scored.
    (run / "model.pth").unlink()
    assert main(["eval", str(first), *arguments]) == 0
    assert "model.pth is not at hand; not checked" in capsys.readouterr().out


def test_initial_weights_are_for_eval(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run), "--cache", str(tmp_path / "f"), "--out", str(tmp_path / "out")]
    opts = ["--opts", "TEST.INITIAL", "True", "MODEL.INIT.WEIGHTS", "x.pth"]
    for kept in (False, True):
        assert (tmp_path / "f").exists() == kept
        assert main(["eval", *arguments, *opts]) == 2
        assert "TEST.INITIAL: " in (said := capsys.readouterr().err) and "lrreid eval" in said
        assert main(["eval", *arguments]) == 0


def test_evaluators_of_features_are_run(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fed: list[int] = []

    class Counts:
        def __init__(self, cfg: CfgNode, test_set: TestSet, output_dir: str | None) -> None: ...

        def reset(self) -> None: ...

        def process(self, inputs: Any, outputs: torch.Tensor) -> None:
            fed.append(len(outputs))

        def evaluate(self) -> dict[str, float]:
            return {}

    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "Counts", Counts)
    arguments = [str(run), "--cache", str(tmp_path / "f"), "--out", str(tmp_path / "out")]
    opts = ["--opts", "TEST.EVALUATORS"]
    assert main(["eval", *arguments, *opts, "['Foo']"]) == 2
    assert "TEST.EVALUATORS: 'Foo' is not registered" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
    assert main(["eval", *arguments, *opts, "['ImageQualityEvaluator', 'Counts']"]) == 0
    said = capsys.readouterr().out
    assert "ImageQualityEvaluator runs the network and is left out" in said
    (file,) = (tmp_path / "f").iterdir()
    assert fed == [len(load_cache(file).test_set.samples)]
    assert (tmp_path / "out" / "run" / "results_mlr_market1501.json").is_file()


def test_changed_images_are_refused(
    run: Path,
    tmp_path: Path,
    market_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--cache", str(tmp_path / "f"), "--out", str(tmp_path / "out")]
    assert main(["eval", str(run), *arguments]) == 0
    (file,) = (tmp_path / "f").iterdir()
    image = next((market_root / "mlr_market1501" / "gallery").iterdir())
    whole, then = image.read_bytes(), image.stat().st_mtime_ns
    try:
        os.utime(image, ns=(1, 1))
        assert main(["eval", str(file), *arguments]) == 0  # the same bytes
        image.write_bytes(whole + b"0")
        assert main(["eval", str(file), *arguments]) == 2
        assert "mlr_market1501 have changed" in capsys.readouterr().err
        image.unlink()
        for word, said in ((file, "no such image"), (run, "is gone; build")):
            assert main(["eval", str(word), *arguments]) == 2
            assert f"{image.name}: {said}" in capsys.readouterr().err
    finally:
        image.write_bytes(whole)
        os.utime(image, ns=(then, then))
    # A file of an earlier version says nothing of its images.
    cached = load_cache(file)
    del cached.key["files"]
    assert "nothing says how" in caching.stale(cached)[1][0]


def test_a_changed_data_set_is_refused(
    run: Path, tmp_path: Path, market_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "features"
    assert main(["eval", str(run), "--cache", str(store), "--out", str(tmp_path / "out")]) == 0
    (file,) = store.iterdir()
    loaded = load_manifest(market_root / "mlr_market1501")
    assert load_cache(file).about["folder"].endswith("mlr_market1501")
    other = replace(loaded, images=loaded.images[1:])
    monkeypatch.setattr("lrreid_ext.evaluation.cache.load_manifest", lambda folder: other)
    with pytest.raises(CacheError, match="mlr_market1501 has another manifest now"):
        caching.load_unchanged(file)


def test_a_damaged_file_is_not_used(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "features"
    arguments = [str(run), "--cache", str(store), "--out", str(tmp_path / "out")]
    assert main(["eval", *arguments]) == 0
    (file,) = store.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] + bytes(40))
    with caplog.at_level(logging.WARNING):
        assert main(["eval", *arguments]) == 0
    assert "damaged" in caplog.text
    assert capsys.readouterr().out.count("features extracted") == 2
    assert file.read_bytes() == whole


def test_trained_here_tested_there(run: Path, tmp_path: Path) -> None:
    """One checkpoint on two data sets, neither of which has as many identities as its classifier,
    by one command of either kind."""
    synth = [
        f"DATASETS.OPTIONS.synth_pedestrians.{key}={value}".split("=")
        for key, value in (
            ("identities", 16), ("cameras", 2), ("shots", 1), ("height", 32), ("width", 16)
        )
    ]  # fmt: skip
    opts = [word for pair in synth for word in pair] + ["DATASETS.ROOT", str(tmp_path / "sets")]
    names = "['mlr_market1501', 'synth_pedestrians']"
    root = str(Path(str(run)).parent)
    # Both below one root: the recipe that stands is found there, the other one is built.
    built = next(line for line in (run / "config.yaml").read_text().splitlines() if "ROOT:" in line)
    (tmp_path / "sets").mkdir()
    source = Path(built.split("ROOT:")[1].strip()) / "Market-1501-v15.09.15"
    (tmp_path / "sets" / source.name).symlink_to(source)
    out = Path(root) / "both"
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only"]
    weights = ["MODEL.WEIGHTS", str(run / "model.pth"), "OUTPUT_DIR", str(out)]
    assert main(["train", *arguments, *weights, *opts, "DATASETS.TESTS", names]) == 0
    for name in ("mlr_market1501", "synth_pedestrians"):
        content = json.loads((out / f"results_{name}.json").read_text())
        assert content["info"]["recipe"] == name
        assert content["info"]["training"]["data_sets"] == ["mlr_market1501"]
    scored = ["--data-set", "synth_pedestrians", "--cache", str(tmp_path / "features")]
    arguments = [str(run), *scored, "--out", str(tmp_path / "score"), "--opts", *opts]
    assert main(["eval", *arguments]) == 0
    file = tmp_path / "score" / "run" / "results_synth_pedestrians.json"
    assert figures(file) == figures(out / "results_synth_pedestrians.json")
    with pytest.raises(ConfigError, match=r"Did you mean .TEST\.METRIC"):
        caching.scoring_cfg(
            load_cache(next((tmp_path / "features").iterdir())), ["TEST.METRICS", "cosine"]
        )
