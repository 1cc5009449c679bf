"""The command line of tools/build_dataset.py."""

from __future__ import annotations

from pathlib import Path

import mini_sets
import pytest
from PIL import Image

from lrreid_ext.cli import main
from lrreid_ext.data.recipes import RECIPE_REGISTRY, build_recipe, load_manifest
from lrreid_ext.registry import DATASET_REGISTRY, names, unregister


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mini_sets.cuhk01(tmp_path / "CUHK01", people=4)


OPTIONS = ["--option", "identities=4", "--option", "train_identities=2"]


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["build", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_list_shows_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "list"]) == 0
    text = capsys.readouterr().out
    for name in names(RECIPE_REGISTRY):
        recipe = build_recipe(name)
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        for part in (recipe.source_name, recipe.where_to_get, recipe.terms):
            assert part in line
    for word in ("list", "show"):
        assert main(["build", word, "mlr_cuhk01"]) == 0
        text = capsys.readouterr().out
        recipe = build_recipe("mlr_cuhk01")
        for part in (recipe.description, recipe.terms, "factor_mode=per_image", "kernel: one of"):
            assert part in text
    assert "Did you mean 'mlr_cuhk01'" in error_of(capsys, "list", "mlr_chuk01")
    assert "one recipe at a time" in error_of(capsys, "mlr_cuhk01", "mlr_viper")


def test_build_then_verify(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["mlr_cuhk01", "--source", str(source), "--out", str(out), "--workers", "1"]
    options = [*OPTIONS, "--option", "factors=[2, 2.5]", "--option", "kernel=area"]
    assert main(["build", *args, *options]) == 0
    manifest = load_manifest(out)
    assert manifest.hash in capsys.readouterr().out
    assert manifest.options["factors"] == [2.0, 2.5]
    assert manifest.options["kernel"] == "area"
    verify = ["mlr_cuhk01", "--out", str(out), "--verify", *options]
    assert main(["build", *verify]) == 0
    assert manifest.hash in capsys.readouterr().out
    # Options that aren't given are as they are.
    assert main(["build", *verify[:4]]) == 0
    other = error_of(capsys, *verify[:4], "--option", "kernel=bicubic")
    assert "out: was built otherwise: kernel is area, not bicubic" in other
    other = error_of(capsys, "mlr_viper", *verify[1:4])
    assert "out: was built otherwise: the recipe is mlr_cuhk01, not mlr_viper" in other
    victim = out / manifest.images[0].file
    victim.write_bytes(victim.read_bytes() + b"x")
    assert main(["build", *verify]) == 1
    assert manifest.images[0].file in capsys.readouterr().err


def test_what_is_left_out_is_counted_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,identity,camera,split"]
    for k in range(24):
        role, camera = ("query", "gallery")[k % 2], 1 + k // 2 % 3
        Image.new("RGB", (8, 16)).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,{1 + k // 6},{camera},{role}")
    Image.new("RGB", (8, 16)).save(tmp_path / "crowd.png")
    lines.append("crowd.png,,2,test")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    command = ["mlr_csv", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["build", *command, "--option", "lr_camera=2"]) == 0
    first, *left_out, last = capsys.readouterr().out.splitlines()
    assert "8 gallery, 4 query," in first and last.startswith("manifest hash ")
    assert left_out == [
        "left out: 1 test image: distractors are no queries",
        "left out: 4 gallery images: of lr_camera 2",
        "left out: 8 query images: not of lr_camera 2",
    ]


def test_default_folder_and_source_beside_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrreid_ext.commands.build.DEFAULT_ROOT", str(tmp_path))
    assert main(["build", "mlr_cuhk01", *OPTIONS]) == 0
    recipe = build_recipe("mlr_cuhk01", {"identities": 4, "train_identities": 2})
    assert load_manifest(tmp_path / recipe.folder()).fits(recipe)


def test_errors_are_one_line_and_status_two(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = str(empty / "out")
    (source / "0003002.png").write_bytes(b"oops")
    given = ["--source", str(source)]
    for message, *argv in (
        ("Did you mean 'mlr_cuhk01'", "mlr_chuk01"),
        ("no such folder", "mlr_cuhk01", "--source", str(tmp_path / "x")),
        ("give --source", "mlr_cuhk01"),
        ("no option 'colour'", "mlr_cuhk01", "--option", "colour=red"),
        ("KEY=VALUE", "mlr_cuhk01", "--option", "split"),
        ("can't be read", "mlr_cuhk01", "--option", "factors=[2"),
        ("4 identities where 971", "mlr_cuhk01", *given),
        ("0003002.png: can't be read", "mlr_cuhk01", *given, "--workers", "1", *OPTIONS),
    ):
        assert message in error_of(capsys, *argv, "--out", out)
    assert not (empty / "out" / "manifest.json").exists()
    assert main(["build", "mlr_cuhk01", "--out", out, "--verify"]) == 1


def test_interruption_says_how_to_go_on(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = ["mlr_cuhk01", "--source", str(source), "--out", str(tmp_path / "out"), *OPTIONS]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrreid_ext.commands.build.build", interrupt)
        assert main(["build", *args]) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert main(["build", *args]) == 0


def test_plugin_brings_its_recipe(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "my_recipes.py"
    plugin.write_text(
        "from lrreid_ext.data.recipes import CUHK01Recipe, add_recipe, preset\n"
        "add_recipe(preset(CUHK01Recipe, 'tiny_cuhk', 'four people', identities=4,"
        " train_identities=2, kernel='lanczos'))\n"
    )
    out = tmp_path / "out"
    args = ["tiny_cuhk", "--plugin", str(plugin), "--source", str(source), "--out", str(out)]
    assert main(["build", *args]) == 0
    for registry in (RECIPE_REGISTRY, DATASET_REGISTRY):
        unregister(registry, "tiny_cuhk")
    assert load_manifest(out).options["kernel"] == "lanczos"
