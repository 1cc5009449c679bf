"""``lrreid``: every command is listed and answers --help; the lists name what is registered."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lrreid_ext import cli
from lrreid_ext.commands import list as listing

COMMANDS = cli.commands()


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_not_import_torch(option: str) -> None:
    done = python(
        "import sys; from lrreid_ext.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'fastreid', 'numpy'} & set(sys.modules); sys.exit(status)",
        option,
    )
    assert done.returncode == 0, done.stderr
    if option == "--help":
        assert {"train", "eval", "sweep", "gates", "classical"} <= set(COMMANDS)
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
        assert all(line for _, line in COMMANDS.values())
    else:
        assert done.stdout.startswith("lrreid 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: lrreid {name}" in capsys.readouterr().out


STRANGER = """
'''Say a word.

Twice, if asked.
'''
from lrreid_ext.errors import ConfigError

COMMANDS = {"say": ("stranger", "say a word")}
INTERRUPTED = "ask again"


def add_arguments(parser):
    parser.add_argument("word")
    parser.add_argument("--loud", action="store_true")


def run(args):
    if args.word == "nothing":
        raise ConfigError("WORD: say something")
    if args.word == "stop":
        raise KeyboardInterrupt
    print(args.word.upper() if args.loud else args.word)
    return 3 if args.word == "three" else None
"""


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        (["hello"], 0, "hello\n", ""),
        (["--loud", "hello"], 0, "HELLO\n", ""),
        (["three"], 3, "three\n", ""),
        (["nothing"], 2, "", "error: WORD: say something\n"),
        (["stop"], 130, "", "interrupted; ask again\n"),
    ],
)
def test_a_plugin_brings_a_command(
    words: list[str], status: int, out: str, err: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "stranger-1.dist-info").mkdir()
    (tmp_path / "stranger-1.dist-info" / "entry_points.txt").write_text(
        "[lrreid_ext.plugins]\nstranger = stranger\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.commands()["say"] == ("stranger", "say a word")
    assert cli.main(["say", *words]) == status
    assert capsys.readouterr() == (out, err)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["biuld"]) == 2
    assert "Did you mean 'build'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_net", "build_dataset", "demo", "update_tables"])
def test_a_script_answers_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / f"tools/{name}.py"), run_name="__main__")
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


# What is listed after `lrreid list` has loaded all, beside what is registered.
LISTED = """
import json
from lrreid_ext.cli import main
from lrreid_ext.commands import list as listing
from lrreid_ext.registry import FRONTEND_REGISTRY, names
assert main(["list"]) == 0
rows = {kind: found() for kind, (_, found) in listing.KINDS.items()}
print(json.dumps([rows, names(FRONTEND_REGISTRY)]))
"""


def test_list_shows_every_entry_with_a_line() -> None:
    # In a process of its own: other tests register entries, which stay.
    done = python(LISTED)
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    rows, frontends = json.loads(last)
    assert [kind for kind in listing.KINDS if f"{kind} (" not in printed] == ["hooks"]
    for kind in set(listing.KINDS) - {"hooks"}:
        assert rows[kind]
        assert all(line for _, line in rows[kind]), kind
    assert [name for name, _ in rows["frontends"]] == frontends
    assert {"SING", "PSHRNet", "FFSR_RIFE"} <= {name for name, _ in rows["methods"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "recipies"], "Did you mean 'recipes'?"),
        (["list", "--plugins", "no_such_module"], "no_such_module"),
        (["bench", "rankin"], "Did you mean 'ranking'?"),
        (["eval"], "name a RUN"),
        (["eval", "--config-file", "x.yml", "--data-set", "caviar"], "--data-set is for RUNs"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error() -> None:
    late = "import time; time.sleep(1); from lrreid_ext.cli import main; exit(main(['list']))"
    done = subprocess.run(
        f'{sys.executable} -u -c "{late}" | true; echo ${{PIPESTATUS[0]}}',
        shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("141", "")
