"""Folders for the Hugging Face hub: saved, loaded, uploaded and downloaded, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from conftest import ROOT, TINY

from lrreid_ext.cli import main
from lrreid_ext.config import load_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.export.hub import push_to_hub
from lrreid_ext.files import write_text
from lrreid_ext.modeling.build import build_model
from lrreid_ext.trained import load_model

RESULTS = ROOT / "benchmarks/yardstick/hr.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as a training leaves it, its last checkpoint PS-HRNet's teacher; results of
    it, and of the student that a whole training ends with."""
    out = tmp_path_factory.mktemp("runs") / "small"
    words = [
        *TINY, "MODEL.INIT.WEIGHTS", "", "OUTPUT_DIR", str(out), "MODEL.HEADS.NUM_CLASSES", "6",
        "DATASETS.ROOT", str(out.parent / "sets"),
    ]  # fmt: skip
    cfg = load_cfg(str(ROOT / "configs/osnet_teacher.yml"), words)
    model = build_model(cfg)
    out.mkdir()
    info = {"command": f"tools/train_net.py OUTPUT_DIR {out}", "phase": "teacher", "seed": 3}
    info |= {"commit": "abc1234", "epochs": 15, "of": 30, "machine": {"cpu": "a CPU"}}
    torch.save({"model": model.state_dict(), "trainer": {"info": info}}, out / "model_final.pth")
    (out / "last_checkpoint").write_text("model_final.pth")
    (out / "config.yaml").write_text(cfg.dump(sort_keys=False))
    for place, phase, epochs, gain in (
        (out / "teacher", "teacher", 15, 0),
        (out, "student", 30, 9),
    ):
        results = json.loads(RESULTS.read_text())
        results["info"]["training"] |= {"phase": phase, "epochs": epochs}
        results["groups"]["query"]["single_shot"]["Rank-1"] += gain
        write_text(place / "results_mlr_cuhk01.json", json.dumps(results))
    student = info | {"phase": "student", "epochs": 30}
    torch.save({"model": model.state_dict(), "trainer": {"info": student}}, out / "student.pth")
    return out


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    words = [str(run), "--to", "safetensors", "--license", "cc-by-nc-4.0"]
    assert main(["export", *words]) == 0
    return run / "export" / "hub"


IMAGES = torch.randint(0, 256, (3, 3, 40, 20), dtype=torch.uint8)


def test_a_folder_is_the_same_model(run: Path, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.yaml", "model.safetensors",
    ]  # fmt: skip
    original, shared = load_model(run), load_model(folder)
    # Which phase the weights are from decides that the teacher is what is evaluated.
    assert shared.module.step == original.module.step == "teacher"
    torch.testing.assert_close(shared.embed(IMAGES), original.embed(IMAGES), rtol=0, atol=0)
    assert shared.hash == original.hash
    assert load_model(f"Mine={folder}").name == "Mine"


def test_nothing_of_this_machine_is_in_it(run: Path, folder: Path) -> None:
    for path in folder.iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path.name


def test_the_card_says_what_must_be_known(run: Path, folder: Path) -> None:
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["license"] == "cc-by-nc-4.0" and "person-re-identification" in front["tags"]
    model = load_model(run)
    results = json.loads(RESULTS.read_text())
    rank1 = results["groups"]["query"]["single_shot"]["Rank-1"]
    for wanted in (
        model.hash and "weights hash", results["manifest_hash"], f"{rank1:.1f} ±", "mlr_cuhk01",
        "abc1234", "15 of 30, phase teacher", "## Limits", "## Intended use", "## Privacy",
        "6\n", "images shown in training: hr\n",
    ):  # fmt: skip
        assert wanted in body, wanted
    assert f"{rank1 + 9:.1f}" not in body


def test_a_card_gives_the_figures_of_its_own_checkpoint(run: Path, tmp_path: Path) -> None:
    words = ["--to", "safetensors", "--out", str(tmp_path)]
    assert main(["export", str(run / "student.pth"), *words]) == 0
    body = (tmp_path / "hub" / "README.md").read_text()
    shot = json.loads(RESULTS.read_text())["groups"]["query"]["single_shot"]
    assert f"{shot['Rank-1'] + 9:.1f} ±" in body and f"{shot['Rank-1']:.1f}" not in body
    assert "in phase teacher hr; in phase student mixed (low-resolution twins: factors 2, 3" in body


def test_pushed_with_the_hubs_own_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", {"repo_id": repo_id, **options}))

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            sent = sorted(p.name for p in Path(options["folder_path"]).iterdir())
            calls.append(("upload", {**options, "sent": sent}))
            return SimpleNamespace(commit_url="https://hub/me/it/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = push_to_hub(folder, "me/it", private=True)
    assert address == "https://hub/me/it/commit/1"
    assert calls[0] == ("create", {"repo_id": "me/it", "private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "me/it"
    assert calls[1][1]["sent"] == ["README.md", "config.yaml", "model.safetensors"]

    def refuse(self: Any, **options: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    words = [str(folder.parent.parent), "--to", "safetensors", "--push", "me/it"]
    assert main(["export", *words]) == 2
    assert "me/it: can't be uploaded (OSError: 401" in capsys.readouterr().err

    class ConnectError(Exception):
        """As HTTP libraries have them: related to no error of Python's."""

    def offline(self: Any, *args: Any, **options: Any) -> None:
        raise ConnectError("name or service not known")

    monkeypatch.setattr(Api, "create_repo", offline)
    assert main(["export", *words]) == 2
    assert "can't be uploaded (ConnectError: name or service" in capsys.readouterr().err


def test_downloaded_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = load_model("hub:me/it@v1")
    assert model.name == "me/it" and asked["repository"] == "me/it" and asked["revision"] == "v1"
    assert asked["allow_patterns"] == ["config.yaml", "model.safetensors", "README.md"]


def test_exports_of_a_hub_model_lie_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    assert main(["export", "hub:me/it@v1.0", "--to", "safetensors"]) == 0
    assert Path("me--it--v1.0/export/hub/model.safetensors").is_file()
    assert sorted(folder.rglob("*")) == before


def test_no_code_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_model("hub:me/it")
    for line in ("PLUGINS: [evil]", "_BASE_: /etc/passwd"):
        (tmp_path / "config.yaml").write_text(f"{line}\n")
        with pytest.raises(ConfigError, match=r"nothing of that kind is loaded from the hub"):
            load_model("hub:me/it")


def test_what_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"me/it.*no route to host.*name a folder"):
        load_model("hub:me/it")
    with pytest.raises(ConfigError, match="hub:owner/name"):
        load_model("hub:it")


def test_a_license_is_an_identifier(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(run), "--to", "safetensors", "--license", "Do what you like"]
    assert main(["export", *words, "--out", str(tmp_path)]) == 2
    assert "license:" in capsys.readouterr().err and not list(tmp_path.iterdir())
