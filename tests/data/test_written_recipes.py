"""Recipes in YAML, and kernels, recipes and workers that a plugin brings."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mini_sets
import numpy as np
import pytest
from conftest import ROOT, TINY_OSNET
from PIL import Image

from lrreid_ext import build_dataset
from lrreid_ext.cli import main
from lrreid_ext.config import get_cfg, load_cfg
from lrreid_ext.data.loaders import build_test_set, build_train_dataset
from lrreid_ext.data.recipes import (
    RECIPE_REGISTRY,
    build_recipe,
    find_source,
    load_manifest,
    register_recipe_file,
    verify,
)
from lrreid_ext.data.recipes.dataset import build_command
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError, PluginError, RecipeError
from lrreid_ext.plugins import imported_plugins
from lrreid_ext.registry import DATASET_REGISTRY, KERNEL_REGISTRY, names, registered, unregister

YAML = """\
name: hall
base: mlr_folder
description: Four people in our hall, camera 2 is far away
source: images
options:
  lr_camera: 2
  factors: [2, 4]
  kernel: second-order
"""


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Workers of later builds import every plugin again, and files here share the name "hall".
    monkeypatch.setattr("lrreid_ext.plugins._imported", {})
    registries = (RECIPE_REGISTRY, DATASET_REGISTRY, KERNEL_REGISTRY)
    before = [names(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        for name in set(names(registry)) - set(kept):
            unregister(registry, name)


@pytest.fixture
def hall(tmp_path: Path) -> Path:
    """``hall.yml``, and beside it the folder ``images`` in Market-1501's naming."""
    mini_sets.market(tmp_path / "images")
    (tmp_path / "hall.yml").write_text(YAML)
    return tmp_path / "hall.yml"


def test_a_file_is_a_recipe_and_a_data_set(hall: Path, tmp_path: Path) -> None:
    assert register_recipe_file(hall) == "hall"
    recipe, base = build_recipe("hall"), build_recipe("mlr_folder")
    assert recipe.name == recipe.folder() == "hall"
    assert recipe.description.startswith("Four people")
    changed = {"lr_camera": 2, "factors": [2.0, 4.0], "kernel": "second-order"}
    assert recipe.options() == {**base.options(), **changed}
    assert build_recipe("hall", {"seed": 4}).options()["kernel"] == "second-order"
    assert find_source(recipe, tmp_path / "elsewhere") == tmp_path / "images"
    assert f"build_dataset.py {hall} --source" in build_command(recipe, "images", "out")
    data = DATASET_REGISTRY.get("hall")(root=str(tmp_path / "sets"))
    assert data.folder == tmp_path / "sets" / "hall"
    assert {item[2] for item in data.query} == {2}
    assert data.train[0][1].startswith("hall_")
    assert verify(data.folder) == []


def test_the_same_file_again_and_another_of_the_same_name(hall: Path, tmp_path: Path) -> None:
    register_recipe_file(hall)
    hall.write_text(YAML.replace("lr_camera: 2", "lr_camera: 3"))
    register_recipe_file(hall)
    assert build_recipe("hall").options()["lr_camera"] == 3
    other = tmp_path / "other.yml"
    other.write_text(YAML)
    with pytest.raises(RecipeError, match=r"other\.yml: name 'hall' is taken already"):
        register_recipe_file(other)
    for taken in ("mlr_cuhk01", "Market1501"):
        other.write_text(YAML.replace("name: hall", f"name: {taken}"))
        with pytest.raises(RecipeError, match=f"name '{taken}' is taken already"):
            register_recipe_file(other)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source:", "sources:", "unknown key 'sources'. Did you mean 'source'"),
        ("options:", "option:", "unknown key 'option'. Did you mean 'options'"),
        ("name: hall\n", "", "no name; a recipe needs name and base"),
        ("name: hall", "name: my hall", "name: string should match pattern"),
        ("name: hall", "name: [hall]", "name: input should be a valid string, not"),
        ("mlr_folder", "mlr_foldr", "'mlr_foldr' is not registered. Did you mean 'mlr_folder'"),
        ("mlr_folder", "hall", "base is the recipe itself"),
        ("lr_camera", "lr_cam", "no option 'lr_cam'. Did you mean 'lr_camera'"),
        ("second-order", "second", "'second' is unknown. Did you mean 'second-order'"),
        ("[2, 4]", "[0.5]", "holds 0.5; a factor is >= 1"),
        ("[2, 4]", "[2, 4", "can't be read as YAML"),
        (YAML, "- hall", "no recipe; it needs the keys name and base"),
    ],
)
def test_mistakes_name_the_file_and_the_nearest(
    old: str, new: str, message: str, hall: Path
) -> None:
    hall.write_text(YAML.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        register_recipe_file(hall)
    assert str(caught.value).startswith(str(hall)) and message in str(caught.value)
    assert not registered(RECIPE_REGISTRY, "hall") and not registered(DATASET_REGISTRY, "hall")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"x\.yml: no such file"):
        register_recipe_file(tmp_path / "x.yml")
    with pytest.raises(PluginError, match=r"x\.yml.*no such file"):
        get_cfg([str(tmp_path / "x.yml")])


