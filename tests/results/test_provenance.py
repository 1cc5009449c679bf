from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lrreid_ext.files import write_json
from lrreid_ext.results.provenance import (
    command_line,
    commit,
    machine,
    provenance,
    relative_path,
)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) == ""  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert commit(tmp_path) == git(tmp_path, "rev-parse", "--short", "HEAD")
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path).endswith("-dirty")
    # An installation below somebody else's checkout is not that checkout.
    (tmp_path / "site-packages").mkdir()
    assert commit(tmp_path / "site-packages") == ""


def test_paths_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert relative_path(f"{here}/a/b") == os.path.join("a", "b")
    assert relative_path(f"--out={here}/a") == "--out=a"
    assert relative_path(here) == "."
    assert relative_path(f"{here}-other/a") == f"{here}-other/a"
    assert relative_path(f"{here}/../up") == f"{here}/../up"
    assert relative_path("SOLVER.BASE_LR=1") == "SOLVER.BASE_LR=1"
    assert relative_path("") == ""


def test_command_can_be_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{os.getcwd()}/tools/x.py", "a b", "TEST.RANKS", "[1, 5]"])
    assert shlex.split(command_line()) == ["tools/x.py", "a b", "TEST.RANKS", "[1, 5]"]


def test_fields() -> None:
    found = provenance("runs/model.pth")
    assert set(found) == {"command", "commit", "machine", "checkpoint"}
    assert found["checkpoint"] == "runs/model.pth"
    assert machine()["processors"] >= 1
    assert isinstance(machine()["cpu"], str)
    json.dumps(found, allow_nan=False)


def test_write_json_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1.5})
    assert json.loads(path.read_text()) == {"a": 1.5}
    for bad in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"a": bad})
    assert json.loads(path.read_text()) == {"a": 1.5}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_failed_replacement_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []
