"""What the documents say is so: links lead somewhere, commands load, keys exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from lrreid_ext import cli
from lrreid_ext.config import get_cfg, keys_of, load_cfg

PAGES = sorted(
    p
    for p in {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"),
              *ROOT.glob("projects/*/README.md")}
    if ".venv" not in p.parts
)  # fmt: skip
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"\b((?:MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER)\.[A-Z0-9_.]*[A-Z0-9])\b")
COMMAND = re.compile(r"^(?: {4,}|\$ )?((?:lrreid [a-z-]+|tools/[a-z_]+\.py)\b.*)$", re.M)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    lost = [link for link in links if not (page.parent / link).exists()]
    assert not lost


def commands_in(page: Path) -> list[list[str]]:
    """The commands of a page's blocks, comments cut off, continued lines joined."""
    text = re.sub(r"<details>.*?</details>", "", page.read_text(), flags=re.S)
    text = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in COMMAND.findall(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if commands_in(p)], ids=page_id)
def test_commands_exist_and_their_configs_load(page: Path) -> None:
    known = cli.commands()
    for words in commands_in(page):
        if words[0] == "lrreid":
            assert words[1] in known, words
            rest, trains = words[2:], words[1] in ("train", "eval")
        else:
            assert (ROOT / words[0]).is_file(), words
            rest, trains = words[1:], words[0] == "tools/train_net.py"
        if not trains or "--config-file" not in rest:
            continue
        at = rest.index("--config-file")
        if not (ROOT / rest[at + 1]).is_file():
            assert not rest[at + 1].startswith(("projects/", "configs/")), words
            continue
        options = [w for w in rest[at + 2 :] if w not in ("--eval-only", "--resume", "...")]
        if options[:1] == ["--num-gpus"]:
            options = options[2:]
        # A shell's variables are any value of their kind.
        load_cfg(str(ROOT / rest[at + 1]), [w.replace("$i", "0") for w in options])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_config_keys_exist(page: Path) -> None:
    known = set(keys_of(get_cfg())) | {"MODEL.SR", "SOLVER.AMP", "MODEL.BACKBONE.DUAL"}
    said = {m for code in CODE.findall(page.read_text()) for m in KEY.findall(code)}
    free = ("PHASES.", "DATASETS.OPTIONS.", "SOLVER.OPTIMIZERS.", "MODEL.SR.SHARPEN")
    assert not {key for key in said if key not in known and not key.startswith(free)}


def test_every_page_is_in_the_index() -> None:
    index = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= index