def test_the_page_about_ones_own_data_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    yamls = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (listed,) = re.findall(r"^```\n(path,identity.*?)^```", page, re.DOTALL | re.MULTILINE)
    mini_sets.market(tmp_path / "hall_images")
    (tmp_path / "hall.yml").write_text(yamls[0])
    (tmp_path / "train.yml").write_text(yamls[1].replace("/path/to/lrreid-ext", str(ROOT)))
    (tmp_path / "night.py").write_text(python)
    cfg = load_cfg(str(tmp_path / "train.yml"), ["DATASETS.ROOT", str(tmp_path / "sets")])
    assert len(build_train_dataset(cfg)) == 6
    assert verify(tmp_path / "sets" / "hall") == []
    get_cfg([str(tmp_path / "night.py")])
    for kernel in re.findall(r"`([a-z0-9-]+)`", page.split("| kernel |")[1].split("Strengths")[0]):
        assert registered(KERNEL_REGISTRY, kernel)
    table = build_recipe("mlr_csv", {"lr_camera": 2})
    for line in listed.splitlines()[1:]:
        person(tmp_path / line.split(",")[0], 1, 1)
    (tmp_path / "images.csv").write_text(listed)
    assert [(i.camid, i.role) for i in table.read(tmp_path)] == [(1, "train"), (2, "either")]


# ---------------------------------------------------------------------- on the command line


def test_the_tool_takes_the_file(
    hall: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["build", "list", str(hall)]) == 0
    assert "kernel=second-order" in capsys.readouterr().out
    assert main(["build", str(hall), "--out", str(out), "--option", "seed=2"]) == 0
    manifest = load_manifest(out)
    assert (manifest.recipe, manifest.options["seed"]) == ("hall", 2)
    assert all(image.parameters for image in manifest.of_role("query"))
    assert main(["build", str(hall), "--out", str(out), "--option", "seed=2", "--verify"]) == 0
    hall.write_text(YAML.replace("images", "pictures"))
    assert main(["build", str(hall), "--out", str(tmp_path / "new")]) == 2
    assert "pictures: no such folder" in capsys.readouterr().err


def test_python_takes_the_file(hall: Path, tmp_path: Path) -> None:
    data = build_dataset(str(hall), None, tmp_path / "out", seed=2)
    assert (data.dataset_name, data.manifest.options["seed"]) == ("hall", 2)
    assert {item[2] for item in data.query} == {2}


# ---------------------------------------------------------------------- in training


def person(path: Path, identity: int, shot: int) -> None:
    look = np.random.default_rng(identity).integers(0, 255, (16, 1, 3))
    noise = np.random.default_rng([identity, shot]).normal(0, 8, (64, 32, 3))
    pixels = look.repeat(4, 0).repeat(32, 1) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def test_a_csv_and_ten_lines_of_yaml_train_and_evaluate(tmp_path: Path) -> None:
    rows = ["path,identity,camera,split"]
    for identity in range(1, 11):
        for camera in ("door", "yard"):
            for shot in (1, 2):
                file = f"{camera}/{identity}-{shot}.png"
                person(tmp_path / "yard_images" / file, identity, shot + 2 * (camera == "yard"))
                split = "train" if identity < 7 else "test"
                rows.append(f"{file},p{identity:02d},{camera},{split}")
    (tmp_path / "yard_images" / "images.csv").write_text("\n".join(rows))
    (tmp_path / "yard.yml").write_text(
        "name: yard\n"
        "base: mlr_csv\n"
        "source: yard_images\n"
        "options: {lr_camera: 2, factors: [2, 3], kernel: first-order}\n"
    )
    (tmp_path / "train.yml").write_text(
        f"_BASE_: {ROOT / 'configs' / 'osnet_copies.yml'}\n"
        "PLUGINS: [yard.yml]\n"
        "DATASETS: {NAMES: [yard], TESTS: [yard], OPTIONS: {yard: {seed: 5}}}\n"
        "INPUT: {LR: {KERNEL: second-order}}\n"
    )
    options = dict(zip(TINY_OSNET[::2], TINY_OSNET[1::2], strict=True))
    del options["DATASETS.NAMES"], options["DATASETS.TESTS"]
    options |= {"DATASETS.ROOT": str(tmp_path / "sets"), "OUTPUT_DIR": str(tmp_path / "run")}
    options |= {"SOLVER.MAX_EPOCH": "1", "SOLVER.IMS_PER_BATCH": "12", "TEST.EVAL_PERIOD": "1"}
    cfg = load_cfg(str(tmp_path / "train.yml"), [word for pair in options.items() for word in pair])
    assert [str(tmp_path / "yard.yml")] == cfg.PLUGINS
    data = build_train_dataset(cfg)
    assert len(data) == 24 and data.kernel == "second-order"
    (folder,) = (tmp_path / "sets").iterdir()
    manifest = load_manifest(folder)
    assert manifest.options["seed"] == 5 and manifest.options["kernel"] == "first-order"
    groups = Counter(sample.group for sample in build_test_set(cfg, "yard").samples)
    assert groups == {"query": 8, "gallery": 8, "query_hr": 8, "x2": 8}

    trainer = Trainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert any(
        not bool((before[key] == value).all())
        for key, value in after.items()
        if key.endswith("weight")
    )
    results = json.loads((tmp_path / "run" / "results_yard.json").read_text())
    assert results["manifest_hash"] == manifest.hash


