"""fastreid imports on today's stack, at first use, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from lrreid_ext.compat import INSTALL_COMMAND

LENT = """
import sys
import lrreid_ext
assert lrreid_ext.__version__ and "torch" not in sys.modules
import collections
from fastreid.config import CfgNode
assert "fastreid.engine" in sys.modules and "torch._six" not in sys.modules
assert not hasattr(collections, "Mapping")
"""

# What can't be imported, and what the message says.
LACKING = {"fastreid": INSTALL_COMMAND, "faiss": "faiss"}
WITHOUT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *a: None if name == "{name}" else find(name, *a)
import lrreid_ext.registry
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


# A script that imports a part of fastreid first.
BEFORE = "from fastreid.config import CfgNode; import lrreid_ext, fastreid.data.build"


@pytest.mark.parametrize("code", [LENT, BEFORE])
def test_lent_names_are_taken_away_again(code: str) -> None:
    done = _python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", LACKING)
def test_what_lacks_is_named(name: str) -> None:
    done = _python(WITHOUT.format(name=name))
    assert done.returncode != 0
    assert LACKING[name] in done.stderr
    assert "HostNotFoundError" in done.stderr
