"""The code in README.md and docs/ runs: every ```python block under a line ``<!-- run -->``.

A page's blocks run one after another in one namespace, in a folder that holds what they speak of: a
run in ``logs/demo/pshrnet``, ``query.png`` and ``gallery.png``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_PSHRNET
from PIL import Image

from lrreid_ext.config import load_cfg
from lrreid_ext.data.recipes import build_recipe
from lrreid_ext.files import write_text
from lrreid_ext.modeling.build import build_model

BLOCK = re.compile(r"^<!-- run -->\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages that lose their point without code that runs.
NEEDED = {"README.md", "docs/python.md", "docs/search.md"}


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert len(found) == text.count("<!-- run -->"), f"{page}: a mark without its block"
    return found


def test_pages_are_found() -> None:
    with_code = {str(p.relative_to(ROOT)) for p in PAGES if blocks(p)}
    assert with_code >= NEEDED
    code = "".join(blocks(ROOT / "docs" / "python.md"))
    for name in ("load_model(", ".embed(", ".restore(", "build_dataset(", "evaluate("):
        assert name in code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    run = tmp_path / "logs" / "demo" / "pshrnet"
    options = [*TINY_PSHRNET, "MODEL.HEADS.NUM_CLASSES", "6", "OUTPUT_DIR", str(run)]
    cfg = load_cfg(str(ROOT / "projects/PSHRNet/synth.yml"), options)
    write_text(run / "config.yaml", cfg.dump(sort_keys=False))
    torch.save({"model": build_model(cfg).state_dict()}, run / "model.pth")
    write_text(run / "last_checkpoint", "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), dtype=np.uint8)
    for name, image in zip(("query.png", "gallery.png"), pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_code_of_a_page_runs(page: Path, workplace: Path) -> None:
    namespace: dict[str, object] = {}
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        line = text[: text.index(block)].count("\n")
        # Errors then show the page's own line.
        exec(compile("\n" * line + block, str(page), "exec"), namespace)
    assert os.getcwd() == str(workplace)


def test_pages_name_the_folder_of_the_demos_people() -> None:
    cfg = load_cfg(str(ROOT / "projects/PSHRNet/synth.yml"))
    (name,) = cfg.DATASETS.NAMES
    folder = build_recipe(name, dict(cfg.DATASETS.OPTIONS[name])).folder()
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(rf"datasets/({name}[-\w]*)", text))
    assert named == {folder}