def test_a_set_for_testing_alone_is_tested_on_and_not_trained_on(hall: Path) -> None:
    shutil.rmtree(hall.parent / "images" / "bounding_box_train")
    cfg = get_cfg([str(hall)])
    cfg.DATASETS.ROOT, cfg.DATASETS.NAMES = str(hall.parent / "sets"), ["hall"]
    groups = {sample.group for sample in build_test_set(cfg, "hall").samples}
    assert {"query", "gallery", "query_hr"} <= groups
    with pytest.raises(ConfigError, match=r"DATASETS\.NAMES: hall has no training images"):
        build_train_dataset(cfg)
    cfg.DATASETS.COMBINEALL = True
    assert len(build_train_dataset(cfg))


@pytest.mark.parametrize("command", ["eval", "report", "gates", "objective", "choose-sigma"])
def test_commands_take_a_recipes_file_for_a_data_set(
    command: str, hall: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The option is read before the run, which isn't there.
    assert main([command, "no_run", "--data-set", str(hall)]) == 2
    assert registered(DATASET_REGISTRY, "hall")
    hall.write_text("name: hall")
    with pytest.raises(SystemExit):
        main([command, "no_run", "--data-set", str(hall)])
    assert f"{hall}: no base" in capsys.readouterr().err


def test_an_unknown_training_kernel_is_named() -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.LR\.KERNEL: 'bicubc'.*Did you mean 'bicubic'"):
        from lrreid_ext.data.loaders import check_input

        cfg = get_cfg()
        cfg.INPUT.LR.KERNEL = "bicubc"
        check_input(cfg)


# ---------------------------------------------------------------------- kernels of a plugin

PLUGIN = """\
from lrreid_ext.data.recipes import FolderRecipe, add_recipe, preset
from lrreid_ext.registry import KERNEL_REGISTRY


@KERNEL_REGISTRY.register()
def night(image, size, draws):
    gain = draws.uniform("gain", 0.2, 0.6)
    return image.resize((size[1], size[0])).point(lambda value: value * gain)


class NightRecipe(FolderRecipe):
    pass


add_recipe(preset(NightRecipe, "night_folder", "after dark", kernel="night"))
"""


def test_workers_know_the_kernels_and_recipes_of_a_plugin(hall: Path, tmp_path: Path) -> None:
    """The workers are forked off a process that has imported no plugin."""
    (tmp_path / "night.py").write_text(PLUGIN)
    for workers, out in (("1", "one"), ("2", "two")):
        command = ["night_folder", "--plugin", str(tmp_path / "night.py"), "--workers", workers]
        command += ["--source", str(tmp_path / "images"), "--out", str(tmp_path / out)]
        assert main(["build", *command]) == 0
    assert load_manifest(tmp_path / "one") == load_manifest(tmp_path / "two")
    for image in load_manifest(tmp_path / "two").of_role("query"):
        assert image.kernel == "night"
        assert set(image.parameters) == {"gain"} and 0.2 <= image.parameters["gain"] <= 0.6


def test_a_kernel_that_makes_something_else_is_named(tmp_path: Path) -> None:
    from lrreid_ext.data.degrade import degrade

    (tmp_path / "odd.py").write_text(
        "from lrreid_ext.registry import KERNEL_REGISTRY\n"
        "@KERNEL_REGISTRY.register()\n"
        "def odd(image, size, draws):\n"
        "    return image.resize(size)\n"
    )
    get_cfg([str(tmp_path / "odd.py")])
    assert str(tmp_path / "odd.py") in imported_plugins()
    with pytest.raises(ValueError, match=r"'odd' made a RGB image of 4 x 8 pixels .* 8 x 4 were"):
        degrade(Image.new("RGB", (8, 16)), 2, "odd")
