"""fastreid imports on today's stack, and leaves nothing behind."""

from __future__ import annotations

import collections
import subprocess
import sys

import pytest

import lrreid_ext
from lrreid_ext.compat import INSTALL_COMMAND

BLOCK = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "fastreid" else find(name, *a)
import lrreid_ext
"""


def test_lent_names_are_taken_away_again():
    assert lrreid_ext.__version__
    assert "fastreid.engine" in sys.modules
    assert not hasattr(collections, "Mapping")
    assert "torch._six" not in sys.modules


def test_without_fastreid_the_message_is_the_command():
    done = subprocess.run([sys.executable, "-c", BLOCK], capture_output=True, text=True)
    assert done.returncode != 0
    assert INSTALL_COMMAND in done.stderr
    assert "HostNotFoundError" in done.stderr


def test_a_missing_need_of_fastreid_is_named(monkeypatch: pytest.MonkeyPatch):
    from lrreid_ext import compat

    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    monkeypatch.delitem(sys.modules, "fastreid.engine")
    monkeypatch.setattr(compat.importlib, "import_module", fail)
    with pytest.raises(compat.HostNotFoundError, match="faiss"):
        compat.import_host()
    assert not hasattr(collections, "Mapping")
