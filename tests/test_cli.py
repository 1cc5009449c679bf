"""``lrreid``: every command is listed and answers --help; the lists name what is registered."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

from lrreid_ext import cli
from lrreid_ext.commands import list as listing

COMMANDS = cli.commands()


def test_every_command_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"train", "eval", "build", "bench", "list"} <= set(COMMANDS)
    assert all(COMMANDS.values())
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: lrreid {name}" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["biuld"]) == 2
    assert "Did you mean 'build'?" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "tools").glob("*.py")))
def test_a_script_says_what_its_command_says(script: str) -> None:
    tree = ast.parse((ROOT / "tools" / script).read_text())
    doc = ast.get_docstring(tree) or ""
    of = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    command = [m for m in of if m.startswith("lrreid_ext.commands.")]
    if command:
        said = import_module(command[0]).__doc__ or ""
        assert doc.split("\n")[0] == said.split("\n")[0]


# What is listed after `lrreid list` has loaded all, beside what is registered.
LISTED = """
import json
from lrreid_ext.commands import list as listing
from lrreid_ext.registry import FRONTEND_REGISTRY, names
assert listing.main([]) == 0
rows = {kind: found() for kind, (_, found) in listing.KINDS.items()}
print(json.dumps([rows, names(FRONTEND_REGISTRY)]))
"""


def test_list_shows_every_entry_with_a_line() -> None:
    # In a process of its own: other tests register entries, which stay.
    done = subprocess.run(
        [sys.executable, "-c", LISTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown, _, last = done.stdout.rstrip().rpartition("\n")
    rows, frontends = json.loads(last)
    assert [kind for kind in listing.KINDS if f"{kind} (" not in shown] == ["hooks"]
    for kind in set(listing.KINDS) - {"hooks"}:
        assert rows[kind]
        assert all(line for _, line in rows[kind]), kind
    assert [name for name, _ in rows["frontends"]] == frontends
    assert {"SING", "PSHRNet", "FFSR_RIFE"} <= {name for name, _ in rows["methods"]}


def test_list_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["recipies"]) == 2
    assert "Did you mean 'recipes'?" in capsys.readouterr().err
    assert listing.main(["--plugins", "no_such_module"]) == 2
    assert "no_such_module" in capsys.readouterr().err


def test_an_interruption_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(status: int) -> int:
        if status:
            return status
        raise KeyboardInterrupt

    assert cli.guarded(interrupted, 3) == 3
    assert cli.guarded(interrupted, 0) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    late = "import time; time.sleep(1); from lrreid_ext.cli import main; exit(main(['--help']))"
    done = subprocess.run(
        f'{sys.executable} -u -c "{late}" | true; echo ${{PIPESTATUS[0]}}',
        shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("141", "")
